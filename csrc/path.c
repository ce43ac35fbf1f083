/*
Paths between noise vectors, and their centroids: weights of the vectors they are made of.

A point of a path is

    z = (r / sin theta) (sin(theta - phi) a / |a| + sin(phi) b / |b|)

with r and phi from the geodesic (geodesic.c), or for slerp r linear and phi proportional to the fraction.  Nearly opposite
ends leave the plane open, and the weights above grow beyond all bounds: there the basis is a / |a| and a unit vector e
orthogonal to it, z = r (cos(phi) a / |a| + sin(phi) e), with e from b if b tells it, else from the caller.

The centroid lies where noise is likeliest, at r*, in the direction that minimises J = 1/2 sum_k share_k theta_k^2: the
Frechet mean of the directions, by steps along

    d = sum_k share_k theta_k e_k          e_k the tangent towards x_k

How far a vector lies off that shell does not matter: norms do not pull the centroid.  Two vectors' is the middle of
their arc; the sum of lengths itself, which NAO minimises, is the same everywhere on it.

Scalars in double; vectors through vec.h, on any device.
*/
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "arena.h"
#include "path.h"

static const double PI = 3.14159265358979323846;
/* From this angle on, the basis is a and a vector orthogonal to it. */
static const double OPPOSITE = 3.0;
/* What is left of b beside a when its direction is rounding. */
static const double ROUNDING = 1e-4;
/* Directions whose weighted sum is shorter than this part of the weights cancel each other. */
static const double CANCELLED = 1e-3;
/* The descent to the centroid ends where a step turns by less than this angle, or after STEPS. */
static const double SHORTEST = 1e-13;
enum { STEPS = 1000 };

nri_status
nri_path_norms(int64_t elements, double *low, double *high)
{
    nri_shell shell;
    NRI_TRY(nri_shell_init(&shell, elements));
    *low = shell.inner;
    *high = shell.outer;
    return NRI_OK;
}

static nri_status
check_norms(const nri_space *v, const double *norm, double low, double high, nri_status wrong, int64_t *sample)
{
    for (int64_t b = 0; b < v->batch; b++) {
        if (!(norm[b] >= low && norm[b] <= high)) {
            *sample = b;
            return wrong;
        }
    }
    return NRI_OK;
}

/* The angles [B] between A and B, to full precision also near 0 and pi (W. Kahan's formula). */
static nri_status
angles(nri_space *v, const double *a, const double *b, double *coef, double *sum, double *theta)
{
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (int64_t i = 0; i < v->batch; i++) {
            coef[2 * i] = 1 / a[i];
            coef[2 * i + 1] = sign / b[i];
        }
        NRI_TRY(v->ops->combine(v, NRI_PATH_SPARE, (nri_rows){NRI_PATH_A, 2, 1}, coef, 2));
        NRI_TRY(v->ops->dots(v, NRI_PATH_SPARE, (nri_rows){NRI_PATH_SPARE, 1, 1}, sign > 0 ? sum : theta));
    }
    for (int64_t i = 0; i < v->batch; i++) {
        theta[i] = 2 * atan2(sqrt(theta[i]), sqrt(sum[i]));
    }
    return NRI_OK;
}

/*
Make DIRECTION the unit vector orthogonal to A: in the plane of A and B if there is one.  The caller's is taken for opposite
ends only; elsewhere it would count 0 times, which is NaN where it is not finite.
*/
static nri_status
find_direction(nri_space *v, const double *a, const double *b, const double *theta, double *coef, double *dot, bool *known,
               int64_t *sample)
{
    for (int64_t i = 0; i < v->batch; i++) {
        coef[2 * i] = -cos(theta[i]) / a[i];
        coef[2 * i + 1] = 1 / b[i];
        known[i] = theta[i] < OPPOSITE || sin(theta[i]) > ROUNDING;
    }
    NRI_TRY(v->ops->combine(v, NRI_PATH_SPARE, (nri_rows){NRI_PATH_A, 2, 1}, coef, 2));
    NRI_TRY(v->ops->copy(v, NRI_PATH_DIRECTION, NRI_PATH_SPARE, known));
    for (int pass = 0; pass < 2; pass++) { /* the second time takes away what rounding has left */
        NRI_TRY(v->ops->dots(v, NRI_PATH_DIRECTION, (nri_rows){NRI_PATH_A, 1, 1}, dot));
        for (int64_t i = 0; i < v->batch; i++) {
            coef[2 * i] = -dot[i] / (a[i] * a[i]);
            coef[2 * i + 1] = 1;
        }
        NRI_TRY(v->ops->combine(v, NRI_PATH_DIRECTION, (nri_rows){NRI_PATH_A, 2, NRI_PATH_DIRECTION - NRI_PATH_A}, coef, 2));
    }
    NRI_TRY(v->ops->dots(v, NRI_PATH_DIRECTION, (nri_rows){NRI_PATH_DIRECTION, 1, 1}, dot));
    NRI_TRY(check_norms(v, dot, 0, DBL_MAX, NRI_NOT_FINITE, sample));
    for (int64_t i = 0; i < v->batch; i++) {
        coef[i] = dot[i] > 0 ? 1 / sqrt(dot[i]) : 0;
    }
    return v->ops->combine(v, NRI_PATH_DIRECTION, (nri_rows){NRI_PATH_DIRECTION, 1, 1}, coef, 1);
}

