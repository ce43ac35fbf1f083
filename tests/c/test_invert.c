/* invert.c on toy samplers whose z_T is known, and its order of requests step by step where the network is made up. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "toy.h"

static toy_outcome
invert(toy_form *f, const toy_network *net, nri_options o, const toy_problem *p, toy_fault fault)
{
    toy_outcome out;
    CHECK(toy_invert(f, net, &o, p, fault, &out) == NRI_OK);
    CHECK(out.evaluations <= out.limit);
    return out;
}

/* The states of sample b from the latents found, by the independent forward run. */
static void
replay(toy_form *f, const toy_network *net, const toy_problem *p, const toy_outcome *out, int b,
       double states[TOY_E + 1][TOY_D])
{
    double noises[TOY_K][TOY_D];
    for (int d = 0; d < p->D; d++) {
        states[0][d] = (double)out->latents[b][d];
        for (int k = 0; k < f->K; k++) {
            noises[k][d] = (double)p->noises[k][b][d];
        }
    }
    toy_forward(f, net, &noises[0][0], &states[0][0]);
}

static double
reconstruction_error(const toy_problem *p, int b, const double *end)
{
    double target[TOY_D];
    float got[TOY_D];
    for (int d = 0; d < p->D; d++) {
        target[d] = (double)p->target[b][d];
        got[d] = (float)end[d];
    }
    return toy_distance(p->D, got, target);
}

static const nri_options exact = {
    .solver = NRI_ANDERSON, .max_nfe = 30, .depth = 5, .tol = 1e-6, .floor = 0.5, .extrapolation = 0.5, .predictor = true};

/* `f` inverts step by step: z_T comes back, whatever the options that should not matter. */
static void
check_first_order(const char *label, toy_form f, bool linear)
{
    double start[TOY_B][TOY_D];
    toy_network net = toy_make_network(TOY_D, linear, 0.9, 21);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 22, start);
    check_label = label;
    for (int variant = 0; variant < 5; variant++) {
        nri_options o = exact;
        o.predictor = variant != 1;
        o.solver = variant == 2 ? NRI_FIXED_POINT : NRI_ANDERSON;
        o.max_nfe = variant == 2 ? 100 : 30;
        o.verify = variant == 3;
        o.rounds = variant == 4;
        toy_outcome out = invert(&f, &net, o, &p, toy_sound);
        for (int b = 0; b < TOY_B; b++) {
            CHECK_NEAR(toy_distance(TOY_D, out.latents[b], start[b]), 0, 1e-5);
            CHECK(out.reason[b] == NRI_TOL);
            CHECK(out.measured[b] == (variant >= 3) && out.error[b] < 1e-5);
            int nfe = 0;
            for (int j = 0; j < f.E; j++) {
                CHECK(out.residual[j][b] <= 1e-6);
                nfe += out.step_nfe[j][b];
            }
            CHECK(nfe <= out.nfe[b] && (variant >= 3 || nfe == out.nfe[b]));
            CHECK(out.nfe[b] <= out.evaluations);
        }
    }
}

static void
check_refined(const char *label, toy_form f, bool linear)
{
    double start[TOY_B][TOY_D];
    toy_network net = toy_make_network(TOY_D, linear, 0.9, 31);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 32, start);
    check_label = label;
    double last = 1;
    for (int rounds = 0; rounds < 12; rounds += 4) {
        nri_options o = exact;
        o.rounds = rounds;
        o.verify = true;
        toy_outcome out = invert(&f, &net, o, &p, toy_sound);
        double worst = 0;
        for (int b = 0; b < TOY_B; b++) {
            double states[TOY_E + 1][TOY_D];
            replay(&f, &net, &p, &out, b, states);
            CHECK_NEAR(out.error[b], reconstruction_error(&p, b, states[f.E]), 1e-6);
            worst = fmax(worst, out.error[b]);
        }
        CHECK(worst < 0.1 * last || worst < 2e-6);
        last = worst;
        if (rounds >= 8) {
            CHECK_NEAR(worst, 0, 2e-6);
            for (int b = 0; b < TOY_B; b++) {
                CHECK_NEAR(toy_distance(TOY_D, out.latents[b], start[b]), 0, 1e-4);
                CHECK(out.reason[b] == NRI_TOL);
            }
        }
    }
}

