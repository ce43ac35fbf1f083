/*
Every allocation failing once.  The linker sends malloc, calloc and free of the program here (-Wl,--wrap), the core's and
the tests'; only while `armed` is anything counted or refused.
*/
#include <stdlib.h>

#include "check.h"
#include "toy.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void __wrap_free(void *p);

static bool armed;
static int until_failure, living;

static bool
refused(void)
{
    return armed && until_failure-- == 0;
}

static void *
counted(void *p)
{
    living += armed && p;
    return p;
}

void *
__wrap_malloc(size_t size)
{
    return refused() ? NULL : counted(__real_malloc(size));
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return refused() ? NULL : counted(__real_calloc(n, size));
}

void
__wrap_free(void *p)
{
    living -= armed && p;
    __real_free(p);
}

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
        living = 0;
        until_failure = n;
        armed = true;
        status = toy_invert(&f, &net, &o, &p, toy_sound, out);
        armed = false;
        CHECK(status == NRI_OK || status == NRI_NO_MEMORY);
        CHECK((status == NRI_OK) == (until_failure >= 0));
        CHECK(living == 0);
    }
    CHECK(status == NRI_OK);
    CHECK(n > 5);
    CHECK(out->reason[0] != NRI_RUNNING && out->reason[0] != NRI_NON_FINITE);
}

void
test_memory(void)
{
    static toy_outcome out;
    nri_options o = nri_default_options;
    check_label = "refined";
    o.refine = 1;
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
}
