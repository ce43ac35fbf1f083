/* What follows from a sampler's levels: evaluations dealt out by `auto`, type I, and noises that absorb their steps. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "inversion.h"
#include "toy.h"

enum { LONG = 4000, WIDE = 3 };

static int
allowance(const toy_form *f, nri_options o, int j)
{
    toy_session s;
    CHECK(toy_open(f, &o, 1, 1, &s) == NRI_OK);
    int n = s.inv->allowance[j];
    toy_shut(&s);
    return n;
}

/* Whatever is dealt out, it is E max_nfe in all, at least one each, and most to the step that is solved first. */
static void
check_sums(void)
{
    check_label = "sums";
    for (int E = 1; E <= TOY_E; E++) {
        toy_form forms[] = {toy_euler(E), toy_denoiser(E, false, 0, 10, 0.4), toy_denoiser(E, true, 0, 10, 0.1),
                            toy_denoiser(E, true, 0.7, 10, 0.4), toy_ancestral(E)};
        for (int max_nfe = 1; max_nfe <= 9; max_nfe++) {
            for (int i = 0; i < 5; i++) {
                nri_options o = nri_default_options;
                int sum = 0, least = 1000, most = 0;
                o.max_nfe = max_nfe;
                o.absorb = i == 3;
                for (int j = 0; j < E; j++) {
                    int n = allowance(&forms[i], o, j);
                    sum += n;
                    least = n < least ? n : least;
                    most = n > most ? n : most;
                }
                CHECK(sum == E * max_nfe);
                CHECK(least >= 1 && most == allowance(&forms[i], o, E - 1));
            }
        }
    }
}

/* Euler steps over given levels, the last of them 0. */
static toy_form
euler_over(int E, const double *sigma)
{
    toy_form f = toy_empty(E, 0);
    f.leveled = true;
    for (int j = 0; j <= E; j++) {
        f.levels[2 * j] = 1;
        f.levels[2 * j + 1] = sigma[j];
        if (j < E) {
            *toy_alpha(&f, j, j) = 1;
            *toy_beta(&f, j, j) = sigma[j + 1] - sigma[j];
        }
    }
    return f;
}

/* Slow steps are favoured as long as they are a quarter at most. */
static void
check_minority(void)
{
    static const double two[] = {128, 64, 32, 16, 1.6, 0.8, 0.4, 0.2, 0},
                        three[] = {128, 64, 32, 16, 1.6, 0.8, 0.08, 0.04, 0};
    static const int shares[] = {3, 3, 2, 5, 2, 2, 2, 5};
    toy_form f = euler_over(8, two), g = euler_over(8, three);
    check_label = "minority";
    for (int j = 0; j < 8; j++) {
        CHECK(allowance(&f, nri_default_options, j) == shares[j]);
        CHECK(allowance(&g, nri_default_options, j) == 3);
    }
}

static void
check_shares(void)
{
    static const double sigma[] = {14.6, 4.08, 1.61, 0.69, 0}; /* of a few-step model */
    static const int shares[3][4] = {{2, 2, 1, 3}, {3, 2, 2, 5}, {4, 3, 3, 6}};
    nri_options o = nri_default_options;
    check_label = "shares";
    for (int i = 0; i < 3; i++) {
        toy_form f = euler_over(4, sigma), bare = f, memory = toy_adams(4), noisy = toy_denoiser(4, false, 0.7, 14.6, 0.35);
        bare.leveled = false;
        o.max_nfe = i + 2;
        for (int j = 0; j < 4; j++) {
            o.solver = NRI_AUTO;
            CHECK(allowance(&f, o, j) == shares[i][j]);
            CHECK(allowance(&bare, o, j) == o.max_nfe);
            CHECK(allowance(&memory, o, j) == o.max_nfe);
            for (o.solver = NRI_ANDERSON; o.solver <= NRI_NEWTON; o.solver++) {
                CHECK(allowance(&f, o, j) == o.max_nfe);
            }
        }
        o.solver = NRI_AUTO;
        o.absorb = true;
        CHECK(allowance(&noisy, o, 3) == 2 * o.max_nfe); /* the others absorb */
        CHECK(allowance(&f, o, 3) == shares[i][3]);      /* nothing to absorb with */
        o.absorb = false;
        /* with noises as they are recorded, other steps are slow as well: no one is favoured */
        CHECK(allowance(&noisy, o, 3) == o.max_nfe);
    }
}

