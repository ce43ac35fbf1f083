/*
nrinv: the noise from which a diffusion sampler draws a given image.

A sampler with E network evaluations and K noise draws is a linear form in its state s, the network outputs m and the
noises n:

    s_{j+1} = sum_{k<=j} alpha_jk s_k + beta_jk m_k + sum_k gamma_jk n_k      m_j = network(i_j s_j, t_j)      z_0 = s_E

`nri_sampler` holds that form, `nri_inversion` finds s_0 from s_E, after correcting s_E if it is asked to.  The library never calls the network: `next` says which
sample at which timestep has to be evaluated, `feed` takes the answer (reverse communication).

Symbols: z iterate, f fixed-point map, r = f - z residual, m network output, B batch, D elements per sample, M Anderson
depth.  Nothing here knows Python or a tensor library; vectors are reached through vec.h.
*/
#ifndef NRINV_H
#define NRINV_H

#include <stdbool.h>
#include <stdint.h>

#include "vec.h"

/* -------------------------------------------------------------------------------------------------------- status.c */

/* The names that Python knows.  Every list is an enum, and an array of strings with a NULL behind the last. */

/* How a step's equation is solved. */
#define NRI_SOLVER_LIST(X) X(AUTO, "auto") X(ANDERSON, "anderson") X(FIXED_POINT, "fixed_point") X(NEWTON, "newton")
typedef enum { NRI_SOLVER_LIST(NRI_ID) NRI_SOLVERS } nri_solver;
extern const char *const nri_solver_names[];

/*
In which order the network is evaluated: from the image to the noise, each step as often as it needs; or as the sampler
does it, from the noise to the image, again and again.
*/
#define NRI_ORDER_LIST(X) X(REVERSED, "reversed") X(PASSES, "passes")
typedef enum { NRI_ORDER_LIST(NRI_ID) NRI_ORDERS } nri_order;
extern const char *const nri_order_names[];

/* Whether the sampler's noises stay as they are given, or take up what their steps leave. */
#define NRI_NOISE_LIST(X) X(RECORD, "record") X(ABSORB, "absorb")
typedef enum { NRI_NOISE_LIST(NRI_ID) NRI_NOISES } nri_noise;
extern const char *const nri_noise_names[];

/* How a sample ended. */
#define NRI_REASON_LIST(X) \
    X(RUNNING, "running", "not finished") \
    X(TOL, "tol", "converged: the residual is below tol times the state") \
    X(ATOL, "atol", "converged: the residual is below atol") \
    X(MAX_NFE, "max_nfe", "stopped: the allowed network evaluations are used up") \
    X(STALLED, "stalled", "stopped: the residual no longer falls") \
    X(DIVERGED, "diverged", "stopped: the residual grew after every restart") \
    X(NON_FINITE, "non_finite", "stopped: the network returned values that are not finite")
typedef enum { NRI_REASON_LIST(NRI_ID) NRI_REASONS } nri_reason;
extern const char *const nri_reason_names[], *const nri_reason_texts[];

/* The name of a reason and what it means; out of range: "unknown", "unknown reason". */
const char *nri_reason_name(nri_reason reason);
const char *nri_reason_text(nri_reason reason);

/*
Between two noises: the shortest way where noise is likely; along the arc, the norm linear; along the chord; the chord
divided by the root of the sum of its squared weights.
*/
#define NRI_PATH_LIST(X) \
    X(GEODESIC, "geodesic") X(SLERP, "slerp") X(LERP, "lerp") X(VARIANCE_PRESERVING, "variance_preserving")
typedef enum { NRI_PATH_LIST(NRI_ID) NRI_PATHS } nri_path;
extern const char *const nri_path_names[];

/* What is equal between the points of a geodesic: the length in the metric, the angle, the Euclidean length. */
#define NRI_SPACING_LIST(X) X(METRIC, "metric") X(ANGLE, "angle") X(EUCLIDEAN, "euclidean")
typedef enum { NRI_SPACING_LIST(NRI_ID) NRI_SPACINGS } nri_spacing;
extern const char *const nri_spacing_names[];

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
    double *rest;            /* [E] scratch of nri_sampler_create */
    void *block;             /* the allocation behind all of the above */
} nri_sampler;

/*
Copies its arguments; `levels` may be NULL.  Fails with NRI_NOT_FINITE or NRI_NOT_CAUSAL and the offending step in *step.
A singular step is no failure here: such a sampler still runs forward.
*/
nri_status nri_sampler_create(int evaluations, int noises, const double *timesteps, const double *steps,
                              const double *inputs, const double *levels, nri_sampler **out, int *step);
void nri_sampler_destroy(nri_sampler *sampler);

/* -------------------------------------------------------------------------------------------------------- invert.c */

enum { NRI_MAX_DEPTH = 15 };

