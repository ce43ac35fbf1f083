/* Runs the C tests of the core: a line for each file of tests, then the sum.  Exits with 1 if a check failed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

enum { SHOWN = 20 }; /* further failures of one file are counted only */

const char *check_label;
static int checks, failures;

static bool
count(bool ok)
{
    checks++;
    failures += !ok;
    return !ok && failures <= SHOWN;
}

void
check_true(bool ok, const char *what, const char *file, int line)
{
    if (count(ok)) {
        printf("%s:%d: [%s] not true: %s\n", file, line, check_label, what);
    }
}

void
check_near(double got, double want, double tolerance, const char *what, const char *file, int line)
{
    if (count(fabs(got - want) <= tolerance)) {
        printf("%s:%d: [%s] %s is %.9g, not %.9g +- %.2g\n", file, line, check_label, what, got, want, tolerance);
    }
}

int
main(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } files[] = {
        {"vec", test_vec},       {"sampler", test_sampler}, {"anderson", test_anderson}, {"solve", test_solve},
        {"invert", test_invert}, {"newton", test_newton},   {"absorb", test_absorb},     {"active", test_active},
        {"passes", test_passes}, {"path", test_path},       {"correct", test_correct},   {"memory", test_memory},
    };
    int all = 0, all_failures = 0;
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        checks = failures = 0;
        check_label = "-";
        files[i].run();
        printf("%-9s %7d checks, %d failed\n", files[i].name, checks, failures);
        all += checks;
        all_failures += failures;
    }
    printf("%-9s %7d checks, %d failed\n", "all", all, all_failures);
    return all_failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
