/* Corrections against their rounds written out in double. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "toy.h"

enum { ROUNDS = 3 };

/* What a correction is given, and what it gives. */
typedef struct {
    int rounds;
    bool inverted;
    const double *radius; /* [B] or NULL */
    toy_fault fault;
    float image[TOY_B][TOY_D], draws[ROUNDS][TOY_B][TOY_D], noises[ROUNDS][TOY_K][TOY_B][TOY_D];
    float latents[TOY_B][TOY_D];
    double moved[TOY_B];
    bool held[TOY_B], failed[TOY_B];
    int evaluations;
    int64_t limit;
} trial;

static nri_status
drive(nri_correction *c, nri_space *v, const toy_form *f, const toy_network *net, trial *t)
{
    nri_request q;
    nri_corrected r;
    bool done;
    NRI_TRY(toy_move(v, nri_correction_image(c), t->image, true));
    for (int i = 0; i < t->rounds; i++) {
        if (!t->inverted) {
            NRI_TRY(toy_move(v, nri_correction_draw(c, i), t->draws[i], true));
        }
        for (int k = 0; k < f->K; k++) {
            NRI_TRY(toy_move(v, nri_correction_noise(c, i, k), t->noises[i][k], true));
        }
    }
    for (int i = 0;; i++) {
        float sample[TOY_B][TOY_D], output[TOY_B * TOY_D];
        double x[TOY_D], m[TOY_D];
        int64_t shape[2];
        NRI_TRY(nri_correction_next(c, &q, &done));
        if (done) {
            break;
        }
        NRI_TRY(toy_move(v, q.slot, sample, false));
        for (int b = 0; b < v->batch; b++) {
            bool spoiled = t->fault.first <= i && i <= t->fault.last && t->fault.samples >> b & 1U;
            for (int d = 0; d < net->D; d++) {
                x[d] = q.scale * (double)sample[b][d];
                if (!isfinite(x[d])) {
                    return NRI_NOT_FINITE;
                }
            }
            toy_evaluate(net, q.timestep, x, m);
            for (int d = 0; d < net->D; d++) {
                output[b * net->D + d] = spoiled ? NAN : (float)m[d];
            }
        }
        nri_tensor answer = toy_tensor(output, NRI_FLOAT32, shape, v->batch, net->D);
        NRI_TRY(nri_correction_feed(c, &answer));
    }
    NRI_TRY(nri_correction_result(c, &r));
    NRI_TRY(toy_move(v, r.latents, t->latents, false));
    memcpy(t->moved, r.moved, sizeof(double) * (size_t)v->batch);
    memcpy(t->held, r.held, sizeof(bool) * (size_t)v->batch);
    memcpy(t->failed, r.failed, sizeof(bool) * (size_t)v->batch);
    t->evaluations = r.evaluations;
    return NRI_OK;
}

static nri_status
correct(const toy_form *f, const toy_network *net, int B, trial *t)
{
    nri_correct_options o = {.rounds = t->rounds, .inverted = t->inverted};
    nri_sampler *sampler = NULL;
    nri_space *v = NULL;
    nri_correction *c = NULL;
    int64_t shape[2];
    int step;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, B, net->D);
    nri_status status = nri_sampler_create(f->E, f->K, f->timesteps, f->steps, f->inputs, f->leveled ? f->levels : NULL,
                                           &sampler, &step);
    if (status == NRI_OK) {
        t->limit = nri_correction_max_evaluations(sampler, &o);
        status = nri_space_create_host(&like, nri_correction_slots(sampler, &o), &v);
    }
    if (status == NRI_OK) {
        status = nri_correction_create(sampler, &o, t->radius, v, &c, &step);
    }
    if (status == NRI_OK) {
        status = drive(c, v, f, net, t);
    }
    nri_correction_destroy(c);
    nri_space_destroy(v);
    nri_sampler_destroy(sampler);
    return status;
}