/* With a single sweep that is stopped early the error is large, and still the one measured. */
static void
check_verify(const char *label, toy_form f)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D];
    toy_network net = toy_make_network(TOY_D, false, 0.9, 41);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 42, start);
    nri_options o = exact;
    check_label = label;
    o.tol = 0;
    o.max_nfe = 1;
    o.verify = o.trajectory = true;
    toy_outcome out = invert(&f, &net, o, &p, toy_sound);
    CHECK(out.evaluations == out.limit && out.limit == 2 * f.E);
    for (int b = 0; b < TOY_B; b++) {
        replay(&f, &net, &p, &out, b, states);
        double error = reconstruction_error(&p, b, states[f.E]);
        CHECK(error > 1e-3);
        CHECK_NEAR(out.error[b], error, 1e-5 * error + 1e-7);
        CHECK(out.reason[b] == NRI_MAX_NFE);
        CHECK(out.nfe[b] == 2 * f.E);
        CHECK(memcmp(out.trajectory[0][b], out.latents[b], sizeof(out.latents[b])) == 0);
        for (int j = 1; j <= f.E; j++) {
            CHECK_NEAR(toy_distance(TOY_D, out.trajectory[j][b], states[j]), 0, 2e-6);
        }
    }
}

/* What an inversion says of its error without having measured it is near what a replay shows. */
static void
check_estimate(const char *label, toy_form f)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D];
    toy_network net = toy_make_network(TOY_D, false, 0.9, 45);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 46, start);
    check_label = label;
    for (int max_nfe = 2; max_nfe <= 4; max_nfe++) {
        nri_options o = exact;
        o.tol = 0;
        o.max_nfe = max_nfe;
        for (int fixed_point = 0; fixed_point < 2; fixed_point++) {
            o.solver = fixed_point ? NRI_FIXED_POINT : NRI_ANDERSON;
            toy_outcome out = invert(&f, &net, o, &p, toy_sound);
            for (int b = 0; b < TOY_B; b++) {
                replay(&f, &net, &p, &out, b, states);
                double error = reconstruction_error(&p, b, states[f.E]);
                CHECK(!out.measured[b] && out.growth[b] > 0 && error > 1e-6);
                CHECK(out.error[b] > error / 2 && out.error[b] < 4 * error);
            }
        }
    }
}

/* The trajectory that belongs to the best round is returned, not that of the last. */
static void
check_best_trajectory(void)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D];
    toy_form f = toy_adams(6);
    toy_network net = toy_make_network(TOY_D, false, 2.5, 43);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 44, start);
    check_label = "best trajectory";
    for (int rounds = 0; rounds < 6; rounds++) {
        nri_options o = exact;
        o.max_nfe = 2;
        o.rounds = rounds;
        o.verify = o.trajectory = true;
        toy_outcome out = invert(&f, &net, o, &p, toy_sound);
        for (int b = 0; b < TOY_B; b++) {
            replay(&f, &net, &p, &out, b, states);
            CHECK_NEAR(out.error[b], reconstruction_error(&p, b, states[f.E]), 1e-5 * out.error[b] + 1e-6);
            for (int j = 0; j <= f.E; j++) {
                CHECK_NEAR(toy_distance(TOY_D, out.trajectory[j][b], states[j]), 0, 2e-6);
            }
        }
    }
}

/* Without a forward run the trajectory is what the sweep found, from the target itself down to z_T. */
static void
check_trajectory(void)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D];
    toy_form f = toy_ancestral(6);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 51);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 52, start);
    nri_options o = exact;
    check_label = "trajectory";
    o.trajectory = true;
    toy_outcome out = invert(&f, &net, o, &p, toy_sound);
    for (int b = 0; b < TOY_B; b++) {
        CHECK(memcmp(out.trajectory[0][b], out.latents[b], sizeof(out.latents[b])) == 0);
        CHECK(memcmp(out.trajectory[f.E][b], p.target[b], sizeof(out.latents[b])) == 0);
        replay(&f, &net, &p, &out, b, states);
        for (int j = 0; j < f.E; j++) {
            CHECK_NEAR(toy_distance(TOY_D, out.trajectory[j][b], states[j]), 0, 1e-5);
        }
    }
}

