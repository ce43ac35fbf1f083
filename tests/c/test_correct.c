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
    bool wild; /* states may overflow */
    float image[TOY_B][TOY_D], draws[ROUNDS][TOY_B][TOY_D], noises[ROUNDS][TOY_K][TOY_B][TOY_D];
    float latents[TOY_B][TOY_D], corrected[TOY_B][TOY_D], guess[TOY_B][TOY_D];
    double moved[TOY_B];
    bool held[TOY_B];
    int failed[TOY_B], nfe[TOY_B];
    nri_reason reason[TOY_B];
    int evaluations, correcting; /* the latter of them the correction's */
    int64_t limit;
} trial;

static nri_status
load(nri_inversion *inv, nri_space *v, int K, trial *t)
{
    NRI_TRY(toy_move(v, nri_inversion_inputs(inv).target, t->image, true));
    NRI_TRY(toy_move(v, nri_inversion_inputs(inv).guess, t->guess, true));
    for (int i = 0; i < t->rounds; i++) {
        if (!t->inverted) {
            NRI_TRY(toy_move(v, nri_inversion_inputs(inv).draws + i, t->draws[i], true));
        }
        for (int k = 0; k < K; k++) {
            NRI_TRY(toy_move(v, nri_inversion_inputs(inv).correct_noises + i * K + k, t->noises[i][k], true));
        }
    }
    return NRI_OK;
}

static nri_status
answer(nri_inversion *inv, nri_space *v, const toy_network *net, const nri_request *q, unsigned spoiled, bool wild)
{
    float sample[TOY_B][TOY_D], output[TOY_B * TOY_D];
    double x[TOY_D], m[TOY_D];
    int64_t shape[2];
    NRI_TRY(toy_move(v, q->slot, sample, false));
    for (int b = 0; b < v->batch; b++) {
        for (int d = 0; d < net->D; d++) {
            x[d] = q->scale * (double)sample[b][d];
            if (!isfinite(x[d]) && !wild) {
                return NRI_NOT_FINITE;
            }
            x[d] = isfinite(x[d]) ? x[d] : 0;
        }
        toy_evaluate(net, q->timestep, x, m);
        for (int d = 0; d < net->D; d++) {
            output[b * net->D + d] = spoiled >> b & 1U ? NAN : (float)m[d];
        }
    }
    nri_tensor t = toy_tensor(output, NRI_FLOAT32, shape, v->batch, net->D);
    return nri_inversion_feed(inv, &t);
}

static nri_status
drive(nri_inversion *inv, nri_space *v, const toy_network *net, trial *t)
{
    nri_request q;
    nri_result r;
    bool done, inverting = false;
    t->evaluations = t->correcting = 0;
    for (int i = 0;; i++) {
        NRI_TRY(nri_inversion_next(inv, &q, &done));
        if (done) {
            break;
        }
        CHECK(!(inverting && q.correcting)); /* the correction comes first */
        inverting = !q.correcting;
        t->correcting += q.correcting;
        NRI_TRY(answer(inv, v, net, &q, t->fault.first <= i && i <= t->fault.last ? t->fault.samples : 0, t->wild));
    }
    NRI_TRY(nri_inversion_result(inv, &r));
    CHECK(r.corrected >= 0);
    NRI_TRY(toy_move(v, r.latents, t->latents, false));
    NRI_TRY(toy_move(v, r.corrected, t->corrected, false));
    memcpy(t->moved, r.moved, sizeof(double) * (size_t)v->batch);
    memcpy(t->held, r.held, sizeof(bool) * (size_t)v->batch);
    memcpy(t->failed, r.failed, sizeof(int) * (size_t)v->batch);
    memcpy(t->nfe, r.nfe, sizeof(int) * (size_t)v->batch);
    memcpy(t->reason, r.reason, sizeof(nri_reason) * (size_t)v->batch);
    t->evaluations = r.evaluations;
    return NRI_OK;
}

