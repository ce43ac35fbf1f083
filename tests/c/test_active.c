/* Whatever the network returns for samples that a request is not for, nothing changes. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "toy.h"

static bool
same(const void *x, const void *y, size_t size)
{
    return memcmp(x, y, size) == 0;
}

/* Samples of mixed difficulty, the last of which fails at `fault` if it says so: honest rows and garbage, bit by bit. */
static void
check_garbage(const char *label, toy_form f, nri_options o, toy_fault fault)
{
    static toy_outcome honest, littered;
    double start[TOY_B][TOY_D];
    toy_network net = toy_make_network(TOY_D, false, 0.9, 161);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 162, start);
    bool mixed = false;
    check_label = label;
    for (int d = 0; d < TOY_D; d++) { /* saturated: the network hardly answers to the state */
        p.target[1][d] = 0;
        p.target[2][d] *= 30;
    }
    CHECK(toy_invert(&f, &net, &o, &p, fault, &honest) == NRI_OK);
    fault.litter = true;
    CHECK(toy_invert(&f, &net, &o, &p, fault, &littered) == NRI_OK);
    for (int b = 0; b < TOY_B; b++) {
        mixed |= honest.nfe[b] != honest.evaluations;
    }
    CHECK(mixed);
    CHECK(honest.evaluations == littered.evaluations);
    CHECK(same(honest.latents, littered.latents, sizeof(honest.latents)));
    CHECK(same(honest.trajectory, littered.trajectory, sizeof(honest.trajectory)));
    CHECK(same(honest.noises, littered.noises, sizeof(honest.noises)));
    CHECK(same(honest.residual, littered.residual, sizeof(honest.residual)));
    CHECK(same(honest.error, littered.error, sizeof(honest.error)));
    CHECK(same(honest.step_nfe, littered.step_nfe, sizeof(honest.step_nfe)));
    CHECK(same(honest.restarts, littered.restarts, sizeof(honest.restarts)));
    CHECK(same(honest.rejected, littered.rejected, sizeof(honest.rejected)));
    CHECK(same(honest.failed, littered.failed, sizeof(honest.failed)));
    CHECK(same(honest.nfe, littered.nfe, sizeof(honest.nfe)));
    CHECK(same(honest.reason, littered.reason, sizeof(honest.reason)));
}

/* A sample that a sweep gives up is not measured, and nothing is asked for it again. */
static void
check_given_up(void)
{
    static toy_outcome out;
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(4);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 163);
    toy_problem p = toy_make_problem(&f, &net, 2, 164, start);
    nri_options o = nri_default_options;
    check_label = "given up";
    o.verify = true;
    CHECK(toy_invert(&f, &net, &o, &p, (toy_fault){0, 1, 1, true}, &out) == NRI_OK);
    CHECK(out.reason[0] == NRI_NON_FINITE && isnan(out.error[0]) && out.nfe[0] == 2);
    CHECK(out.reason[1] != NRI_NON_FINITE && out.error[1] < 0.1);
}

/* [B] of each request, step by step. */
static void
check_flags(void)
{
    toy_form f = toy_euler(2);
    nri_options o = nri_default_options;
    nri_request q;
    toy_session s;
    bool done;
    double far[2] = {0, 4}, near[2] = {0, 0};
    check_label = "flags";
    o.max_nfe = 2;
    o.verify = true;
    o.predictor = false;
    CHECK(toy_open(&f, &o, 2, 1, &s) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, far) == NRI_OK);
    for (int i = 0; i < 6; i++) { /* a network that returns 0 solves the equation of the first sample at once */
        CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done);
        CHECK(q.index == (i < 2 ? 1 : i < 4 ? 0 : i - 4));
        CHECK(q.active[0] == (i % 2 == 0 || i == 5));
        CHECK(q.active[1]);
        CHECK(toy_feed(&s, near) == NRI_OK);
    }
    CHECK(nri_inversion_next(s.inv, &q, &done) == NRI_OK && done);
    toy_shut(&s);
}

void
test_active(void)
{
    static const toy_fault late = {9, 12, 1u << 3, false};
    nri_options o = nri_default_options;
    o.verify = o.trajectory = true;
    o.max_nfe = 8;
    for (o.solver = NRI_AUTO; o.solver <= NRI_NEWTON; o.solver++) {
        check_garbage("first order", toy_euler(5), o, toy_sound);
        check_garbage("first order, a sample fails", toy_euler(5), o, late);
        check_garbage("noise", toy_ancestral(4), o, late);
        check_garbage("levels", toy_denoiser(4, true, 0, 4, 0.5), o, late);
        check_garbage("two scales, a sample fails early", toy_denoiser(6, false, 0, 8, 0.4), o,
                      (toy_fault){2, 4, 1u << 3, false});
    }
    for (o.solver = NRI_AUTO; o.solver <= NRI_NEWTON; o.solver++) {
        nri_options absorb = nri_default_options;
        absorb.solver = o.solver;
        absorb.absorb = absorb.trajectory = true;
        absorb.max_nfe = 6;
        check_garbage("absorb", toy_denoiser(5, false, 0.6, 4, 0.5), absorb, toy_sound);
        check_garbage("absorb, a sample fails", toy_denoiser(5, true, 0.6, 4, 0.5), absorb, late);
    }
    o.rounds = 5;
    o.tol = 1e-4;
    o.max_nfe = 3;
    for (o.solver = NRI_AUTO; o.solver <= NRI_NEWTON; o.solver++) {
        check_garbage("rounds", toy_adams(5), o, toy_sound);
        check_garbage("rounds, a sample fails", toy_adams(5), o, (toy_fault){30, 60, 1u << 3, false});
        check_garbage("rounds, two evaluations a step", toy_heun(2), o, late);
    }
    o = nri_default_options;
    o.order = NRI_PASSES;
    o.trajectory = true;
    o.max_nfe = 20;
    for (int i = 0; i < 2; i++) {
        o.verify = i;
        for (o.solver = NRI_AUTO; o.solver <= NRI_FIXED_POINT; o.solver++) {
            check_garbage("passes", toy_adams(5), o, toy_sound);
            check_garbage("passes, a sample fails", toy_ancestral(4), o, late);
            check_garbage("passes, levels", toy_denoiser(4, true, 0, 4, 0.5), o, late);
        }
    }
    check_given_up();
    check_flags();
}