/* The one step to sigma 0 is stiff: two evaluations are mixed by type I, as solve.c has it, if the levels tell. */
static void
check_stiff(void)
{
    double start[TOY_B][TOY_D], r[2][TOY_D], f[2][TOY_D], x[TOY_D], m[TOY_D], above = 0, below = 0;
    toy_form form = toy_denoiser(1, false, 0, 0.9, 0.5), bare = form;
    toy_network net = toy_make_network(TOY_D, true, 1.2, 101);
    toy_problem p = toy_make_problem(&form, &net, 1, 102, start);
    toy_outcome out, other, plain;
    nri_options o = nri_default_options;
    bare.leveled = false;
    o.max_nfe = 2;
    o.tol = 0;
    check_label = "stiff";
    for (int d = 0; d < TOY_D; d++) {
        net.w[d][d] += 1; /* a slope that is mostly positive, as a denoiser's is */
    }
    CHECK(toy_invert(&form, &net, &o, &p, toy_sound, &out) == NRI_OK);
    CHECK(toy_invert(&bare, &net, &o, &p, toy_sound, &other) == NRI_OK);
    o.solver = NRI_ANDERSON;
    CHECK(toy_invert(&form, &net, &o, &p, toy_sound, &plain) == NRI_OK);
    CHECK(memcmp(other.latents[0], plain.latents[0], sizeof(plain.latents[0])) == 0);
    for (int d = 0; d < TOY_D; d++) {
        x[d] = form.inputs[0] * (double)p.target[0][d];
    }
    for (int k = 0; k < 2; k++) {
        toy_evaluate(&net, form.timesteps[0], x, m);
        for (int d = 0; d < TOY_D; d++) {
            f[k][d] = (double)p.target[0][d] - *toy_beta(&form, 0, 0) * m[d];
            r[k][d] = f[k][d] - x[d] / form.inputs[0];
            x[d] = form.inputs[0] * f[k][d];
        }
    }
    for (int d = 0; d < TOY_D; d++) {
        above += r[0][d] * r[1][d];
        below += r[0][d] * (r[1][d] - r[0][d]);
    }
    CHECK(above > 0);
    for (int d = 0; d < TOY_D; d++) {
        double gamma = above / below;
        CHECK_NEAR((double)out.latents[0][d], gamma * f[0][d] + (1 - gamma) * f[1][d], 2e-5);
    }
    CHECK(memcmp(out.latents[0], plain.latents[0], sizeof(plain.latents[0])) != 0);
}

/* ------------------------------------------------------------------------------------------------------------- noises */

static double
mean_product(const double *x, const double *y)
{
    double sum = 0;
    for (int d = 0; d < LONG; d++) {
        sum += x[d] * y[d];
    }
    return sum / LONG;
}

