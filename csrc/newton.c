/*
Scalar Newton-Raphson on z = f(z), regularised by the forward process.

    F(z) = |z - f(z)|_1 + lam D w rms(z - mu)        z_i <- z_i - (F / D) / (sign(g_i) max(|g_i|, floor))        g = dF/dz

mu = s_{j+1} / A is the mean of the forward process over the step, w the inverse of its variance 1 - 1 / A^2 where the
step scales its state (DDIM and its kin), 1 where it does not (Euler, flow matching).  All terms are means over the elements,
so that lam means the same at every resolution.  With r = f - z and f' = slope J, J the network's Jacobian,

    g = slope J^T sign(r) - sign(r) + lam w (z - mu) / rms(z - mu)

The product with J^T is asked from the caller; like an evaluation it counts as one.  F has no root in general, and a full
step can increase it: then half the step is tried, and so on, so that F falls until the sample ends with its best f.

Ends as in solve.c: not finite twice in a row, tol, atol, max_nfe; `stalled` when the 64th part of a step does not lower F.

Source: D. Samuel et al., arXiv 2312.12540, equations 9 and 10; the norm in G, the floor and the halving are ours.
*/
#include <math.h>

#include "nrinv.h"

enum { MAX_FAILURES = 2 };
static const double SHORTEST = 1.0 / 64;

/* The ends that need no gradient; true if the sample goes on from a new best. */
static bool
judge_sample(nri_solve *s, int64_t b, double rr, double merit)
{
    double norm = sqrt(rr);
    bool finite = isfinite(rr) && isfinite(merit);
    s->nfe[b]++;
    s->failed[b] = !finite;
    if (finite) {
        s->failures[b] = 0;
        s->improved[b] = merit < s->merit[b] || norm <= s->tol * s->scale[b];
    }
    if (s->improved[b]) {
        s->merit[b] = merit;
        s->best[b] = s->residual[b] = norm;
        s->best_at[b] = s->k;
        s->length[b] = 1;
    }
    else {
        s->length[b] /= 2;
        s->failures[b] += !finite;
    }
    if (s->improved[b] && norm <= s->tol * s->scale[b]) {
        nri_solve_finish(s, b, NRI_TOL);
    }
    else if (s->improved[b] && norm <= s->atol * sqrt((double)s->v->elements)) {
        nri_solve_finish(s, b, NRI_ATOL);
    }
    else if (s->failures[b] >= MAX_FAILURES || (!finite && s->best_at[b] < 0 && s->nfe[b] >= s->max_nfe)) {
        nri_solve_finish(s, b, NRI_NON_FINITE);
    }
    else if (s->nfe[b] + (s->improved[b] ? 2 : 1) > s->max_nfe) {
        nri_solve_finish(s, b, NRI_MAX_NFE);
    }
    else if (s->length[b] < SHORTEST) {
        nri_solve_finish(s, b, NRI_STALLED);
    }
    return s->improved[b] && !s->finished[b];
}

/* Finished samples go to their best f, those without one to the origin. */
static nri_status
give_results(nri_solve *s, int z)
{
    const nri_vec_ops *ops = s->v->ops;
    bool lost = false, found = false;
    for (int64_t b = 0; b < s->v->batch; b++) {
        found |= s->mark[b] = s->finished[b] && s->best_at[b] >= 0;
    }
    if (found) {
        NRI_TRY(ops->copy(s->v, z, s->slot.best_f, s->mark));
    }
    for (int64_t b = 0; b < s->v->batch; b++) { /* also a sample that goes on, and has nothing to go on from */
        lost |= s->mark[b] = (s->finished[b] || s->failed[b]) && s->best_at[b] < 0;
    }
    return lost ? ops->copy(s->v, z, s->slot.origin, s->mark) : NRI_OK;
}