typedef struct {
    nri_solver solver;
    nri_order order;      /* NRI_PASSES: no NRI_NEWTON, rounds 0, no absorb, no correct_inverted */
    int max_nfe;          /* network evaluations of one step of a sweep, or number of passes, >= 1 */
    int depth;            /* M of the step equation, or of the passes, 0..NRI_MAX_DEPTH */
    int rounds;           /* rounds of defect correction after the first sweep, >= 0 */
    double tol, atol;     /* stop at |r| <= tol |s|, or at rms(r) <= atol */
    double lam, floor;    /* NRI_NEWTON: weight of the forward process in F, >= 0; floor of |g|, > 0 */
    double extrapolation; /* rho: how far unknown network outputs of a multistep sampler are extrapolated, 0..1 */
    bool predictor;       /* first guess from the network output of the step before; else the state itself */
    bool guess;           /* the first step starts from the guess, which the caller loads; passes do too */
    bool absorb;          /* noises take up what the steps leave; needs the sampler's levels, first order, rounds 0 */
    bool verify;          /* end with a forward run that measures the error (rounds > 0 always does) */
    bool trajectory;      /* keep every state */

    /* The prompt-aware correction of the target, before anything else (correct.c). */
    const nri_sampler *correct_from; /* the sampler's last steps, read from where they start; borrowed; NULL: none */
    int correct_rounds;              /* >= 1 */
    bool correct_inverted;           /* noise by inverting the steps; else drawn, which needs levels of correct_from */
    bool correct_only;               /* the inversion ends with the correction */
    const double *correct_radius;    /* [B] how far from the target a sample may go, as a norm; NULL: anywhere */
} nri_options;

extern const nri_options nri_default_options;

/* What is wrong with options, for the caller's eyes: "<name> must be <what is allowed>, got <what was given>". */
typedef struct {
    char text[240];
    int step; /* NRI_SINGULAR_STEP: the step, else -1 */
} nri_problem;

typedef struct {
    int index;       /* j */
    double timestep; /* t_j */
    double scale;    /* i_j: the network sees scale * sample */
    int slot;        /* where the sample s_j lies */
    const bool *active; /* [B] samples being evaluated; other rows are ignored in sample and answer */
    bool wants_gradient; /* a request for a gradient at this sample may follow */
    int cotangent;   /* -1, or a slot v: what is asked for is J^T v, J the network's Jacobian at the last sample */
    bool correcting; /* index and timestep are those of correct_from */
} nri_request;

typedef struct nri_inversion nri_inversion;

/* Where an inversion's inputs belong; first slots where there are several. */
typedef struct {
    int target, guess;  /* s_E; what the first step starts from */
    int noises;         /* K */
    int draws;          /* one a round of the correction, unless that inverts */
    int correct_noises; /* round after round, the noises of correct_from */
} nri_inputs;

/* What an inversion knows of its samples; arrays belong to it. */
typedef struct {
    int latents;             /* slot of s_0; with correct_only, of the corrected target */
    int trajectory;          /* first of E + 1 slots, or -1 */
    int noises;              /* first of K slots: what the sampler has to draw */
    int corrected;           /* slot of the corrected target, or -1 */
    int evaluations;         /* network calls, gradients included */
    double *residual;        /* [E][B] |r| / |s| at the last evaluation of each step, NaN where never evaluated */
    int *step_nfe;           /* [E][B] of the last sweep, or of all passes */
    int *nfe;                /* [B] */
    nri_reason *reason;      /* [B]; with correct_only NRI_MAX_NFE, or NRI_NON_FINITE where every round failed */
    double *error;           /* [B] |z_0 - Phi(z_T)| / |z_0| of a forward run, or estimated; NaN where no number */
    bool *measured;          /* [B] the error is that of a forward run */
    double *growth;          /* [B] most that a step was seen to stretch a difference of states, NaN where not seen */
    int *restarts;           /* [B] how often a solver went back to its best iterate, or its start, for a shorter step */
    int *rejected;           /* [B] mixtures whose weights were not usable */
    int *failed;             /* [B] evaluations, products and rounds of the correction that were not finite */
    double *moved;           /* [B] |corrected - target| / |target| */
    bool *held;              /* [B] the radius has held the last round of the correction back */
} nri_result;

/*
Whether the options are in range, go together and suit the sampler, and all counts fit an int: NRI_OK, NRI_BAD_ARGUMENT or
NRI_SINGULAR_STEP.  The functions below need options that are.
*/
nri_status nri_check_options(const nri_sampler *sampler, const nri_options *options, nri_problem *problem);

/* How many slots the inversion needs in its space. */
int nri_inversion_slots(const nri_sampler *sampler, const nri_options *options);

/* Upper bound of the network evaluations of the inversion, gradients not counted. */
int64_t nri_inversion_max_evaluations(const nri_sampler *sampler, const nri_options *options);

/*
`sampler`, `correct_from` and `v` are borrowed and must outlive the inversion; the radius is copied.  Checks the options,
and that `v` has the slots.  Then the inputs are loaded before the first `next`.
*/
nri_status nri_inversion_create(const nri_sampler *sampler, const nri_options *options, nri_space *v, nri_inversion **out,
                                nri_problem *problem);
void nri_inversion_destroy(nri_inversion *inv);
nri_inputs nri_inversion_inputs(const nri_inversion *inv);

/* *done, or a request; asking again before `feed` gives the same request. */
nri_status nri_inversion_next(nri_inversion *inv, nri_request *request, bool *done);

/* The network's output for the last request, or the gradient it asks for. */
nri_status nri_inversion_feed(nri_inversion *inv, const nri_tensor *model_output);
nri_status nri_inversion_result(const nri_inversion *inv, nri_result *result);

/* --------------------------------------------------------------------------------------------------------- path.c */

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
share[k] times the squared angle to each.  NRI_BAD_ARGUMENT and NRI_NOT_FINITE as above; NRI_NOT_UNIQUE: they cancel each
other.
*/
nri_status nri_centroid(nri_space *v, int count, const double *shares, double *weights, int64_t *sample);

#endif
