/*
The forward run Phi, the sampler itself from z_T to the image.  It measures the error and makes the next round's target,

    y <- y + (z_0 - Phi(Psi(y)))        accelerated by the same Anderson code
*/
#include <math.h>

#include "inversion.h"

nri_status
nri_begin_forward(nri_inversion *inv)
{
    inv->phase = FORWARD;
    inv->j = 0;
    return inv->v->ops->copy(inv->v, nri_run_state(inv->sampler, inv->states, 0), STATE, NULL);
}

/* A network output that is not finite poisons the rings of its sample, and 0 * NaN would keep it there. */
static nri_status
clean_rings(nri_inversion *inv, const bool *failed)
{
    for (int i = inv->states; i < inv->noises; i++) {
        NRI_TRY(inv->v->ops->copy(inv->v, i, Z0, failed));
    }
    return inv->v->ops->copy(inv->v, END, Z0, failed);
}

static void
log_target(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->error[b] = isinf(s->best[b]) ? NAN : s->scale[b] > 0 ? s->best[b] / s->scale[b] : s->best[b];
        if (s->reason[b] == NRI_NON_FINITE) {
            inv->reason[b] = NRI_NON_FINITE;
        }
        else if (s->finished[b] && inv->options.refine > 0 && inv->reason[b] != NRI_NON_FINITE) {
            inv->reason[b] = s->reason[b];
        }
        inv->idle[b] |= s->reason[b] != NRI_RUNNING;
    }
}

static nri_status
end_forward(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    bool running = false, failed = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        if (inv->idle[b] && s->reason[b] == NRI_RUNNING) {
            s->reason[b] = NRI_NON_FINITE; /* given up on the way here: nothing is measured */
        }
    }
    NRI_TRY(nri_combine_all(inv, nri_solve_f(s), (nri_rows){Z0, 3, 1}, (double[]){1, 1, -1}));
    NRI_TRY(nri_combine_all(inv, nri_solve_r(s), (nri_rows){Z0, 2, END - Z0}, (double[]){1, -1}));
    NRI_TRY(nri_solve_advance(s, Y));
    NRI_TRY(nri_keep_best(inv, s->improved));
    log_target(inv);
    for (int64_t b = 0; b < inv->v->batch; b++) {
        running |= !inv->idle[b];
        failed |= s->failed[b];
    }
    if (failed) {
        NRI_TRY(clean_rings(inv, s->failed));
    }
    if (running) {
        return nri_begin_sweep(inv);
    }
    inv->phase = DONE;
    return NRI_OK;
}

nri_status
nri_feed_forward(nri_inversion *inv, const nri_tensor *model_output)
{
    const nri_sampler *s = inv->sampler;
    int j = inv->j, next = j + 1 < s->evaluations ? nri_run_state(s, inv->states, j + 1) : END;
    nri_run run = {s, inv->v, inv->states, inv->outputs, inv->noises, inv->coef};
    NRI_TRY(nri_load_answer(inv, nri_run_output(s, inv->outputs, j), model_output));
    NRI_TRY(nri_run_step(&run, j, next));
    if (inv->trajectory >= 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->trajectory + j + 1, next, NULL));
    }
    inv->j = j + 1;
    return inv->j < s->evaluations ? NRI_OK : end_forward(inv);
}