/*
One state drawn, between an ideal network's outputs: that it is the stated mixture, that it lies where the forward process
has it, and that what the sampler then draws is noise, and other noise than the network's.
*/
static void
check_draw(const char *label, bool scaled, double eta)
{
    static double z0[LONG], w[LONG], e[LONG], state[LONG], drawn[LONG], m[LONG], n[LONG];
    toy_form f = toy_denoiser(2, scaled, eta, 2.5, 0.4);
    const double *now = f.levels, *next = f.levels + 2;
    double A = *toy_alpha(&f, 0, 0), b = *toy_beta(&f, 0, 0), C = eta * next[1];
    double k = now[1] * sqrt(next[1] * next[1] - C * C) / (next[1] * next[1]), worst = 0;
    nri_options o = nri_default_options;
    nri_request q;
    nri_result result;
    toy_session s;
    uint64_t seed = 111;
    bool done = true;
    check_label = label;
    o.absorb = true;
    o.max_nfe = 1;
    CHECK(toy_open(&f, &o, 1, LONG, &s) == NRI_OK);
    for (int d = 0; d < LONG; d++) {
        z0[d] = 0.7 * toy_normal(&seed);
        w[d] = toy_normal(&seed);
        e[d] = toy_normal(&seed);
        state[d] = next[0] * z0[d] + next[1] * e[d];
    }
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, z0) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).noises, w) == NRI_OK);
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done && q.index == 1);
    CHECK(toy_feed(&s, e) == NRI_OK);
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done && q.index == 0);
    CHECK(toy_get(&s, q.slot, drawn) == NRI_OK);
    for (int d = 0; d < LONG; d++) {
        double want = now[0] * z0[d] + k * (state[d] - next[0] * z0[d]) + now[1] * C / next[1] * w[d];
        worst = fmax(worst, fabs(drawn[d] - want));
        m[d] = (drawn[d] - now[0] * z0[d]) / now[1];
    }
    CHECK_NEAR(worst, 0, 2e-5);
    CHECK_NEAR(mean_product(m, m), 1, 0.07); /* three standard errors are 0.067 */
    CHECK_NEAR(mean_product(m, z0), 0, 0.035);
    CHECK(toy_feed(&s, m) == NRI_OK);
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK);
    CHECK(toy_get(&s, result.noises, n) == NRI_OK);
    worst = 0;
    for (int d = 0; d < LONG; d++) {
        worst = fmax(worst, fabs(A * drawn[d] + b * m[d] + C * n[d] - state[d]));
    }
    CHECK_NEAR(worst, 0, 2e-5);
    CHECK_NEAR(mean_product(n, n), 1, 0.07);
    CHECK_NEAR(mean_product(n, m), 0, 0.05);
    CHECK_NEAR(mean_product(n, z0), 0, 0.035);
    CHECK(toy_get(&s, result.latents, state) == NRI_OK);
    CHECK(memcmp(state, drawn, sizeof(drawn)) == 0);
    toy_shut(&s);
}

/* As long as n is larger than noise, the state takes twice the surplus; the last n is kept as it is. */
static void
check_surplus(void)
{
    double z0[WIDE] = {1, -2, 0.5}, w[WIDE] = {0.3, 0.1, -0.7}, state[WIDE], z[WIDE], got[WIDE], n[WIDE];
    double m1[WIDE] = {0.5, 0.25, -1}, m0[4][WIDE] = {{9, -8, 7}, {-6, 9, 5}, {4, 4, -9}, {0, 1, -1}};
    toy_form f = toy_denoiser(2, true, 0.8, 2.5, 0.4);
    double A = *toy_alpha(&f, 0, 0), b = *toy_beta(&f, 0, 0), C = *toy_gamma(&f, 0, 0);
    nri_options o = nri_default_options;
    nri_request q;
    nri_result result;
    toy_session s;
    bool done;
    check_label = "surplus";
    o.absorb = true;
    o.solver = NRI_ANDERSON;
    o.max_nfe = 3;
    CHECK(toy_open(&f, &o, 1, WIDE, &s) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, z0) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).noises, w) == NRI_OK);
    while (nri_inversion_next(s.inv, &q, &done) == NRI_OK && q.index == 1) {
        CHECK(toy_feed(&s, m1) == NRI_OK);
    }
    for (int d = 0; d < WIDE; d++) {
        state[d] = (z0[d] - *toy_beta(&f, 1, 1) * m1[d]) / *toy_alpha(&f, 1, 1);
    }
    CHECK(toy_get(&s, q.slot, z) == NRI_OK);
    for (int i = 0; i < 3; i++) {
        double size = 0;
        CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done && q.index == 0);
        CHECK(toy_get(&s, q.slot, got) == NRI_OK);
        for (int d = 0; d < WIDE; d++) {
            CHECK_NEAR(got[d], z[d], 2e-5);
            n[d] = (state[d] - A * z[d] - b * m0[i][d]) / C;
            size += n[d] * n[d] / WIDE;
        }
        CHECK(size > 4);
        CHECK(toy_feed(&s, m0[i]) == NRI_OK);
        for (int d = 0; d < WIDE && i < 2; d++) {
            z[d] += 2 * (C / A) * (1 - 1 / sqrt(size)) * n[d];
        }
    }
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done);
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK && result.step_nfe[0] == 3);
    CHECK(toy_get(&s, result.noises, got) == NRI_OK);
    for (int d = 0; d < WIDE; d++) {
        CHECK_NEAR(got[d], n[d], 1e-4);
    }
    CHECK(toy_get(&s, result.latents, got) == NRI_OK);
    for (int d = 0; d < WIDE; d++) {
        CHECK_NEAR(got[d], z[d], 2e-5);
    }
    toy_shut(&s);
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
            for (int k = 0; k < f->K; k++) {
                CHECK(isfinite(out.noises[k][b][d]));
            }
        }
    }
    return out;
}

