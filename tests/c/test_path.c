/* Geodesics against their own equations, the vectors made of them, centroids. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "path.h"
#include "check.h"
#include "toy.h"

static const double PI = 3.14159265358979323846;

static double
direct_weight(double D, double r)
{
    return -((D - 1) * log(r) - r * r / 2 - (D / 2 - 1) * log(2) - lgamma(D / 2));
}

static void
check_shell(int64_t D)
{
    nri_shell s;
    double m = sqrt((double)D - 1);
    CHECK(nri_shell_init(&s, D) == NRI_OK);
    for (int i = 0; i < 5; i++) { /* the direct formula has lost the digits that D log D takes */
        double r = (0.4 + 0.4 * i) * m, w = direct_weight((double)D, r);
        CHECK_NEAR(nri_shell_weight(&s, r), w, 1e-15 * (double)D * log((double)D) + 1e-13 * w);
    }
    for (int i = -4; i <= 4; i++) { /* g has its minimum at r*, and grows like kappa x^2 */
        double x = i * 1e-3, g = nri_shell_weight(&s, s.star + x) * (s.star + x);
        CHECK_NEAR((g - s.least) / s.kappa, x * x, 5e-3 * x * x + 1e-12 * s.least / s.kappa);
    }
    CHECK(s.inner < 0.35 * m && s.star > 0.8 * m && s.star < m && s.outer > 50 * m);
}

/* c = w r^2 dphi / |dz| by differences along the way, as far as they have digits. */
static void
check_clairaut(const nri_geodesic *p, double bound)
{
    static const double share[4] = {1.0 / 12, -8.0 / 12, 8.0 / 12, -1.0 / 12};
    double h = 1e-5, r, phi, worst = 0;
    int judged = 0;
    for (int i = 1; i < 40; i++) {
        double dr = 0, dphi = 0, t = i / 40.0, at;
        for (int k = 0; k < 4; k++) {
            nri_geodesic_at(p, NRI_EUCLIDEAN, t + (k < 2 ? k - 2 : k - 1) * h, &r, &phi);
            dr += share[k] * r;
            dphi += share[k] * phi;
        }
        nri_geodesic_at(p, NRI_EUCLIDEAN, t, &at, &phi);
        double c = nri_shell_weight(p->shell, at) * at * at * dphi / hypot(dr, at * dphi);
        double rounding = 4e-16 * (p->theta / dphi + at / fmax(hypot(dr, at * dphi), 1e-300));
        if (rounding < 2e-10) {
            worst = fmax(worst, fabs(c / p->clairaut - 1));
            judged++;
        }
    }
    CHECK_NEAR(worst, 0, bound);
    CHECK(judged > 5 || p->theta < 0.1);
}

/* The length of the chain of n points at the same fractions, each chord integrated finely. */
static double
chain(const nri_shell *s, int n, const double *r, const double *phi)
{
    double sum = 0;
    for (int i = 0; i + 1 < n; i++) {
        double x = r[i] * cos(phi[i]), y = r[i] * sin(phi[i]);
        double dx = r[i + 1] * cos(phi[i + 1]) - x, dy = r[i + 1] * sin(phi[i + 1]) - y;
        for (int k = 0; k < 100; k++) {
            double t = (k + 0.5) / 100;
            sum += nri_shell_weight(s, hypot(x + t * dx, y + t * dy)) * hypot(dx, dy) / 100;
        }
    }
    return sum;
}

enum { POINTS = 400 };

