/*
nrinv: the noise from which a diffusion sampler draws a given image.

A sampler with E network evaluations and K noise draws is a linear form in its state s, the network outputs m and the
noises n:

    s_{j+1} = sum_{k<=j} alpha_jk s_k + beta_jk m_k + sum_k gamma_jk n_k      m_j = network(i_j s_j, t_j)      z_0 = s_E

`nri_sampler` holds that form, `nri_inversion` finds s_0 from s_E.  The library never calls the network: `next` says which
sample at which timestep has to be evaluated, `feed` takes the answer (reverse communication).

Symbols: z iterate, f fixed-point map, r = f - z residual, m network output, B batch, D elements per sample, M Anderson
depth.  Nothing here knows Python or a tensor library; vectors are reached through vec.h.
*/
#ifndef NRINV_H
#define NRINV_H

#include <stdbool.h>
#include <stdint.h>

#include "vec.h"

/* ------------------------------------------------------------------------------------------------------- sampler.c */

typedef struct {
    int evaluations, noises; /* E, K */
    int window;              /* a step reads s_k and m_k for k > j - window only */
    bool first_order;        /* the way back needs no network output but the step's own */
    double *timesteps;       /* [E] */
    double *inputs;          /* [E] i_j */
    double *steps;           /* [E][2E + K] alpha, beta, gamma: the local form */
    double *states;          /* [E + 1][1 + E + K] s_j in z_T, m, n: the global form */
    double *back;            /* [E][1 + E + K] A, b, C: s_{j+1} = A s_j + sum_{k<=j} b_k m_k + sum_k C_k n_k */
    bool *singular;          /* [E] the step has no way back: A = 0 */
    double *levels;          /* [E + 1][2] S_j, sigma_j of the forward process: s_j ~ S_j z_0 + sigma_j n; or NULL */
} nri_sampler;

/*
Copies its arguments; `levels` may be NULL.  Fails with NRI_NOT_FINITE or NRI_NOT_CAUSAL and the offending step in *step.
A singular step is no failure here: such a sampler still runs forward.
*/
nri_status nri_sampler_create(int evaluations, int noises, const double *timesteps, const double *steps,
                              const double *inputs, const double *levels, nri_sampler **out, int *step);
void nri_sampler_destroy(nri_sampler *sampler);

/* ------------------------------------------------------------------------------------------------------ anderson.c */

enum { NRI_MAX_DEPTH = 15 };

/*
Weights w of the next iterate sum_i w_i f_i: argmin |sum_i w_i r_i| subject to sum_i w_i = 1, from the Gram matrix
gram[i * ld + j] = <r_i, r_j> restricted to the n rows `index`, the newest last.  False: no usable weights, take f_newest.
*/
bool nri_anderson_weights(int n, const int *index, const double *gram, int ld, double *w);

/* --------------------------------------------------------------------------------------------------------- solve.c */

#define NRI_REASON_LIST(X) \
    X(RUNNING, "running", "not finished") \
    X(TOL, "tol", "converged: the residual is below tol times the state") \
    X(ATOL, "atol", "converged: the residual is below atol") \
    X(MAX_NFE, "max_nfe", "stopped: the allowed network evaluations are used up") \
    X(STALLED, "stalled", "stopped: the residual no longer falls") \
    X(DIVERGED, "diverged", "stopped: the residual grew after every restart") \
    X(NON_FINITE, "non_finite", "stopped: the network returned values that are not finite")

typedef enum {
#define NRI_REASON(id, name, text) NRI_##id,
    NRI_REASON_LIST(NRI_REASON)
#undef NRI_REASON
} nri_reason;

const char *nri_reason_name(nri_reason reason);
const char *nri_reason_text(nri_reason reason);

typedef enum { NRI_AUTO, NRI_ANDERSON, NRI_FIXED_POINT, NRI_NEWTON } nri_solver;

/* The slots of one solve, in this order; `rings` are depth + 1 slots each. */
typedef struct {
    int f, r;               /* rings of f_k and r_k */
    int best_f, best_r;     /* two neighbouring slots */
    int spare;
    int origin;             /* where to go when not even the first evaluation is finite */
    int newton;             /* NRI_NEWTON: NRI_NEWTON_SLOTS slots */
} nri_solve_slots;