/* With the noises found the sampler goes through the states found, exactly, and misses the target by the last step only. */
static void
check_round_trip(const char *label, bool scaled)
{
    double start[TOY_B][TOY_D], states[TOY_E + 1][TOY_D], noises[TOY_K][TOY_D], natural = 1 + 2 / sqrt(2.0 * TOY_D);
    toy_form f = toy_denoiser(5, scaled, 0.6, 4, 0.5);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 121);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 122, start);
    check_label = label;
    for (int variant = 0; variant < 3; variant++) {
        nri_options o = nri_default_options;
        o.absorb = o.trajectory = true;
        o.max_nfe = variant == 0 ? 1 : 20;
        o.tol = variant == 0 ? 0 : 1e-6;
        o.solver = variant == 2 ? NRI_FIXED_POINT : NRI_AUTO;
        toy_outcome out = invert(&f, &net, o, &p, toy_sound);
        for (int b = 0; b < TOY_B; b++) {
            for (int d = 0; d < TOY_D; d++) {
                states[0][d] = (double)out.latents[b][d];
                for (int k = 0; k < f.K; k++) {
                    noises[k][d] = (double)out.noises[k][b][d];
                }
            }
            toy_forward(&f, &net, &noises[0][0], &states[0][0]);
            for (int j = 0; j < f.E; j++) {
                CHECK_NEAR(toy_distance(TOY_D, out.trajectory[j][b], states[j]), 0, 1e-5);
                CHECK(j == f.E - 1 || out.residual[j][b] == 0);
            }
            double error = toy_distance(TOY_D, p.target[b], states[f.E]);
            CHECK(variant == 0 ? error > 1e-4 : error < 1e-5);
            for (int k = 0; k < f.K; k++) {
                double size = 0;
                for (int d = 0; d < TOY_D; d++) {
                    size += noises[k][d] * noises[k][d] / TOY_D;
                }
                CHECK(sqrt(size) <= natural * 1.0001 || out.step_nfe[k][b] == (variant ? 16 : 1) || variant == 2);
                CHECK(memcmp(out.noises[k][b], p.noises[k][b], sizeof(p.noises[k][b])) != 0);
            }
        }
    }
}