/* The trial with the last steps `f` of the sampler `all`, as part of an inversion with the options o. */
static nri_status
run(const toy_form *all, const toy_form *f, const toy_network *net, nri_options o, int B, trial *t)
{
    toy_session s = {.sampler = NULL};
    nri_sampler *from = NULL;
    nri_status status = toy_sampler(f, &from);
    o.correct_from = from;
    o.correct_rounds = t->rounds;
    o.correct_inverted = t->inverted;
    o.correct_radius = t->radius;
    if (status == NRI_OK) {
        status = toy_open(all, &o, B, net->D, &s);
    }
    if (status == NRI_OK) {
        t->limit = nri_inversion_max_evaluations(s.sampler, &o);
        status = load(s.inv, s.v, f->K, t);
    }
    if (status == NRI_OK) {
        status = drive(s.inv, s.v, net, t);
    }
    toy_shut(&s);
    nri_sampler_destroy(from);
    return status;
}

/* The correction alone. */
static nri_status
correct(const toy_form *f, const toy_network *net, int B, trial *t)
{
    nri_options o = nri_default_options;
    o.correct_only = true;
    return run(f, f, net, o, B, t);
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
    CHECK(t.evaluations == rounds * f.E * (inverted ? 2 : 1) && t.evaluations == t.limit && t.correcting == t.limit);
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
        CHECK(t.reason[b] == NRI_MAX_NFE && t.nfe[b] == t.evaluations);
        CHECK(!memcmp(t.latents[b], t.corrected[b], sizeof(t.latents[b])));
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
        CHECK(t.failed[b] == (b == 1) && t.reason[b] == NRI_MAX_NFE);
        CHECK(!memcmp(t.latents[b], b == 1 ? one.latents[b] : sound.latents[b], sizeof(t.latents[b])));
    }
    t.fault = (toy_fault){0, 100, 15, false};
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_OK);
    for (int b = 0; b < TOY_B; b++) { /* nothing but failures: the image itself */
        CHECK(t.failed[b] == 2 && t.reason[b] == NRI_NON_FINITE);
        CHECK(t.moved[b] == 0 && !memcmp(t.latents[b], t.image[b], sizeof(t.latents[b])));
    }
    t.fault = toy_sound;
    t.image[2][0] = NAN;
    CHECK(correct(&f, &net, TOY_B, &t) == NRI_NOT_FINITE);
}

/* A round whose states overflow counts as failed, and leaves nothing behind for the next. */
static void
check_overflow(void)
{
    toy_network net = toy_make_network(TOY_D, true, 0.8, 22);
    for (int step = 1; step < 3; step++) {
        toy_form f = toy_denoiser(3, true, 0, 0.6, 0.5);
        trial t = make_trial(3, false), rest = make_trial(2, false);
        check_label = step == 1 ? "overflow half-way" : "overflow";
        *toy_alpha(&f, step, step) = 8;
        t.wild = true;
        for (int d = 0; d < TOY_D; d++) {
            t.draws[0][1][d] = 3e38f;
        }
        memcpy(rest.draws, t.draws[1], sizeof(t.draws[1]) * 2);
        CHECK(correct(&f, &net, TOY_B, &t) == NRI_OK);
        CHECK(correct(&f, &net, TOY_B, &rest) == NRI_OK);
        for (int b = 0; b < TOY_B; b++) {
            CHECK(t.failed[b] == (b == 1) && !t.held[b] && t.reason[b] == NRI_MAX_NFE);
        }
        /* the first round is as if it had not been */
        CHECK(!memcmp(t.latents[1], rest.latents[1], sizeof(t.latents[1])));
        CHECK(memcmp(t.latents[0], rest.latents[0], sizeof(t.latents[0])) != 0);
    }
}

