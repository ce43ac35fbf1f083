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
#include <string.h>

#include "solve.h"

/* A step halved six times that still does not lower F: at the rounding of F, or at a minimum that is no root. */
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
        s->tally.failed[b] += !finite;
    }
    bool best = s->improved[b], lost = !finite && s->best_at[b] < 0 && s->nfe[b] >= s->max_nfe;
    nri_reason reason = best && norm <= s->tol * s->scale[b]                     ? NRI_TOL
                        : best && norm <= s->atol * sqrt((double)s->v->elements) ? NRI_ATOL
                        : s->failures[b] >= NRI_MAX_FAILURES || lost             ? NRI_NON_FINITE
                        : s->nfe[b] + (best ? 2 : 1) > s->max_nfe                ? NRI_MAX_NFE
                        : s->length[b] < SHORTEST                                ? NRI_STALLED
                                                                                 : NRI_RUNNING;
    s->reason[b] = reason;
    s->finished[b] = reason != NRI_RUNNING;
    s->tally.restarts[b] += !best && !s->finished[b];
    return best && !s->finished[b];
}

/* Finished samples go to their best f, those without one to the origin. */
static nri_status
give_results(nri_solve *s, int z)
{
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->mark[b] = s->finished[b] && s->best_at[b] >= 0;
    }
    NRI_TRY(s->v->ops->copy(s->v, z, s->slot.best_f, s->mark));
    for (int64_t b = 0; b < s->v->batch; b++) { /* also a sample that goes on, and has nothing to go on from */
        s->mark[b] = (s->finished[b] || s->failed[b]) && s->best_at[b] < 0;
    }
    return s->v->ops->copy(s->v, z, s->slot.origin, s->mark);
}

/* sign(r) to its slot; [B] |r|_1, |r|^2 and |z - mu|^2, the last 0 without lam. */
static nri_status
measure(nri_solve *s, int z, double *sum, double *square, double *far)
{
    const nri_vec_ops *ops = s->v->ops;
    int r = nri_solve_r(s);
    NRI_TRY(ops->sign(s->v, s->cotangent, r, 0));
    NRI_TRY(ops->dots(s->v, r, (nri_rows){s->cotangent, 1, 1}, sum));
    memset(far, 0, sizeof(*far) * (size_t)s->v->batch);
    if (s->lam > 0) {
        NRI_TRY(ops->combine(s->v, s->slot.spare, (nri_rows){z, 2, s->mean - z}, (double[]){1, -1}, 0));
        NRI_TRY(ops->dots(s->v, s->slot.spare, (nri_rows){s->slot.spare, 1, 1}, far));
    }
    return ops->dots(s->v, r, (nri_rows){r, 1, 1}, square);
}

/* Take f_k and r_k of the iterate in slot z; samples that go on from a new best wait for a gradient. */
static nri_status
judge(nri_solve *s, int z)
{
    const nri_vec_ops *ops = s->v->ops;
    int f = nri_solve_f(s), r = nri_solve_r(s), first = s->slot.newton;
    NRI_TRY(measure(s, z, s->dots, s->coef, s->pull));
    s->asks = NRI_VALUE;
    for (int64_t b = 0; b < s->v->batch; b++) {
        double D = (double)s->v->elements, distance = sqrt(s->pull[b] / D), rr = s->coef[b];
        double merit = s->dots[b] / D + s->lam * s->weight * distance;
        s->improved[b] = s->finished[b] = false;
        s->failed[b] = !isfinite(rr);
        s->wants[b] = s->reason[b] == NRI_RUNNING && judge_sample(s, b, rr, merit);
        if (s->wants[b]) {
            s->pull[b] = distance > 0 ? s->lam * s->weight / distance : 0;
            s->asks = NRI_GRADIENT;
        }
        s->mixed[b] = s->best_at[b] >= 0 ? s->best[b] : INFINITY;
    }
    NRI_TRY(ops->copy(s->v, s->slot.best_f, f, s->improved));
    NRI_TRY(ops->copy(s->v, first + NRI_NEWTON_BEST, z, s->improved));
    /* every slot has to be finite */
    NRI_TRY(ops->copy(s->v, f, s->slot.origin, s->failed));
    NRI_TRY(ops->copy(s->v, r, s->slot.origin, s->failed));
    NRI_TRY(ops->copy(s->v, s->cotangent, s->slot.origin, s->failed));
    s->k++;
    return give_results(s, z);
}

/* A new direction for the samples that have waited for it. */
static nri_status
turn(nri_solve *s, int z)
{
    const nri_vec_ops *ops = s->v->ops;
    int first = s->slot.newton;
    NRI_TRY(ops->dots(s->v, s->product, (nri_rows){s->product, 1, 1}, s->dots));
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->nfe[b] += s->wants[b];
        s->failed[b] = !isfinite(s->dots[b]);
        s->finished[b] = false;
        if (s->failed[b] && s->wants[b]) {
            nri_solve_finish(s, b, NRI_NON_FINITE);
            s->tally.failed[b]++;
            s->wants[b] = false;
        }
        memcpy(s->coef + 4 * b, (double[]){-1, s->slope, s->pull[b], -s->pull[b]}, 4 * sizeof(double));
    }
    NRI_TRY(ops->copy(s->v, s->product, s->slot.origin, s->failed));
    NRI_TRY(ops->combine(s->v, s->slot.spare, (nri_rows){first, 4, 1}, s->coef, 4));
    NRI_TRY(ops->sign(s->v, s->slot.spare, s->slot.spare, s->floor));
    NRI_TRY(ops->copy(s->v, first + NRI_NEWTON_DIRECTION, s->slot.spare, s->wants));
    return give_results(s, z);
}

/* The next iterate of the samples that go on from a best one. */
static nri_status
step(nri_solve *s, int z)
{
    int best = s->slot.newton + NRI_NEWTON_BEST, direction = s->slot.newton + NRI_NEWTON_DIRECTION;
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->mark[b] = s->reason[b] == NRI_RUNNING && s->best_at[b] >= 0;
        s->coef[2 * b] = 1;
        s->coef[2 * b + 1] = s->mark[b] ? -s->length[b] * s->merit[b] : 0;
    }
    NRI_TRY(s->v->ops->combine(s->v, s->slot.spare, (nri_rows){best, 2, direction - best}, s->coef, 2));
    return s->v->ops->copy(s->v, z, s->slot.spare, s->mark);
}

nri_status
nri_newton(nri_solve *s, int z)
{
    bool product = s->asks == NRI_GRADIENT;
    NRI_TRY(product ? turn(s, z) : judge(s, z));
    if (!product && s->asks == NRI_GRADIENT) {
        return NRI_OK;
    }
    s->asks = nri_solve_running(s) ? NRI_VALUE : NRI_NOTHING;
    return step(s, z);
}