/* If no forward run succeeds, the trajectory of the sweep is returned with its latents. */
static void
check_unmeasured_trajectory(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(4);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 53);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 54, start);
    nri_options o = exact;
    check_label = "unmeasured trajectory";
    o.max_nfe = 1;
    o.verify = o.trajectory = true;
    toy_outcome out = invert(&f, &net, o, &p, (toy_fault){f.E + 1, f.E + 1, 1u << 2, false});
    for (int b = 0; b < TOY_B; b++) {
        CHECK(isnan(out.error[b]) == (b == 2) && out.measured[b] == (b != 2));
        CHECK((out.reason[b] == NRI_NON_FINITE) == (b == 2));
        CHECK(memcmp(out.trajectory[0][b], out.latents[b], sizeof(out.latents[b])) == 0);
    }
    CHECK(memcmp(out.trajectory[f.E][2], p.target[2], sizeof(p.target[2])) == 0);
}

/* Nothing of a sample depends on the others: not its result, its reason, nor its counts. */
static void
check_batch(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_adams(5);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 61);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 62, start);
    nri_options o = exact;
    check_label = "batch";
    o.rounds = 6;
    o.tol = 1e-5;
    memset(p.target[1], 0, sizeof(p.target[1])); /* an easy one, that ends with the first round */
    toy_outcome all = invert(&f, &net, o, &p, toy_sound);
    toy_outcome hurt = invert(&f, &net, o, &p, (toy_fault){0, 1 << 30, 1u << 2, false});
    for (int b = 0; b < TOY_B; b++) {
        toy_problem single = {.B = 1, .D = TOY_D};
        memcpy(single.target[0], p.target[b], sizeof(single.target[0]));
        toy_outcome one = invert(&f, &net, o, &single, toy_sound);
        CHECK(memcmp(all.latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
        CHECK(all.nfe[b] == one.nfe[0] && all.reason[b] == one.reason[0] && all.error[b] == one.error[0]);
        for (int j = 0; j < f.E; j++) {
            CHECK(all.residual[j][b] == one.residual[j][0] && all.step_nfe[j][b] == one.step_nfe[j][0]);
        }
        if (b != 2) {
            CHECK(memcmp(hurt.latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
            CHECK(hurt.nfe[b] == one.nfe[0] && hurt.reason[b] == one.reason[0] && hurt.error[b] == one.error[0]);
        }
    }
    CHECK(all.nfe[1] == 2 * f.E && all.nfe[0] > 2 * f.E && all.reason[1] == NRI_TOL);
    CHECK(hurt.reason[2] == NRI_NON_FINITE);
    CHECK(isnan(hurt.error[2]));
}

static bool
finite(const toy_problem *p, const toy_outcome *out)
{
    for (int b = 0; b < p->B; b++) {
        for (int d = 0; d < p->D; d++) {
            if (!isfinite(out->latents[b][d])) {
                return false;
            }
        }
    }
    return true;
}

/* One bad answer anywhere costs an evaluation or a round, never the result; only bad answers end with the reason. */
static void
check_not_finite(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_adams(4);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 71);
    toy_problem p = toy_make_problem(&f, &net, 2, 72, start);
    nri_options o = exact;
    check_label = "not finite";
    o.rounds = 12;
    int calls = invert(&f, &net, o, &p, toy_sound).evaluations;
    for (int at = 0; at < calls; at++) {
        toy_outcome out = invert(&f, &net, o, &p, (toy_fault){at, at, 1, false});
        CHECK(finite(&p, &out));
        CHECK(out.reason[0] == NRI_TOL && out.reason[1] == NRI_TOL);
        CHECK_NEAR(toy_distance(TOY_D, out.latents[0], start[0]), 0, 1e-4);
        out = invert(&f, &net, o, &p, (toy_fault){at, 1 << 30, 3, false});
        CHECK(finite(&p, &out));
        CHECK(out.reason[0] == NRI_NON_FINITE && out.reason[1] == NRI_NON_FINITE);
        CHECK(out.evaluations <= at + 2 + 2 * f.E);
    }
    o = exact;
    toy_outcome out = invert(&f, &net, o, &p, (toy_fault){0, 1 << 30, 3, false});
    CHECK(finite(&p, &out) && out.evaluations == 2 && isnan(out.residual[3][0]) && out.step_nfe[3][0] == 2);
}

static void
check_zero_target(void)
{
    toy_form f = toy_euler(3);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 81);
    toy_problem p = {.B = 1, .D = TOY_D};
    nri_options o = exact;
    check_label = "zero target";
    o.verify = true;
    toy_outcome out = invert(&f, &net, o, &p, toy_sound);
    CHECK(out.error[0] == 0 && out.residual[0][0] == 0 && out.reason[0] == NRI_TOL);
    for (int d = 0; d < TOY_D; d++) {
        CHECK(out.latents[0][d] == 0);
    }
}

/* ------------------------------------------------------------------------------------------------- one step at a time */

enum { DIM = 3 };

typedef struct {
    nri_sampler *sampler;
    nri_space *v;
    nri_inversion *inv;
} session;

static session
open(const toy_form *f, nri_options o)
{
    session s = {NULL, NULL, NULL};
    nri_problem problem;
    int64_t shape[2];
    int step;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, 1, DIM);
    CHECK(nri_sampler_create(f->E, f->K, f->timesteps, f->steps, f->inputs, NULL, &s.sampler, &step) == NRI_OK);
    CHECK(nri_space_create_host(&like, nri_inversion_slots(s.sampler, &o), &s.v) == NRI_OK);
    CHECK(nri_inversion_create(s.sampler, &o, s.v, &s.inv, &problem) == NRI_OK);
    return s;
}

