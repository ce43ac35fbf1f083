/*
A sampler as a linear form.

    local    s_{j+1} = sum_{k<=j} alpha_jk s_k + beta_jk m_k + sum_k gamma_jk n_k          (given)
    global   s_j     = a_j z_T + sum_k B_jk m_k + sum_k C_jk n_k                            (by substitution)
    back     s_{j+1} = A_j s_j + sum_{k<=j} b_jk m_k + sum_k C_jk n_k                       (older states eliminated)

The way back could be had from the global form as A_j = a_{j+1} / a_j, but a_j is 0 behind a step that drops its state
(zero terminal SNR, LCM-like samplers).  Eliminating the older states one by one, s_k = (s_{k+1} - b_k m - C_k n) / A_k,
divides only by the A_k of steps that really are remembered, so it works wherever the global form does and further.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "nrinv.h"

/* An own-state coefficient this much smaller than the rest of its step leaves nothing of the state in float32. */
static const double SINGULAR = 1e-5;
/* What the elimination leaves of an output that a step does not read: without it a first-order step would look as if it
   remembered.  Far above double's rounding, far below the coefficients of schedulers. */
static const double ROUNDING = 1e-9;

static bool
all_finite(const double *x, int n)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

static nri_status
check_step(const nri_sampler *s, int j)
{
    int E = s->evaluations, K = s->noises;
    const double *row = s->steps + (size_t)j * (size_t)(2 * E + K);
    if (!all_finite(row, 2 * E + K) || !isfinite(s->inputs[j]) || !isfinite(s->timesteps[j])) {
        return NRI_NOT_FINITE;
    }
    for (int k = j + 1; k < E; k++) {
        if (row[k] != 0 || row[E + k] != 0) {
            return NRI_NOT_CAUSAL;
        }
    }
    return NRI_OK;
}

/* The global form, and how far back the steps read. */
static void
fill_states(nri_sampler *s)
{
    int E = s->evaluations, K = s->noises, wide = 1 + E + K;
    s->states[0] = 1;
    for (int j = 0; j < E; j++) {
        const double *row = s->steps + (size_t)j * (size_t)(2 * E + K);
        double *next = s->states + (size_t)(j + 1) * (size_t)wide;
        for (int k = 0; k <= j; k++) {
            const double *old = s->states + (size_t)k * (size_t)wide;
            for (int i = 0; row[k] != 0 && i < wide; i++) {
                next[i] += row[k] * old[i];
            }
            next[1 + k] += row[E + k];
            if ((row[k] != 0 || row[E + k] != 0) && j - k + 1 > s->window) {
                s->window = j - k + 1;
            }
        }
        for (int k = 0; k < K; k++) {
            next[1 + E + k] += row[2 * E + k];
        }
    }
}

static void
fill_back(nri_sampler *s, int j)
{
    int E = s->evaluations, K = s->noises, wide = 1 + E + K;
    const double *row = s->steps + (size_t)j * (size_t)(2 * E + K);
    double *back = s->back + (size_t)j * (size_t)wide, *alpha = s->rest;
    double size = 0;
    memcpy(alpha, row, sizeof(*alpha) * (size_t)(j + 1));
    memcpy(back + 1, row + E, sizeof(*back) * (size_t)(E + K));
    for (int k = 0; k < j; k++) {
        const double *older = s->back + (size_t)k * (size_t)wide;
        if (alpha[k] == 0) {
            continue;
        }
        if (s->singular[k]) {
            s->singular[j] = true;
            return;
        }
        double ratio = alpha[k] / older[0];
        alpha[k + 1] += ratio;
        for (int i = 1; i < wide; i++) {
            back[i] -= ratio * older[i];
        }
        size = fmax(size, fabs(alpha[k]));
    }
    back[0] = alpha[j];
    for (int i = 1; i < wide; i++) {
        size = fmax(size, fabs(back[i]));
    }
    s->singular[j] = fabs(back[0]) <= SINGULAR * size;
    for (int k = 0; k < j; k++) {
        if (fabs(back[1 + k]) <= ROUNDING * size) {
            back[1 + k] = 0;
        }
        else {
            s->first_order = false;
        }
    }
}

static nri_status
carve(nri_sampler *s, bool leveled)
{
    size_t E = (size_t)s->evaluations, K = (size_t)s->noises;
#define ARRAY(member, rows, columns) NRI_ARRAY(nri_sampler, member, rows, columns)
    const nri_array arrays[] = {
        ARRAY(timesteps, E, 1),    ARRAY(inputs, E, 1), ARRAY(steps, E, 2 * E + K),        ARRAY(states, E + 1, 1 + E + K),
        ARRAY(back, E, 1 + E + K), ARRAY(rest, E, 1),   ARRAY(levels, leveled, 2 * E + 2), ARRAY(singular, E, 1),
    };
    s->block = NRI_CARVE(s, arrays);
    return s->block ? NRI_OK : NRI_NO_MEMORY;
}

/* Every step is checked before anything is computed from it. */
static nri_status
fill(nri_sampler *s, int *step)
{
    for (int j = 0; j < s->evaluations; j++) {
        nri_status status = check_step(s, j);
        if (status != NRI_OK) {
            *step = j;
            return status;
        }
        fill_back(s, j);
    }
    fill_states(s);
    return NRI_OK;
}

nri_status
nri_sampler_create(int evaluations, int noises, const double *timesteps, const double *steps, const double *inputs,
                   const double *levels, nri_sampler **out, int *step)
{
    *out = NULL;
    *step = -1;
    if (evaluations < 1 || noises < 0 || !timesteps || !steps || !inputs) {
        return NRI_BAD_ARGUMENT;
    }
    size_t E = (size_t)evaluations, width = 2 * E + (size_t)noises;
    if (levels && !all_finite(levels, 2 * (evaluations + 1))) {
        return NRI_NOT_FINITE;
    }
    nri_sampler *s = calloc(1, sizeof(*s));
    if (!s) {
        return NRI_NO_MEMORY;
    }
    *s = (nri_sampler){.evaluations = evaluations, .noises = noises, .window = 1, .first_order = true};
    nri_status status = carve(s, levels);
    if (status == NRI_OK) {
        memcpy(s->timesteps, timesteps, sizeof(double) * E);
        memcpy(s->inputs, inputs, sizeof(double) * E);
        memcpy(s->steps, steps, sizeof(double) * E * width);
        if (levels) {
            memcpy(s->levels, levels, sizeof(double) * 2 * (E + 1));
        }
        status = fill(s, step);
    }
    if (status != NRI_OK) {
        nri_sampler_destroy(s);
        return status;
    }
    *out = s;
    return NRI_OK;
}

void
nri_sampler_destroy(nri_sampler *sampler)
{
    if (sampler) {
        free(sampler->block);
        free(sampler);
    }
}
