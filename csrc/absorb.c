/*
One step of the sweep whose noise absorbs what the step leaves, instead of being solved.  Its state is drawn from the forward
process given s_{j+1} and z_0, with the caller's noise w as the draw,

    s_j = S_j z_0 + k (s_{j+1} - S_{j+1} z_0) + sigma_j C / sigma_{j+1} w
    k = sigma_j sqrt(sigma_{j+1}^2 - C^2) / sigma_{j+1}^2

which is the joint law of the sampler with an ideal network, and n = (s_{j+1} - A s_j - b m_j) / C replaces w.  As long as
n is larger than noise, and than the noise in the state, (s_j - S_j z_0) / sigma_j,

    s_j <- s_j + 2 (C / A) (1 - 1 / rms(n)) n

moves the surplus into the state: a fixed-point step towards the equation with n on its shell, over-relaxed because these
steps contract slowly.
*/
#include <math.h>

#include "inversion.h"

static const double RELAXATION = 2;

/* The noise in the state; no equation is laid out, so that its slot is free. */
enum { WITHIN = C };

static double
noise_scale(const nri_inversion *inv)
{
    return back_row(inv->sampler, inv->j)[1 + inv->sampler->evaluations + inv->absorbs];
}

static nri_status
begin(nri_inversion *inv)
{
    const double *now = inv->sampler->levels + 2 * inv->j, *next = now + 2;
    double scale = noise_scale(inv);
    double share = now[1] * sqrt(fmax(next[1] * next[1] - scale * scale, 0)) / (next[1] * next[1]);
    NRI_TRY(nri_begin_step(inv));
    NRI_TRY(nri_combine_all(inv, Z, (nri_rows){STATE, 2, Z0 - STATE}, (double[]){share, now[0] - share * next[0]}));
    NRI_TRY(inv->v->ops->copy(inv->v, SPARE, inv->forward.noises + inv->absorbs, NULL));
    NRI_TRY(nri_combine_all(inv, Z, (nri_rows){Z, 2, SPARE - Z}, (double[]){1, now[1] * fabs(scale) / next[1]}));
    return nri_begin_equation(inv);
}

/* The noise that takes up the step to SPARE, the noise in the state to WITHIN, and their norms. */
static nri_status
measure(nri_inversion *inv)
{
    const double *row = back_row(inv->sampler, inv->j), *level = inv->sampler->levels + 2 * inv->j;
    double scale = noise_scale(inv);
    NRI_TRY(nri_combine_all(inv, SPARE, (nri_rows){STATE, Z + 1, 1},
                            (double[Z + 1]){[STATE] = 1 / scale, [M] = -row[1 + inv->j] / scale, [Z] = -row[0] / scale}));
    NRI_TRY(nri_combine_all(inv, WITHIN, (nri_rows){Z, 2, Z0 - Z}, (double[]){1 / level[1], -level[0] / level[1]}));
    NRI_TRY(nri_norms(inv->v, WITHIN, inv->natural));
    return nri_norms(inv->v, SPARE, inv->surplus);
}

/* Whether sample b ends, and if it goes on, how much of its noise moves into the state. */
static double
judge(nri_inversion *inv, int64_t b)
{
    nri_solve *s = &inv->step;
    double D = (double)inv->v->elements, rms = inv->surplus[b] / sqrt(D), natural = 1 + 2 / sqrt(2 * D); /* 2 errors */
    bool running = s->reason[b] == NRI_RUNNING;
    s->finished[b] = false;
    s->failed[b] = !isfinite(rms);
    s->nfe[b] += running;
    if (running && s->failed[b]) {
        inv->result.failed[b]++;
        nri_solve_finish(s, b, NRI_NON_FINITE);
    }
    else if (running && (rms <= natural || inv->surplus[b] <= inv->natural[b] || s->nfe[b] >= s->max_nfe)) {
        nri_solve_finish(s, b, NRI_TOL);
        s->residual[b] = 0;
    }
    else if (running) {
        return RELAXATION * noise_scale(inv) / back_row(inv->sampler, inv->j)[0] * (1 - 1 / rms);
    }
    return 0;
}

static nri_status
feed(nri_inversion *inv, const nri_tensor *answer, bool *ended)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    int noise = inv->forward.noises + inv->absorbs;
    NRI_TRY(nri_load_answer(inv, M, answer));
    NRI_TRY(measure(inv));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->coef[2 * b] = 1;
        inv->coef[2 * b + 1] = judge(inv, b);
    }
    NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
    NRI_TRY(ops->copy(inv->v, WITHIN, Z0, s->failed));
    NRI_TRY(ops->copy(inv->v, SPARE, noise, s->failed));
    NRI_TRY(ops->copy(inv->v, noise, SPARE, s->finished));
    NRI_TRY(ops->combine(inv->v, Z, (nri_rows){Z, 2, SPARE - Z}, inv->coef, 2));
    return nri_settle(inv, ended);
}

const nri_phase nri_absorb = {begin, feed, NULL, true};