static void
shut(session *s)
{
    nri_inversion_destroy(s->inv);
    nri_space_destroy(s->v);
    nri_sampler_destroy(s->sampler);
}

static void
put(session *s, int slot, const double *x)
{
    double copy[DIM];
    int64_t shape[2];
    nri_tensor t = toy_tensor(copy, NRI_FLOAT64, shape, 1, DIM);
    memcpy(copy, x, sizeof(copy));
    CHECK(s->v->ops->exchange(s->v, slot, &t, NRI_LOAD) == NRI_OK);
}

static void
check_slot(session *s, int slot, const double *want)
{
    double got[DIM];
    int64_t shape[2];
    nri_tensor t = toy_tensor(got, NRI_FLOAT64, shape, 1, DIM);
    CHECK(s->v->ops->exchange(s->v, slot, &t, NRI_STORE) == NRI_OK);
    for (int d = 0; d < DIM; d++) {
        CHECK_NEAR(got[d], want[d], 1e-5);
    }
}

static nri_status
feed(session *s, const double *m)
{
    double copy[DIM];
    int64_t shape[2];
    nri_tensor t = toy_tensor(copy, NRI_FLOAT64, shape, 1, DIM);
    memcpy(copy, m, sizeof(copy));
    return nri_inversion_feed(s->inv, &t);
}

/* Expect a request for step j, twice the same. */
static int
ask(session *s, const toy_form *f, int j)
{
    nri_request first, second;
    bool done = true;
    CHECK(nri_inversion_next(s->inv, &first, &done) == NRI_OK && !done);
    CHECK(nri_inversion_next(s->inv, &second, &done) == NRI_OK && !done);
    CHECK(first.index == second.index && first.slot == second.slot);
    CHECK(first.timestep == second.timestep && first.scale == second.scale);
    CHECK(first.index == j && first.timestep == f->timesteps[j] && first.scale == f->inputs[j]);
    return first.slot;
}

static const double Z0[DIM] = {1, -2, 0.5}, N0[DIM] = {0.3, 0.1, -0.7}, N1[DIM] = {-0.4, 0.9, 0.2};
static const double M2[DIM] = {0.5, 0.25, -1}, M1[DIM] = {-0.75, 1, 0.125}, M0[DIM] = {0.2, -0.6, 0.9};

/* Step j with its noise n and unknown older output, one evaluation: m comes in, `next` is the output of the step after. */
static void
step_back(toy_form *f, double rho, int j, const double *n, const double *m, const double *next, double *state)
{
    for (int d = 0; d < DIM; d++) {
        double sum = state[d] - *toy_beta(f, j, j) * m[d];
        if (n) {
            sum -= *toy_gamma(f, j, j) * n[d];
        }
        if (j > 0) {
            sum -= *toy_beta(f, j, j - 1) * (m[d] + (next ? rho * (m[d] - next[d]) : 0));
        }
        state[d] = sum / *toy_alpha(f, j, j);
    }
}

/* A sampler with all that a step can have: its own state, two outputs, noise. */
static toy_form
mixed(void)
{
    toy_form f = toy_ancestral(3);
    *toy_beta(&f, 1, 0) = 0.15;
    *toy_beta(&f, 2, 1) = 0.1;
    return f;
}

