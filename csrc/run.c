/*
The sampler itself, step by step: s_{j+1} = sum_k alpha_jk s_k + beta_jk m_k + sum_k gamma_jk n_k.

States and outputs lie in rings as long as the sampler's memory, so that every step is one linear combination of all of them.
*/
#include <string.h>

#include "run.h"

nri_status
nri_sum_used(nri_space *v, int dst, int first, int n, const double *coef, bool *used)
{
    int skip = 0;
    while (skip < n && coef[skip] == 0) {
        skip++;
    }
    while (n > skip && coef[n - 1] == 0) {
        n--;
    }
    *used = skip < n;
    if (!*used) {
        return NRI_OK;
    }
    return v->ops->combine(v, dst, (nri_rows){first + skip, n - skip, 1}, coef + skip, 0);
}

nri_status
nri_run_step(nri_run *run, int j, int dst)
{
    const nri_sampler *s = run->sampler;
    int E = s->evaluations, W = s->window;
    const double *row = s->steps + (size_t)j * (size_t)(2 * E + s->noises);
    bool noisy;
    NRI_TRY(nri_sum_used(run->v, run->states + 2 * W + 1, run->noises, s->noises, row + 2 * E, &noisy));
    memset(run->coef, 0, sizeof(*run->coef) * (size_t)(2 * W + 2));
    for (int k = most(0, j - W + 1); k <= j; k++) {
        run->coef[k % (W + 1)] = row[k];
        run->coef[W + 1 + k % W] = row[E + k];
    }
    run->coef[2 * W + 1] = noisy;
    return run->v->ops->combine(run->v, dst, (nri_rows){run->states, 2 * W + 2, 1}, run->coef, 0);
}

nri_status
nri_run_clean(nri_run *run, int src, const bool *which)
{
    for (int i = 0; i < nri_run_slots(run->sampler); i++) {
        NRI_TRY(run->v->ops->copy(run->v, run->states + i, src, which));
    }
    return NRI_OK;
}