static toy_outcome
invert(const toy_form *f, const toy_network *net, nri_options o, const toy_problem *p, float (*guess)[TOY_D])
{
    static trial t;
    toy_outcome out;
    if (!guess) {
        CHECK(toy_invert(f, net, &o, p, toy_sound, &out) == NRI_OK);
        return out;
    }
    toy_session s; /* toy_invert gives no guess */
    nri_request q;
    nri_result r;
    bool done;
    memset(&out, 0, sizeof(out));
    memcpy(t.image, p->target, sizeof(t.image));
    memcpy(t.guess, guess, sizeof(t.guess));
    t.rounds = 0;
    CHECK(toy_open(f, &o, TOY_B, TOY_D, &s) == NRI_OK && load(s.inv, s.v, 0, &t) == NRI_OK);
    while (nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done) {
        CHECK(!q.correcting && answer(s.inv, s.v, net, &q, 0, false) == NRI_OK);
    }
    CHECK(nri_inversion_result(s.inv, &r) == NRI_OK && r.corrected == -1 && !r.moved && !r.held);
    CHECK(toy_move(s.v, r.latents, out.latents, false) == NRI_OK);
    memcpy(out.nfe, r.nfe, sizeof(int) * TOY_B);
    memcpy(out.reason, r.reason, sizeof(nri_reason) * TOY_B);
    out.evaluations = r.evaluations;
    toy_shut(&s);
    return out;
}

/* A corrected inversion is a correction, and then an inversion of what it gives, the guess moved along. */
static void
check_sequence(const char *label, toy_form f, nri_options o, bool inverted, bool guessed)
{
    toy_form last = toy_denoiser(2, f.levels[0] != 1, 0, 0.6, 0.5); /* any will do */
    toy_network net = toy_make_network(TOY_D, false, 0.8, 22);
    double radius[TOY_B] = {0, 0.05, 0.5, 100};
    trial both = make_trial(2, inverted), alone = make_trial(2, inverted);
    toy_problem p = {.B = TOY_B, .D = TOY_D};
    uint64_t seed = 23;
    check_label = label;
    both.radius = alone.radius = radius;
    toy_normals(&seed, TOY_B * TOY_D, &both.guess[0][0]);
    o.guess = guessed;
    CHECK(correct(&last, &net, TOY_B, &alone) == NRI_OK);
    CHECK(run(&f, &last, &net, o, TOY_B, &both) == NRI_OK);
    for (int b = 0; b < TOY_B; b++) {
        CHECK(!memcmp(both.corrected[b], alone.corrected[b], sizeof(both.corrected[b])));
        CHECK(both.moved[b] == alone.moved[b] && both.held[b] == alone.held[b]);
        for (int d = 0; d < TOY_D; d++) {
            p.target[b][d] = alone.corrected[b][d];
            if (f.leveled) {
                both.guess[b][d] += (float)f.levels[2 * (f.E - 1)] * (alone.corrected[b][d] - alone.image[b][d]);
            }
        }
    }
    CHECK(both.correcting == alone.evaluations && both.evaluations <= both.limit);
    toy_outcome want = invert(&f, &net, o, &p, guessed ? both.guess : NULL);
    CHECK(both.evaluations == both.correcting + want.evaluations);
    for (int b = 0; b < TOY_B; b++) {
        double other[TOY_D];
        for (int d = 0; d < TOY_D; d++) {
            other[d] = (double)want.latents[b][d];
        }
        CHECK_NEAR(toy_distance(TOY_D, both.latents[b], other), 0, guessed ? 1e-5 : 0);
        CHECK(both.reason[b] == want.reason[b]);
        CHECK(guessed || both.nfe[b] == want.nfe[b] + both.correcting);
    }
}

static void
check_sequences(void)
{
    nri_options o = nri_default_options;
    for (int inverted = 0; inverted < 2; inverted++) {
        for (int guessed = 0; guessed < 2; guessed++) {
            o = nri_default_options;
            o.max_nfe = 8;
            check_sequence("sweep", toy_denoiser(4, true, 0, 4, 0.5), o, inverted, guessed);
            check_sequence("sweep, exploding", toy_denoiser(4, false, 0, 4, 0.5), o, inverted, guessed);
            check_sequence("no levels", toy_euler(3), o, inverted, guessed);
            o.verify = o.trajectory = true;
            check_sequence("verified", toy_euler(3), o, inverted, guessed);
            o.rounds = 3;
            check_sequence("rounds", toy_adams(4), o, inverted, guessed);
            o.rounds = 0;
            o.order = NRI_PASSES;
            if (!inverted) {
                check_sequence("passes", toy_adams(4), o, inverted, guessed);
                check_sequence("passes, levels", toy_denoiser(4, true, 0, 4, 0.5), o, inverted, guessed);
            }
        }
    }
}