/* One sample's rounds in double; Euler samplers with at most one noise a step. */
static void
reference(toy_form *f, const toy_network *net, const trial *t, int b, double radius, double *y, bool *held)
{
    double states[(TOY_E + 1) * TOY_D], noises[TOY_K * TOY_D], x[TOY_D], m[TOY_D];
    int D = net->D;
    for (int d = 0; d < D; d++) {
        y[d] = (double)t->image[b][d];
    }
    for (int i = 0; i < t->rounds; i++) {
        double far = 0;
        for (int k = 0; k < f->K; k++) {
            for (int d = 0; d < D; d++) {
                noises[k * TOY_D + d] = (double)t->noises[i][k][b][d];
            }
        }
        for (int d = 0; d < D; d++) {
            states[d] = t->inverted ? y[d] : f->levels[0] * y[d] + f->levels[1] * (double)t->draws[i][b][d];
        }
        for (int j = f->E - 1; t->inverted && j >= 0; j--) {
            for (int d = 0; d < D; d++) {
                x[d] = f->inputs[j] * states[d];
            }
            toy_evaluate(net, f->timesteps[j], x, m);
            for (int d = 0; d < D; d++) {
                double rest = states[d] - *toy_beta(f, j, j) * m[d];
                for (int k = 0; k < f->K; k++) {
                    rest -= *toy_gamma(f, j, k) * noises[k * TOY_D + d];
                }
                states[d] = rest / *toy_alpha(f, j, j);
            }
        }
        toy_forward(f, net, noises, states);
        for (int d = 0; d < D; d++) {
            double gap = states[f->E * TOY_D + d] - (double)t->image[b][d];
            far += gap * gap;
        }
        double share = sqrt(far) > radius ? radius / sqrt(far) : 1;
        *held = share < 1;
        for (int d = 0; d < D; d++) {
            y[d] = (double)t->image[b][d] + share * (states[f->E * TOY_D + d] - (double)t->image[b][d]);
        }
    }
}

static trial
make_trial(int rounds, bool inverted)
{
    static trial t;
    uint64_t seed = 21;
    memset(&t, 0, sizeof(t));
    t.rounds = rounds;
    t.inverted = inverted;
    t.fault = toy_sound;
    toy_normals(&seed, TOY_B * TOY_D, &t.image[0][0]);
    toy_normals(&seed, ROUNDS * TOY_B * TOY_D, &t.draws[0][0][0]);
    toy_normals(&seed, ROUNDS * TOY_K * TOY_B * TOY_D, &t.noises[0][0][0][0]);
    return t;
}

static void
check_rounds(const char *label, toy_form f, int rounds, bool inverted, bool bounded)
{
    toy_network net = toy_make_network(TOY_D, false, 0.8, 22);
    trial t = make_trial(rounds, inverted);
    double radius[TOY_B] = {0, 0.05, 0.5, 100}, y[TOY_D];
    check_label = label;
    t.radius = bounded ? radius : NULL;
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_OK);
    CHECK(t.evaluations == rounds * f.E * (inverted ? 2 : 1) && t.evaluations == t.limit);
    for (int b = 0; b < TOY_B; b++) {
        bool held = false;
        double gap = 0, size = 0;
        reference(&f, &net, &t, b, bounded ? radius[b] : INFINITY, y, &held);
        CHECK_NEAR(toy_distance(TOY_D, t.latents[b], y), 0, 1e-5);
        for (int d = 0; d < TOY_D; d++) {
            gap += pow((double)t.latents[b][d] - (double)t.image[b][d], 2);
            size += pow((double)t.image[b][d], 2);
        }
        CHECK_NEAR(t.moved[b], sqrt(gap / size), 1e-5);
        CHECK(t.held[b] == held && !t.failed[b]);
        CHECK(!bounded || sqrt(gap) <= radius[b] * (1 + 1e-5) + 1e-6);
    }
    CHECK(!bounded || (t.held[0] && t.moved[0] < 1e-6));
}

