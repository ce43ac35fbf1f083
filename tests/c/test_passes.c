/* passes.c and vec_stack.c: trajectories whose z_T is known, and the passes one by one where the network is made up. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "inversion.h"
#include "toy.h"

enum { PASSES = 60 };

static nri_options
passes(nri_solver solver)
{
    nri_options o = nri_default_options;
    o.order = NRI_PASSES;
    o.solver = solver;
    o.max_nfe = PASSES;
    o.depth = 10;
    o.tol = 1e-7;
    o.trajectory = true;
    return o;
}

static toy_outcome
invert(const toy_form *f, const toy_network *net, nri_options o, const toy_problem *p, toy_fault fault)
{
    toy_outcome out;
    CHECK(toy_invert(f, net, &o, p, fault, &out) == NRI_OK);
    CHECK(out.evaluations <= out.limit);
    for (int b = 0; b < p->B; b++) {
        for (int d = 0; d < p->D; d++) {
            CHECK(isfinite(out.latents[b][d]));
        }
    }
    return out;
}

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

/* ------------------------------------------------------------------------------------------------------------- solutions */

/* z_T and the states on the way come back, as far as float32 goes; the counts and logs agree. */
static void
check_solution(const char *label, toy_form f, bool linear, double size)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D];
    toy_network net = toy_make_network(TOY_D, linear, size, 171);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 172, start);
    check_label = label;
    for (int variant = 0; variant < 4; variant++) {
        nri_options o = passes(variant == 0 ? NRI_AUTO : NRI_ANDERSON);
        o.verify = variant == 2;
        o.predictor = variant != 3;
        toy_outcome out = invert(&f, &net, o, &p, toy_sound);
        for (int b = 0; b < TOY_B; b++) {
            CHECK_NEAR(toy_distance(TOY_D, out.latents[b], start[b]), 0, 5e-6);
            CHECK(out.reason[b] == NRI_TOL || out.reason[b] == NRI_STALLED);
            CHECK(memcmp(out.trajectory[0][b], out.latents[b], sizeof(out.latents[b])) == 0);
            CHECK(out.measured[b] == (variant == 2) && out.error[b] < (variant == 2 ? 2e-6 : 1e-4));
            CHECK(out.nfe[b] == f.E * (out.step_nfe[0][b] + (variant == 2)));
            replay(&f, &net, &p, &out, b, states);
            for (int j = 0; j < f.E; j++) {
                CHECK_NEAR(toy_distance(TOY_D, out.trajectory[j][b], states[j]), 0, 5e-6);
                CHECK(out.residual[j][b] <= 2e-6);
                CHECK(out.step_nfe[j][b] == out.step_nfe[0][b] && out.step_nfe[j][b] < PASSES);
            }
        }
    }
}

/* Both orders lead to the same z_T. */
static void
check_orders_agree(const char *label, toy_form f, int rounds)
{
    double start[TOY_B][TOY_D], other[TOY_D];
    toy_network net = toy_make_network(TOY_D, false, 0.5, 173);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 174, start);
    nri_options o = passes(NRI_ANDERSON);
    check_label = label;
    toy_outcome a = invert(&f, &net, o, &p, toy_sound);
    o.order = NRI_REVERSED;
    o.rounds = rounds;
    toy_outcome z = invert(&f, &net, o, &p, toy_sound);
    for (int b = 0; b < TOY_B; b++) {
        for (int d = 0; d < TOY_D; d++) {
            other[d] = (double)z.latents[b][d];
        }
        CHECK_NEAR(toy_distance(TOY_D, a.latents[b], other), 0, 1e-6);
    }
}

