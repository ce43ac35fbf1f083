/*
One implicit equation z = f(z) for a batch: fixed-point iteration and Anderson acceleration.

    r_k = f_k - z_k        z_{k+1} = sum_i w_i f_i        w by nri_anderson_weights (fixed point: w_k = 1)

The caller evaluates: it puts f_k and r_k into the slots nri_solve_f and nri_solve_r and calls nri_iterate, which does one
fused multi-dot (the new row of the Gram matrix), decides for every sample, and does one fused linear combination.
Where f contracts slowly and only two evaluations are made, Anderson's type I takes the longer step that they need
(`type_one`).

For each sample, in this order:
    not finite            restart from the best pair with half a step; from the origin if there is none; twice in a row: end
    |r| <= tol * scale    end (tol), with the extrapolated iterate: it is an update further than the one measured
    rms(r) <= atol        end (atol)
    |r| > 2 best          restart from the best pair with half a step, then a quarter; the third time: end (diverged)
    no new best for 4     end (stalled)
    max_nfe evaluations   end (max_nfe), with the extrapolated iterate; with the best f if the last residual is > 2 best, or
                          without a mixture if it is not the best

The safeguard is not optional: where f contracts slowly, bare Anderson overshoots and ends above its first guess.
Finished samples stay in the batch but keep their result: the caller copies it when `finished` is set.

Sources: cvxgrp/aa (rejection), PETSc SNESANDERSON (restart at 2 |F_min|).
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "solve.h"

/* PATIENCE: evaluations without a new best after which a sample ends. */
enum { MAX_RESTARTS = 2, PATIENCE = 4 };
/* LARGEST: a weight of type I beyond it is a quotient by the difference of two nearly equal numbers. */
static const double GROWTH = 2, LARGEST = 100;

typedef enum { MIX, HALF, BEST, ORIGIN, KEEP } move;

nri_status
nri_solve_create(nri_solve *s)
{
    int64_t B = s->v->batch, n = s->depth + 1, widest = n < 3 ? 4 : n + 1; /* of solve.c and newton.c */
#define ARRAY(member, rows, columns) NRI_ARRAY(nri_solve, member, rows, columns)
    const nri_array arrays[] = {
        ARRAY(reason, B, 1),   ARRAY(nfe, B, 1),      ARRAY(scale, B, 1),     ARRAY(residual, B, 1),  ARRAY(best, B, 1),
        ARRAY(improved, B, 1), ARRAY(finished, B, 1), ARRAY(failed, B, 1),    ARRAY(merit, B, 1),     ARRAY(length, B, 1),
        ARRAY(pull, B, 1),     ARRAY(best_at, B, 1),  ARRAY(restarts, B, 1),  ARRAY(failures, B, 1),  ARRAY(wants, B, 1),
        ARRAY(valid, B, n),    ARRAY(gram, B, n * n), ARRAY(dots, B, widest), ARRAY(coef, B, widest), ARRAY(mark, B, 1),
        ARRAY(moves, B, 1),    ARRAY(mixed, B, 1),    ARRAY(stretch, B, 1),   ARRAY(rate, B, 1),      ARRAY(apart, B, n * n),
    };
    s->mean = s->solver == NRI_NEWTON ? s->slot.newton + NRI_NEWTON_MEAN : -1;
    s->cotangent = s->slot.newton + NRI_NEWTON_SIGN;
    s->product = s->slot.newton + NRI_NEWTON_PRODUCT;
    s->block = NRI_CARVE(s, arrays);
    return s->block ? NRI_OK : NRI_NO_MEMORY;
}

void
nri_solve_destroy(nri_solve *s)
{
    free(s->block);
    s->block = NULL;
}

void
nri_solve_begin(nri_solve *s, const bool *skip)
{
    s->k = 0;
    s->differentiates = s->solver == NRI_NEWTON && s->max_nfe > 2; /* an evaluation, a product, an evaluation */
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->reason[b] = skip && skip[b] ? NRI_MAX_NFE : NRI_RUNNING;
        s->nfe[b] = s->restarts[b] = s->failures[b] = 0;
        s->best_at[b] = -1;
        s->best[b] = s->merit[b] = INFINITY;
        s->length[b] = 1;
        s->residual[b] = NAN;
        s->wants[b] = s->improved[b] = s->finished[b] = s->failed[b] = false;
        nri_stretch_begin(s, b);
    }
    memset(s->valid, 0, sizeof(*s->valid) * (size_t)(s->v->batch * (s->depth + 1)));
    s->asks = nri_solve_running(s) ? NRI_VALUE : NRI_NOTHING;
}