static void
check_geodesic(int64_t D, double a, double b, double theta)
{
    static nri_geodesic p, q;
    nri_shell s;
    double m = sqrt((double)D - 1), r, phi, rs[POINTS], phis[POINTS], h = 1e-4;
    CHECK(nri_shell_init(&s, D) == NRI_OK);
    a *= m;
    b *= m;
    nri_geodesic_solve(&s, a, b, theta, &p);
    CHECK_NEAR(p.sum[NRI_ANGLE][p.panels], theta, 1e-12 + 1e-8 * (theta < 1e-3) * theta);
    for (int spacing = NRI_METRIC; spacing < NRI_SPACINGS; spacing++) {
        nri_geodesic_at(&p, (nri_spacing)spacing, 0, &r, &phi);
        CHECK_NEAR(r / m, a / m, 1e-9);
        CHECK_NEAR(phi, 0, 1e-12);
        nri_geodesic_at(&p, (nri_spacing)spacing, 1, &r, &phi);
        CHECK_NEAR(r / m, b / m, 1e-9);
        CHECK_NEAR(phi, theta, 1e-12);
    }
    for (int i = 0; i < POINTS; i++) {
        nri_geodesic_at(&p, NRI_EUCLIDEAN, i / (POINTS - 1.0), &rs[i], &phis[i]);
        CHECK(i == 0 || phis[i] >= phis[i - 1]);
    }
    /* the points are evenly spaced, and their chain is about as long as the way says */
    double first = hypot(rs[1] - rs[0], rs[0] * (phis[1] - phis[0]));
    double middle = hypot(rs[201] - rs[200], rs[200] * (phis[201] - phis[200]));
    CHECK_NEAR(first, middle, 2e-2 * middle + 1e-12);
    CHECK_NEAR(chain(&s, POINTS, rs, phis), p.length, 1e-2 * p.length + 1e-12);
    nri_geodesic_solve(&s, b, a, theta, &q); /* and back */
    CHECK_NEAR(q.length, p.length, 1e-9 * p.length + 1e-12);
    nri_geodesic_at(&q, NRI_EUCLIDEAN, 0.3, &r, &phi);
    nri_geodesic_at(&p, NRI_EUCLIDEAN, 0.7, &rs[0], &phis[0]);
    CHECK_NEAR(r / m, rs[0] / m, 1e-7);
    CHECK_NEAR(theta - phi, phis[0], 1e-7);
    if (theta < 1e-3) {
        return;
    }
    check_clairaut(&p, 1e-9);
    /* the first variation: what the length gains at its second end */
    nri_geodesic_solve(&s, a, b, theta - h, &q);
    double less = q.length;
    if (theta + h <= PI) {
        nri_geodesic_solve(&s, a, b, theta + h, &q);
        CHECK_NEAR((q.length - less) / (2 * h), p.clairaut, 1e-4 * p.clairaut + 1e-11 * p.length / h);
    }
}

/* Nothing else is shorter: the arc, the chord, the way with its middle moved. */
static void
check_shortest(int64_t D, double a, double b, double theta)
{
    static nri_geodesic p;
    nri_shell s;
    double m = sqrt((double)D - 1), r[POINTS], phi[POINTS];
    CHECK(nri_shell_init(&s, D) == NRI_OK);
    nri_geodesic_solve(&s, a * m, b * m, theta, &p);
    for (int other = 0; other < 4; other++) {
        for (int i = 0; i < POINTS; i++) {
            double t = i / (POINTS - 1.0), bump = sin(PI * t);
            nri_geodesic_at(&p, NRI_EUCLIDEAN, t, &r[i], &phi[i]);
            r[i] = other == 0 ? (a + t * (b - a)) * m : r[i] + (other == 1 ? 0.3 : other == 2 ? -0.3 : 0) * bump;
            phi[i] = other == 0 ? t * theta : phi[i] + (other == 3 ? 0.05 * theta * bump : 0);
        }
        CHECK(chain(&s, POINTS, r, phi) > p.length * (1 - 1e-9));
    }
}

/* ------------------------------------------------------------------------------------------------------------- vectors */

enum { PAIRS = 5 };

static void
put(nri_space *v, int slot, const float *x)
{
    int64_t shape[2];
    nri_tensor t = toy_tensor((void *)(uintptr_t)x, NRI_FLOAT32, shape, v->batch, v->elements);
    CHECK(v->ops->exchange(v, slot, &t, NRI_LOAD) == NRI_OK);
}

static double
dot(const float *x, const float *y, int D)
{
    double sum = 0;
    for (int d = 0; d < D; d++) {
        sum += (double)x[d] * (double)y[d];
    }
    return sum;
}