/* Every number of a sweep with one evaluation a step, and of the forward run behind it. */
static void
check_arithmetic(bool predictor, double rho)
{
    toy_form f = mixed();
    nri_options o = {
        .solver = NRI_ANDERSON, .max_nfe = 1, .depth = 3, .floor = 0.5, .extrapolation = rho, .predictor = predictor};
    double state[DIM], guess[DIM];
    check_label = predictor ? "predictor" : "naive";
    o.verify = true;
    session s = open(&f, o);
    put(&s, nri_inversion_inputs(s.inv).target, Z0);
    put(&s, nri_inversion_inputs(s.inv).noises, N0);
    put(&s, nri_inversion_inputs(s.inv).noises + 1, N1);
    memcpy(state, Z0, sizeof(state));
    check_slot(&s, ask(&s, &f, 2), state);
    CHECK(feed(&s, M2) == NRI_OK);
    step_back(&f, rho, 2, NULL, M2, NULL, state);
    memcpy(guess, state, sizeof(guess));
    if (predictor) {
        step_back(&f, rho, 1, N1, M2, M2, guess);
    }
    check_slot(&s, ask(&s, &f, 1), guess);
    CHECK(feed(&s, M1) == NRI_OK);
    step_back(&f, rho, 1, N1, M1, M2, state);
    memcpy(guess, state, sizeof(guess));
    if (predictor) {
        step_back(&f, rho, 0, N0, M1, M1, guess);
    }
    check_slot(&s, ask(&s, &f, 0), guess);
    CHECK(feed(&s, M0) == NRI_OK);
    step_back(&f, rho, 0, N0, M0, M1, state);

    const double *m[3] = {M0, M1, M2}, *n[3] = {N0, N1, NULL};
    for (int j = 0; j < 3; j++) {
        check_slot(&s, ask(&s, &f, j), state);
        CHECK(feed(&s, m[j]) == NRI_OK);
        for (int d = 0; d < DIM; d++) {
            state[d] = *toy_alpha(&f, j, j) * state[d] + *toy_beta(&f, j, j) * m[j][d];
            state[d] += n[j] ? *toy_gamma(&f, j, j) * n[j][d] : 0;
            state[d] += j > 0 ? *toy_beta(&f, j, j - 1) * m[j - 1][d] : 0;
        }
    }
    nri_result result;
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK);
    double gap = 0, size = 0;
    for (int d = 0; d < DIM; d++) {
        gap += (state[d] - Z0[d]) * (state[d] - Z0[d]);
        size += Z0[d] * Z0[d];
    }
    CHECK_NEAR(result.error[0], sqrt(gap / size), 1e-6);
    shut(&s);
}

static void
check_order(void)
{
    toy_form f = toy_euler(1);
    nri_options o = exact;
    nri_request request;
    nri_result result;
    bool done = false;
    check_label = "order";
    o.max_nfe = 1;
    session s = open(&f, o);
    put(&s, nri_inversion_inputs(s.inv).target, Z0);
    CHECK(feed(&s, M0) == NRI_BAD_ORDER);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_BAD_ORDER);
    ask(&s, &f, 0);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_BAD_ORDER);
    CHECK(feed(&s, M0) == NRI_OK);
    CHECK(feed(&s, M0) == NRI_BAD_ORDER);
    CHECK(nri_inversion_next(s.inv, &request, &done) == NRI_OK && done);
    CHECK(feed(&s, M0) == NRI_BAD_ORDER);
    CHECK(nri_inversion_next(s.inv, &request, &done) == NRI_OK && done);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK && result.evaluations == 1);
    shut(&s);
}

static void
check_bad_target(void)
{
    toy_form f = toy_euler(2);
    nri_request request;
    bool done;
    check_label = "bad target";
    session s = open(&f, exact);
    put(&s, nri_inversion_inputs(s.inv).target, (double[]){1, NAN, 0});
    for (int i = 0; i < 2; i++) {
        CHECK(nri_inversion_next(s.inv, &request, &done) == NRI_NOT_FINITE);
        CHECK(feed(&s, M0) == NRI_BAD_ORDER);
    }
    put(&s, nri_inversion_inputs(s.inv).target, Z0);
    CHECK(nri_inversion_next(s.inv, &request, &done) == NRI_OK && !done);
    shut(&s);
}

