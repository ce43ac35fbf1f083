/* sampler.c: the global form and the way back against the local form, number by number. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "toy.h"

/* A form is linear, so that scalars in place of states, outputs and noises test it as well as images would. */
typedef struct {
    double s[TOY_E + 1], m[TOY_E], n[TOY_K];
} run;

static run
run_forward(toy_form *f, uint64_t seed)
{
    run r;
    r.s[0] = toy_normal(&seed);
    for (int k = 0; k < f->K; k++) {
        r.n[k] = toy_normal(&seed);
    }
    for (int j = 0; j < f->E; j++) {
        r.m[j] = toy_normal(&seed);
        r.s[j + 1] = 0;
        for (int k = 0; k <= j; k++) {
            r.s[j + 1] += *toy_alpha(f, j, k) * r.s[k] + *toy_beta(f, j, k) * r.m[k];
        }
        for (int k = 0; k < f->K; k++) {
            r.s[j + 1] += *toy_gamma(f, j, k) * r.n[k];
        }
    }
    return r;
}

/* row = [state, E outputs, K noises] */
static double
apply(const nri_sampler *s, const double *row, double state, const run *r)
{
    double sum = row[0] * state;
    for (int k = 0; k < s->evaluations; k++) {
        sum += row[1 + k] * r->m[k];
    }
    for (int k = 0; k < s->noises; k++) {
        sum += row[1 + s->evaluations + k] * r->n[k];
    }
    return sum;
}

static nri_sampler *
create(const toy_form *f)
{
    toy_form copy = *f;
    nri_sampler *s;
    int step;
    CHECK(nri_sampler_create(copy.E, copy.K, copy.timesteps, copy.steps, copy.inputs, NULL, &s, &step) == NRI_OK);
    CHECK(step == -1);
    memset(&copy, 0, sizeof(copy)); /* the sampler has its own */
    return s;
}

static void
check_form(const char *label, toy_form f, bool first_order, int window)
{
    check_label = label;
    nri_sampler *s = create(&f);
    int wide = 1 + f.E + f.K;
    CHECK(s->evaluations == f.E && s->noises == f.K);
    CHECK(s->first_order == first_order);
    CHECK(s->window == window);
    CHECK(memcmp(s->timesteps, f.timesteps, sizeof(double) * (size_t)f.E) == 0);
    CHECK(memcmp(s->inputs, f.inputs, sizeof(double) * (size_t)f.E) == 0);
    for (uint64_t seed = 1; seed < 4; seed++) {
        run r = run_forward(&f, seed);
        CHECK_NEAR(apply(s, s->states, r.s[0], &r), r.s[0], 0);
        for (int j = 0; j < f.E; j++) {
            CHECK_NEAR(apply(s, s->states + (j + 1) * wide, r.s[0], &r), r.s[j + 1], 1e-10 * (1 + fabs(r.s[j + 1])));
            if (!s->singular[j]) {
                CHECK_NEAR(apply(s, s->back + j * wide, r.s[j], &r), r.s[j + 1], 1e-8 * (1 + fabs(r.s[j + 1])));
            }
        }
    }
    for (int j = 0; j < f.E; j++) {
        for (int k = j + 1; k < f.E; k++) {
            CHECK(s->singular[j] || s->back[j * wide + 1 + k] == 0);
        }
    }
    nri_sampler_destroy(s);
}

/* Every state, output and noise that exists may be read. */
static toy_form
dense(int E, int K)
{
    toy_form f = toy_empty(E, K);
    uint64_t seed = 3;
    for (int j = 0; j < E; j++) {
        for (int k = 0; k <= j; k++) {
            *toy_alpha(&f, j, k) = k == j ? 1.5 : 0.2 * toy_uniform(&seed);
            *toy_beta(&f, j, k) = toy_uniform(&seed);
        }
        for (int k = 0; k < K; k++) {
            *toy_gamma(&f, j, k) = toy_uniform(&seed);
        }
    }
    return f;
}

/* s_2 is written with s_0 and m_0, but what it takes from m_0 is what s_0 takes back, up to rounding. */
static toy_form
disguised(void)
{
    toy_form f = toy_empty(2, 0);
    *toy_alpha(&f, 0, 0) = 0.7;
    *toy_beta(&f, 0, 0) = -0.3;
    *toy_alpha(&f, 1, 0) = 0.1;
    *toy_alpha(&f, 1, 1) = 0.9;
    *toy_beta(&f, 1, 0) = 0.1 * (-0.3 / 0.7) * (1 + 4e-16);
    *toy_beta(&f, 1, 1) = -0.2;
    return f;
}

