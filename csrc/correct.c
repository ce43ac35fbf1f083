/*
Prompt-aware correction of an encoded image (Samuel et al., arXiv 2312.12540v2, figure 3; v1 section 3.3).

The image's latent z_0 comes from an autoencoder and is not one that the sampler draws for the prompt.  So the last few steps
of the sampler are run on it, with the prompt and the guidance it will be drawn with, round after round:

    noise      s_0 = S_0 y + sigma_0 n      drawn, or: the steps inverted at one evaluation each, s_j = f(s_{j+1})
    denoise    s_{j+1} by the sampler
    trust      y = z_0 + d min(1, radius / |d|)      d = s_E - z_0

y = z_0 at first.  What is inverted afterwards is y.  The radius keeps it an encoding of the same image.
*/
#include <math.h>
#include <stdlib.h>

#include "run.h"

const nri_correct_options nri_default_correct_options = {.rounds = 2};

/* Fixed slots.  Rows of one combination are neighbours: FINISH IMAGE, LATENT DRAWN, and STATE OUTPUT NOISE. */
enum { FINISH, IMAGE, LATENT, DRAWN, STATE, OUTPUT, NOISE, STATES };

struct nri_correction {
    const nri_sampler *sampler;
    nri_correct_options options;
    nri_space *v;
    int outputs, noises;  /* first slots */
    int round, j;
    bool inverting, started, waiting, done;
    int evaluations;
    double *radius, *norm, *moved, *coef; /* [B], the last [B][widest combination] */
    bool *held, *failed, *active, *fresh; /* [B]; fresh: not finite in this round */
    void *block;
};

static int
per_round(const nri_sampler *s, const nri_correct_options *o)
{
    return s->noises + !o->inverted;
}

static int
noises(const nri_sampler *s)
{
    return STATES + nri_run_slots(s);
}

int
nri_correction_slots(const nri_sampler *sampler, const nri_correct_options *options)
{
    return noises(sampler) + options->rounds * per_round(sampler, options);
}

int64_t
nri_correction_max_evaluations(const nri_sampler *sampler, const nri_correct_options *options)
{
    return (int64_t)options->rounds * sampler->evaluations * (options->inverted ? 2 : 1);
}

static nri_status
check(const nri_sampler *s, const nri_correct_options *o, const nri_space *v, int *step)
{
    if (o->rounds < 1 || v->slots < nri_correction_slots(s, o) || (!o->inverted && !s->levels)) {
        return NRI_BAD_ARGUMENT;
    }
    for (int j = 0; o->inverted && j < s->evaluations; j++) {
        if (s->singular[j]) {
            *step = j;
            return NRI_SINGULAR_STEP;
        }
    }
    return NRI_OK;
}

nri_status
nri_correction_create(const nri_sampler *sampler, const nri_correct_options *options, const double *radius, nri_space *v,
                      nri_correction **out, int *step)
{
    size_t B = (size_t)v->batch, widest = (size_t)most(most(sampler->noises, 3), nri_run_slots(sampler));
    *out = NULL;
    *step = -1;
    NRI_TRY(check(sampler, options, v, step));
    nri_correction *c = calloc(1, sizeof(*c));
    if (!c) {
        return NRI_NO_MEMORY;
    }
    *c = (nri_correction){.sampler = sampler, .options = *options, .v = v};
    c->outputs = STATES + sampler->window + 1;
    c->noises = noises(sampler);
    c->block = calloc(1, B * (sizeof(double) * (3 + widest) + 4 * sizeof(bool)));
    if (!c->block) {
        free(c);
        return NRI_NO_MEMORY;
    }
    c->radius = c->block;
    c->norm = c->radius + B;
    c->moved = c->norm + B;
    c->coef = c->moved + B;
    c->held = (bool *)(c->coef + widest * B);
    c->failed = c->held + B;
    c->active = c->failed + B;
    c->fresh = c->active + B;
    for (size_t b = 0; b < B; b++) {
        c->radius[b] = radius ? radius[b] : INFINITY;
        c->active[b] = true;
    }
    *out = c;
    return NRI_OK;
}

void
nri_correction_destroy(nri_correction *c)
{
    if (c) {
        free(c->block);
        free(c);
    }
}

int
nri_correction_image(const nri_correction *c)
{
    (void)c;
    return IMAGE;
}

int
nri_correction_draw(const nri_correction *c, int round)
{
    return c->noises + round * per_round(c->sampler, &c->options) + c->sampler->noises;
}

int
nri_correction_noise(const nri_correction *c, int round, int k)
{
    return c->noises + round * per_round(c->sampler, &c->options) + k;
}

static nri_status
norms(nri_correction *c, int x, double *out)
{
    NRI_TRY(c->v->ops->dots(c->v, x, (nri_rows){x, 1, 1}, out));
    for (int64_t b = 0; b < c->v->batch; b++) {
        out[b] = sqrt(out[b]);
    }
    return NRI_OK;
}

static nri_status
begin_denoising(nri_correction *c, int state)
{
    c->inverting = false;
    c->j = 0;
    return c->v->ops->copy(c->v, nri_run_state(c->sampler, STATES, 0), state, NULL);
}

static nri_status
begin_round(nri_correction *c)
{
    const double *level = c->sampler->levels;
    for (int64_t b = 0; b < c->v->batch; b++) {
        c->fresh[b] = false;
    }
    if (c->options.inverted) {
        c->inverting = true;
        c->j = c->sampler->evaluations - 1;
        return c->v->ops->copy(c->v, STATE, LATENT, NULL);
    }
    NRI_TRY(c->v->ops->copy(c->v, DRAWN, nri_correction_draw(c, c->round), NULL));
    NRI_TRY(nri_combine_same(c->v, c->coef, STATE, (nri_rows){LATENT, 2, 1}, (double[]){level[0], level[1]}));
    return begin_denoising(c, STATE);
}

