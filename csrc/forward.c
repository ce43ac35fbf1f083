/*
The forward run Phi, the sampler itself from z_T to the image.  It measures the error and makes the next round's target,

    y <- y + (z_0 - Phi(Psi(y)))        accelerated by the same Anderson code
*/
#include <math.h>

#include "inversion.h"

static nri_status
begin(nri_inversion *inv)
{
    inv->j = 0;
    return inv->v->ops->copy(inv->v, nri_run_state(&inv->forward, 0), STATE, NULL);
}

static int
sample(const nri_inversion *inv)
{
    return nri_run_state(&inv->forward, inv->j);
}

static void
log_target(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->result.error[b] = isinf(s->best[b]) ? NAN : s->scale[b] > 0 ? s->best[b] / s->scale[b] : s->best[b];
        inv->result.measured[b] = isfinite(inv->result.error[b]);
        bool judged = s->finished[b] && inv->options.rounds > 0 && inv->result.reason[b] != NRI_NON_FINITE;
        if (judged || s->reason[b] == NRI_NON_FINITE) {
            inv->result.reason[b] = s->reason[b];
        }
        inv->idle[b] |= s->reason[b] != NRI_RUNNING;
    }
}

static nri_status
end_forward(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        if (inv->idle[b] && s->reason[b] == NRI_RUNNING) {
            s->reason[b] = NRI_NON_FINITE; /* given up on the way here: nothing is measured */
        }
    }
    NRI_TRY(nri_combine_all(inv, nri_solve_f(s), (nri_rows){Z0, 3, 1}, (double[]){1, 1, -1}));
    NRI_TRY(nri_combine_all(inv, nri_solve_r(s), (nri_rows){Z0, 2, END - Z0}, (double[]){1, -1}));
    NRI_TRY(s->feed(s, Y));
    NRI_TRY(nri_keep_best(inv, s->improved));
    log_target(inv);
    NRI_TRY(inv->v->ops->copy(inv->v, END, Z0, s->failed));
    return nri_run_clean(&inv->forward, Z0, s->failed);
}

static nri_status
feed(nri_inversion *inv, const nri_tensor *answer, bool *ended)
{
    int E = inv->sampler->evaluations, next = inv->j + 1 < E ? nri_run_state(&inv->forward, inv->j + 1) : END;
    NRI_TRY(nri_load_answer(inv, nri_run_output(&inv->forward, inv->j), answer));
    NRI_TRY(nri_run_step(&inv->forward, inv->j, next));
    NRI_TRY(nri_keep_state(inv, inv->j + 1, next));
    *ended = ++inv->j == E;
    return *ended ? end_forward(inv) : NRI_OK;
}

const nri_phase nri_forward = {begin, feed, sample, false};