/* One implicit equation z = f(z) for a batch: per-sample weights, stopping, restarts and reasons. */
typedef struct {
    nri_space *v;
    nri_solver solver;
    int depth, max_nfe;
    double tol, atol;
    bool type_one;       /* the second evaluation is mixed by Anderson's type I */
    double lam, floor, weight; /* NRI_NEWTON: lam and w of F, floor of |g| */
    nri_solve_slots slot;
    int k;               /* evaluations since begin */
    nri_reason *reason;  /* [B] */
    int *nfe;            /* [B] */
    double *scale;       /* [B] norm that tol refers to */
    double *residual;    /* [B] norm of the last finite residual */
    double *best;        /* [B] smallest norm so far, infinite before the first */
    bool *improved;      /* [B] the last evaluation set `best` */
    bool *finished;      /* [B] the last evaluation ended the sample */
    bool *failed;        /* [B] the last evaluation was not finite */
    double *merit, *length, *pull; /* [B] NRI_NEWTON: smallest F / D, length of the step tried, lam w / rms(z - mu) */
    int *best_at, *restarts, *failures;   /* [B] */
    bool *valid;         /* [B][depth + 1] ring entries that may be mixed */
    double *gram;        /* [B][depth + 1][depth + 1] */
    double *dots, *coef; /* [B][depth + 1] */
    bool *wants;         /* [B] NRI_NEWTON: waits for a gradient */
    bool *mark;          /* [B] scratch */
    uint8_t *moves;      /* [B] what each sample does next */
    void *block;         /* the allocation behind all of the above */
} nri_solve;

nri_status nri_solve_create(nri_solve *s, nri_space *v, nri_solver solver, int depth, int max_nfe, double tol, double atol,
                            nri_solve_slots slot);
void nri_solve_destroy(nri_solve *s);

/* Start a new equation; samples with skip[b] are left alone.  Set `scale` before or after. */
void nri_solve_begin(nri_solve *s, const bool *skip);

/* The equation is about to change: keep counting, but mix nothing and compare with nothing from before. */
void nri_solve_forget(nri_solve *s);

/* Where f_k and r_k of the coming evaluation belong. */
int nri_solve_f(const nri_solve *s);
int nri_solve_r(const nri_solve *s);

/* Take f_k and r_k; write the next (for finished samples: the final) iterate to `dst`. */
nri_status nri_solve_advance(nri_solve *s, int dst);
bool nri_solve_running(const nri_solve *s);

/* The end of sample b. */
void nri_solve_finish(nri_solve *s, int64_t b, nri_reason reason);

/* -------------------------------------------------------------------------------------------------------- newton.c */

/* From `slot.newton` on: what a gradient is asked for, that gradient, the best z, mu of the forward process, a direction. */
enum { NRI_NEWTON_SIGN, NRI_NEWTON_PRODUCT, NRI_NEWTON_BEST, NRI_NEWTON_MEAN, NRI_NEWTON_DIRECTION, NRI_NEWTON_SLOTS };

/*
Take f_k and r_k of the iterate in slot z.  Finished samples have their result in z.  *gradient: J^T sign(r) has to be
loaded into the slot NRI_NEWTON_PRODUCT, J the network's Jacobian at z.
*/
nri_status nri_newton_judge(nri_solve *s, int z, bool *gradient);

/* Write the next iterate to slot z; `slope` is df/dm. */
nri_status nri_newton_step(nri_solve *s, int z, double slope, bool gradient);

/* -------------------------------------------------------------------------------------------------------- invert.c */

/*
In which order the network is evaluated: from the image to the noise, each step as often as it needs; or as the sampler
does it, from the noise to the image, again and again.
*/
typedef enum { NRI_REVERSED, NRI_PASSES } nri_order;

