/*
One step of the sweep Psi, which leads from a target y back to z_T: an implicit equation,

    s_j = c + beta m_j(s_j)        c = (s_{j+1} - h m_{j+1} - C n) / A        beta = -b / A

A multistep sampler remembers network outputs of noisier steps, which a sweep does not know yet.  They are extrapolated
linearly in the step index from the two it knows, m_k = m_j + rho (j - k) (m_j - m_{j+1}), so that the step keeps the form
above with b = sum_{k<=j} b_k (1 + rho (j - k)) and h = -rho sum_{k<j} b_k (j - k).  The error this makes is what the
rounds correct; sweeps that reuse the outputs of the last round instead were seen to diverge.

The first guess of a step is c + beta m_{j+1}: the output of the cleaner step before it costs nothing.

The first step has none: its caller may give one (`guess`), best a natural noisy image of that level.
*/
#include <math.h>

#include "inversion.h"

/* From this kappa on two evaluations are mixed by type I. */
static const double STIFF = 0.8;

/* The first guess Z of a step whose equation is laid out; coef: of the rows STATE, M_PREV, NOISE in C. */
static nri_status
guess_state(nri_inversion *inv, double *coef)
{
    const nri_vec_ops *ops = inv->v->ops;
    if (inv->options.predictor && inv->have_prev) {
        coef[1] += inv->beta;
        return nri_combine_all(inv, Z, (nri_rows){STATE, 3, 1}, coef);
    }
    if (inv->have_prev || !inv->options.guess) {
        return ops->copy(inv->v, Z, STATE, NULL);
    }
    if (inv->target.k > 0) { /* a guess that does not follow the target slows the rounds down */
        return nri_combine_all(inv, Z, (nri_rows){Z0, 4, 1}, (double[]){-1, 1, 0, 1});
    }
    return ops->copy(inv->v, Z, GUESS, NULL);
}

/* What the solver wants to know of the step beside its equation. */
static nri_status
describe(nri_inversion *inv, double A)
{
    nri_solve *s = &inv->step;
    s->slope = inv->beta;
    s->weight = fabs(A) > 1 ? 1 / (1 - 1 / (A * A)) : 1;
    s->type_one = inv->options.solver == NRI_AUTO && inv->allowance[inv->j] == 2 && nri_kappa(inv->sampler, inv->j) >= STIFF;
    return s->mean < 0 ? NRI_OK : nri_combine_all(inv, s->mean, (nri_rows){STATE, 1, 1}, (double[]){1 / A});
}

/* Lay out the equation of step j: C, beta and the first guess Z. */
static nri_status
begin(nri_inversion *inv)
{
    const nri_sampler *s = inv->sampler;
    const double *row = back_row(s, inv->j), A = row[0];
    NRI_TRY(nri_begin_step(inv));
    int j = inv->j;
    double rho = inv->have_prev ? inv->options.extrapolation : 0, b = row[1 + j], h = 0;
    bool noisy;
    for (int k = 0; k < j; k++) {
        b += row[1 + k] * (1 + rho * (j - k));
        h -= row[1 + k] * rho * (j - k);
    }
    inv->beta = -b / A;
    NRI_TRY(nri_sum_used(inv->v, NOISE, inv->forward.noises, s->noises, row + 1 + s->evaluations, &noisy));
    double coef[3] = {1 / A, -h / A, noisy ? -1 / A : 0};
    NRI_TRY(nri_combine_all(inv, C, (nri_rows){STATE, 3, 1}, coef));
    NRI_TRY(guess_state(inv, coef));
    NRI_TRY(describe(inv, A));
    return nri_begin_equation(inv);
}

/* f and r of the current iterate. */
static nri_status
evaluate(nri_inversion *inv)
{
    int f = nri_solve_f(&inv->step);
    NRI_TRY(nri_combine_all(inv, f, (nri_rows){C, 2, 1}, (double[]){1, inv->beta}));
    return nri_combine_all(inv, nri_solve_r(&inv->step), (nri_rows){Z, 2, f - Z}, (double[]){-1, 1});
}

/*
The output that belongs to z = c + beta m, a mixture like z, is nearer to that at z than the last one.  With memory beta can
all but vanish, and rounding would be what is left.
*/
static nri_status
mix_output(nri_inversion *inv)
{
    bool finished = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        finished |= inv->step.finished[b];
    }
    if (!finished || !inv->sampler->first_order || inv->beta == 0) {
        return NRI_OK;
    }
    return nri_combine_all(inv, M, (nri_rows){C, 2, Z - C}, (double[]){-1 / inv->beta, 1 / inv->beta});
}

static nri_status
feed(nri_inversion *inv, const nri_tensor *answer, bool *ended)
{
    nri_solve *s = &inv->step;
    bool value = s->asks == NRI_VALUE;
    NRI_TRY(nri_load_answer(inv, value ? M : s->product, answer));
    if (value) {
        NRI_TRY(evaluate(inv));
    }
    NRI_TRY(s->feed(s, Z));
    if (value) {
        NRI_TRY(inv->v->ops->copy(inv->v, M, M_PREV, s->failed));
    }
    NRI_TRY(mix_output(inv));
    return nri_settle(inv, ended);
}

const nri_phase nri_sweep = {begin, feed, NULL, true};
