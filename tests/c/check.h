/* Checks for the C tests: they count, report where they fail, and go on. */
#ifndef NRINV_TEST_CHECK_H
#define NRINV_TEST_CHECK_H

#include <stdbool.h>
#include <stdint.h>

/* `label` says which of several cases is being checked, in the message of a failure. */
extern const char *check_label;

void check_true(bool ok, const char *what, const char *file, int line);
void check_near(double got, double want, double tolerance, const char *what, const char *file, int line);

#define CHECK(what) check_true((what), #what, __FILE__, __LINE__)
#define CHECK_NEAR(got, want, tolerance) check_near((got), (want), (tolerance), #got, __FILE__, __LINE__)

/* One per file; main.c runs them. */
void test_vec(void);
void test_sampler(void);
void test_anderson(void);
void test_solve(void);
void test_invert(void);
void test_newton(void);
void test_absorb(void);
void test_active(void);
void test_passes(void);
void test_path(void);
void test_correct(void);
void test_memory(void);

#endif