/* As check_batch and check_not_finite of test_invert.c; where noise absorbs, there is no second attempt. */
static void
check_company(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_denoiser(4, true, 0.6, 4, 0.5);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 131);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 132, start);
    nri_options o = nri_default_options;
    check_label = "company";
    o.absorb = true;
    toy_outcome all = invert(&f, &net, o, &p, toy_sound);
    for (int b = 0; b < TOY_B; b++) {
        toy_problem single = {.B = 1, .D = TOY_D};
        memcpy(single.target[0], p.target[b], sizeof(single.target[0]));
        for (int k = 0; k < f.K; k++) {
            memcpy(single.noises[k][0], p.noises[k][b], sizeof(single.noises[k][0]));
        }
        toy_outcome one = invert(&f, &net, o, &single, toy_sound);
        CHECK(memcmp(all.latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
        CHECK(all.nfe[b] == one.nfe[0] && all.reason[b] == one.reason[0]);
        for (int k = 0; k < f.K; k++) {
            CHECK(memcmp(all.noises[k][b], one.noises[k][0], sizeof(one.noises[k][0])) == 0);
        }
    }
    check_label = "absorb, not finite";
    for (int at = 0; at < all.evaluations; at++) {
        toy_outcome out = invert(&f, &net, o, &p, (toy_fault){at, 1 << 30, 1, false});
        for (int b = 0; b < TOY_B; b++) {
            bool same = memcmp(out.latents[b], all.latents[b], sizeof(all.latents[b])) == 0;
            for (int k = 0; k < f.K; k++) {
                same = same && memcmp(out.noises[k][b], all.noises[k][b], sizeof(all.noises[k][b])) == 0;
            }
            if (b > 0) {
                CHECK(same && out.reason[b] == all.reason[b] && out.nfe[b] == all.nfe[b]);
            }
            else {
                CHECK(out.reason[b] == NRI_NON_FINITE || (same && out.nfe[b] == all.nfe[b]));
            }
        }
        CHECK(at > 1 || out.reason[0] == NRI_NON_FINITE);
    }
    /* the first call to an absorbing step */
    o.max_nfe = 1;
    toy_outcome out = invert(&f, &net, o, &p, (toy_fault){1, 1, 1, false});
    CHECK(out.reason[0] == NRI_NON_FINITE && out.nfe[0] == 2 && isnan(out.residual[2][0]) && isnan(out.residual[1][0]));
    for (int k = 0; k < f.K; k++) { /* nothing was found, the noises are the caller's */
        CHECK(memcmp(out.noises[k][0], p.noises[k][0], sizeof(p.noises[k][0])) == 0);
    }
}

/* A sampler without noise, or one whose noises are shared between steps, is inverted as ever. */
static void
check_nothing_to_absorb(void)
{
    double start[TOY_B][TOY_D];
    toy_network net = toy_make_network(TOY_D, false, 0.9, 141);
    toy_form forms[3] = {toy_denoiser(3, false, 0, 4, 0.5), toy_denoiser(3, false, 0.5, 4, 0.5),
                         toy_denoiser(3, false, 0.5, 4, 0.5)};
    *toy_gamma(&forms[1], 0, 1) = *toy_gamma(&forms[1], 1, 0) = 0.2; /* two noises a step */
    *toy_gamma(&forms[2], 1, 1) = 0;                                 /* one noise for two steps */
    *toy_gamma(&forms[2], 1, 0) = 0.2;
    check_label = "nothing to absorb";
    for (int i = 0; i < 3; i++) {
        toy_problem p = toy_make_problem(&forms[i], &net, 2, 142, start);
        nri_options o = nri_default_options;
        toy_outcome plain = invert(&forms[i], &net, o, &p, toy_sound);
        o.absorb = true;
        toy_outcome out = invert(&forms[i], &net, o, &p, toy_sound);
        CHECK(memcmp(out.latents, plain.latents, sizeof(out.latents)) == 0);
        CHECK(memcmp(out.noises, p.noises, sizeof(out.noises)) == 0);
    }
}

static void
check_refusals(void)
{
    toy_form noisy = toy_denoiser(3, false, 0.5, 4, 0.5), bare = noisy, memory = toy_adams(3);
    toy_session s;
    nri_options o = nri_default_options;
    check_label = "absorb, refusals";
    bare.leveled = false;
    memory.leveled = true;
    memcpy(memory.levels, noisy.levels, sizeof(noisy.levels));
    o.absorb = true;
    CHECK(toy_open(&bare, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    CHECK(strstr(s.problem.text, "noise='absorb' needs a sampler with levels;") == s.problem.text);
    toy_shut(&s);
    CHECK(toy_open(&memory, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    CHECK(strstr(s.problem.text, "noise='absorb' needs a sampler that remembers no older network outputs;")
          == s.problem.text);
    toy_shut(&s);
    CHECK(toy_open(&noisy, &o, 1, 3, &s) == NRI_OK);
    toy_shut(&s);
    o.rounds = 1;
    CHECK(toy_open(&noisy, &o, 1, 3, &s) == NRI_BAD_ARGUMENT);
    toy_shut(&s);
}

void
test_absorb(void)
{
    check_sums();
    check_shares();
    check_minority();
    check_stiff();
    check_draw("draw, ancestral", false, 0.6);
    check_draw("draw, scaled", true, 0.6);
    check_draw("draw, all noise", true, 1);
    check_surplus();
    check_round_trip("round trip", false);
    check_round_trip("round trip, scaled", true);
    check_company();
    check_nothing_to_absorb();
    check_refusals();
}
