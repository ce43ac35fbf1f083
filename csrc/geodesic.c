/*
The shortest way between two vectors where noise is likely, in the plane that they span.

The norm of D normal numbers has the density f of the chi distribution.  A way through unlikely norms is made long by the
metric (NAO, arXiv 2306.08687)

    w(r) |dz|        w = -log f        r = |z|

It knows no direction, so the geodesic stays in the plane of its ends and keeps Clairaut's constant along it,

    c = w r sin(alpha) = w r^2 dphi / |dz|        alpha between the way and the radius

which leaves two integrals, with g = w r:

    phi = int c / (r sqrt(g^2 - c^2)) dr        length = int g^2 / (r sqrt(g^2 - c^2)) dr

g has its minimum g* at r*, a little inside of m = sqrt(D - 1): the circle there is a geodesic itself, and all long ways
creep along it, with c closer to g* than numbers can tell (D = 16,384, a right angle: 1 - c / g* ~ 1e-80).  With x = r - r*
and g - g* ~ kappa x^2 near by, a way is therefore written as

    x = s sinh(u)        past the circle, or on its way there: c = g* - kappa s^2
    x = +- s cosh(u)     turning at u = 0, or on one side of it: c = g(r* +- s)

in which the integrands are smooth.  The angle theta is reached by one s only.  It is sought by log s, or, where the way
may turn, by the u of the end that is nearer to the circle: negative if the way comes to it by turning.

Numerical traps: g - g* by its expansion (`rise`), since the difference has no digits left near r*; w by Stirling's series,
since the terms of log f are of size D log D and cancel to -0.57; |x| < FLAT counts as r*.
*/
#include <math.h>
#include <stddef.h>

#include "path.h"

static const double PI = 3.14159265358979323846;
static const double FLAT = 1e-10;
/* Panels of Gauss-Legendre quadrature in u, none longer than this. */
static const double PANEL = 0.75;
enum { NODES = 6 }; /* of 12, on one side of the middle */
static const double NODE[NODES] = {0.1252334085114689, 0.3678314989981802, 0.5873179542866175,
                                   0.7699026741943047, 0.9041172563704748, 0.9815606342467192};
static const double WEIGHT[NODES] = {0.2491470458134027,  0.2334925365383546,  0.20316742672306573,
                                     0.16007832854334642, 0.10693932599531907, 0.04717533638651141};

/* --------------------------------------------------------------------------------------------------------- the metric */

/* log(1 + t) - t */
static double
log1p_less(double t)
{
    double sum = 0, power = t;
    if (fabs(t) > 0.01) {
        return log1p(t) - t;
    }
    for (int k = 2; k < 12; k++) {
        power *= -t;
        sum += power / k;
    }
    return sum;
}

/* log Gamma(x) less Stirling's formula */
static double
stirling_rest(double x)
{
    if (x < 32) {
        return lgamma(x) - ((x - 0.5) * log(x) - x + 0.5 * log(2 * PI));
    }
    double y = 1 / (x * x);
    return (1.0 / 12 - y * (1.0 / 360 - y * (1.0 / 1260 - y / 1680))) / x;
}

double
nri_shell_weight(const nri_shell *shell, double r)
{
    double m = sqrt(shell->elements - 1), t = (r - m) / m;
    /* log(r / m) - ((r / m)^2 - 1) / 2 */
    return shell->floor - (shell->elements - 1) * (log1p_less(t) - t * t / 2);
}

/* g' = w - (D - 1) + r^2 */
static double
slope_of_g(const nri_shell *shell, double r)
{
    double m = sqrt(shell->elements - 1);
    return nri_shell_weight(shell, r) + (r - m) * (r + m);
}

/* Where the slope of g changes its sign, a little on the positive side. */
static double
turn_of_g(const nri_shell *shell, double negative, double positive)
{
    for (;;) {
        double middle = negative + (positive - negative) / 2;
        if (middle == negative || middle == positive) {
            return positive;
        }
        if (slope_of_g(shell, middle) > 0) {
            positive = middle;
        }
        else {
            negative = middle;
        }
    }
}

