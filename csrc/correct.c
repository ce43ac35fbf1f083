/*
Prompt-aware correction of an encoded image (Samuel et al., arXiv 2312.12540v2, figure 3; v1 section 3.3).

The image's latent z_0 comes from an autoencoder and is not one that the sampler draws for the prompt.  So the last few steps
of the sampler are run on it, with the prompt and the guidance it will be drawn with, round after round:

    noise      s_0 = S_0 y + sigma_0 n      drawn, or: the steps inverted at one evaluation each, s_j = f(s_{j+1})
    denoise    s_{j+1} by the sampler
    trust      y = z_0 + d min(1, radius / |d|)      d = s_E - z_0

y = z_0 at first.  What is inverted afterwards is y, and the guess of the first step goes along by S_{E-1} (y - z_0).  The
radius keeps y an encoding of the same image.

The steps are those of `correct_from`, whose coefficients a multistep sampler takes only where it starts there.
*/
#include <math.h>

#include "inversion.h"

static int
sample(const nri_inversion *inv)
{
    return inv->inverting ? STATE : nri_run_state(&inv->denoise, inv->j);
}

static nri_status
begin_denoising(nri_inversion *inv)
{
    inv->inverting = false;
    inv->j = 0;
    return inv->v->ops->copy(inv->v, nri_run_state(&inv->denoise, 0), STATE, NULL);
}

static nri_status
begin_round(nri_inversion *inv)
{
    const nri_sampler *s = inv->options.correct_from;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->spoiled[b] = false;
    }
    inv->denoise.noises = inv->inputs.correct_noises + inv->round * s->noises;
    if (inv->options.correct_inverted) {
        inv->inverting = true;
        inv->j = s->evaluations - 1;
        return inv->v->ops->copy(inv->v, STATE, Y, NULL);
    }
    int drawn = inv->inputs.draws + inv->round;
    NRI_TRY(nri_combine_all(inv, STATE, (nri_rows){Y, 2, drawn - Y}, (double[]){s->levels[0], s->levels[1]}));
    return begin_denoising(inv);
}

/* An answer that is not finite is taken for 0, and the sample left out of the round's result. */
static nri_status
load_sound(nri_inversion *inv, int dst, const nri_tensor *answer)
{
    NRI_TRY(nri_load_answer(inv, dst, answer));
    NRI_TRY(nri_norms(inv->v, dst, inv->coef));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->spoiled[b] |= !isfinite(inv->coef[b]);
    }
    return inv->v->ops->copy(inv->v, dst, Z0, inv->spoiled);
}

/* s_j from s_{j+1}, with all outputs it reads taken to be the one at s_{j+1}. */
static nri_status
feed_inverting(nri_inversion *inv, const nri_tensor *answer)
{
    const nri_sampler *s = inv->options.correct_from;
    const double *row = back_row(s, inv->j);
    double b = 0;
    bool noisy;
    NRI_TRY(load_sound(inv, M_PREV, answer));
    for (int k = 0; k <= inv->j; k++) {
        b += row[1 + k];
    }
    NRI_TRY(nri_sum_used(inv->v, NOISE, inv->denoise.noises, s->noises, row + 1 + s->evaluations, &noisy));
    NRI_TRY(
        nri_combine_all(inv, STATE, (nri_rows){STATE, 3, 1}, (double[]){1 / row[0], -b / row[0], noisy ? -1 / row[0] : 0}));
    return inv->j-- > 0 ? NRI_OK : begin_denoising(inv);
}

/* Trust what is within the radius; where the round is not finite, the one before stands. */
static nri_status
end_round(nri_inversion *inv)
{
    NRI_TRY(nri_combine_all(inv, STATE, (nri_rows){Z0, 2, END - Z0}, (double[]){-1, 1}));
    NRI_TRY(nri_norms(inv->v, STATE, inv->result.moved));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        bool sound = isfinite(inv->result.moved[b]) && !inv->spoiled[b];
        double share = sound && inv->result.moved[b] > inv->radius[b] ? inv->radius[b] / inv->result.moved[b] : 1;
        inv->result.held[b] = share < 1;
        inv->spoiled[b] = !sound;
        inv->result.failed[b] += !sound;
        inv->coef[2 * b] = 1 - share;
        inv->coef[2 * b + 1] = share;
    }
    NRI_TRY(inv->v->ops->copy(inv->v, END, Y, inv->spoiled));
    NRI_TRY(nri_run_clean(&inv->denoise, Z0, inv->spoiled));
    return inv->v->ops->combine(inv->v, Y, (nri_rows){Z0, 2, END - Z0}, inv->coef, 2);
}

/* The corrected image takes the target's place. */
static nri_status
end_correction(nri_inversion *inv)
{
    const nri_options *o = &inv->options;
    const double *level = inv->sampler->levels;
    NRI_TRY(nri_combine_all(inv, STATE, (nri_rows){Z0, 2, 1}, (double[]){-1, 1}));
    NRI_TRY(nri_norms(inv->v, STATE, inv->result.moved));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->result.moved[b] = inv->target.scale[b] > 0 ? inv->result.moved[b] / inv->target.scale[b] : inv->result.moved[b];
        if (o->correct_only) {
            inv->result.reason[b] = inv->result.failed[b] == o->correct_rounds ? NRI_NON_FINITE : NRI_MAX_NFE;
        }
    }
    if (o->guess && level) {
        double signal = level[2 * (inv->sampler->evaluations - 1)];
        NRI_TRY(nri_combine_all(inv, GUESS, (nri_rows){Z0, 4, 1}, (double[]){-signal, signal, 0, 1}));
    }
    return inv->v->ops->copy(inv->v, Z0, Y, NULL);
}

static nri_status
feed(nri_inversion *inv, const nri_tensor *answer, bool *ended)
{
    if (inv->inverting) {
        return feed_inverting(inv, answer);
    }
    int E = inv->options.correct_from->evaluations, next = inv->j + 1 < E ? nri_run_state(&inv->denoise, inv->j + 1) : END;
    NRI_TRY(load_sound(inv, nri_run_output(&inv->denoise, inv->j), answer));
    NRI_TRY(nri_run_step(&inv->denoise, inv->j, next));
    if (++inv->j < E) {
        return NRI_OK;
    }
    NRI_TRY(end_round(inv));
    *ended = ++inv->round == inv->options.correct_rounds;
    return *ended ? end_correction(inv) : begin_round(inv);
}

const nri_phase nri_correct = {begin_round, feed, sample, false};
