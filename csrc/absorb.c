/*
Steps that absorb noise, and how `auto` deals out evaluations.

A noisy step can absorb what it leaves instead of being solved.  Its state is drawn from the forward process given s_{j+1}
and z_0, with the caller's noise w as the draw,

    s_j = S_j z_0 + k (s_{j+1} - S_{j+1} z_0) + sigma_j C / sigma_{j+1} w
    k = sigma_j sqrt(sigma_{j+1}^2 - C^2) / sigma_{j+1}^2

which is the joint law of the sampler with an ideal network, and n = (s_{j+1} - A s_j - b m_j) / C replaces w.  As long as
n is larger than noise, and than the noise in the state, (s_j - S_j z_0) / sigma_j,

    s_j <- s_j + 2 (C / A) (1 - 1 / rms(n)) n

moves the surplus into the state: a fixed-point step towards the equation with n on its shell, over-relaxed because these
steps contract slowly.

`auto` is Anderson's method with E max_nfe evaluations dealt out by what the linear form tells.
*/
#include <math.h>

#include "inversion.h"

/* A step with kappa above SLOW hardly contracts. */
static const double SLOW = 0.75;
/* What `auto` gives a slow step, and the first one where the others absorb, over max_nfe. */
static const double SLOW_SHARE = 1.5, ABSORB_SHARE = 2;
static const double RELAXATION = 2;

int
nri_absorbing_noise(const nri_sampler *s, const nri_options *o, int j)
{
    int found = -1;
    if (!o->absorb || !s->levels || s->levels[2 * j + 1] <= 0 || s->levels[2 * j + 3] <= 0) {
        return -1;
    }
    for (int k = 0; k < s->noises; k++) {
        int users = 0;
        for (int i = 0; i < s->evaluations; i++) {
            users += back_row(s, i)[1 + s->evaluations + k] != 0;
        }
        if (back_row(s, j)[1 + s->evaluations + k] != 0) {
            if (found >= 0 || users != 1) {
                return -1;
            }
            found = k;
        }
    }
    return found;
}

double
nri_kappa(const nri_sampler *s, int j)
{
    double sigma = s->levels ? s->levels[2 * j + 1] : 0;
    return sigma > 0 ? fabs(back_row(s, j)[1 + j] / (back_row(s, j)[0] * sigma)) : 0;
}

/*
`auto`: a minority of slow steps gets half as many again each; where steps absorb, the first step, which alone is solved,
gets twice as many.  The others share the rest, the noisiest first.
*/
int
nri_inversion_allowance(const nri_sampler *s, const nri_options *o, int j)
{
    int E = s->evaluations, slow = 0, absorbing = 0;
    if (o->solver != NRI_AUTO || o->order == NRI_PASSES || !s->first_order || o->max_nfe < 2) {
        return o->max_nfe;
    }
    for (int i = 0; i < E; i++) {
        slow += nri_kappa(s, i) > SLOW;
        absorbing += nri_absorbing_noise(s, o, i) >= 0;
    }
    bool few = slow && slow <= E / 4, own = absorbing ? j == E - 1 : nri_kappa(s, j) > SLOW;
    if (E == 1 || !(absorbing || few)) {
        return o->max_nfe;
    }
    int favoured = absorbing ? 1 : slow, rank = 0;
    int more = (int)ceil((absorbing ? ABSORB_SHARE : SLOW_SHARE) * o->max_nfe);
    int rest = E * o->max_nfe - favoured * more, sharing = E - favoured;
    if (rest < sharing) { /* every step needs one */
        return o->max_nfe;
    }
    for (int i = 0; i < j; i++) {
        rank += absorbing || nri_kappa(s, i) <= SLOW;
    }
    return own ? more : rest / sharing + (rank < rest % sharing);
}

nri_status
nri_draw_state(nri_inversion *inv, int j)
{
    const nri_vec_ops *ops = inv->v->ops;
    const double *now = inv->sampler->levels + 2 * j, *next = now + 2;
    double C_n = back_row(inv->sampler, j)[1 + inv->sampler->evaluations + inv->absorbs];
    double share = now[1] * sqrt(fmax(next[1] * next[1] - C_n * C_n, 0)) / (next[1] * next[1]);
    NRI_TRY(nri_combine_all(inv, Z, (nri_rows){STATE, 2, Z0 - STATE}, (double[]){share, now[0] - share * next[0]}));
    NRI_TRY(ops->copy(inv->v, SPARE, inv->noises + inv->absorbs, NULL));
    return nri_combine_all(inv, Z, (nri_rows){Z, 2, SPARE - Z}, (double[]){1, now[1] * fabs(C_n) / next[1]});
}

/* The noise takes up what the step leaves; as long as it is too large, the state takes its share. */
nri_status
nri_feed_absorb(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    const double *row = back_row(inv->sampler, inv->j), A = row[0];
    double scale = row[1 + inv->sampler->evaluations + inv->absorbs], D = (double)inv->v->elements;
    double natural = 1 + 2 / sqrt(2 * D); /* two standard errors */
    const double *level = inv->sampler->levels + 2 * inv->j;
    bool failed = false;
    NRI_TRY(nri_combine_all(inv, SPARE, (nri_rows){STATE, Z + 1, 1},
                            (double[Z + 1]){[STATE] = 1 / scale, [M] = -row[1 + inv->j] / scale, [Z] = -A / scale}));
    NRI_TRY(nri_combine_all(inv, BEST_F, (nri_rows){Z, 2, Z0 - Z}, (double[]){1 / level[1], -level[0] / level[1]}));
    NRI_TRY(nri_norms(inv, BEST_F, s->best)); /* of the noise in the state */
    NRI_TRY(nri_norms(inv, SPARE, inv->defect));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        double rms = inv->defect[b] / sqrt(D);
        bool running = s->reason[b] == NRI_RUNNING;
        s->finished[b] = false;
        s->failed[b] = !isfinite(rms);
        failed |= s->failed[b];
        s->nfe[b] += running;
        inv->coef[2 * b] = 1;
        inv->coef[2 * b + 1] = 0;
        if (running && s->failed[b]) {
            nri_solve_finish(s, b, NRI_NON_FINITE);
        }
        else if (running && (rms <= natural || inv->defect[b] <= s->best[b] || s->nfe[b] >= s->max_nfe)) {
            nri_solve_finish(s, b, NRI_TOL);
            s->residual[b] = inv->defect[b] = 0;
        }
        else if (running) {
            inv->coef[2 * b + 1] = RELAXATION * scale / A * (1 - 1 / rms);
        }
    }
    if (failed) {
        NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
        NRI_TRY(ops->copy(inv->v, SPARE, inv->noises + inv->absorbs, s->failed));
    }
    NRI_TRY(ops->copy(inv->v, inv->noises + inv->absorbs, SPARE, s->finished));
    NRI_TRY(ops->combine(inv->v, Z, (nri_rows){Z, 2, SPARE - Z}, inv->coef));
    return nri_settle(inv);
}