/* Depth 0, and fixed_point at any depth, are the plain iteration X <- G(X). */
static void
check_plain(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_denoiser(5, true, 0, 3, 0.5); /* contracts slowly */
    toy_network net = toy_make_network(TOY_D, false, 0.6, 175);
    toy_problem p = toy_make_problem(&f, &net, 2, 176, start);
    check_label = "plain";
    for (int n = 1; n < 9; n += 7) {
        nri_options o = passes(NRI_FIXED_POINT);
        o.max_nfe = n;
        o.tol = 0;
        toy_outcome plain = invert(&f, &net, o, &p, toy_sound);
        o.depth = 0;
        toy_outcome flat = invert(&f, &net, o, &p, toy_sound);
        o.depth = 5;
        o.solver = NRI_ANDERSON;
        toy_outcome mixed = invert(&f, &net, o, &p, toy_sound);
        CHECK(plain.evaluations == n * f.E && plain.limit == n * f.E && plain.reason[0] == NRI_MAX_NFE);
        CHECK(memcmp(plain.latents, flat.latents, sizeof(plain.latents)) == 0);
        for (int b = 0; b < 2 && n > 1; b++) {
            CHECK(toy_distance(TOY_D, mixed.latents[b], start[b]) < toy_distance(TOY_D, plain.latents[b], start[b]));
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- one by one */

static nri_request
ask(toy_session *s, int index, double want)
{
    nri_request q = {.slot = 0};
    bool done = true;
    double x[1] = {NAN};
    CHECK(nri_inversion_next(s->inv, &q, &done) == NRI_OK && !done);
    CHECK(q.index == index && q.cotangent < 0 && !q.wants_gradient && q.active[0]);
    CHECK(toy_get(s, q.slot, x) == NRI_OK);
    CHECK_NEAR(x[0], want, 1e-6);
    return q;
}

/* Three steps with memory and noise, one number a state, by hand. */
static void
check_by_hand(void)
{
    toy_form f = toy_empty(3, 1);
    nri_options o = passes(NRI_FIXED_POINT);
    nri_result result;
    nri_request q;
    toy_session s;
    bool done = false;
    double z[1] = {1.5}, n[1] = {0.25}, m[3] = {0.3, -0.2, 0.5}, x[1], G[4], size = 0, miss = 0;
    check_label = "by hand";
    for (int j = 0; j < 3; j++) {
        *toy_alpha(&f, j, j) = 0.5 + 0.5 * j;
        *toy_beta(&f, j, j) = -0.4;
        if (j) {
            *toy_beta(&f, j, j - 1) = 0.3;
        }
    }
    *toy_alpha(&f, 2, 0) = 0.1; /* s_3 = 1.5 s_2 + 0.1 s_0 + ..., and s_0 goes back to s_2 by the older rows */
    *toy_gamma(&f, 0, 0) = 0.2;
    o.max_nfe = 2;
    o.verify = true;
    CHECK(toy_open(&f, &o, 1, 1, &s) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, z) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).noises, n) == NRI_OK);
    const double *back = s.sampler->back; /* rows of A, b_0..b_2, C */
    double first[4] = {0, 0, 0, z[0]};
    G[3] = z[0];
    for (int j = 2; j >= 0; j--) {
        double sum = G[j + 1] - back[5 * j + 4] * n[0];
        for (int k = 0; k <= j; k++) {
            sum -= back[5 * j + 1 + k] * m[k];
        }
        G[j] = sum / back[5 * j];
        first[j] = first[j + 1] / back[5 * j];
    }
    for (int j = 0; j < 3; j++) {
        ask(&s, j, first[j]);
        q = ask(&s, j, first[j]); /* asking again changes nothing */
        CHECK(q.timestep == f.timesteps[j] && q.scale == f.inputs[j]);
        CHECK(toy_feed(&s, m + j) == NRI_OK);
        CHECK(toy_feed(&s, m + j) == NRI_BAD_ORDER);
    }
    for (int j = 0; j < 3; j++) { /* the same answers: converged */
        ask(&s, j, G[j]);
        CHECK(nri_inversion_result(s.inv, &result) == NRI_BAD_ORDER);
        CHECK(toy_feed(&s, m + j) == NRI_OK);
    }
    for (int j = 0; j < 3; j++) { /* the states are those of the sampler: it is met by its own way back */
        ask(&s, j, G[j]);
        CHECK(toy_feed(&s, m + j) == NRI_OK);
    }
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK);
    CHECK(result.reason[0] == NRI_TOL && result.nfe[0] == 9 && result.evaluations == 9);
    CHECK_NEAR(result.error[0], 0, 1e-6);
    CHECK(toy_get(&s, result.latents, x) == NRI_OK);
    CHECK_NEAR(x[0], G[0], 1e-6);
    for (int j = 0; j < 3; j++) {
        CHECK(result.step_nfe[j] == 2);
        CHECK_NEAR(result.residual[j], 0, 1e-6);
        CHECK(toy_get(&s, result.trajectory + j, x) == NRI_OK);
        CHECK_NEAR(x[0], G[j], 1e-6);
        size += pow(f.inputs[j] * first[j], 2);
        miss += pow(f.inputs[j] * (G[j] - first[j]), 2);
    }
    toy_shut(&s);
    /* one pass: the residual of every state, and tol on all of them as the network sees them */
    o.verify = false;
    for (int variant = 0; variant < 2; variant++) {
        o.tol = sqrt(miss / size) * (variant ? 1.001 : 0.999);
        CHECK(toy_open(&f, &o, 1, 1, &s) == NRI_OK);
        CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, z) == NRI_OK);
        CHECK(toy_put(&s, nri_inversion_inputs(s.inv).noises, n) == NRI_OK);
        for (int j = 0; j < 3; j++) {
            ask(&s, j, first[j]);
            CHECK(toy_feed(&s, m + j) == NRI_OK);
        }
        CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done == (variant == 1));
        if (done && nri_inversion_result(s.inv, &result) == NRI_OK) {
            for (int j = 0; j < 3; j++) {
                CHECK_NEAR(result.residual[j], fabs(G[j] - first[j]) / fabs(first[j]), 1e-5);
            }
        }
        toy_shut(&s);
    }
}