/* The place of iterate k in the rings. */
static int
ring(const nri_solve *s, int k)
{
    return k % (s->depth + 1);
}

static move
decide_failed(nri_solve *s, int64_t b)
{
    s->failed[b] = true;
    s->failures[b]++;
    s->tally.failed[b]++;
    bool spent = s->nfe[b] >= s->max_nfe, found = s->best_at[b] >= 0;
    if (s->failures[b] >= NRI_MAX_FAILURES || spent) {
        nri_solve_finish(s, b, spent && found && s->failures[b] < NRI_MAX_FAILURES ? NRI_MAX_NFE : NRI_NON_FINITE);
        return found ? BEST : ORIGIN;
    }
    return s->best_at[b] < 0 ? ORIGIN : HALF;
}

/* What to do with sample b after an evaluation whose squared residual norm is rr. */
static move
decide(nri_solve *s, int64_t b, double rr)
{
    s->improved[b] = s->finished[b] = s->failed[b] = false;
    if (s->reason[b] != NRI_RUNNING) {
        s->failed[b] = !isfinite(rr);
        return KEEP;
    }
    s->nfe[b]++;
    if (!isfinite(rr)) {
        return decide_failed(s, b);
    }
    double norm = sqrt(rr);
    s->failures[b] = 0;
    s->residual[b] = norm;
    if (norm < s->best[b]) {
        s->best[b] = norm;
        s->best_at[b] = s->k;
        s->improved[b] = true;
    }
    if (norm <= s->tol * s->scale[b]) {
        nri_solve_finish(s, b, NRI_TOL);
        return MIX;
    }
    if (norm <= s->atol * sqrt((double)s->v->elements)) {
        nri_solve_finish(s, b, NRI_ATOL);
        return MIX;
    }
    if (norm > GROWTH * s->best[b]) {
        if (s->restarts[b]++ >= MAX_RESTARTS) {
            nri_solve_finish(s, b, NRI_DIVERGED);
            return BEST;
        }
        if (s->nfe[b] < s->max_nfe) {
            return HALF;
        }
    }
    else if (s->k - s->best_at[b] >= PATIENCE) {
        nri_solve_finish(s, b, NRI_STALLED);
        return BEST;
    }
    if (s->nfe[b] >= s->max_nfe) {
        nri_solve_finish(s, b, NRI_MAX_NFE);
        bool usable = s->solver != NRI_FIXED_POINT && norm <= GROWTH * s->best[b];
        return s->improved[b] || usable ? MIX : BEST;
    }
    return MIX;
}

/* The new row of sample b's Gram matrix; how many ring entries may be mixed, and which, the newest last. */
static int
remember(nri_solve *s, int64_t b, int count, int *index)
{
    int n = s->depth + 1, q = ring(s, s->k), used = 0;
    double *gram = s->gram + b * n * n;
    bool *valid = s->valid + b * n;
    valid[q] = true;
    for (int i = 0; i < count; i++) {
        gram[q * n + i] = gram[i * n + q] = s->dots[b * count + i];
        if (i != q && valid[i]) {
            index[used++] = i;
        }
    }
    index[used++] = q;
    return used;
}

/* Anderson's type I of two iterates: z_1 = f_0, so that z_1 - z_0 = r_0 and w_0 = <r_0, r_1> / <r_0, r_1 - r_0>. */
static bool
weigh_type_one(const double *gram, int n, int p, int q, double *w)
{
    double across = gram[p * n + q];
    w[0] = across / (across - gram[p * n + p]);
    w[1] = 1 - w[0];
    return across > 0 && fabs(w[0]) <= LARGEST; /* not where the residual has turned round */
}

/* The weights of sample b over the ring, zero where an entry may not be mixed. */
static void
mix(nri_solve *s, int64_t b, int count)
{
    int n = s->depth + 1, index[NRI_MAX_DEPTH + 1], used = remember(s, b, count, index);
    double *gram = s->gram + b * n * n, w[NRI_MAX_DEPTH + 1];
    bool two = s->type_one && s->k == 1 && used == 2;
    bool weighed = two && weigh_type_one(gram, n, index[0], index[1], w), refused = two && !weighed;
    if (!weighed && s->solver != NRI_FIXED_POINT && used > 1) {
        weighed = nri_anderson_weights(used, index, gram, n, w);
        refused |= !weighed;
    }
    s->tally.rejected[b] += refused;
    for (int i = 0; weighed && i < used; i++) {
        s->coef[b * count + index[i]] = w[i];
    }
    if (!weighed) {
        s->coef[b * count + index[used - 1]] = 1;
    }
    if (used > 1) {
        int last = ring(s, s->k + n - 1);
        nri_stretch_measure(s, b, s->valid[b * n + last] ? last : index[0], ring(s, s->k));
    }
    s->mixed[b] = nri_mixed_norm(gram, n, s->coef + b * count, count);
    nri_stretch_move(s, b, s->coef + b * count, count, ring(s, s->k + 1));
}

