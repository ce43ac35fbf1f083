/*
Paths between noise vectors: geodesic.c solves the shortest way in its plane, path.c makes vectors of it.

Symbols: D elements, r = |z|, m = sqrt(D - 1) the likeliest norm of noise, w the metric's weight, g = w r, r* and g* the
place and the value of its minimum, c Clairaut's constant, phi the angle along the path, theta all of it.
*/
#ifndef NRINV_PATH_H
#define NRINV_PATH_H

#include <stdbool.h>

#include "nrinv.h"

/* --------------------------------------------------------------------------------------------------------- geodesic.c */

/* The metric for vectors of D elements. */
typedef struct {
    double elements;   /* D */
    double floor;      /* w(m) = -log f(m) */
    double star, least; /* r*, g* */
    double kappa;      /* g ~ g* + kappa (r - r*)^2 */
    double inner, outer; /* between them end points may lie */
} nri_shell;

/* NRI_BAD_ARGUMENT: fewer than SHELL_ELEMENTS. */
enum { SHELL_ELEMENTS = 4 };
nri_status nri_shell_init(nri_shell *shell, int64_t elements);

/* w(r) */
double nri_shell_weight(const nri_shell *shell, double r);

enum { NRI_PANELS = 160 };

/* A shortest way, as the curve x(u), x = r - r*; see geodesic.c. */
typedef struct {
    const nri_shell *shell;
    double theta, clairaut, length;
    bool swapped; /* u runs from the second end to the first */
    bool turning; /* x = side e^log_scale cosh u, else e^log_scale sinh u */
    double side, log_scale, scale, rise; /* scale s = e^log_scale; rise = g* - c, or c - g* where it turns */
    int panels;
    double at[NRI_PANELS + 1],
        sum[NRI_SPACINGS][NRI_PANELS + 1]; /* u, and what has been passed there, at the panels' ends */
    bool flat[NRI_PANELS]; /* r is r* throughout */
} nri_geodesic;

/* Between norms a and b, both within the shell's inner and outer, at the angle 0 <= theta <= pi. */
void nri_geodesic_solve(const nri_shell *shell, double a, double b, double theta, nri_geodesic *out);

/* Where the path is after `fraction` of what its points are spaced by. */
void nri_geodesic_at(const nri_geodesic *path, nri_spacing spacing, double fraction, double *r, double *phi);

#endif