/* With levels and a guess, the first estimate is the forward process with the guess's noise; else there is none in it. */
static void
check_first_estimate(void)
{
    check_label = "first estimate";
    for (int variant = 0; variant < 4; variant++) {
        toy_form f = toy_denoiser(4, true, 0, 4, 0.5);
        nri_options o = passes(NRI_AUTO);
        toy_session s;
        const double *level = f.levels;
        double z[1] = {0.8}, n = -1.25, guess[1] = {level[6] * z[0] + level[7] * n}, plain[5] = {0, 0, 0, 0, z[0]};
        double zero[1] = {0};
        o.guess = variant != 1;
        o.predictor = variant != 2;
        f.leveled = variant != 3;
        CHECK(toy_open(&f, &o, 1, 1, &s) == NRI_OK);
        CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, z) == NRI_OK);
        CHECK(toy_put(&s, nri_inversion_inputs(s.inv).guess, guess) == NRI_OK);
        for (int j = 3; j >= 0; j--) {
            plain[j] = plain[j + 1] / *toy_alpha(&f, j, j);
        }
        for (int j = 0; j < 4; j++) {
            ask(&s, j, variant == 0 ? level[2 * j] * z[0] + level[2 * j + 1] * n : plain[j]);
            CHECK(toy_feed(&s, zero) == NRI_OK);
        }
        toy_shut(&s);
    }
}

/* --------------------------------------------------------------------------------------------------------- company */

