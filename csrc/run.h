/* The sampler itself, step by step, on the slots of a space. */
#ifndef NRINV_RUN_H
#define NRINV_RUN_H

#include <stddef.h>

#include "nrinv.h"

/* `states` is a ring of window + 1 slots; behind it lie a ring of window outputs and a slot for a step's noise. */
typedef struct {
    const nri_sampler *sampler;
    nri_space *v;
    int states, noises; /* first slots */
    double *coef;       /* [2 window + 2] scratch */
} nri_run;

static inline int
most(int a, int b)
{
    return a > b ? a : b;
}

static inline const double *
back_row(const nri_sampler *s, int j)
{
    return s->back + (size_t)j * (size_t)(1 + s->evaluations + s->noises);
}

/* How many slots the rings take. */
static inline int
nri_run_slots(const nri_sampler *s)
{
    return 2 * (s->window + 1);
}

/* Where s_j and m_j lie. */
static inline int
nri_run_state(const nri_run *run, int j)
{
    return run->states + j % (run->sampler->window + 1);
}

static inline int
nri_run_output(const nri_run *run, int j)
{
    return run->states + run->sampler->window + 1 + j % run->sampler->window;
}

/* dst = s_{j+1}, from what the rings hold */
nri_status nri_run_step(nri_run *run, int j, int dst);

/* Overwrite the rings of the samples of `which` with slot src: what is not finite there would spread as 0 * NaN. */
nri_status nri_run_clean(nri_run *run, int src, const bool *which);

/* dst = sum_i coef[i] slot_{first + i} over n slots, if any coefficient is not 0 */
nri_status nri_sum_used(nri_space *v, int dst, int first, int n, const double *coef, bool *used);

#endif