static void
check_elimination(void)
{
    check_label = "elimination";
    toy_form f = toy_heun(3);
    nri_sampler *s = create(&f);
    for (int j = 1; j < 6; j += 2) {
        const double *row = s->back + j * 7;
        CHECK_NEAR(row[0], 1, 1e-15);
        CHECK_NEAR(row[1 + j - 1], 0.15, 1e-15);
        CHECK_NEAR(row[1 + j], -0.15, 1e-15);
        CHECK(!s->singular[j]);
    }
    nri_sampler_destroy(s);
    f = disguised();
    s = create(&f);
    CHECK(s->back[3 + 1] == 0);
    CHECK_NEAR(s->back[3], 0.9 + 0.1 / 0.7, 1e-15);
    nri_sampler_destroy(s);
}

/*
Steps 1 and 3 forget their state as LCM does, the first of them up to rounding; with `remembered`, step 2 reads the state
that step 1 lost.
*/
static toy_form
forgetful(bool remembered)
{
    toy_form f = toy_ancestral(5);
    *toy_alpha(&f, 1, 1) = 1e-8;
    *toy_alpha(&f, 3, 3) = 0;
    if (remembered) {
        *toy_alpha(&f, 2, 1) = 0.5;
    }
    return f;
}

static void
check_singular(void)
{
    check_label = "singular";
    for (int remembered = 0; remembered < 2; remembered++) {
        toy_form f = forgetful(remembered);
        nri_sampler *s = create(&f);
        const bool want[5] = {false, true, remembered, true, false};
        CHECK(memcmp(s->singular, want, sizeof(want)) == 0);
        nri_sampler_destroy(s);
    }
    toy_form f = toy_euler(2);
    *toy_alpha(&f, 1, 1) = 1e-5;
    nri_sampler *s = create(&f);
    CHECK(!s->singular[0] && !s->singular[1]);
    nri_sampler_destroy(s);
}

static void
refuse(const toy_form *f, nri_status status, int at)
{
    nri_sampler *s = (nri_sampler *)1;
    int step = 99;
    CHECK(nri_sampler_create(f->E, f->K, f->timesteps, f->steps, f->inputs, NULL, &s, &step) == status);
    CHECK(step == at);
    CHECK(!s);
}

static void
check_refusals(void)
{
    check_label = "refusals";
    toy_form f = toy_ancestral(4);
    *toy_alpha(&f, 2, 3) = 1e-30;
    refuse(&f, NRI_NOT_CAUSAL, 2);
    f = toy_ancestral(4);
    *toy_beta(&f, 1, 2) = 1;
    refuse(&f, NRI_NOT_CAUSAL, 1);
    f = toy_ancestral(4);
    *toy_gamma(&f, 3, 0) = NAN;
    refuse(&f, NRI_NOT_FINITE, 3);
    f = toy_ancestral(4);
    *toy_alpha(&f, 0, 0) = INFINITY;
    refuse(&f, NRI_NOT_FINITE, 0);
    f = toy_ancestral(4);
    f.inputs[1] = NAN;
    refuse(&f, NRI_NOT_FINITE, 1);
    f = toy_ancestral(4);
    f.timesteps[2] = -INFINITY;
    refuse(&f, NRI_NOT_FINITE, 2);
    f = toy_ancestral(4);
    f.E = 0;
    refuse(&f, NRI_BAD_ARGUMENT, -1);
    f = toy_ancestral(4);
    f.K = -1;
    refuse(&f, NRI_BAD_ARGUMENT, -1);
    nri_sampler_destroy(NULL);
}

void
test_sampler(void)
{
    check_form("euler", toy_euler(5), true, 1);
    check_form("one step", toy_euler(1), true, 1);
    check_form("ancestral", toy_ancestral(5), true, 1);
    check_form("adams", toy_adams(6), false, 2);
    check_form("heun", toy_heun(4), false, 2);
    check_form("dense", dense(6, 3), false, 6);
    check_form("disguised", disguised(), true, 2);
    check_form("forgetful", forgetful(false), true, 1);
    check_elimination();
    check_singular();
    check_refusals();
}