/* Nothing of a sample depends on the others, and a sample that has ended stays as it is. */
static void
check_batch(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_adams(5);
    toy_network net = toy_make_network(TOY_D, false, 0.6, 181);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 182, start);
    nri_options o = passes(NRI_AUTO);
    check_label = "passes, batch";
    o.tol = 1e-5;
    o.verify = true;
    memset(p.target[1], 0, sizeof(p.target[1])); /* solved at once */
    for (int d = 0; d < TOY_D; d++) {
        p.target[3][d] *= 40; /* saturated */
    }
    toy_outcome all = invert(&f, &net, o, &p, toy_sound);
    toy_outcome hurt = invert(&f, &net, o, &p, (toy_fault){0, 1 << 30, 1u << 2, false});
    for (int b = 0; b < TOY_B; b++) {
        toy_problem single = {.B = 1, .D = TOY_D};
        memcpy(single.target[0], p.target[b], sizeof(single.target[0]));
        toy_outcome one = invert(&f, &net, o, &single, toy_sound);
        for (int pass = 0; pass < 2; pass++) {
            const toy_outcome *got = pass ? &hurt : &all;
            if (pass && b == 2) {
                continue;
            }
            CHECK(memcmp(got->latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
            CHECK(got->nfe[b] == one.nfe[0] && got->reason[b] == one.reason[0] && got->error[b] == one.error[0]);
            for (int j = 0; j < f.E; j++) {
                CHECK(got->residual[j][b] == one.residual[j][0] && got->step_nfe[j][b] == one.step_nfe[j][0]);
                CHECK(memcmp(got->trajectory[j][b], one.trajectory[j][0], sizeof(one.latents[0])) == 0);
            }
        }
    }
    CHECK(all.step_nfe[0][1] == 1 && all.step_nfe[0][3] < all.step_nfe[0][0]);
    CHECK(hurt.reason[2] == NRI_NON_FINITE && isnan(hurt.error[2]) && isnan(hurt.residual[0][2]) && hurt.nfe[2] == 2 * f.E);
}

/* One bad answer costs a pass, never the result; only bad answers end with the reason. */
static void
check_not_finite(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_heun(2);
    toy_network net = toy_make_network(TOY_D, false, 0.5, 183);
    toy_problem p = toy_make_problem(&f, &net, 2, 184, start);
    nri_options o = passes(NRI_AUTO);
    check_label = "passes, not finite";
    o.tol = 1e-6;
    toy_outcome sound = invert(&f, &net, o, &p, toy_sound);
    for (int at = 0; at < sound.evaluations; at++) {
        toy_outcome out = invert(&f, &net, o, &p, (toy_fault){at, at, 1, false});
        CHECK(out.reason[0] == NRI_TOL && out.reason[1] == NRI_TOL);
        CHECK_NEAR(toy_distance(TOY_D, out.latents[0], start[0]), 0, 1e-5);
        CHECK(memcmp(out.latents[1], sound.latents[1], sizeof(sound.latents[1])) == 0);
        out = invert(&f, &net, o, &p, (toy_fault){at, 1 << 30, 3, false});
        for (int b = 0; b < 2; b++) {
            CHECK(out.reason[b] == NRI_NON_FINITE || (out.reason[b] == NRI_TOL && out.nfe[b] <= at));
        }
        CHECK(out.evaluations <= at + 3 * f.E);
    }
    /* a forward run that fails measures nothing, and what the passes found is returned */
    o.verify = true;
    toy_outcome out = invert(&f, &net, o, &p, (toy_fault){sound.evaluations + 1, 1 << 30, 2, false});
    CHECK(out.error[0] < 1e-5 && isnan(out.error[1]) && out.reason[1] == NRI_NON_FINITE);
    CHECK(memcmp(out.latents, sound.latents, sizeof(sound.latents)) == 0);
    CHECK(memcmp(out.trajectory[1][1], sound.trajectory[1][1], sizeof(sound.latents[1])) == 0);
}

/* -------------------------------------------------------------------------------------------------------- the rest */

static void
check_refusals(void)
{
    toy_form f = toy_denoiser(3, false, 0.5, 4, 0.5), broken = toy_adams(3);
    nri_options o = passes(NRI_NEWTON);
    toy_session s;
    check_label = "passes, refusals";
    CHECK(toy_open(&f, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    toy_shut(&s);
    CHECK(strcmp(s.problem.text, "order='passes' does not go with solver='newton'; use order='reversed'") == 0);
    o = passes(NRI_AUTO);
    o.rounds = 1;
    CHECK(toy_open(&f, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    CHECK(strcmp(s.problem.text, "order='passes' does not go with rounds above 0; use order='reversed'") == 0);
    toy_shut(&s);
    o = passes(NRI_AUTO);
    o.absorb = true;
    CHECK(toy_open(&f, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    CHECK(strcmp(s.problem.text, "order='passes' does not go with noise='absorb'; use order='reversed'") == 0);
    toy_shut(&s);
    o = passes(NRI_AUTO);
    o.order = NRI_PASSES + 1;
    CHECK(toy_open(&f, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    toy_shut(&s);
    o = passes(NRI_AUTO);
    *toy_alpha(&broken, 1, 1) = 0;
    CHECK(toy_open(&broken, &o, 1, 3, &s) == NRI_SINGULAR_STEP);
    toy_shut(&s);
}

static void
check_bounds(void)
{
    toy_form f = toy_denoiser(4, true, 0, 4, 0.5);
    nri_options o = passes(NRI_AUTO);
    nri_inversion *inv = NULL;
    toy_session s;
    nri_space *v = NULL;
    nri_problem problem;
    int64_t shape[2];
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, 1, 3);
    check_label = "passes, bounds";
    o.max_nfe = 7;
    CHECK(toy_open(&f, &o, 1, 3, &s) == NRI_OK);
    CHECK(nri_inversion_max_evaluations(s.sampler, &o) == 28);
    for (int j = 0; j < 4; j++) {
        CHECK(s.inv->allowance[j] == 7);
    }
    CHECK(nri_space_create_host(&like, nri_inversion_slots(s.sampler, &o) - 1, &v) == NRI_OK);
    CHECK(nri_inversion_create(s.sampler, &o, v, &inv, &problem) == NRI_BAD_ARGUMENT && !inv);
    o.verify = true;
    CHECK(nri_inversion_max_evaluations(s.sampler, &o) == 32);
    nri_space_destroy(v);
    toy_shut(&s);
}

static void
check_zero_target(void)
{
    toy_form f = toy_euler(3);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 185);
    toy_problem p = {.B = 1, .D = TOY_D};
    nri_options o = passes(NRI_AUTO);
    check_label = "passes, zero target";
    o.verify = true;
    toy_outcome out = invert(&f, &net, o, &p, toy_sound);
    CHECK(out.error[0] == 0 && out.residual[0][0] == 0 && out.reason[0] == NRI_TOL);
}

/* A space of stacked slots against the same numbers in one long slot. */
static void
check_stack(void)
{
    enum { B = 3, BLOCKS = 4, SLOTS = 5, D = 6, OFFSET = 2 };
    float x[SLOTS][BLOCKS][B][D], got[B][D];
    double weights[BLOCKS] = {1, 0.5, 2, 0}, coef[B * SLOTS], dots[B * SLOTS];
    bool which[B] = {true, false, true};
    int64_t shape[2];
    uint64_t seed = 191;
    nri_space *v = NULL, *stack = NULL;
    nri_tensor t = toy_tensor(x, NRI_FLOAT32, shape, B, D);
    check_label = "stack";
    toy_normals(&seed, SLOTS * BLOCKS * B * D, &x[0][0][0][0]);
    CHECK(nri_space_create_host(&t, OFFSET + BLOCKS * SLOTS, &v) == NRI_OK);
    CHECK(nri_space_create_stack(v, OFFSET + 1, BLOCKS, SLOTS, weights, &stack) == NRI_BAD_ARGUMENT && !stack);
    CHECK(nri_space_create_stack(v, OFFSET, BLOCKS, SLOTS, weights, &stack) == NRI_OK);
    CHECK(stack->batch == B && stack->elements == BLOCKS * D && stack->slots == SLOTS);
    CHECK(stack->ops->exchange(stack, 0, &t, NRI_LOAD) == NRI_BAD_ARGUMENT
          && stack->ops->exchange(stack, 0, &t, NRI_STORE) == NRI_BAD_ARGUMENT);
    for (int i = 0; i < SLOTS; i++) {
        for (int k = 0; k < BLOCKS; k++) {
            t.data = x[i][k];
            CHECK(v->ops->exchange(v, OFFSET + i * BLOCKS + k, &t, NRI_LOAD) == NRI_OK);
        }
    }
    for (int count = 1; count <= 3; count++) { /* rows 0, 2, 4 */
        CHECK(stack->ops->dots(stack, 1, (nri_rows){0, count, 2}, dots) == NRI_OK);
        for (int b = 0; b < B; b++) {
            for (int i = 0; i < count; i++) {
                double sum = 0;
                for (int k = 0; k < BLOCKS; k++) {
                    for (int d = 0; d < D; d++) {
                        sum += weights[k] * weights[k] * (double)x[1][k][b][d] * (double)x[2 * i][k][b][d];
                    }
                }
                CHECK_NEAR(dots[b * count + i], sum, 1e-5);
            }
        }
    }
    for (int i = 0; i < B * 3; i++) {
        coef[i] = toy_normal(&seed);
    }
    CHECK(stack->ops->combine(stack, 3, (nri_rows){0, 3, 2}, coef, 3) == NRI_OK);
    CHECK(stack->ops->copy(stack, 1, 0, which) == NRI_OK);
    CHECK(stack->ops->sign(stack, 2, 2, 0) == NRI_OK);
    t.data = got;
    for (int k = 0; k < BLOCKS; k++) {
        for (int slot = 1; slot < 4; slot++) {
            CHECK(v->ops->exchange(v, OFFSET + slot * BLOCKS + k, &t, NRI_STORE) == NRI_OK);
            for (int b = 0; b < B; b++) {
                for (int d = 0; d < D; d++) {
                    double sum = 0;
                    for (int i = 0; i < 3; i++) {
                        sum += coef[3 * b + i] * (double)x[2 * i][k][b][d];
                    }
                    double want = slot == 1   ? (double)x[which[b] ? 0 : 1][k][b][d]
                                  : slot == 3 ? sum
                                              : (x[2][k][b][d] > 0) - (x[2][k][b][d] < 0);
                    CHECK_NEAR((double)got[b][d], want, 1e-5);
                }
            }
        }
    }
    nri_space_destroy(stack);
    nri_space_destroy(v);
}

void
test_passes(void)
{
    check_stack();
    for (int linear = 0; linear < 2; linear++) {
        double size = linear ? 0.4 : 0.6;
        check_solution("passes, euler", toy_euler(6), linear, size);
        check_solution("passes, ancestral", toy_ancestral(6), linear, size);
        check_solution("passes, adams", toy_adams(8), linear, size);
        check_solution("passes, heun", toy_heun(4), linear, size);
        check_solution("passes, levels", toy_denoiser(5, false, 0, 3, 0.7), linear, 0.5 * size);
        check_solution("passes, scaled levels and noise", toy_denoiser(5, true, 0.3, 3, 0.7), linear, 0.5 * size);
        check_solution("passes, one step", toy_euler(1), linear, size);
    }
    check_orders_agree("orders, euler", toy_euler(6), 0);
    check_orders_agree("orders, ancestral", toy_ancestral(6), 0);
    check_orders_agree("orders, adams", toy_adams(6), 12);
    check_orders_agree("orders, heun", toy_heun(3), 12);
    check_plain();
    check_by_hand();
    check_first_estimate();
    check_batch();
    check_not_finite();
    check_refusals();
    check_bounds();
    check_zero_target();
}