/* Five pairs: any, equal, opposite, nearly opposite, parallel. */
static void
check_vectors(nri_path method, int D)
{
    static float a[PAIRS][TOY_D], b[PAIRS][TOY_D], direction[PAIRS][TOY_D], out[PAIRS][TOY_D];
    static double weights[9][PAIRS][3], fractions[9], length[PAIRS];
    float packed[3][PAIRS * TOY_D];
    uint64_t seed = 5;
    int64_t shape[2], sample;
    nri_space *v;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, PAIRS, D);
    check_label = method == NRI_GEODESIC ? "geodesic" : method == NRI_SLERP ? "slerp" : "chord";
    for (int p = 0; p < PAIRS; p++) {
        toy_normals(&seed, D, a[p]);
        toy_normals(&seed, D, b[p]);
        toy_normals(&seed, D, direction[p]);
        for (int d = 0; d < D; d++) {
            float share = p == 1 ? 1.0F : p == 2 || p == 3 ? -1.0F : 1.25F;
            b[p][d] = p == 0 ? b[p][d] : share * a[p][d] + (p == 3 ? 1e-2F * b[p][d] : 0);
            packed[0][p * D + d] = a[p][d];
            packed[1][p * D + d] = b[p][d];
            packed[2][p * D + d] = direction[p][d];
        }
    }
    for (int i = 0; i < 9; i++) {
        fractions[i] = i / 8.0;
    }
    CHECK(nri_space_create_host(&like, NRI_PATH_SLOTS, &v) == NRI_OK);
    put(v, NRI_PATH_A, packed[0]);
    put(v, NRI_PATH_B, packed[1]);
    put(v, NRI_PATH_DIRECTION, packed[2]);
    CHECK(nri_interpolate(v, method, NRI_EUCLIDEAN, 9, fractions, &weights[0][0][0], length, &sample) == NRI_OK);
    for (int i = 0; i < 9; i++) {
        nri_tensor t = toy_tensor(packed[0], NRI_FLOAT32, shape, PAIRS, D);
        CHECK(v->ops->combine(v, NRI_PATH_POINT, (nri_rows){NRI_PATH_A, 3, 1}, &weights[i][0][0], 3) == NRI_OK);
        CHECK(v->ops->exchange(v, NRI_PATH_POINT, &t, NRI_STORE) == NRI_OK);
        for (int p = 0; p < PAIRS; p++) {
            memcpy(out[p], packed[0] + p * D, sizeof(float) * (size_t)D);
            double norm = sqrt(dot(out[p], out[p], D)), na = sqrt(dot(a[p], a[p], D)), nb = sqrt(dot(b[p], b[p], D));
            double theta = acos(fmin(1, fmax(-1, dot(a[p], b[p], D) / (na * nb))));
            double turned = acos(fmin(1, fmax(-1, dot(a[p], out[p], D) / (na * norm))));
            CHECK(method != NRI_GEODESIC || (isfinite(length[p]) && length[p] >= 0));
            CHECK(method == NRI_GEODESIC || isnan(length[p]));
            if (i == 0 || i == 8) { /* the ends are the ends, to the bit */
                CHECK(!memcmp(out[p], i ? b[p] : a[p], sizeof(float) * (size_t)D));
            }
            else if (method == NRI_SLERP) {
                CHECK_NEAR(norm, na + i / 8.0 * (nb - na), 1e-5 * na);
                CHECK_NEAR(turned, i / 8.0 * theta, p == 1 || p == 4 ? 1e-3 : 2e-5);
            }
            else if (method == NRI_GEODESIC) {
                CHECK(norm > 0.8 * fmin(fmin(na, nb), sqrt(D - 1)) && norm < 1.2 * fmax(fmax(na, nb), sqrt(D - 1)));
                CHECK(turned <= theta + 1e-3);
            }
        }
    }
    nri_space_destroy(v);
}