nri_status
nri_shell_init(nri_shell *shell, int64_t elements)
{
    double D = (double)elements, m = sqrt(D - 1);
    if (elements < SHELL_ELEMENTS) {
        return NRI_BAD_ARGUMENT;
    }
    *shell = (nri_shell){.elements = D};
    /* -log f(m), in which everything of size D log D has cancelled */
    shell->floor = 0.5 * log(PI) - 0.5 - (D - 1) / 2 * log1p(-1 / D) + stirling_rest(D / 2);
    /* the slope of g is positive at m and near the origin, and negative in between; least at m / sqrt(3) */
    shell->star = turn_of_g(shell, m / sqrt(3), m);
    shell->inner = turn_of_g(shell, m / sqrt(3), m * 1e-9);
    shell->outer = 100 * m;
    double w = nri_shell_weight(shell, shell->star);
    shell->least = w * shell->star;
    shell->kappa = shell->star - w / (2 * shell->star);
    return NRI_OK;
}

/* g(r* + x) - g*, to all digits however small x is: uses that g'(r*) = 0. */
static double
rise(const nri_shell *s, double x)
{
    double w = s->least / s->star;
    return (s->star + x) * (x * x / 2 - (s->elements - 1) * log1p_less(x / s->star)) - x * x * w / s->star;
}

/* --------------------------------------------------------------------------------------------------- the curve of one s */

static double
position(const nri_geodesic *p, double u)
{
    double size = fabs(u);
    double x = size > 20 ? 0.5 * exp(size + p->log_scale) : p->scale * (p->turning ? cosh(size) : sinh(size));
    return p->turning ? p->side * x : u < 0 ? -x : x;
}

/* u at x = y of a way that does not turn */
static double
passing_at(const nri_geodesic *p, double y)
{
    double log_ratio = log(fabs(y)) - p->log_scale, inverse = exp(-log_ratio);
    double u = log_ratio < 0 ? asinh(exp(log_ratio)) : log_ratio + log1p(sqrt(1 + inverse * inverse));
    return y < 0 ? -u : u;
}

/* u >= 0 with cosh(u) = (1 + more) cosh(near) */
static double
turning_at(double near, double more)
{
    double size = fabs(near), half = sinh(size / 2);
    if (size > 20) {
        return size + log1p(more);
    }
    return 2 * asinh(sqrt(half * half + more * cosh(size) / 2));
}

/* d / du of what the points may be spaced by, in the order of nri_spacing */
static void
densities(const nri_geodesic *p, double u, double out[NRI_SPACINGS])
{
    const nri_shell *s = p->shell;
    double x = position(p, u), h = rise(s, x), g = s->least + h, ratio; /* of g - c and kappa (dx / du)^2 */
    if (fabs(x) < FLAT) {
        ratio = 1; /* the squares of x and s may be too small for a number */
    }
    else if (!p->turning) {
        ratio = (h + p->rise) / (s->kappa * (x * x + p->scale * p->scale));
    }
    else if (fabs(u) < 1e-3) {
        ratio = slope_of_g(s, s->star + x) / (2 * s->kappa * x); /* the differences have no digits left */
    }
    else {
        ratio = (h - p->rise) / (s->kappa * (fabs(x) - p->scale) * (fabs(x) + p->scale));
    }
    double root = (s->star + x) * sqrt(s->kappa * ratio * (g + p->clairaut));
    out[NRI_METRIC] = g * g / root;
    out[NRI_ANGLE] = p->clairaut / root;
    out[NRI_EUCLIDEAN] = g * (s->star + x) / root;
}

static void
integrate(const nri_geodesic *p, double from, double to, double out[NRI_SPACINGS])
{
    double middle = (from + to) / 2, half = (to - from) / 2, density[NRI_SPACINGS];
    for (int k = 0; k < NRI_SPACINGS; k++) {
        out[k] = 0;
    }
    for (int i = 0; i < 2 * NODES; i++) {
        densities(p, middle + (i < NODES ? -half : half) * NODE[i % NODES], density);
        for (int k = 0; k < NRI_SPACINGS; k++) {
            out[k] += half * WEIGHT[i % NODES] * density[k];
        }
    }
}

