/* What all phases of an inversion do with its slots and logs. */
#include <float.h>
#include <math.h>

#include "inversion.h"

nri_status
nri_combine_all(nri_inversion *inv, int dst, nri_rows rows, const double *coef)
{
    return inv->v->ops->combine(inv->v, dst, rows, coef, 0);
}

/* The rows of resting samples may hold anything, and 0 * NaN would spread it. */
nri_status
nri_load_answer(nri_inversion *inv, int dst, const nri_tensor *answer)
{
    NRI_TRY(inv->v->ops->exchange(inv->v, dst, answer, NRI_LOAD));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->result.nfe[b] += inv->active[b];
    }
    inv->result.evaluations++;
    return inv->v->ops->copy(inv->v, dst, Z0, inv->resting);
}

nri_status
nri_keep_best(nri_inversion *inv, const bool *which)
{
    NRI_TRY(inv->v->ops->copy(inv->v, BEST, STATE, which));
    for (int j = 0; inv->result.trajectory != inv->trajectory && j <= inv->sampler->evaluations; j++) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->result.trajectory + j, inv->trajectory + j, which));
    }
    return NRI_OK;
}

nri_status
nri_keep_state(nri_inversion *inv, int j, int state)
{
    return inv->trajectory >= 0 ? inv->v->ops->copy(inv->v, inv->trajectory + j, state, NULL) : NRI_OK;
}

nri_status
nri_begin_step(nri_inversion *inv)
{
    int E = inv->sampler->evaluations;
    inv->have_prev = inv->j < E - 1;
    if (inv->have_prev) {
        return NRI_OK;
    }
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, Y, NULL));
    return nri_keep_state(inv, E, Y);
}

nri_status
nri_begin_equation(nri_inversion *inv)
{
    NRI_TRY(nri_norms(inv->v, Z, inv->step.scale));
    inv->step.max_nfe = inv->allowance[inv->j];
    nri_solve_begin(&inv->step, inv->idle);
    return NRI_OK;
}

void
nri_say_error(nri_inversion *inv, int64_t b, double missed)
{
    double size = inv->target.scale[b], error = missed / (size > 0 ? size : 1);
    inv->result.error[b] = inv->result.reason[b] != NRI_NON_FINITE && isfinite(error) ? error : NAN; /* it may overflow */
}

/*
The error of a redraw from what its steps miss.  The state that a step returns is off by the residual that it is made with,
times `rate`; the sampler takes that on, and stretches it by |A| `stretch` in each further step.  What one step has not told
is that of the step before.
*/
static void
estimate(nri_inversion *inv, int64_t b, double miss)
{
    const nri_solve *s = &inv->step;
    int E = inv->sampler->evaluations;
    double A = fabs(back_row(inv->sampler, inv->j)[0]);
    if (inv->j == E - 1) {
        inv->grown[b] = inv->rate[b] = inv->stretch[b] = 1;
        inv->missed[b] = 0;
    }
    if (isfinite(s->stretch[b])) {
        inv->rate[b] = s->rate[b];
        inv->stretch[b] = s->stretch[b];
        inv->result.growth[b] = fmax(A * s->stretch[b], isnan(inv->result.growth[b]) ? 0 : inv->result.growth[b]);
    }
    miss = fmax(miss * inv->rate[b], FLT_EPSILON * s->scale[b]);
    inv->missed[b] = hypot(inv->missed[b], A * miss * inv->grown[b]);
    inv->grown[b] *= A * inv->stretch[b];
    nri_say_error(inv, b, inv->missed[b]);
}

static void
log_step(nri_inversion *inv, int64_t b)
{
    const nri_solve *s = &inv->step;
    int64_t at = inv->j * inv->v->batch + b;
    inv->result.residual[at] = s->scale[b] > 0 ? s->residual[b] / s->scale[b] : s->residual[b];
    inv->result.step_nfe[at] = s->nfe[b];
    nri_reason before = inv->j == inv->sampler->evaluations - 1 ? NRI_RUNNING : inv->result.reason[b];
    inv->result.reason[b] = before > s->reason[b] ? before : s->reason[b]; /* the worse of the two */
    if (!inv->result.measured[b]) {
        estimate(inv, b, inv->absorbs >= 0 ? 0 : s->mixed[b]);
    }
}

nri_status
nri_settle(nri_inversion *inv, bool *ended)
{
    for (int64_t b = 0; b < inv->v->batch; b++) {
        if (inv->step.finished[b]) {
            log_step(inv, b);
        }
        inv->idle[b] |= inv->step.reason[b] == NRI_NON_FINITE;
    }
    /* what the equation needs of s_{j+1} and m_{j+1} is in C: their slots may be reused */
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, Z, inv->step.finished));
    NRI_TRY(inv->v->ops->copy(inv->v, M_PREV, M, inv->step.finished));
    *ended = !nri_solve_running(&inv->step);
    return *ended ? nri_keep_state(inv, inv->j, STATE) : NRI_OK;
}

/* Sums of finite numbers may overflow after the last evaluation: such a result is said to be none, and made finite. */
static nri_status
seal_slot(nri_inversion *inv, int slot)
{
    NRI_TRY(nri_norms(inv->v, slot, inv->coef));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->resting[b] = !isfinite(inv->coef[b]);
        inv->result.reason[b] = inv->resting[b] ? NRI_NON_FINITE : inv->result.reason[b];
    }
    return inv->v->ops->copy(inv->v, slot, Z0, inv->resting);
}

nri_status
nri_seal(nri_inversion *inv)
{
    const nri_result *r = &inv->result;
    int E = inv->sampler->evaluations, K = inv->options.absorb && !inv->options.correct_only ? inv->sampler->noises : 0;
    NRI_TRY(seal_slot(inv, r->latents));
    for (int j = 0; r->trajectory >= 0 && j <= E; j++) {
        NRI_TRY(seal_slot(inv, r->trajectory + j));
    }
    for (int k = 0; k < K; k++) {
        NRI_TRY(seal_slot(inv, r->noises + k));
    }
    return NRI_OK;
}
