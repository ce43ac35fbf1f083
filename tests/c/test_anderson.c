/* anderson.c: the weights are known in small cases and otherwise known by what makes them a least-squares solution. */
#include <math.h>

#include "check.h"
#include "solve.h"
#include "toy.h"

enum { MOST = NRI_MAX_DEPTH + 1, DIM = 24 };

typedef struct {
    int n, D;
    double r[MOST][DIM];
} residuals;

static double
dot(int D, const double *x, const double *y)
{
    double sum = 0;
    for (int d = 0; d < D; d++) {
        sum += x[d] * y[d];
    }
    return sum;
}

/* Residual i lies in row 2 (n - 1 - i) + 1 of a Gram matrix whose other rows must not be read. */
static bool
weigh(const residuals *p, double *w)
{
    enum { LD = 2 * MOST + 1 };
    static double gram[LD * LD];
    int index[MOST];
    for (int i = 0; i < LD * LD; i++) {
        gram[i] = NAN;
    }
    for (int i = 0; i < p->n; i++) {
        index[i] = 2 * (p->n - 1 - i) + 1;
    }
    for (int i = 0; i < p->n; i++) {
        for (int k = 0; k < p->n; k++) {
            gram[index[i] * LD + index[k]] = dot(p->D, p->r[i], p->r[k]);
        }
    }
    return nri_anderson_weights(p->n, index, gram, LD, w);
}

/* The mixed residual is orthogonal to every difference. */
static void
check_optimal(const residuals *p, double tolerance)
{
    double w[MOST], mixed[DIM] = {0}, sum = 0, worst = 0;
    CHECK(weigh(p, w));
    for (int i = 0; i < p->n; i++) {
        sum += w[i];
        for (int d = 0; d < p->D; d++) {
            mixed[d] += w[i] * p->r[i][d];
        }
    }
    CHECK_NEAR(sum, 1, 1e-12);
    for (int i = 0; i + 1 < p->n; i++) {
        double step[DIM];
        for (int d = 0; d < p->D; d++) {
            step[d] = p->r[i][d] - p->r[p->n - 1][d];
        }
        double size = sqrt(dot(p->D, mixed, mixed) * dot(p->D, step, step));
        worst = fmax(worst, fabs(dot(p->D, mixed, step)) / size);
    }
    CHECK_NEAR(worst, 0, tolerance);
}

static void
check_known(void)
{
    double w[MOST];
    check_label = "known";
    CHECK(weigh(&(residuals){1, 2, {{3, 4}}}, w));
    CHECK_NEAR(w[0], 1, 0);
    /* secant method: residuals 3 and 1 on a line meet 0 at -1/2 of the older and 3/2 of the newer */
    CHECK(weigh(&(residuals){2, 1, {{3}, {1}}}, w));
    CHECK_NEAR(w[0], -0.5, 1e-9);
    CHECK_NEAR(w[1], 1.5, 1e-9);
    /* 0 is the middle of this triangle */
    CHECK(weigh(&(residuals){3, 2, {{1, 0}, {-0.5, 0.8}, {-0.5, -0.8}}}, w));
    for (int i = 0; i < 3; i++) {
        CHECK_NEAR(w[i], 1.0 / 3, 1e-9);
    }
}

static void
check_random(void)
{
    check_label = "random";
    for (int n = 2; n <= MOST; n++) {
        residuals p = {.n = n, .D = DIM};
        uint64_t seed = (uint64_t)n;
        for (int i = 0; i < n; i++) {
            for (int d = 0; d < DIM; d++) {
                p.r[i][d] = toy_normal(&seed);
            }
        }
        check_optimal(&p, 1e-8);
    }
}

/* As a converging solve leaves them; a ridge that is not relative would decide these weights. */
static void
check_graded(void)
{
    check_label = "graded";
    residuals p = {.n = 4, .D = DIM};
    uint64_t seed = 5;
    for (int i = 0; i < 4; i++) {
        for (int d = 0; d < DIM; d++) {
            p.r[i][d] = 1e-5 * pow(10, -i) * toy_normal(&seed);
        }
    }
    check_optimal(&p, 1e-5);
}

static void
check_degenerate(void)
{
    double w[MOST];
    check_label = "degenerate";
    CHECK(!weigh(&(residuals){2, 2, {{1, 2}, {1, 2}}}, w));
    CHECK(!weigh(&(residuals){2, 2, {{0, 0}, {0, 0}}}, w));
    CHECK(!weigh(&(residuals){3, 2, {{1, 0}, {0, 1}, {0, 1}}}, w));
    CHECK(!weigh(&(residuals){2, 1, {{NAN}, {1}}}, w));
    CHECK(!weigh(&(residuals){2, 1, {{INFINITY}, {1}}}, w));
    CHECK(!weigh(&(residuals){2, 1, {{1 + 1e-5}, {1}}}, w)); /* a weight of 1e5 */
    CHECK(weigh(&(residuals){2, 1, {{1 + 1e-3}, {1}}}, w));
    CHECK_NEAR(w[0], -1000, 1);
    /* two rows along one line: the ridge decides, and must not let the weights explode */
    if (weigh(&(residuals){3, 2, {{4, 1}, {3, 1}, {2, 1}}}, w)) {
        CHECK_NEAR(4 * w[0] + 3 * w[1] + 2 * w[2], 0, 1e-4);
    }
}

void
test_anderson(void)
{
    check_known();
    check_random();
    check_graded();
    check_degenerate();
}