static nri_status
start(nri_correction *c)
{
    NRI_TRY(norms(c, IMAGE, c->norm));
    for (int64_t b = 0; b < c->v->batch; b++) {
        if (!isfinite(c->norm[b])) {
            return NRI_NOT_FINITE;
        }
    }
    NRI_TRY(c->v->ops->copy(c->v, LATENT, IMAGE, NULL));
    NRI_TRY(begin_round(c));
    c->started = true;
    return NRI_OK;
}

nri_status
nri_correction_next(nri_correction *c, nri_request *request, bool *done)
{
    if (!c->started) {
        NRI_TRY(start(c));
    }
    *done = c->done;
    c->waiting = !*done;
    if (!*done) {
        *request = (nri_request){.index = c->j,
                                 .timestep = c->sampler->timesteps[c->j],
                                 .scale = c->sampler->inputs[c->j],
                                 .slot = c->inverting ? STATE : nri_run_state(c->sampler, STATES, c->j),
                                 .active = c->active,
                                 .cotangent = -1};
    }
    return NRI_OK;
}

/* An answer that is not finite is taken for 0, and the sample left out of the round's result. */
static nri_status
load_answer(nri_correction *c, int dst, const nri_tensor *answer)
{
    bool any = false;
    NRI_TRY(c->v->ops->load(c->v, dst, answer));
    NRI_TRY(norms(c, dst, c->coef));
    for (int64_t b = 0; b < c->v->batch; b++) {
        bool bad = !isfinite(c->coef[b]);
        c->fresh[b] |= bad;
        any |= bad;
        c->coef[b] = 0;
    }
    if (!any) {
        return NRI_OK;
    }
    return c->v->ops->copy(c->v, dst, IMAGE, c->fresh);
}

/* s_j from s_{j+1}, with all outputs it reads taken to be the one at s_{j+1}. */
static nri_status
feed_inverting(nri_correction *c, const nri_tensor *answer)
{
    const nri_sampler *s = c->sampler;
    const double *row = back_row(s, c->j);
    double b = 0;
    bool noisy;
    NRI_TRY(load_answer(c, OUTPUT, answer));
    for (int k = 0; k <= c->j; k++) {
        b += row[1 + k];
    }
    NRI_TRY(nri_sum_used(c->v, c->coef, NOISE, nri_correction_noise(c, c->round, 0), s->noises, row + 1 + s->evaluations,
                         &noisy));
    NRI_TRY(nri_combine_same(c->v, c->coef, STATE, (nri_rows){STATE, 3, 1},
                             (double[]){1 / row[0], -b / row[0], noisy ? -1 / row[0] : 0}));
    c->j--;
    return c->j >= 0 ? NRI_OK : begin_denoising(c, STATE);
}

/* Trust what is within the radius. */
static nri_status
end_round(nri_correction *c)
{
    NRI_TRY(nri_combine_same(c->v, c->coef, STATE, (nri_rows){FINISH, 2, 1}, (double[]){1, -1}));
    NRI_TRY(norms(c, STATE, c->moved));
    for (int64_t b = 0; b < c->v->batch; b++) {
        bool sound = isfinite(c->moved[b]) && !c->fresh[b];
        double share = sound && c->moved[b] > c->radius[b] ? c->radius[b] / c->moved[b] : 1;
        c->held[b] = share < 1;
        c->failed[b] |= !sound;
        c->fresh[b] = !sound;
        c->coef[2 * b] = share;
        c->coef[2 * b + 1] = 1 - share;
    }
    NRI_TRY(c->v->ops->copy(c->v, FINISH, LATENT, c->fresh));
    NRI_TRY(c->v->ops->combine(c->v, LATENT, (nri_rows){FINISH, 2, 1}, c->coef));
    c->round++;
    if (c->round < c->options.rounds) {
        return begin_round(c);
    }
    NRI_TRY(nri_combine_same(c->v, c->coef, STATE, (nri_rows){IMAGE, 2, 1}, (double[]){-1, 1}));
    NRI_TRY(norms(c, STATE, c->moved));
    for (int64_t b = 0; b < c->v->batch; b++) {
        c->moved[b] = c->norm[b] > 0 ? c->moved[b] / c->norm[b] : c->moved[b];
    }
    c->done = true;
    return NRI_OK;
}

static nri_status
feed_denoising(nri_correction *c, const nri_tensor *answer)
{
    const nri_sampler *s = c->sampler;
    int j = c->j, next = j + 1 < s->evaluations ? nri_run_state(s, STATES, j + 1) : FINISH;
    nri_run run = {s, c->v, STATES, c->outputs, nri_correction_noise(c, c->round, 0), c->coef};
    NRI_TRY(load_answer(c, nri_run_output(s, c->outputs, j), answer));
    NRI_TRY(nri_run_step(&run, j, next));
    c->j = j + 1;
    return c->j < s->evaluations ? NRI_OK : end_round(c);
}

nri_status
nri_correction_feed(nri_correction *c, const nri_tensor *model_output)
{
    if (!c->waiting) {
        return NRI_BAD_ORDER;
    }
    c->waiting = false;
    c->evaluations++;
    return c->inverting ? feed_inverting(c, model_output) : feed_denoising(c, model_output);
}

nri_status
nri_correction_result(const nri_correction *c, nri_corrected *result)
{
    if (!c->done) {
        return NRI_BAD_ORDER;
    }
    *result = (nri_corrected){
        .latents = LATENT, .evaluations = c->evaluations, .moved = c->moved, .held = c->held, .failed = c->failed};
    return NRI_OK;
}
