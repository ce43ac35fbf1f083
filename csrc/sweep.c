/*
The sweep Psi, from a target y back to z_T: one implicit equation per step,

    s_j = c + beta m_j(s_j)        c = (s_{j+1} - h m_{j+1} - C n) / A        beta = -b / A

A multistep sampler remembers network outputs of noisier steps, which a sweep does not know yet.  They are extrapolated
linearly in the step index from the two it knows, m_k = m_j + rho (j - k) (m_j - m_{j+1}), so that the step keeps the form
above with b = sum_{k<=j} b_k (1 + rho (j - k)) and h = -rho sum_{k<j} b_k (j - k).  The error this makes is what the
rounds correct; sweeps that reuse the outputs of the last round instead were seen to diverge.

The first guess of a step is c + beta m_{j+1}: the output of the cleaner step before it costs nothing.

The first step has none: its caller may give one (`guess`), best a natural noisy image of that level.

With a prior lam, Lavrentiev's regularisation, a step solves z = (f(z) + lam mu) / (1 + lam) instead, mu its first guess,
which lies where noise of that step lies.  Without a first guess, the first evaluation makes one.
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
    if (inv->absorbs >= 0) {
        return nri_draw_state(inv, inv->j);
    }
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

/* mu and w of the scalar Newton objective. */
static nri_status
forward_mean(nri_inversion *inv, double A)
{
    inv->step.weight = fabs(A) > 1 ? 1 / (1 - 1 / (A * A)) : 1;
    return nri_combine_all(inv, inv->step.slot.newton + NRI_NEWTON_MEAN, (nri_rows){STATE, 1, 1}, (double[]){1 / A});
}

/* Lay out the equation of step j: C, beta and the first guess Z. */
static nri_status
begin_step(nri_inversion *inv, int j)
{
    const nri_sampler *s = inv->sampler;
    const double *row = back_row(s, j), A = row[0];
    double rho = inv->have_prev ? inv->options.extrapolation : 0, b = row[1 + j], h = 0;
    bool noisy;
    for (int k = 0; k < j; k++) {
        b += row[1 + k] * (1 + rho * (j - k));
        h -= row[1 + k] * rho * (j - k);
    }
    inv->j = j;
    inv->beta = -b / A;
    inv->absorbs = nri_absorbing_noise(s, &inv->options, j);
    NRI_TRY(nri_sum_used(inv->v, inv->coef, NOISE, inv->noises, s->noises, row + 1 + s->evaluations, &noisy));
    double coef[3] = {1 / A, -h / A, noisy ? -1 / A : 0};
    NRI_TRY(nri_combine_all(inv, C, (nri_rows){STATE, 3, 1}, coef));
    NRI_TRY(guess_state(inv, coef));
    bool guessed = inv->have_prev || inv->options.guess;
    inv->prior = guessed ? inv->options.prior : 0;
    if (inv->prior > 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, MU, Z, NULL));
    }
    if (inv->options.solver == NRI_NEWTON) {
        NRI_TRY(forward_mean(inv, A));
    }
    NRI_TRY(nri_norms(inv, Z, inv->step.scale));
    inv->step.max_nfe = nri_inversion_allowance(s, &inv->options, j);
    inv->step.type_one = inv->options.solver == NRI_AUTO && inv->step.max_nfe == 2 && nri_kappa(s, j) >= STIFF;
    nri_solve_begin(&inv->step, inv->idle);
    return NRI_OK;
}

nri_status
nri_begin_sweep(nri_inversion *inv)
{
    inv->phase = SWEEP;
    inv->have_prev = false;
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, Y, NULL));
    if (inv->trajectory >= 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->trajectory + inv->sampler->evaluations, Y, NULL));
    }
    return begin_step(inv, inv->sampler->evaluations - 1);
}

/* The worse of two ends of a sample. */
static nri_reason
worse(nri_reason a, nri_reason b)
{
    return a > b ? a : b;
}

static void
log_step(nri_inversion *inv, int64_t b)
{
    int64_t at = inv->j * inv->v->batch + b;
    double norm = inv->step.residual[b];
    if (inv->options.prior > 0 && !isnan(norm)) { /* else the defect is that of an older step */
        norm = inv->defect[b];
    }
    inv->residual[at] = inv->step.scale[b] > 0 ? norm / inv->step.scale[b] : norm;
    inv->step_nfe[at] = inv->step.nfe[b];
    if (inv->j == inv->sampler->evaluations - 1) {
        inv->reason[b] = NRI_RUNNING;
    }
    inv->reason[b] = worse(inv->reason[b], inv->step.reason[b]);
}

