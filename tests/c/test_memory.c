/* Every allocation failing once. */
#include <stdint.h>
#include <stdlib.h>

#include "alloc.h"
#include "arena.h"
#include "check.h"
#include "toy.h"

/* Inverts again and again, with the first allocation failing, the second ..., until none is left to fail. */
static void
check_failures(toy_form f, nri_options o, toy_outcome *out)
{
    double start[TOY_B][TOY_D];
    toy_network net = toy_make_network(6, false, 0.8, 1);
    toy_problem p = toy_make_problem(&f, &net, 2, 2, start);
    nri_status status = NRI_NO_MEMORY;
    int n = 0;
    for (; status != NRI_OK && n < 100; n++) {
        alloc_arm(n);
        status = toy_invert(&f, &net, &o, &p, toy_sound, out);
        CHECK(alloc_disarm() == 0);
        CHECK(status == NRI_OK || status == NRI_NO_MEMORY);
        CHECK((status == NRI_OK) == !alloc_failed());
    }
    CHECK(status == NRI_OK);
    CHECK(n > 5);
    CHECK(out->reason[0] != NRI_RUNNING && out->reason[0] != NRI_NON_FINITE);
}

/* The same for paths, centroids and corrections: `run` sets up, works, and cleans up. */
static void
check_run(nri_status (*run)(void))
{
    nri_status status = NRI_NO_MEMORY;
    int n = 0;
    for (; status != NRI_OK && n < 100; n++) {
        alloc_arm(n);
        status = run();
        CHECK(alloc_disarm() == 0);
        CHECK(status == NRI_OK || status == NRI_NO_MEMORY);
        CHECK((status == NRI_OK) == !alloc_failed());
    }
    CHECK(status == NRI_OK);
    CHECK(n > 2);
}

static nri_status
run_path(bool middle)
{
    float x[4 * 8];
    double weights[2 * 3], length[2], half = 0.5, shares[2] = {1, 1};
    uint64_t seed = 9;
    int64_t shape[2], sample;
    nri_space *v = NULL;
    nri_tensor t = toy_tensor(x, NRI_FLOAT32, shape, 2, 8);
    nri_status status = nri_space_create_host(&t, NRI_PATH_SLOTS, &v);
    for (int slot = 0; status == NRI_OK && slot < 3; slot++) {
        toy_normals(&seed, 16, x);
        status = v->ops->exchange(v, slot, &t, NRI_LOAD);
    }
    if (status == NRI_OK) {
        status = middle ? nri_centroid(v, 2, shares, weights, &sample)
                        : nri_interpolate(v, NRI_GEODESIC, NRI_METRIC, 1, &half, weights, length, &sample);
    }
    nri_space_destroy(v);
    return status;
}

static nri_status
run_interpolation(void)
{
    return run_path(false);
}

static nri_status
run_centroid(void)
{
    return run_path(true);
}

static nri_status
run_correction(void)
{
    toy_form f = toy_denoiser(2, true, 0, 0.6, 0.5);
    nri_options o = nri_default_options;
    nri_sampler *from = NULL;
    toy_session s = {.sampler = NULL};
    nri_status status = toy_sampler(&f, &from);
    o.correct_from = from;
    if (status == NRI_OK) {
        status = toy_open(&f, &o, 2, 8, &s);
    }
    toy_shut(&s);
    nri_sampler_destroy(from);
    return status;
}

/* Sizes that overflow are no memory, members without elements no pointers, and all else is aligned and zero. */
static void
check_arena(void)
{
    typedef struct {
        double *wide;
        char *bytes, *none;
        int *last;
    } owner;
    owner x;
    for (size_t n = 1; n < 40; n++) {
        const nri_array arrays[] = {NRI_ARRAY(owner, bytes, n, 1), NRI_ARRAY(owner, wide, n, 3),
                                    NRI_ARRAY(owner, none, 0, n), NRI_ARRAY(owner, last, 2, n)};
        void *block = NRI_CARVE(&x, arrays);
        CHECK(block == x.bytes && !x.none);
        CHECK((uintptr_t)x.wide % _Alignof(double) == 0 && (uintptr_t)x.last % _Alignof(int) == 0);
        CHECK((char *)x.wide >= x.bytes + n && (char *)x.last >= (char *)(x.wide + 3 * n));
        for (size_t i = 0; i < 2 * n; i++) {
            CHECK(x.last[i] == 0 && x.wide[i] == 0);
            x.last[i] = 1;
        }
        free(block);
    }
    static const size_t sizes[][2] = {
        {SIZE_MAX, 1}, {SIZE_MAX / 8, 8}, {(size_t)1 << 33, (size_t)1 << 33}, {SIZE_MAX / 32, 3}};
    for (int i = 0; i < 4; i++) {
        const nri_array arrays[] = {NRI_ARRAY(owner, bytes, 1, 1), NRI_ARRAY(owner, wide, sizes[i][0], sizes[i][1])};
        CHECK(!NRI_CARVE(&x, arrays));
    }
}

void
test_memory(void)
{
    static toy_outcome out;
    nri_options o = nri_default_options;
    check_label = "refined";
    o.rounds = 1;
    o.trajectory = true;
    check_failures(toy_ancestral(3), o, &out);
    CHECK(out.error[0] < 0.1);
    check_label = "newton";
    o.solver = NRI_NEWTON;
    check_failures(toy_ancestral(3), o, &out);
    check_label = "absorb";
    o = nri_default_options;
    o.absorb = true;
    check_failures(toy_denoiser(3, false, 0.6, 4, 0.4), o, &out);
    check_label = "passes";
    o = nri_default_options;
    o.order = NRI_PASSES;
    o.verify = o.trajectory = true;
    check_failures(toy_adams(3), o, &out);
    check_label = "path";
    check_run(run_interpolation);
    check_label = "centroid";
    check_run(run_centroid);
    check_label = "correction";
    check_run(run_correction);
    check_label = "arena";
    check_arena();
}
