/*
How much the maps r(z) and f(z) = z + r(z) of one sample stretch the difference of two iterates, from the Gram matrix of the
residuals alone.

Every iterate is a mixture, z_{k+1} = sum_i w_i (z_i + r_i) with sum_i w_i = 1.  So with z_i - z_k = sum_m q_im r_m,

    z_{k+1} - z_k = sum_m d_m r_m,  d = sum_i w_i (q_i + e_i)        q_i <- q_i - d        q_{k+1} = 0

and |z_{k+1} - z_i|, |r_{k+1} - r_i| and |f_{k+1} - f_i| follow from inner products that the solver has anyway.  What refers
to a residual that has left the ring is NaN, and so is what comes of it: it sets no largest value.
*/
#include <math.h>
#include <string.h>

#include "solve.h"

void
nri_stretch_begin(nri_solve *s, int64_t b)
{
    int n = s->depth + 1;
    s->stretch[b] = s->rate[b] = NAN;
    s->mixed[b] = INFINITY;
    memset(s->apart + b * n * n, 0, sizeof(*s->apart) * (size_t)(n * n));
}

void
nri_stretch_move(nri_solve *s, int64_t b, const double *w, int count, int next)
{
    int n = s->depth + 1;
    double *apart = s->apart + b * n * n, step[NRI_MAX_DEPTH + 1];
    for (int m = 0; m < n; m++) {
        step[m] = m < count ? w[m] : 0;
        for (int i = 0; i < count; i++) {
            step[m] += w[i] == 0 ? 0 : w[i] * apart[i * n + m];
        }
    }
    for (int i = 0; i < n; i++) {
        for (int m = 0; m < n; m++) {
            double *q = apart + i * n + m;
            *q -= step[m];
            if (m == next && *q != 0) {
                *q = NAN; /* its residual is about to be overwritten */
            }
        }
    }
    memset(apart + next * n, 0, sizeof(*apart) * (size_t)n);
}

void
nri_stretch_lose(nri_solve *s, int64_t b, int next)
{
    int n = s->depth + 1;
    for (int i = 0; i < n * n; i++) {
        s->apart[b * n * n + i] = i / n == next ? 0 : NAN;
    }
}

static double
larger(double known, double value)
{
    return isfinite(value) && !(known >= value) ? value : known;
}

void
nri_stretch_measure(nri_solve *s, int64_t b, int i, int k)
{
    int n = s->depth + 1;
    const double *gram = s->gram + b * n * n, *q = s->apart + b * n * n + i * n;
    double zz = 0, zr = 0, rr = gram[k * n + k] - 2 * gram[k * n + i] + gram[i * n + i];
    for (int m = 0; m < n; m++) {
        if (q[m] == 0) {
            continue; /* its row of the Gram matrix may hold anything */
        }
        zr -= q[m] * (gram[m * n + k] - gram[m * n + i]);
        for (int l = 0; l < n; l++) {
            zz += q[l] == 0 ? 0 : q[m] * q[l] * gram[m * n + l];
        }
    }
    if (zz > 0) {
        s->stretch[b] = larger(s->stretch[b], sqrt(fmax(rr, 0) / zz));
        s->rate[b] = larger(s->rate[b], sqrt(fmax(rr + 2 * zr + zz, 0) / zz));
    }
}

double
nri_mixed_norm(const double *gram, int ld, const double *w, int count)
{
    double square = 0;
    for (int i = 0; i < count; i++) {
        for (int m = 0; m < count && w[i] != 0; m++) {
            square += w[m] == 0 ? 0 : w[i] * w[m] * gram[i * ld + m];
        }
    }
    return sqrt(fmax(square, 0));
}