static nri_status
end_step(nri_inversion *inv)
{
    bool running = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->idle[b] |= inv->step.reason[b] == NRI_NON_FINITE;
        running |= !inv->idle[b];
    }
    inv->have_prev = true;
    if (inv->trajectory >= 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->trajectory + inv->j, STATE, NULL));
    }
    if (inv->measure && inv->target.k == 0 && (inv->j == 0 || !running)) {
        NRI_TRY(nri_keep_best(inv, NULL)); /* something to return if nothing can be measured */
    }
    if (running && inv->j > 0) {
        return begin_step(inv, inv->j - 1);
    }
    if (running && inv->measure) {
        return nri_begin_forward(inv);
    }
    inv->phase = DONE;
    return NRI_OK;
}

/* f and r of the current iterate, and with a prior the defect of the unregularised equation. */
static nri_status
evaluate(nri_inversion *inv)
{
    int f = nri_solve_f(&inv->step);
    double whole = 1 + inv->prior, coef[3] = {1 / whole, inv->beta / whole, inv->prior / whole};
    if (inv->options.prior > 0) {
        NRI_TRY(nri_combine_all(inv, SPARE, (nri_rows){C, 4, 1}, (double[]){1, inv->beta, 0, -1}));
        NRI_TRY(nri_norms(inv, SPARE, inv->coef));
        for (int64_t b = 0; b < inv->v->batch; b++) {
            if (inv->step.reason[b] == NRI_RUNNING && isfinite(inv->coef[b])) {
                inv->defect[b] = inv->coef[b];
            }
        }
    }
    NRI_TRY(nri_combine_all(inv, f, (nri_rows){C, inv->prior > 0 ? 3 : 2, 1}, coef));
    return nri_combine_all(inv, nri_solve_r(&inv->step), (nri_rows){Z, 2, f - Z}, (double[]){-1, 1});
}

nri_status
nri_settle(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool finished = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        finished |= s->finished[b];
        if (s->finished[b]) {
            log_step(inv, b);
        }
    }
    if (!finished) {
        return NRI_OK;
    }
    /* s_{j+1} and m_{j+1} are in C already: their places take the results of finished samples. */
    NRI_TRY(ops->copy(inv->v, STATE, Z, s->finished));
    if (inv->sampler->first_order && inv->absorbs < 0 && inv->options.prior == 0 && inv->beta != 0) {
        /* the output that belongs to z = c + beta m, a mixture like z, is nearer to that at z than the last one; with memory
           beta can all but vanish, and rounding would be what is left */
        NRI_TRY(nri_combine_all(inv, M, (nri_rows){C, 2, Z - C}, (double[]){-1 / inv->beta, 1 / inv->beta}));
    }
    return ops->copy(inv->v, M_PREV, M, s->finished);
}

static nri_status
feed_solve(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool failed = false;
    NRI_TRY(evaluate(inv));
    NRI_TRY(nri_solve_advance(s, Z));
    if (inv->prior < inv->options.prior) {
        inv->prior = inv->options.prior;
        NRI_TRY(ops->copy(inv->v, MU, Z, NULL));
        nri_solve_forget(s); /* what it has seen was another equation */
    }
    for (int64_t b = 0; b < inv->v->batch; b++) {
        failed |= s->failed[b];
    }
    if (failed) {
        NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
    }
    return nri_settle(inv);
}

/* An evaluation, or the gradient that it has asked for. */
static nri_status
feed_newton(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool failed = false, gradient = inv->gradient;
    if (gradient) {
        inv->gradient = false;
    }
    else {
        NRI_TRY(evaluate(inv));
        if (inv->prior < inv->options.prior) {
            inv->prior = inv->options.prior;
            NRI_TRY(ops->copy(inv->v, MU, nri_solve_f(s), NULL));
            NRI_TRY(evaluate(inv));
        }
        NRI_TRY(nri_newton_judge(s, Z, &inv->gradient));
        for (int64_t b = 0; b < inv->v->batch; b++) {
            failed |= s->failed[b];
        }
        if (failed) {
            NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
        }
        NRI_TRY(nri_settle(inv));
        if (inv->gradient) {
            return NRI_OK;
        }
    }
    NRI_TRY(nri_newton_step(s, Z, inv->beta / (1 + inv->prior), gradient));
    return gradient ? nri_settle(inv) : NRI_OK;
}

nri_status
nri_feed_sweep(nri_inversion *inv, const nri_tensor *answer)
{
    nri_solve *s = &inv->step;
    bool newton = inv->options.solver == NRI_NEWTON;
    NRI_TRY(nri_load_answer(inv, inv->gradient ? s->slot.newton + NRI_NEWTON_PRODUCT : M, answer));
    NRI_TRY(inv->absorbs >= 0 ? nri_feed_absorb(inv) : newton ? feed_newton(inv) : feed_solve(inv));
    return inv->gradient || nri_solve_running(s) ? NRI_OK : end_step(inv);
}