static nri_status
try_pair(nri_path method, int D, float scale_a, float scale_b, int64_t *sample)
{
    static float x[2 * TOY_D];
    double weights[2 * 3], length[2], half = 0.5;
    uint64_t seed = 3;
    int64_t shape[2];
    nri_space *v;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, 2, D);
    CHECK(nri_space_create_host(&like, NRI_PATH_SLOTS, &v) == NRI_OK);
    toy_normals(&seed, 2 * D, x);
    put(v, NRI_PATH_B, x);
    for (int d = 0; d < D; d++) {
        x[D + d] *= scale_a; /* the second sample's */
    }
    put(v, NRI_PATH_A, x);
    toy_normals(&seed, 2 * D, x);
    for (int d = 0; d < D; d++) {
        x[D + d] *= scale_b;
    }
    put(v, NRI_PATH_B, x);
    nri_status status = nri_interpolate(v, method, NRI_METRIC, 1, &half, weights, length, sample);
    nri_space_destroy(v);
    return status;
}

static void
check_refusals(void)
{
    int64_t sample;
    check_label = "refusals";
    CHECK(try_pair(NRI_GEODESIC, TOY_D, 1, 1, &sample) == NRI_OK);
    CHECK(try_pair(NRI_GEODESIC, TOY_D, 0, 1, &sample) == NRI_NOT_FINITE && sample == 1);
    CHECK(try_pair(NRI_LERP, TOY_D, 1, NAN, &sample) == NRI_NOT_FINITE && sample == 1);
    CHECK(try_pair(NRI_SLERP, TOY_D, INFINITY, 1, &sample) == NRI_NOT_FINITE && sample == 1);
    CHECK(try_pair(NRI_GEODESIC, TOY_D, 1, 1e3F, &sample) == NRI_NO_NOISE && sample == 1);
    CHECK(try_pair(NRI_GEODESIC, TOY_D, 1e-2F, 1, &sample) == NRI_NO_NOISE && sample == 1);
    CHECK(try_pair(NRI_SLERP, TOY_D, 1e-2F, 1e3F, &sample) == NRI_OK);
    CHECK(try_pair(NRI_GEODESIC, 3, 1, 1, &sample) == NRI_BAD_ARGUMENT);
    CHECK(try_pair(NRI_LERP, 3, 1, 1, &sample) == NRI_OK);
}

/* ------------------------------------------------------------------------------------------------------------ centroids */

enum { MOST = 4 };

static nri_status
centroid(int K, int D, const float *x, const double *shares, double *weights, float *out)
{
    int64_t shape[2], sample;
    nri_space *v;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, 1, D);
    CHECK(nri_space_create_host(&like, K + 1, &v) == NRI_OK);
    for (int k = 0; k < K; k++) {
        put(v, k, x + k * D);
    }
    nri_status status = nri_centroid(v, K, shares, weights, &sample);
    if (status == NRI_OK) {
        nri_tensor t = toy_tensor(out, NRI_FLOAT32, shape, 1, D);
        CHECK(v->ops->combine(v, K, (nri_rows){0, K, 1}, weights, K) == NRI_OK);
        CHECK(v->ops->exchange(v, K, &t, NRI_STORE) == NRI_OK);
    }
    nri_space_destroy(v);
    return status;
}

/* sum_k share_k theta_k^2 */
static double
spread(int K, int D, const float *x, const double *shares, const float *c)
{
    double sum = 0;
    for (int k = 0; k < K; k++) {
        const float *y = x + k * D;
        double theta = acos(fmin(1, fmax(-1, dot(y, c, D) / sqrt(dot(y, y, D) * dot(c, c, D)))));
        sum += shares[k] * theta * theta;
    }
    return sum;
}

static void
check_centroid(int K, const double *shares)
{
    float x[MOST * TOY_D], c[TOY_D], moved[TOY_D];
    double weights[MOST];
    uint64_t seed = 11;
    toy_normals(&seed, MOST * TOY_D, x);
    CHECK(centroid(K, TOY_D, x, shares, weights, c) == NRI_OK);
    double least = spread(K, TOY_D, x, shares, c);
    for (int i = 0; i < 40; i++) { /* within the span and without, nothing near by is better */
        toy_normals(&seed, TOY_D, moved);
        for (int d = 0; d < TOY_D; d++) {
            float towards = i < 20 ? x[i % K * TOY_D + d] * (i % 2 ? 1 : -1) : moved[d];
            moved[d] = c[d] + 1e-2F * towards;
        }
        CHECK(spread(K, TOY_D, x, shares, moved) > least * (1 - 1e-6));
    }
}