/* The weights of the point with norm r at the angle phi; the last is 0 so far. */
static void
weigh(double a, double b, double theta, double r, double phi, double *w)
{
    if (theta >= OPPOSITE) {
        w[0] = r * cos(phi) / a;
        w[1] = 0;
        w[2] = r * sin(phi);
        return;
    }
    double share = theta > 0 ? phi / theta : 0, whole = sin(theta);
    w[0] = r / a * (theta > 1e-8 ? sin(theta - phi) / whole : 1 - share);
    w[1] = r / b * (theta > 1e-8 ? sin(phi) / whole : share);
}

static void
weigh_chord(nri_path method, double t, double *w)
{
    double length = method == NRI_LERP ? 1 : hypot(1 - t, t);
    w[0] = (1 - t) / length;
    w[1] = t / length;
}

/* One way: its points' weights, [n] rows `stride` apart; its length. */
static double
weigh_way(const nri_shell *shell, nri_path method, nri_spacing spacing, double a, double b, double theta, int n,
          const double *fractions, double *weights, int64_t stride)
{
    nri_geodesic path;
    double r, phi;
    if (method == NRI_GEODESIC) {
        nri_geodesic_solve(shell, a, b, theta, &path);
    }
    for (int i = 0; i < n; i++) {
        double t = fractions[i], *w = weights + i * stride;
        w[2] = 0;
        if (t <= 0 || t >= 1) { /* the ends themselves */
            w[0] = t <= 0;
            w[1] = t >= 1;
        }
        else if (method == NRI_GEODESIC) {
            nri_geodesic_at(&path, spacing, t, &r, &phi);
            weigh(a, b, theta, r, phi, w);
        }
        else if (method == NRI_SLERP) {
            weigh(a, b, theta, a + t * (b - a), t * theta, w);
        }
        else {
            weigh_chord(method, t, w);
        }
    }
    return method == NRI_GEODESIC ? path.length : NAN;
}

/* What an interpolation knows of each sample. */
typedef struct {
    double *a, *b, *theta, *dot, *coef; /* [B], coef [B][2] */
    bool *known;
} ends;

/* Norms, angle and direction of the ends A and B, which have to point somewhere; with a shell they have to lie on it. */
static nri_status
measure_ends(nri_space *v, const nri_shell *shell, const ends *e, int64_t *sample)
{
    NRI_TRY(nri_norms(v, NRI_PATH_A, e->a));
    NRI_TRY(nri_norms(v, NRI_PATH_B, e->b));
    NRI_TRY(check_norms(v, e->a, DBL_TRUE_MIN, DBL_MAX, NRI_NOT_FINITE, sample));
    NRI_TRY(check_norms(v, e->b, DBL_TRUE_MIN, DBL_MAX, NRI_NOT_FINITE, sample));
    if (shell) {
        NRI_TRY(check_norms(v, e->a, shell->inner, shell->outer, NRI_NO_NOISE, sample));
        NRI_TRY(check_norms(v, e->b, shell->inner, shell->outer, NRI_NO_NOISE, sample));
    }
    NRI_TRY(angles(v, e->a, e->b, e->coef, e->dot, e->theta));
    return find_direction(v, e->a, e->b, e->theta, e->coef, e->dot, e->known, sample);
}

