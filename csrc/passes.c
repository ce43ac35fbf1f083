/*
Whole passes: the network is evaluated in the sampler's own order, again and again, at the states of an estimate of the whole
trajectory X = (s_0 .. s_{E-1}).  From the outputs m_j = m_j(s_j) of one pass the way back is known,

    G_E = z_0        G_j = (G_{j+1} - sum_{k<=j} b_jk m_k - sum_k C_jk n_k) / A_j

exact for multistep samplers as well, since all outputs are there.  X = G(X) is solved by solve.c like the equation of a
step, on all states at once.  One pass costs E evaluations.

Norms and inner products are taken of s_j / sqrt(S_j^2 + sigma_j^2), so that all states count alike: without that the noisy
ones of a variance-exploding sampler drown the others.  Without levels it is i_j s_j, what the network sees.

The first estimate is the forward process, s_j = S_j z_0 + sigma_j n with n from the caller's guess of s_{E-1}.  Without
levels or a guess it is the way back without network outputs and noises, s_j = s_{j+1} / A_j.
*/
#include <math.h>

#include "inversion.h"

/* The slots of the stack, each a trajectory, then the rings of `step`.  Rows of one combination: STATES and a ring. */
enum { STATES, FIRST, PASS_BEST_F, PASS_BEST_R, PASS_SPARE, PASS_RINGS };

static int
stack_slots(int depth)
{
    return PASS_RINGS + 2 * (depth + 1);
}

int64_t
nri_passes_slots(const nri_sampler *s, int depth)
{
    return (int64_t)s->evaluations * (1 + stack_slots(depth));
}

/* The output m_j. */
static int
output(const nri_inversion *inv, int j)
{
    return inv->passes + j;
}

/* State j of a trajectory in the stack. */
static int
state(const nri_inversion *inv, int slot, int j)
{
    return inv->passes + (1 + slot) * inv->sampler->evaluations + j;
}

static int
sample(const nri_inversion *inv)
{
    return state(inv, STATES, inv->j);
}

nri_status
nri_create_stack(nri_inversion *inv, int depth, nri_solve_slots *slot)
{
    int E = inv->sampler->evaluations;
    const double *levels = inv->sampler->levels;
    double *weights = inv->coef;
    for (int j = 0; j < E; j++) {
        double size = levels ? hypot(levels[2 * j], levels[2 * j + 1]) : 0;
        weights[j] = size > 0 ? 1 / size : fabs(inv->sampler->inputs[j]);
    }
    *slot = (nri_solve_slots){PASS_RINGS, PASS_RINGS + depth + 1, PASS_BEST_F, PASS_BEST_R, PASS_SPARE, FIRST, -1};
    return nri_space_create_stack(inv->v, state(inv, 0, 0), E, stack_slots(depth), weights, &inv->stack);
}

/* dst = G, or the way back without outputs and noises. */
static nri_status
go_back(nri_inversion *inv, int dst, bool evaluated)
{
    const nri_sampler *s = inv->sampler;
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, Z0, NULL));
    for (int j = s->evaluations - 1; j >= 0; j--) {
        const double *row = back_row(s, j);
        bool fed = false, noisy = false;
        if (evaluated) {
            NRI_TRY(nri_sum_used(inv->v, M_PREV, output(inv, 0), j + 1, row + 1, &fed));
            NRI_TRY(nri_sum_used(inv->v, NOISE, inv->forward.noises, s->noises, row + 1 + s->evaluations, &noisy));
        }
        double coef[3] = {1 / row[0], fed ? -1 / row[0] : 0, noisy ? -1 / row[0] : 0};
        NRI_TRY(nri_combine_all(inv, state(inv, dst, j), (nri_rows){STATE, 3, 1}, coef));
        NRI_TRY(inv->v->ops->copy(inv->v, STATE, state(inv, dst, j), NULL));
    }
    return NRI_OK;
}