nri_status
nri_newton_judge(nri_solve *s, int z, bool *gradient)
{
    const nri_vec_ops *ops = s->v->ops;
    int64_t B = s->v->batch;
    int f = nri_solve_f(s), r = nri_solve_r(s), first = s->slot.newton, mean = first + NRI_NEWTON_MEAN;
    bool improved = false, failed = false;
    NRI_TRY(ops->sign(s->v, first + NRI_NEWTON_SIGN, r, 0));
    NRI_TRY(ops->dots(s->v, r, (nri_rows){first + NRI_NEWTON_SIGN, 1, 1}, s->dots));
    for (int64_t b = 0; b < B; b++) {
        s->pull[b] = 0;
        s->coef[2 * b] = 1;
        s->coef[2 * b + 1] = -1;
    }
    if (s->lam > 0) {
        NRI_TRY(ops->combine(s->v, s->slot.spare, (nri_rows){z, 2, mean - z}, s->coef));
        NRI_TRY(ops->dots(s->v, s->slot.spare, (nri_rows){s->slot.spare, 1, 1}, s->pull));
    }
    NRI_TRY(ops->dots(s->v, r, (nri_rows){r, 1, 1}, s->coef));
    *gradient = false;
    for (int64_t b = 0; b < B; b++) {
        double D = (double)s->v->elements, distance = sqrt(s->pull[b] / D), rr = s->coef[b];
        double merit = s->dots[b] / D + s->lam * s->weight * distance;
        bool running = s->reason[b] == NRI_RUNNING;
        s->improved[b] = s->finished[b] = s->wants[b] = false;
        s->failed[b] = !isfinite(rr);
        s->wants[b] = running && judge_sample(s, b, rr, merit);
        if (s->wants[b]) {
            s->pull[b] = distance > 0 ? s->lam * s->weight / distance : 0;
        }
        *gradient |= s->wants[b];
        improved |= s->improved[b];
        failed |= s->failed[b];
    }
    if (improved) {
        NRI_TRY(ops->copy(s->v, s->slot.best_f, f, s->improved));
        NRI_TRY(ops->copy(s->v, first + NRI_NEWTON_BEST, z, s->improved));
    }
    if (failed) { /* every slot has to be finite */
        NRI_TRY(ops->copy(s->v, f, s->slot.origin, s->failed));
        NRI_TRY(ops->copy(s->v, r, s->slot.origin, s->failed));
        NRI_TRY(ops->copy(s->v, first + NRI_NEWTON_SIGN, s->slot.origin, s->failed));
    }
    s->k++;
    return give_results(s, z);
}

/* A new direction for the samples that have waited for it. */
static nri_status
turn(nri_solve *s, int z, double slope)
{
    const nri_vec_ops *ops = s->v->ops;
    int first = s->slot.newton, product = first + NRI_NEWTON_PRODUCT;
    bool failed = false;
    NRI_TRY(ops->dots(s->v, product, (nri_rows){product, 1, 1}, s->dots));
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->nfe[b] += s->wants[b];
        s->failed[b] = !isfinite(s->dots[b]);
        failed |= s->failed[b];
        s->finished[b] = false;
        if (s->failed[b] && s->wants[b]) {
            nri_solve_finish(s, b, NRI_NON_FINITE);
            s->wants[b] = false;
        }
        double *coef = s->coef + 4 * b;
        coef[0] = -1;
        coef[1] = slope;
        coef[2] = s->pull[b];
        coef[3] = -s->pull[b];
    }
    if (failed) {
        NRI_TRY(ops->copy(s->v, product, s->slot.origin, s->failed));
    }
    NRI_TRY(ops->combine(s->v, s->slot.spare, (nri_rows){first, 4, 1}, s->coef));
    NRI_TRY(ops->sign(s->v, s->slot.spare, s->slot.spare, s->floor));
    NRI_TRY(ops->copy(s->v, first + NRI_NEWTON_DIRECTION, s->slot.spare, s->wants));
    return give_results(s, z);
}

nri_status
nri_newton_step(nri_solve *s, int z, double slope, bool gradient)
{
    int first = s->slot.newton;
    if (gradient) {
        NRI_TRY(turn(s, z, slope));
    }
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->mark[b] = s->reason[b] == NRI_RUNNING && s->best_at[b] >= 0;
        s->coef[2 * b] = 1;
        s->coef[2 * b + 1] = s->mark[b] ? -s->length[b] * s->merit[b] : 0;
    }
    NRI_TRY(s->v->ops->combine(s->v, s->slot.spare, (nri_rows){first + NRI_NEWTON_BEST, 2, 2}, s->coef));
    return s->v->ops->copy(s->v, z, s->slot.spare, s->mark);
}