static void
check_order(void)
{
    toy_form f = toy_denoiser(2, true, 0, 0.6, 0.5), bare = f, broken = f;
    nri_options o = nri_default_options;
    nri_sampler *leveled, *plain, *singular;
    nri_request q, again;
    nri_result r;
    toy_session s;
    int64_t shape[2];
    float zero[2] = {0, 0};
    double radius[1] = {-1};
    bool done;
    nri_tensor like = toy_tensor(zero, NRI_FLOAT32, shape, 1, 2);
    check_label = "order";
    bare.leveled = false;
    *toy_alpha(&broken, 1, 1) = 0;
    CHECK(toy_sampler(&f, &leveled) == NRI_OK && toy_sampler(&bare, &plain) == NRI_OK);
    CHECK(toy_sampler(&broken, &singular) == NRI_OK);
    static const char *const texts[] = {"correct_from must have levels where noise is drawn; leave out draws",
                                        "correct_rounds must be at least 1, got 0",
                                        "correct_rounds must be at most 357913941 with this sampler, got 1073741824",
                                        "order='passes' does not go with a correction without draws; use order='reversed'",
                                        "radius must hold a norm of at least 0 for each sample, got -1.0",
                                        "correct_from: step 1 of 2 cannot be inverted: the coefficient of the step's own "
                                        "state is 0"};
    for (int i = 0; i < 6; i++) {
        o = nri_default_options;
        o.correct_only = true;
        o.correct_inverted = i > 0;
        o.correct_from = i == 0 ? plain : i == 5 ? singular : leveled;
        o.correct_rounds = i == 1 ? 0 : i == 2 ? 1 << 30 : 2;
        o.order = i == 3 ? NRI_PASSES : NRI_REVERSED;
        o.correct_radius = i == 4 ? radius : NULL;
        nri_status status = toy_open(&f, &o, 1, 2, &s);
        CHECK(status == (i == 5 ? NRI_SINGULAR_STEP : NRI_BAD_ARGUMENT) && !s.inv);
        CHECK(!strcmp(s.problem.text, texts[i]) && s.problem.step == (i == 5 ? 1 : -1));
        toy_shut(&s);
    }
    o.correct_from = leveled;
    o.correct_rounds = 1;
    o.correct_only = true;
    CHECK(toy_open(&broken, &o, 1, 2, &s) == NRI_OK); /* the sampler itself is not inverted */
    CHECK(nri_inversion_feed(s.inv, &like) == NRI_BAD_ORDER);
    CHECK(nri_inversion_result(s.inv, &r) == NRI_BAD_ORDER);
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done && q.index == 1 && q.correcting);
    CHECK(nri_inversion_next(s.inv, &again, &done) == NRI_OK && again.index == 1 && again.slot == q.slot);
    for (int i = 0; i < 4; i++) {
        CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done && q.index == (i < 2 ? 1 - i : i - 2));
        CHECK(nri_inversion_feed(s.inv, &like) == NRI_OK);
    }
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done);
    CHECK(nri_inversion_feed(s.inv, &like) == NRI_BAD_ORDER);
    CHECK(nri_inversion_result(s.inv, &r) == NRI_OK && r.evaluations == 4);
    CHECK(r.trajectory == -1 && isnan(r.residual[0]) && r.step_nfe[1] == 0 && isnan(r.error[0]));
    toy_shut(&s);
    nri_sampler_destroy(leveled);
    nri_sampler_destroy(plain);
    nri_sampler_destroy(singular);
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
    check_overflow();
    check_sequences();
    check_order();
}