/* Copy src over dst where that is the sample's move. */
static nri_status
copy_where(nri_solve *s, move what, int dst, int src)
{
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->mark[b] = s->moves[b] == what;
    }
    return s->v->ops->copy(s->v, dst, src, s->mark);
}

/* Keep the best pair of samples whose ring entry q is about to be overwritten, or is needed outside the ring. */
static nri_status
save_best(nri_solve *s, int q)
{
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->mark[b] = s->best_at[b] >= 0 && s->k - s->best_at[b] <= s->depth && ring(s, s->best_at[b]) == q;
    }
    NRI_TRY(s->v->ops->copy(s->v, s->slot.best_f, s->slot.f + q, s->mark));
    return s->v->ops->copy(s->v, s->slot.best_r, s->slot.r + q, s->mark);
}

/* Replace the newest f by the point a restarting sample goes to, and forget its history but for the best pair. */
static nri_status
restart(nri_solve *s)
{
    int n = s->depth + 1, q = ring(s, s->k), f = s->slot.f + q, r = s->slot.r + q;
    for (int64_t b = 0; b < s->v->batch; b++) {
        if (s->moves[b] == HALF || s->moves[b] == ORIGIN) {
            s->tally.restarts[b] += !s->finished[b];
            for (int i = 0; i < n; i++) {
                s->valid[b * n + i] &= i != q && s->best_at[b] >= 0 && i == ring(s, s->best_at[b]);
            }
        }
        if (s->moves[b] == KEEP && s->failed[b]) {
            s->moves[b] = ORIGIN; /* nothing of it is used, but the slots have to be finite */
        }
    }
    for (int i = 0; i < n && i <= s->k; i++) {
        NRI_TRY(save_best(s, i));
    }
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->dots[2 * b] = 1; /* f - r / 2 = z + r / 2: half a step; the second time a quarter, f - 3/4 r = z + r / 4 */
        s->dots[2 * b + 1] = s->restarts[b] > 1 ? -0.75 : -0.5;
    }
    NRI_TRY(s->v->ops->combine(s->v, s->slot.spare, (nri_rows){s->slot.best_f, 2, 1}, s->dots, 2));
    NRI_TRY(copy_where(s, HALF, f, s->slot.spare));
    NRI_TRY(copy_where(s, HALF, r, s->slot.best_r));
    NRI_TRY(copy_where(s, BEST, f, s->slot.best_f));
    NRI_TRY(copy_where(s, BEST, r, s->slot.best_r));
    NRI_TRY(copy_where(s, ORIGIN, f, s->slot.origin));
    return copy_where(s, ORIGIN, r, s->slot.origin);
}

nri_status
nri_iterate(nri_solve *s, int z)
{
    int q = ring(s, s->k), n = s->depth + 1, count = s->k + 1 < n ? s->k + 1 : n;
    bool rare = false;
    NRI_TRY(s->v->ops->dots(s->v, s->slot.r + q, (nri_rows){s->slot.r, count, 1}, s->dots));
    memset(s->coef, 0, sizeof(*s->coef) * (size_t)(s->v->batch * count));
    for (int64_t b = 0; b < s->v->batch; b++) {
        s->moves[b] = (uint8_t)decide(s, b, s->dots[b * count + q]);
        if (s->moves[b] == MIX) {
            mix(s, b, count);
        }
        else {
            s->coef[b * count + q] = 1;
            s->mixed[b] = s->best[b];
            nri_stretch_lose(s, b, ring(s, s->k + 1));
            rare |= s->moves[b] != KEEP || s->failed[b];
        }
    }
    if (rare) {
        NRI_TRY(restart(s));
    }
    NRI_TRY(s->v->ops->combine(s->v, z, (nri_rows){s->slot.f, count, 1}, s->coef, count));
    if (s->k + 1 >= n) {
        NRI_TRY(save_best(s, ring(s, s->k + 1)));
    }
    s->k++;
    s->asks = nri_solve_running(s) ? NRI_VALUE : NRI_NOTHING;
    return NRI_OK;
}