typedef struct {
    nri_solver solver;
    nri_order order;      /* NRI_PASSES: no NRI_NEWTON, refine and prior 0, no absorb */
    int max_nfe;          /* network evaluations of one step of a sweep, or number of passes, >= 1 */
    int depth;            /* M of the step equation, or of the passes, 0..NRI_MAX_DEPTH */
    int refine;           /* rounds of defect correction after the first sweep, >= 0 */
    double tol, atol;     /* stop at |r| <= tol |s|, or at rms(r) <= atol */
    double prior;         /* weight of Lavrentiev's regularisation towards the first guess, >= 0; 0: none */
    double lam, floor;      /* NRI_NEWTON: weight of the forward process in F, >= 0; floor of |g|, > 0 */
    double extrapolation; /* rho: how far unknown network outputs of a multistep sampler are extrapolated, 0..1 */
    bool predictor;       /* first guess from the network output of the step before; else the state itself */
    bool guess;           /* the first step starts from nri_inversion_guess, which the caller loads; passes do too */
    bool absorb;          /* noises take up what the steps leave; needs the sampler's levels, first order, refine 0 */
    bool verify;          /* end with a forward run that measures the error (refine > 0 always does) */
    bool trajectory;      /* keep every state */
} nri_options;

extern const nri_options nri_default_options;

typedef struct {
    int index;       /* j */
    double timestep; /* t_j */
    double scale;    /* i_j: the network sees scale * sample */
    int slot;        /* where the sample s_j lies */
    const bool *active; /* [B] whom it is for: rows of other samples may hold anything, the answer's as well */
    bool wants_gradient; /* a request for a gradient at this sample may follow */
    int cotangent;   /* -1, or a slot v: what is asked for is J^T v, J the network's Jacobian at the last sample */
} nri_request;

typedef struct nri_inversion nri_inversion;

/* What an inversion knows of its samples; arrays belong to it. */
typedef struct {
    int latents;             /* slot of s_0 */
    int trajectory;          /* first of E + 1 slots, or -1 */
    int noises;              /* first of K slots: what the sampler has to draw */
    int evaluations;         /* network calls, gradients included */
    const double *residual;  /* [E][B] |r| / |s| at the last evaluation of each step, NaN where never evaluated */
    const int *step_nfe;     /* [E][B] of the last sweep, or of all passes */
    const int *nfe;          /* [B] */
    const nri_reason *reason; /* [B] */
    const double *error;     /* [B] |z_0 - Phi(z_T)| / |z_0| of a forward run, NaN where not measured */
} nri_result;

/* How many slots the inversion needs in its space. */
int nri_inversion_slots(const nri_sampler *sampler, const nri_options *options);

/* The network evaluations that step j may take in one sweep; `auto` deals them out unevenly, E max_nfe in all. */
int nri_inversion_allowance(const nri_sampler *sampler, const nri_options *options, int j);

/* Upper bound of the network evaluations of the inversion, gradients not counted. */
int64_t nri_inversion_max_evaluations(const nri_sampler *sampler, const nri_options *options);

/*
`sampler` and `v` are borrowed and must outlive the inversion.  The target (s_E) and the K noises are then loaded into
nri_inversion_target and nri_inversion_noise before the first `next`.  NRI_SINGULAR_STEP names the step in *step.
*/
nri_status nri_inversion_create(const nri_sampler *sampler, const nri_options *options, nri_space *v, nri_inversion **out,
                                int *step);
void nri_inversion_destroy(nri_inversion *inv);
int nri_inversion_target(const nri_inversion *inv);
int nri_inversion_noise(const nri_inversion *inv, int k);
int nri_inversion_guess(const nri_inversion *inv);

/* *done, or a request; asking again before `feed` gives the same request. */
nri_status nri_inversion_next(nri_inversion *inv, nri_request *request, bool *done);

/* The network's output for the last request, or the gradient it asks for. */
nri_status nri_inversion_feed(nri_inversion *inv, const nri_tensor *model_output);
nri_status nri_inversion_result(const nri_inversion *inv, nri_result *result);

/* ------------------------------------------------------------------------------------------------------- correct.c */

typedef struct {
    int rounds;     /* >= 1 */
    bool inverted;  /* noise by inverting the steps, one evaluation each; else by drawn noise */
} nri_correct_options;

extern const nri_correct_options nri_default_correct_options;

typedef struct nri_correction nri_correction;

/* What a correction knows of its samples; arrays belong to it. */
typedef struct {
    int latents;          /* slot of the corrected image */
    int evaluations;      /* network calls */
    const double *moved;  /* [B] |corrected - image| / |image| */
    const bool *held;     /* [B] the radius has held it back */
    const bool *failed;   /* [B] the network returned values that are not finite: the round before stands */
} nri_corrected;