static nri_status
begin(nri_inversion *inv)
{
    const nri_sampler *s = inv->sampler;
    int E = s->evaluations;
    const double *levels = s->levels, *last = levels ? levels + 2 * (E - 1) : NULL;
    inv->j = 0;
    NRI_TRY(go_back(inv, FIRST, false));
    NRI_TRY(inv->stack->ops->copy(inv->stack, STATES, FIRST, NULL));
    if (inv->options.guess && inv->options.predictor && last && last[1] > 0) {
        for (int j = 0; j < E; j++) {
            double share = levels[2 * j + 1] / last[1], coef[2] = {levels[2 * j] - share * last[0], share};
            NRI_TRY(nri_combine_all(inv, state(inv, STATES, j), (nri_rows){Z0, 2, GUESS - Z0}, coef));
        }
    }
    nri_solve_begin(&inv->step, NULL);
    return NRI_OK;
}

/*
|G_j - s_j| / |s_j| of the samples that a pass has evaluated, what that leaves of the image where no step stretches it, and
the norm that tol refers to.
*/
static nri_status
log_pass(nri_inversion *inv, int r)
{
    int64_t B = inv->v->batch;
    double *size = inv->coef, *miss = size + B, *whole = miss + B; /* of one state, and of all the way back */
    NRI_TRY(nri_norms(inv->v, state(inv, r, 0), whole));
    for (int j = 0; j < inv->sampler->evaluations; j++) {
        NRI_TRY(nri_norms(inv->v, state(inv, STATES, j), size));
        NRI_TRY(nri_norms(inv->v, state(inv, r, j), miss));
        for (int64_t b = 0; b < B; b++) {
            if (inv->active[b] && isfinite(whole[b])) { /* what is not finite reaches s_0 */
                inv->result.residual[j * B + b] = size[b] > 0 ? miss[b] / size[b] : miss[b];
                inv->missed[b] = back_row(inv->sampler, j)[0] * hypot(j > 0 ? inv->missed[b] : 0, miss[b]);
            }
            inv->result.step_nfe[j * B + b] += inv->active[b];
        }
    }
    return nri_norms(inv->stack, STATES, inv->step.scale);
}

/* What the passes leave behind: s_0 and the trajectory. */
static nri_status
end_passes(nri_inversion *inv)
{
    int E = inv->sampler->evaluations;
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, state(inv, STATES, 0), NULL));
    for (int j = 0; j < E; j++) {
        NRI_TRY(nri_keep_state(inv, j, state(inv, STATES, j)));
    }
    return nri_keep_state(inv, E, Z0);
}

/* Outputs that are not finite may meet a coefficient of 0. */
static nri_status
clean_outputs(nri_inversion *inv)
{
    for (int j = 0; j < inv->sampler->evaluations; j++) {
        NRI_TRY(inv->v->ops->copy(inv->v, output(inv, j), Z0, inv->step.failed));
    }
    return inv->v->ops->copy(inv->v, M_PREV, Z0, inv->step.failed);
}

static nri_status
end_pass(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    int f = nri_solve_f(s), r = nri_solve_r(s);
    NRI_TRY(go_back(inv, f, true));
    for (int j = 0; j < inv->sampler->evaluations; j++) {
        int from = state(inv, STATES, j), to = state(inv, f, j);
        NRI_TRY(nri_combine_all(inv, state(inv, r, j), (nri_rows){from, 2, to - from}, (double[]){-1, 1}));
    }
    NRI_TRY(log_pass(inv, r));
    NRI_TRY(s->feed(s, PASS_SPARE));
    NRI_TRY(inv->stack->ops->copy(inv->stack, STATES, PASS_SPARE, inv->active)); /* finished samples stay as they are */
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->result.reason[b] = s->reason[b];
        inv->idle[b] = s->reason[b] == NRI_NON_FINITE;
        nri_say_error(inv, b, fabs(inv->missed[b]));
    }
    return clean_outputs(inv);
}

static nri_status
feed(nri_inversion *inv, const nri_tensor *answer, bool *ended)
{
    NRI_TRY(nri_load_answer(inv, output(inv, inv->j), answer));
    if (++inv->j < inv->sampler->evaluations) {
        return NRI_OK;
    }
    inv->j = 0;
    NRI_TRY(end_pass(inv));
    *ended = inv->step.asks == NRI_NOTHING;
    return *ended ? end_passes(inv) : NRI_OK;
}

const nri_phase nri_passes = {begin, feed, sample, true};