/* Add panels up to u, one if all of them is flat. */
static void
cover(nri_geodesic *p, double u, bool flat)
{
    double from = p->at[p->panels], length = u - from;
    int room = NRI_PANELS - p->panels;
    int count = flat ? 1 : (int)fmin(ceil(length / PANEL), room - 1);
    if (!(length > 0)) {
        return;
    }
    for (int i = 1; i <= count; i++) {
        int panel = p->panels++;
        double part[NRI_SPACINGS];
        p->at[panel + 1] = i == count ? u : from + length * i / count;
        p->flat[panel] = flat;
        if (flat) {
            densities(p, 0, part);
        }
        else {
            integrate(p, p->at[panel], p->at[panel + 1], part);
        }
        for (int k = 0; k < NRI_SPACINGS; k++) {
            p->sum[k][panel + 1] = p->sum[k][panel] + part[k] * (flat ? length : 1);
        }
    }
}

/* Panels from u = first to last; the part with |u| < flat is so near to the circle that all is constant there. */
static double
cover_all(nri_geodesic *p, double first, double last, double flat)
{
    p->panels = 0;
    p->at[0] = first;
    if (first < -flat) {
        cover(p, fmin(-flat, last), false);
    }
    if (p->at[p->panels] < flat) {
        cover(p, fmin(flat, last), flat > PANEL);
    }
    cover(p, last, false);
    return p->sum[NRI_ANGLE][p->panels];
}

/* The way that passes or nears the circle from x = a to x = b > a; its angle. */
static double
trace_passing(nri_geodesic *p, double a, double b, double log_scale)
{
    const nri_shell *s = p->shell;
    p->turning = false;
    p->log_scale = log_scale;
    p->scale = exp(log_scale);
    p->rise = fmin(s->kappa * p->scale * p->scale, s->least);
    p->clairaut = s->least - p->rise;
    return cover_all(p, passing_at(p, a), passing_at(p, b), passing_at(p, FLAT));
}

/* The way on one side of the circle from x = a, where u = near, to x = b, not nearer to the circle; its angle. */
static double
trace_turning(nri_geodesic *p, double a, double b, double near)
{
    const nri_shell *s = p->shell;
    double size = fabs(near), flat = 0;
    p->turning = true;
    p->side = a < 0 ? -1 : 1;
    p->log_scale = log(fabs(a)) - (size + log1p(exp(-2 * size)) - log(2));
    p->scale = exp(p->log_scale);
    p->rise = rise(s, p->side * p->scale);
    p->clairaut = s->least + p->rise;
    if (p->scale < FLAT) {
        flat = log(FLAT) - p->log_scale; /* acosh of e^flat */
        flat += log1p(sqrt(fmax(0, (1 - exp(-flat)) * (1 + exp(-flat)))));
    }
    return cover_all(p, near, turning_at(near, (fabs(b) - fabs(a)) / fabs(a)), flat);
}

/* ------------------------------------------------------------------------------------------------------ the s of an angle */

typedef double (*tracer)(nri_geodesic *p, double a, double b, double parameter);

/* The way of the angle theta, its parameter between low and high; the angle falls from low to high. */
static void
seek(nri_geodesic *p, tracer trace, double a, double b, double low, double high)
{
    double at_low = trace(p, a, b, low) - p->theta, at_high = trace(p, a, b, high) - p->theta;
    for (int i = 0; i < 200 && at_low > 0 && at_high < 0; i++) {
        /* regula falsi, and bisection every third time; the angle is nearly linear in the parameter */
        double share = i % 3 == 2 ? 0.5 : at_low / (at_low - at_high), next = low + (high - low) * share;
        if (next <= low || next >= high) {
            next = low + (high - low) / 2;
        }
        if (next <= low || next >= high) {
            break;
        }
        double miss = trace(p, a, b, next) - p->theta;
        if (miss >= 0) {
            low = next;
            at_low = miss;
        }
        else {
            high = next;
            at_high = miss;
        }
    }
    trace(p, a, b, fabs(at_low) < fabs(at_high) ? low : high);
}

