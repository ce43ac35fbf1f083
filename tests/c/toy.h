/*
Toy problems for the C tests: random numbers, samplers written down in local form, a small network, an independent forward
run in double, and a driver that inverts.  Nothing here allocates, so that test_memory.c counts the core's allocations only.
*/
#ifndef NRINV_TEST_TOY_H
#define NRINV_TEST_TOY_H

#include "nrinv.h"

enum { TOY_E = 12, TOY_K = 12, TOY_D = 20, TOY_B = 4 };

/* Reproducible numbers; `seed` is the state and must not be 0. */
double toy_uniform(uint64_t *seed); /* in [-1, 1) */
double toy_normal(uint64_t *seed);
void toy_normals(uint64_t *seed, int n, float *x);

/* float32 host tensor [batch, elements]; `shape` is filled in and must live as long as the tensor. */
nri_tensor toy_tensor(void *data, nri_dtype dtype, int64_t shape[2], int64_t batch, int64_t elements);

/* Between a slot and rows of TOY_D numbers, of which the first v->elements count. */
nri_status toy_move(nri_space *v, int slot, float (*x)[TOY_D], bool load);

/* The arguments of nri_sampler_create. */
typedef struct {
    int E, K;
    double timesteps[TOY_E], inputs[TOY_E], steps[TOY_E * (2 * TOY_E + TOY_K)];
    bool leveled; /* `levels` are given to the sampler */
    double levels[2 * (TOY_E + 1)];
} toy_form;

double *toy_alpha(toy_form *f, int j, int k);
double *toy_beta(toy_form *f, int j, int k);
double *toy_gamma(toy_form *f, int j, int k);

toy_form toy_empty(int E, int K);
toy_form toy_euler(int E);     /* s' = a s + b m */
toy_form toy_ancestral(int E); /* the same and a noise each step but the last */
toy_form toy_adams(int E);     /* s' = s + h (3 m - m_prev) / 2 */
toy_form toy_heun(int steps);  /* two evaluations a step; the second returns to the state before */

/*
A denoising sampler with levels S_j, sigma_j: s' = S' x + sqrt(sigma'^2 - C^2) m + C n with x = (s - sigma m) / S and
C = eta sigma'; no noise if eta is 0.  S = 1, or S^2 + sigma^2 = 1 if `scaled`.  sigma / S falls from `top` by `ratio`.
*/
toy_form toy_denoiser(int E, bool scaled, double eta, double top, double ratio);

/* m = g(W x + t v), g tanh or the identity */
typedef struct {
    int D;
    bool linear;
    double w[TOY_D][TOY_D], v[TOY_D];
} toy_network;

/* |W| is about `size`. */
toy_network toy_make_network(int D, bool linear, double size, uint64_t seed);
void toy_evaluate(const toy_network *net, double timestep, const double *x, double *m);
/* J^T v, J the Jacobian at x */
void toy_pull_back(const toy_network *net, double timestep, const double *x, const double *v, double *product);

/* One sample through the sampler in double: states[E + 1][TOY_D] from states[0]; noises[K][TOY_D]. */
void toy_forward(toy_form *f, const toy_network *net, const double *noises, double *states);

/* What goes wrong: evaluations `first` to `last` return NaN for the samples in the bit set `samples`. */
typedef struct {
    int first, last;
    unsigned samples;
    bool litter; /* the rows of samples that a request is not for are filled with garbage */
} toy_fault;

typedef struct {
    int B, D;
    float target[TOY_B][TOY_D], noises[TOY_K][TOY_B][TOY_D];
} toy_problem;

typedef struct {
    float latents[TOY_B][TOY_D], trajectory[TOY_E + 1][TOY_B][TOY_D], noises[TOY_K][TOY_B][TOY_D];
    double residual[TOY_E][TOY_B], error[TOY_B], growth[TOY_B];
    bool measured[TOY_B];
    int step_nfe[TOY_E][TOY_B], nfe[TOY_B], restarts[TOY_B], rejected[TOY_B], failed[TOY_B], evaluations;
    int64_t limit; /* nri_inversion_max_evaluations */
    nri_reason reason[TOY_B];
} toy_outcome;

/* Draws z_T and noises and puts their images into the problem; start[b] are the z_T. */
toy_problem toy_make_problem(toy_form *f, const toy_network *net, int B, uint64_t seed, double start[TOY_B][TOY_D]);
nri_status toy_invert(const toy_form *f, const toy_network *net, const nri_options *o, const toy_problem *p, toy_fault fault,
                      toy_outcome *out);

extern const toy_fault toy_sound;

/* An inversion by hand. */
typedef struct {
    nri_sampler *sampler;
    nri_space *v;
    nri_inversion *inv;
    nri_problem problem; /* of toy_open */
} toy_session;

nri_status toy_sampler(const toy_form *f, nri_sampler **sampler);
nri_status toy_open(const toy_form *f, const nri_options *o, int64_t B, int64_t D, toy_session *s);
void toy_shut(toy_session *s);
nri_status toy_put(toy_session *s, int slot, double *x); /* x [B, D] */
nri_status toy_get(toy_session *s, int slot, double *x);
nri_status toy_feed(toy_session *s, double *m);

/* |x - y| / |y| */
double toy_distance(int D, const float *x, const double *y);

#endif
