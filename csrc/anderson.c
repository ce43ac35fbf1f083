/*
Weights of type II Anderson acceleration.

    w = argmin |sum_i w_i r_i|^2  subject to  sum_i w_i = 1

With differences to the newest residual, d_i = r_i - r_n, this is the unconstrained H mu = -h with H_ij = <d_i, d_j> and
h_i = <d_i, r_n>; all of it comes from the Gram matrix of the residuals.  Residuals fall by orders of magnitude within one
solve, so H is scaled to a unit diagonal before the ridge is added (an absolute ridge would rule the last iterations).

Source: D. G. Anderson, J. ACM 12 (1965) 547; H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49 (2011) 1715.
*/
#include <math.h>

#include "solve.h"

static const double RIDGE = 1e-10;
static const double LARGEST = 1e4; /* a sum of larger weights extrapolates rounding errors */

/* Solve the n x n system h x = b in place by Cholesky; false where it is not positive definite. */
static bool
solve_spd(int n, double h[NRI_MAX_DEPTH][NRI_MAX_DEPTH], double *x)
{
    for (int j = 0; j < n; j++) {
        for (int k = 0; k < j; k++) {
            h[j][j] -= h[j][k] * h[j][k];
        }
        if (!(h[j][j] > 0)) {
            return false;
        }
        h[j][j] = sqrt(h[j][j]);
        for (int i = j + 1; i < n; i++) {
            for (int k = 0; k < j; k++) {
                h[i][j] -= h[i][k] * h[j][k];
            }
            h[i][j] /= h[j][j];
        }
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++) {
            x[i] -= h[i][k] * x[k];
        }
        x[i] /= h[i][i];
    }
    for (int i = n - 1; i >= 0; i--) {
        for (int k = i + 1; k < n; k++) {
            x[i] -= h[k][i] * x[k];
        }
        x[i] /= h[i][i];
    }
    return true;
}

bool
nri_anderson_weights(int n, const int *index, const double *gram, int ld, double *w)
{
    double h[NRI_MAX_DEPTH][NRI_MAX_DEPTH], mu[NRI_MAX_DEPTH], unit[NRI_MAX_DEPTH];
    int p = index[n - 1], m = n - 1;
    double last = gram[p * ld + p], sum = 0, size = 0;
    for (int i = 0; i < m; i++) {
        double own = gram[index[i] * ld + index[i]] - 2 * gram[index[i] * ld + p] + last;
        if (!(own > 0)) {
            return false;
        }
        unit[i] = 1 / sqrt(own);
    }
    for (int i = 0; i < m; i++) {
        double gi = gram[index[i] * ld + p];
        for (int j = 0; j < m; j++) {
            double dd = gram[index[i] * ld + index[j]] - gi - gram[index[j] * ld + p] + last;
            h[i][j] = dd * unit[i] * unit[j];
        }
        h[i][i] = 1 + RIDGE;
        mu[i] = (last - gi) * unit[i];
    }
    if (!solve_spd(m, h, mu)) {
        return false;
    }
    for (int i = 0; i < m; i++) {
        w[i] = mu[i] * unit[i];
        sum += w[i];
        size += fabs(w[i]);
    }
    w[m] = 1 - sum;
    return isfinite(size) && size <= LARGEST;
}