/* A round that fails leaves the round before; the others of the batch do not notice. */
static void
check_failure(bool inverted)
{
    toy_form f = toy_denoiser(2, true, 0, 0.6, 0.5);
    toy_network net = toy_make_network(TOY_D, false, 0.8, 22);
    trial t = make_trial(2, inverted), one = make_trial(1, inverted), sound = make_trial(2, inverted);
    int first = t.rounds * f.E * (inverted ? 2 : 1) / 2; /* the second round's first evaluation */
    check_label = inverted ? "failure, inverted" : "failure";
    CHECK(correct(&f, &net, TOY_B, &sound) == NRI_OK);
    CHECK(correct(&f, &net, TOY_B, &one) == NRI_OK);
    t.fault = (toy_fault){first, first, 2, false};
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_OK);
    for (int b = 0; b < TOY_B; b++) {
        CHECK(t.failed[b] == (b == 1));
        CHECK(!memcmp(t.latents[b], b == 1 ? one.latents[b] : sound.latents[b], sizeof(t.latents[b])));
    }
    t.fault = (toy_fault){0, 100, 15, false};
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_OK);
    for (int b = 0; b < TOY_B; b++) { /* nothing but failures: the image itself */
        CHECK(t.failed[b] && t.moved[b] == 0 && !memcmp(t.latents[b], t.image[b], sizeof(t.latents[b])));
    }
    t.fault = toy_sound;
    t.image[2][0] = NAN;
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_NOT_FINITE);
}

static void
check_order(void)
{
    toy_form f = toy_denoiser(2, true, 0, 0.6, 0.5);
    nri_correct_options o = nri_default_correct_options;
    nri_sampler *s;
    nri_space *v;
    nri_correction *c;
    nri_request q, again;
    nri_corrected r;
    int64_t shape[2];
    float zero[2] = {0, 0};
    int step;
    bool done;
    nri_tensor like = toy_tensor(zero, NRI_FLOAT32, shape, 1, 2);
    check_label = "order";
    CHECK(nri_sampler_create(f.E, f.K, f.timesteps, f.steps, f.inputs, NULL, &s, &step) == NRI_OK);
    CHECK(nri_space_create_host(&like, nri_correction_slots(s, &o), &v) == NRI_OK);
    CHECK(nri_correction_create(s, &o, NULL, v, &c, &step) == NRI_BAD_ARGUMENT); /* noise is drawn, of which level? */
    o.rounds = 0;
    o.inverted = true;
    CHECK(nri_correction_create(s, &o, NULL, v, &c, &step) == NRI_BAD_ARGUMENT);
    o.rounds = 1;
    CHECK(nri_correction_create(s, &o, NULL, v, &c, &step) == NRI_OK);
    CHECK(nri_correction_feed(c, &like) == NRI_BAD_ORDER);
    CHECK(nri_correction_result(c, &r) == NRI_BAD_ORDER);
    CHECK(nri_correction_next(c, &q, &done) == NRI_OK && !done && q.index == 1);
    CHECK(nri_correction_next(c, &again, &done) == NRI_OK && again.index == 1 && again.slot == q.slot);
    for (int i = 0; i < 4; i++) {
        CHECK(nri_correction_next(c, &q, &done) == NRI_OK && !done && q.index == (i < 2 ? 1 - i : i - 2));
        CHECK(nri_correction_feed(c, &like) == NRI_OK);
    }
    CHECK(nri_correction_next(c, &q, &done) == NRI_OK && done);
    CHECK(nri_correction_feed(c, &like) == NRI_BAD_ORDER);
    CHECK(nri_correction_result(c, &r) == NRI_OK && r.evaluations == 4);
    nri_correction_destroy(c);
    nri_correction_destroy(NULL);
    nri_space_destroy(v);
    nri_sampler_destroy(s);
}

void
test_correct(void)
{
    for (int inverted = 0; inverted < 2; inverted++) {
        for (int bounded = 0; bounded < 2; bounded++) {
            for (int rounds = 1; rounds <= ROUNDS; rounds++) {
                check_rounds("exploding", toy_denoiser(2, false, 0, 0.6, 0.5), rounds, inverted, bounded);
                check_rounds("preserving", toy_denoiser(3, true, 0, 0.6, 0.5), rounds, inverted, bounded);
                check_rounds("one step", toy_denoiser(1, true, 0, 0.6, 0.5), rounds, inverted, bounded);
                check_rounds("ancestral", toy_denoiser(3, false, 0.5, 0.6, 0.5), rounds, inverted, bounded);
            }
        }
        check_failure(inverted);
    }
    check_order();
}