/* `exact` with one option changed. */
static nri_options
changed(int what)
{
    nri_options o = exact;
    o.max_nfe = what == 0 ? 0 : what == 1 ? INT_MAX : o.max_nfe;
    o.depth = what == 2 ? -1 : what == 3 ? NRI_MAX_DEPTH + 1 : o.depth;
    o.rounds = what == 4 ? -1 : what == 5 ? INT_MAX : what == 6 ? 4000000 : 0;
    o.tol = what == 7 ? -1 : what == 8 ? INFINITY : what == 9 ? -0.1 : 0;
    o.atol = what == 10 ? NAN : what == 11 ? -1e300 : 0;
    o.lam = what == 12 ? -2.5 : what == 13 ? NAN : 0;
    o.floor = what == 14 ? 0 : what == 15 ? -INFINITY : 0.5;
    o.extrapolation = what == 16 ? 1.5 : what == 17 ? NAN : 0;
    o.solver = what == 18 ? (nri_solver)7 : NRI_ANDERSON;
    o.order = what == 19 ? NRI_ORDERS : NRI_REVERSED;
    o.absorb = what == 20;
    o.correct_only = what == 21;
    return o;
}

static void
check_texts(const session *s)
{
    static const char *const texts[] = {"max_nfe must be at least 1, got 0",
                                        "max_nfe must be at most 268435454 with this sampler, got 2147483647",
                                        "depth must be in 0..15, got -1",
                                        "depth must be in 0..15, got 16",
                                        "rounds must be at least 0, got -1",
                                        "rounds must be at most 8659207 with this sampler and max_nfe, got 2147483647",
                                        NULL,
                                        "tol must be a finite number of at least 0, got -1.0",
                                        "tol must be a finite number of at least 0, got inf",
                                        "tol must be a finite number of at least 0, got -0.1",
                                        "atol must be a finite number of at least 0, got nan",
                                        "atol must be a finite number of at least 0, got -1e+300",
                                        "lam must be a finite number of at least 0, got -2.5",
                                        "lam must be a finite number of at least 0, got nan",
                                        "floor must be a finite number above 0, got 0.0",
                                        "floor must be a finite number above 0, got -inf",
                                        "extrapolation must be in 0..1, got 1.5",
                                        "extrapolation must be in 0..1, got nan",
                                        "solver and order must be in their lists, got 7 and 0",
                                        "solver and order must be in their lists, got 1 and 2",
                                        "noise='absorb' needs a sampler with levels; use noise='record'",
                                        "correct_only needs correct_from"};
    nri_inversion *inv;
    nri_problem problem;
    for (int i = 0; i < (int)(sizeof(texts) / sizeof(*texts)); i++) {
        nri_options o = changed(i);
        nri_status want = texts[i] ? NRI_BAD_ARGUMENT : NRI_OK;
        check_label = texts[i] ? texts[i] : "in range";
        CHECK(nri_check_options(s->sampler, &o, &problem) == want);
        CHECK(strcmp(problem.text, texts[i] ? texts[i] : "") == 0 && problem.step == -1);
        if (texts[i]) {
            CHECK(nri_inversion_create(s->sampler, &o, s->v, &inv, &problem) == want && !inv);
            CHECK(strcmp(problem.text, texts[i]) == 0);
        }
    }
}

static void
check_refusals(void)
{
    toy_form f = toy_ancestral(4);
    nri_inversion *inv;
    nri_problem problem;
    session s = open(&f, exact);
    check_texts(&s);
    check_label = "refusals";
    nri_options wide = exact;
    wide.verify = true; /* needs more slots than there are */
    CHECK(nri_inversion_create(s.sampler, &wide, s.v, &inv, &problem) == NRI_BAD_ARGUMENT && !inv);
    CHECK(strncmp(problem.text, "the inversion needs ", 20) == 0);
    s.v->slots--;
    CHECK(nri_inversion_create(s.sampler, &exact, s.v, &inv, &problem) == NRI_BAD_ARGUMENT && !inv);
    s.v->slots++;
    s.sampler->singular[2] = true;
    CHECK(nri_inversion_create(s.sampler, &exact, s.v, &inv, &problem) == NRI_SINGULAR_STEP && !inv && problem.step == 2);
    CHECK(strcmp(problem.text, "sampler: step 2 of 4 cannot be inverted: the coefficient of the step's own state is 0")
          == 0);
    shut(&s);
    nri_inversion_destroy(NULL);
}