static void
check_centroids(void)
{
    static const double even[MOST] = {1, 1, 1, 1}, uneven[MOST] = {3, 1, 0.5, 0}, only[MOST] = {0, 2, 0, 0};
    float x[MOST * TOY_D], c[TOY_D];
    double weights[MOST];
    uint64_t seed = 11;
    check_label = "centroid";
    for (int K = 2; K <= MOST; K++) {
        check_centroid(K, even);
        check_centroid(K, uneven);
    }
    toy_normals(&seed, MOST * TOY_D, x);
    nri_shell s;
    CHECK(nri_shell_init(&s, TOY_D) == NRI_OK);
    CHECK(centroid(MOST, TOY_D, x, only, weights, c) == NRI_OK); /* the direction of the one that counts */
    for (int k = 0; k < MOST; k++) {
        double norm = sqrt(dot(x + k * TOY_D, x + k * TOY_D, TOY_D));
        CHECK_NEAR(weights[k], k == 1 ? s.star / norm : 0, 1e-6);
    }
    CHECK(centroid(1, TOY_D, x, even, weights, c) == NRI_OK);
    CHECK_NEAR(sqrt(dot(c, c, TOY_D)), s.star, 1e-5);
    CHECK(centroid(2, TOY_D, x, even, weights, c) == NRI_OK); /* two vectors': the middle of their arc */
    CHECK_NEAR(weights[0] * sqrt(dot(x, x, TOY_D)), weights[1] * sqrt(dot(x + TOY_D, x + TOY_D, TOY_D)), 1e-6);
    CHECK_NEAR(sqrt(dot(c, c, TOY_D)), s.star, 1e-5);
    for (int d = 0; d < TOY_D; d++) {
        x[TOY_D + d] = -x[d];
    }
    CHECK(centroid(2, TOY_D, x, even, weights, c) == NRI_NOT_UNIQUE);
    x[0] = NAN;
    CHECK(centroid(2, TOY_D, x, even, weights, c) == NRI_NOT_FINITE);
    memset(x, 0, sizeof(x));
    CHECK(centroid(2, TOY_D, x, even, weights, c) == NRI_NOT_FINITE);
}

void
test_path(void)
{
    static const int64_t sizes[] = {4, 16, 1024, 16384, 262144};
    /* on the shell, inside, outside, across, equal, one of them nearly on the circle */
    static const double ends[][2] = {{1, 1},       {0.9, 0.95},  {1.05, 1.2}, {0.8, 1.3}, {1.3, 0.8},
                                     {0.93, 0.93}, {1.07, 1.07}, {1, 0.9},    {1.2, 1},   {0.9999, 1}};
    static const double angles[] = {0, 1e-6, 0.01, 0.3, 1.5707963267948966, 3, 3.141592653589793};
    nri_shell s;
    CHECK(nri_shell_init(&s, 3) == NRI_BAD_ARGUMENT);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        check_label = "shell";
        check_shell(sizes[i]);
        for (size_t e = 0; e < sizeof(ends) / sizeof(*ends); e++) {
            for (size_t t = 0; t < sizeof(angles) / sizeof(*angles); t++) {
                check_label = t == 0 ? "geodesic, parallel" : t == 6 ? "geodesic, opposite" : "geodesic";
                check_geodesic(sizes[i], ends[e][0], ends[e][1], angles[t]);
            }
            check_label = "shortest";
            check_shortest(sizes[i], ends[e][0], ends[e][1], 1.5);
        }
    }
    for (int method = NRI_GEODESIC; method <= NRI_VARIANCE_PRESERVING; method++) {
        check_vectors((nri_path)method, TOY_D);
    }
    check_refusals();
    check_centroids();
}
