/*
What the linear form tells of each step: how slowly its equation contracts, which noise it can absorb, and how many
evaluations it may take.

`auto` is Anderson's method with E max_nfe evaluations dealt out unevenly: a minority of slow steps gets half as many again
each; where steps absorb, the first step, which alone is solved, gets twice as many.  The others share the rest, the
noisiest first.
*/
#include <math.h>

#include "inversion.h"

/* A step with kappa above SLOW hardly contracts. */
static const double SLOW = 0.75;
/* What `auto` gives a slow step, and the first one where the others absorb, over max_nfe. */
static const double SLOW_SHARE = 1.5, ABSORB_SHARE = 2;
/* Slow steps are a minority up to this part of all: more of them would leave the others too little. */
enum { MINORITY = 4 };

double
nri_kappa(const nri_sampler *s, int j)
{
    double sigma = s->levels ? s->levels[2 * j + 1] : 0;
    return sigma > 0 ? fabs(back_row(s, j)[1 + j] / (back_row(s, j)[0] * sigma)) : 0;
}

int
nri_absorbing_noise(const nri_sampler *s, const nri_options *o, int j)
{
    int found = -1, users = 0;
    if (!o->absorb || !s->levels || s->levels[2 * j + 1] <= 0 || s->levels[2 * j + 3] <= 0) {
        return -1;
    }
    for (int k = 0; k < s->noises; k++) {
        if (back_row(s, j)[1 + s->evaluations + k] != 0) {
            if (found >= 0) {
                return -1;
            }
            found = k;
        }
    }
    for (int i = 0; found >= 0 && i < s->evaluations; i++) {
        users += back_row(s, i)[1 + s->evaluations + found] != 0;
    }
    return users == 1 ? found : -1;
}

/* How the evaluations are dealt out: `more` to each favoured step, `rest` among the `sharing` others. */
typedef struct {
    bool absorbing;
    int more, rest, sharing;
} deal;

static bool
favoured(const nri_sampler *s, const deal *d, int j)
{
    return d->absorbing ? j == s->evaluations - 1 : nri_kappa(s, j) > SLOW;
}

/* False if every step gets max_nfe. */
static bool
deal_out(const nri_sampler *s, const nri_options *o, deal *d)
{
    int E = s->evaluations, slow = 0;
    *d = (deal){.absorbing = false};
    if (o->solver != NRI_AUTO || o->order == NRI_PASSES || !s->first_order || o->max_nfe < 2 || E == 1) {
        return false;
    }
    for (int j = 0; j < E; j++) {
        slow += nri_kappa(s, j) > SLOW;
        d->absorbing |= nri_absorbing_noise(s, o, j) >= 0;
    }
    if (!d->absorbing && (!slow || slow > E / MINORITY)) {
        return false;
    }
    int preferred = d->absorbing ? 1 : slow;
    d->more = (int)ceil((d->absorbing ? ABSORB_SHARE : SLOW_SHARE) * o->max_nfe);
    d->rest = E * o->max_nfe - preferred * d->more;
    d->sharing = E - preferred;
    return d->rest >= d->sharing; /* every step needs one */
}

int
nri_allot(const nri_sampler *s, const nri_options *o, int *allowance)
{
    deal d;
    bool uneven = deal_out(s, o, &d);
    int largest = 0;
    for (int j = 0, rank = 0; j < s->evaluations; j++) {
        bool more = uneven && favoured(s, &d, j);
        int given = !uneven ? o->max_nfe : more ? d.more : d.rest / d.sharing + (rank < d.rest % d.sharing);
        rank += !more;
        largest = most(largest, given);
        if (allowance) {
            allowance[j] = given;
        }
    }
    return largest;
}