int nri_correction_slots(const nri_sampler *sampler, const nri_correct_options *options);
int64_t nri_correction_max_evaluations(const nri_sampler *sampler, const nri_correct_options *options);

/*
`sampler`, the last steps of one, and `v` are borrowed.  radius [B]: how far from the image a sample may go at most, as a
norm; NULL: anywhere.  The image, the K noises of each round and, unless `inverted`, its drawn noise are loaded before the
first `next`.  NRI_BAD_ARGUMENT: no rounds, too few slots, a sampler without levels where noise is drawn.
NRI_SINGULAR_STEP: a step to be inverted has no way back.
*/
nri_status nri_correction_create(const nri_sampler *sampler, const nri_correct_options *options, const double *radius,
                                 nri_space *v, nri_correction **out, int *step);
void nri_correction_destroy(nri_correction *c);
int nri_correction_image(const nri_correction *c);
int nri_correction_draw(const nri_correction *c, int round);
int nri_correction_noise(const nri_correction *c, int round, int k);

/* As nri_inversion_next and nri_inversion_feed. */
nri_status nri_correction_next(nri_correction *c, nri_request *request, bool *done);
nri_status nri_correction_feed(nri_correction *c, const nri_tensor *model_output);
nri_status nri_correction_result(const nri_correction *c, nri_corrected *result);

/* --------------------------------------------------------------------------------------------------------- path.c */

#define NRI_PATH_LIST(X) \
    X(GEODESIC, "geodesic", "the shortest way where noise is likely") \
    X(SLERP, "slerp", "along the arc, the norm linear") \
    X(LERP, "lerp", "along the chord") \
    X(VARIANCE_PRESERVING, "variance_preserving", "the chord, divided by the root of the sum of its squared weights")

typedef enum {
#define NRI_PATH(id, name, text) NRI_##id,
    NRI_PATH_LIST(NRI_PATH)
#undef NRI_PATH
} nri_path;

/* What is equal between the points of a geodesic. */
#define NRI_SPACING_LIST(X) \
    X(METRIC, "metric", "the length in the metric") \
    X(ANGLE, "angle", "the angle") \
    X(EUCLIDEAN, "euclidean", "the length that a ruler shows")

typedef enum {
#define NRI_SPACING(id, name, text) NRI_##id,
    NRI_SPACING_LIST(NRI_SPACING)
#undef NRI_SPACING
        NRI_SPACINGS
} nri_spacing;

/* Between which norms the ends of geodesics may lie, for vectors of `elements`; NRI_BAD_ARGUMENT: too few of them. */
nri_status nri_path_norms(int64_t elements, double *low, double *high);

/* Slots of an interpolation, in this order: the ends, a direction for ends that are opposite, and two of its own. */
enum { NRI_PATH_A, NRI_PATH_B, NRI_PATH_DIRECTION, NRI_PATH_POINT, NRI_PATH_SPARE, NRI_PATH_SLOTS };

/*
Weights [n][B][3] of the points at `fractions` (0..1) of the ways from A to B, in A, B and DIRECTION, and the length [B] of
each way in the metric -log f(|z|) |dz| if it is a geodesic, else NaN.  DIRECTION is made orthogonal to A first; where A and
B are not opposite, what it held does not matter.

NRI_BAD_ARGUMENT: too few elements for a shell.  NRI_NOT_FINITE: an end of sample *sample is not finite, or 0.  NRI_NO_NOISE:
an end has a norm beyond nri_path_norms.
*/
nri_status nri_interpolate(nri_space *v, nri_path method, nri_spacing spacing, int n, const double *fractions,
                           double *weights, double *length, int64_t *sample);

/*
Weights [B][K] of the centroids of slots 0..K-1: in their span, at the norm where noise is likeliest, with the least sum of
share[k] times the squared angle to each.  NRI_BAD_ARGUMENT and NRI_NOT_FINITE as above; NRI_NOT_UNIQUE: they cancel each other.
*/
nri_status nri_centroid(nri_space *v, int count, const double *shares, double *weights, int64_t *sample);

#endif