/* Counts are those of integers that do not wrap, up to the largest options that are accepted. */
static void
check_counts(void)
{
    toy_form f = toy_ancestral(4);
    nri_problem problem;
    session s = open(&f, exact);
    check_label = "counts";
    for (int max_nfe = 1; max_nfe < 200000000; max_nfe *= 3) {
        nri_options o = exact;
        int low = 0, high = INT_MAX;
        o.max_nfe = max_nfe;
        while (low < high) { /* the most rounds that are accepted */
            o.rounds = low + (high - low) / 2 + 1;
            if (nri_check_options(s.sampler, &o, &problem) == NRI_OK) {
                low = o.rounds;
            }
            else {
                high = o.rounds - 1;
            }
        }
        o.rounds = low;
        double want = (low + 1.0) * (low > 0 ? max_nfe + 1.0 : max_nfe) * f.E;
        CHECK((double)nri_inversion_max_evaluations(s.sampler, &o) == want && want <= INT_MAX);
        CHECK(nri_inversion_slots(s.sampler, &o) < 100);
    }
    shut(&s);
}

/* Restarts, refused mixtures and failures are counted over all steps, and of nobody else. */
static void
check_tally(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(4);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 91);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 92, start);
    check_label = "tally";
    for (int solver = NRI_AUTO; solver < NRI_SOLVERS; solver++) {
        nri_options o = exact;
        o.solver = (nri_solver)solver;
        toy_outcome sound = invert(&f, &net, o, &p, toy_sound);
        for (int at = 0; at < 6; at++) {
            toy_outcome out = invert(&f, &net, o, &p, (toy_fault){at, at, 2, false});
            for (int b = 0; b < TOY_B; b++) {
                CHECK(sound.failed[b] == 0);
                CHECK(out.failed[b] == (b == 1));
                CHECK(b == 1 || (out.restarts[b] == sound.restarts[b] && out.rejected[b] == sound.rejected[b]));
            }
            bool lost = out.reason[1] == NRI_NON_FINITE; /* by a product, which is not asked for twice */
            CHECK(out.restarts[1] >= sound.restarts[1] + !lost || solver == NRI_NEWTON);
            CHECK(lost ? solver == NRI_NEWTON : out.restarts[1] > 0);
        }
        toy_outcome dead = invert(&f, &net, o, &p, (toy_fault){0, 1 << 30, 2, false});
        CHECK(dead.failed[1] == 2 && dead.reason[1] == NRI_NON_FINITE && dead.failed[0] == 0);
    }
    nri_options rounds = exact; /* a forward run that fails is one failure */
    rounds.verify = true;
    int calls = invert(&f, &net, rounds, &p, toy_sound).evaluations;
    toy_outcome out = invert(&f, &net, rounds, &p, (toy_fault){calls - 1, calls - 1, 4, false});
    for (int b = 0; b < TOY_B; b++) {
        CHECK(out.failed[b] == (b == 2));
    }
}

void
test_invert(void)
{
    check_first_order("euler, linear", toy_euler(5), true);
    check_first_order("euler, tanh", toy_euler(5), false);
    check_first_order("one step", toy_euler(1), false);
    check_first_order("ancestral, linear", toy_ancestral(5), true);
    check_first_order("ancestral, tanh", toy_ancestral(5), false);
    check_refined("adams, linear", toy_adams(6), true);
    check_refined("adams, tanh", toy_adams(6), false);
    check_refined("heun, linear", toy_heun(3), true);
    check_refined("heun, tanh", toy_heun(3), false);
    check_verify("verify euler", toy_euler(5));
    check_verify("verify ancestral", toy_ancestral(5));
    check_verify("verify adams", toy_adams(5));
    check_verify("verify heun", toy_heun(3));
    check_estimate("estimate euler", toy_euler(5));
    check_estimate("estimate denoiser", toy_denoiser(5, true, 0, 10, 0.5));
    check_best_trajectory();
    check_trajectory();
    check_unmeasured_trajectory();
    check_batch();
    check_not_finite();
    check_zero_target();
    for (int predictor = 0; predictor < 2; predictor++) {
        check_arithmetic(predictor, 0);
        check_arithmetic(predictor, 0.5);
        check_arithmetic(predictor, 1);
    }
    check_order();
    check_bad_target();
    check_refusals();
    check_counts();
    check_tally();
}