nri_status
nri_interpolate(nri_space *v, nri_path method, nri_spacing spacing, int n, const double *fractions, double *weights,
                double *length, int64_t *sample)
{
    nri_shell shell = {0};
    int64_t B = v->batch;
    ends e;
    *sample = -1;
    if (method == NRI_GEODESIC) {
        NRI_TRY(nri_shell_init(&shell, v->elements));
    }
    const nri_array arrays[] = {NRI_ARRAY(ends, a, B, 1),   NRI_ARRAY(ends, b, B, 1),    NRI_ARRAY(ends, theta, B, 1),
                                NRI_ARRAY(ends, dot, B, 1), NRI_ARRAY(ends, coef, B, 2), NRI_ARRAY(ends, known, B, 1)};
    void *block = NRI_CARVE(&e, arrays);
    if (!block) {
        return NRI_NO_MEMORY;
    }
    nri_status status = measure_ends(v, method == NRI_GEODESIC ? &shell : NULL, &e, sample);
    for (int64_t i = 0; status == NRI_OK && i < B; i++) {
        length[i] = weigh_way(&shell, method, spacing, e.a[i], e.b[i], e.theta[i], n, fractions, weights + 3 * i, 3 * B);
    }
    free(block);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ centroid */

/* One sample's unit vectors u_k by their Gram matrix, and a direction sum_k v_k u_k. */
typedef struct {
    int count;                 /* K */
    const double *share;       /* [K] */
    double *gram, *norm, *row; /* [B][K][K] from the sample on, [B][K], [B][K] */
    double *v, *trial, *step;  /* [K] */
} directions;

/* |sum_k x_k u_k| */
static double
span_norm(const directions *d, const double *x)
{
    double sum = 0;
    for (int i = 0; i < d->count; i++) {
        for (int j = 0; j < d->count; j++) {
            sum += x[i] * x[j] * d->gram[i * d->count + j];
        }
    }
    return sqrt(fmax(0, sum));
}

static void
normalise(const directions *d, double *x)
{
    double length = span_norm(d, x);
    for (int k = 0; k < d->count; k++) {
        x[k] /= length;
    }
}

/* J at the direction x; `step`, if there is one, gets the way down. */
static double
measure(const directions *d, const double *x, double *step)
{
    double J = 0, along = 0;
    for (int k = 0; k < d->count; k++) {
        double cosine = 0;
        for (int j = 0; j < d->count; j++) {
            cosine += x[j] * d->gram[j * d->count + k];
        }
        double theta = acos(fmin(1, fmax(-1, cosine))), force = d->share[k] * (theta > 1e-9 ? theta / sin(theta) : 1);
        J += 0.5 * d->share[k] * theta * theta;
        along += force * cosine;
        if (step) {
            step[k] = force;
        }
    }
    for (int k = 0; step && k < d->count; k++) {
        step[k] -= along * x[k];
    }
    return J;
}

static nri_status
find_centroid(directions *d)
{
    double sum = 0, angle = 1;
    for (int k = 0; k < d->count; k++) {
        d->v[k] = d->share[k];
        sum += d->share[k];
    }
    if (!(span_norm(d, d->v) > CANCELLED * sum)) {
        return NRI_NOT_UNIQUE;
    }
    normalise(d, d->v);
    double J = measure(d, d->v, d->step);
    for (int i = 0; i < STEPS && angle > SHORTEST; i++) {
        double size = span_norm(d, d->step), next = INFINITY;
        for (angle = fmin(size / sum, PI / 4); angle > SHORTEST; angle /= 2) {
            for (int k = 0; k < d->count; k++) {
                d->trial[k] = cos(angle) * d->v[k] + sin(angle) * d->step[k] / size;
            }
            normalise(d, d->trial);
            next = measure(d, d->trial, NULL);
            if (next <= J) {
                break;
            }
        }
        if (next > J) {
            break; /* at the rounding of J */
        }
        for (int k = 0; k < d->count; k++) {
            d->v[k] = d->trial[k];
        }
        J = measure(d, d->v, d->step);
    }
    return NRI_OK;
}

/* Gram matrix [B][K][K] and norms [B][K] of the slots 0..K-1. */
static nri_status
gram_matrix(nri_space *v, int K, double *gram, double *norm, double *row, int64_t *sample)
{
    for (int k = 0; k < K; k++) {
        NRI_TRY(v->ops->dots(v, k, (nri_rows){0, K, 1}, row));
        for (int64_t b = 0; b < v->batch; b++) {
            for (int j = 0; j < K; j++) {
                gram[(b * K + k) * K + j] = row[b * K + j];
            }
            norm[b * K + k] = sqrt(row[b * K + k]);
            if (!isfinite(norm[b * K + k]) || norm[b * K + k] == 0) {
                *sample = b;
                return NRI_NOT_FINITE;
            }
        }
    }
    for (int64_t i = 0; i < v->batch * K * K; i++) {
        int64_t b = i / (K * K), k = i / K % K, j = i % K;
        gram[i] = k == j ? 1 : gram[i] / (norm[b * K + k] * norm[b * K + j]);
    }
    return NRI_OK;
}

nri_status
nri_centroid(nri_space *v, int count, const double *shares, double *weights, int64_t *sample)
{
    nri_shell shell;
    size_t B = (size_t)v->batch, K = (size_t)count;
    directions d = {.count = count, .share = shares};
    *sample = -1;
    NRI_TRY(nri_shell_init(&shell, v->elements));
    const nri_array arrays[] = {NRI_ARRAY(directions, gram, B, K * K), NRI_ARRAY(directions, norm, B, K),
                                NRI_ARRAY(directions, row, B, K),      NRI_ARRAY(directions, v, K, 1),
                                NRI_ARRAY(directions, trial, K, 1),    NRI_ARRAY(directions, step, K, 1)};
    void *block = NRI_CARVE(&d, arrays);
    if (!block) {
        return NRI_NO_MEMORY;
    }
    nri_status status = gram_matrix(v, count, d.gram, d.norm, d.row, sample);
    for (size_t b = 0; status == NRI_OK && b < B; b++, d.gram += K * K) {
        *sample = (int64_t)b;
        status = find_centroid(&d);
        for (size_t k = 0; k < K; k++) {
            weights[b * K + k] = shell.star * d.v[k] / d.norm[b * K + k];
        }
    }
    free(block);
    return status;
}