void
nri_geodesic_solve(const nri_shell *shell, double norm_a, double norm_b, double theta, nri_geodesic *out)
{
    double a = norm_a - shell->star, b = norm_b - shell->star;
    double straight = log(sqrt(shell->least / shell->kappa)); /* c = 0 */
    /* u beyond which the way along the circle is longer than theta */
    double along = shell->least / (shell->star * sqrt(2 * shell->kappa * shell->least)), far = theta / along + 60;
    *out = (nri_geodesic){.shell = shell, .theta = theta};
    /* Nudge r = r* off the circle; the side does not matter. */
    a = fabs(a) < FLAT / 1e3 ? (b < 0 ? -FLAT : FLAT) / 1e3 : a;
    b = fabs(b) < FLAT / 1e3 ? (a < 0 ? -FLAT : FLAT) / 1e3 : b;
    bool same = (a < 0) == (b < 0);
    double low = fmin(a, b), high = fmax(a, b);
    if (!same || trace_passing(out, low, high, -far) >= theta) {
        seek(out, trace_passing, low, high, -far, straight);
        out->swapped = a > b;
    }
    else {
        out->swapped = fabs(a) > fabs(b);
        seek(out, trace_turning, out->swapped ? b : a, out->swapped ? a : b, -far, far);
    }
    out->length = out->sum[NRI_METRIC][out->panels];
}

/* --------------------------------------------------------------------------------------------------------- points on it */

/* u in a panel, `wanted` after its beginning; part: what has been passed in it by then. */
static double
find(const nri_geodesic *p, int panel, nri_spacing spacing, double wanted, double part[NRI_SPACINGS])
{
    double from = p->at[panel], low = from, high = p->at[panel + 1], density[NRI_SPACINGS];
    double whole = p->sum[spacing][panel + 1] - p->sum[spacing][panel];
    double u = whole > 0 ? fmin(high, low + (high - low) * wanted / whole) : low;
    for (int i = 0; i < 50 && !p->flat[panel]; i++) { /* Newton's method, kept within a bracket */
        integrate(p, from, u, part);
        densities(p, u, density);
        if (part[spacing] > wanted) {
            high = u;
        }
        else {
            low = u;
        }
        double next = u - (part[spacing] - wanted) / density[spacing];
        next = next >= low && next <= high ? next : (low + high) / 2;
        if (fabs(next - u) <= 1e-15 * fmax(1, fabs(u))) {
            break;
        }
        u = next;
    }
    if (p->flat[panel]) {
        densities(p, 0, part);
        for (int k = 0; k < NRI_SPACINGS; k++) {
            part[k] *= u - from;
        }
    }
    return u;
}

void
nri_geodesic_at(const nri_geodesic *p, nri_spacing spacing, double fraction, double *r, double *phi)
{
    double part[NRI_SPACINGS] = {0}, t = p->swapped ? 1 - fraction : fraction, u = p->at[0], share = 0;
    spacing = p->sum[spacing][p->panels] > 0 ? spacing : NRI_METRIC; /* a way straight out has no angle */
    double wanted = t * p->sum[spacing][p->panels], whole = p->sum[NRI_ANGLE][p->panels];
    if (p->panels) {
        int k = 0;
        while (k + 1 < p->panels && p->sum[spacing][k + 1] < wanted) {
            k++;
        }
        u = find(p, k, spacing, wanted - p->sum[spacing][k], part);
        share = whole > 0 ? fmin(1, (p->sum[NRI_ANGLE][k] + part[NRI_ANGLE]) / whole) : 0;
    }
    *r = p->shell->star + position(p, u);
    *phi = p->theta * (p->swapped ? 1 - share : share);
}
