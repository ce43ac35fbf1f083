/*
What the parts of an inversion share: invert.c hands out requests, sweep.c, passes.c and forward.c make and answer them,
absorb.c has what noisy steps do differently.
*/
#ifndef NRINV_INVERSION_H
#define NRINV_INVERSION_H

#include <stddef.h>

#include "nrinv.h"
#include "run.h"

/* Fixed slots.  Rows of one linear combination are neighbours: STATE M_PREV NOISE, C M MU Z, and Z0 Y END GUESS. */
enum {
    STATE,
    M_PREV,
    NOISE,
    C,
    M,
    MU,
    Z,
    BEST_F,
    BEST_R,
    SPARE,
    Z0,
    Y,
    END,
    GUESS,
    BEST,
    TARGET_BEST_F,
    TARGET_BEST_R,
    RINGS
};

typedef enum { SWEEP, PASS, FORWARD, DONE } nri_phase;

struct nri_inversion {
    const nri_sampler *sampler;
    nri_options options;
    nri_space *v;
    nri_solve step, target;
    bool measure;       /* forward runs take place */
    nri_phase phase;
    bool waiting;       /* a request is out */
    bool started;
    int j;              /* step of the current evaluation */
    bool have_prev;     /* M_PREV holds m_{j+1} */
    bool gradient;      /* the request is for a gradient */
    int absorbs;        /* the noise that takes up the current step, or -1 */
    double beta, prior; /* of the current step; prior is 0 as long as there is no mu */
    int states, outputs; /* rings of the forward run, window + 1 and window slots, then one for its noise */
    int passes;         /* first slot of passes.c */
    nri_space *stack;   /* NRI_PASSES: the iterate of `step` is a whole trajectory */
    int noises, trajectory, best_trajectory; /* first slots, the last two -1 if not kept */
    int evaluations;
    double *residual, *error;        /* [E][B], [B] */
    double *defect;                  /* [B] |f(z) - z| of the last evaluation, where a prior keeps it apart from |r| */
    double *coef;                    /* [B][widest combination] */
    int *step_nfe, *nfe;             /* [E][B], [B] */
    nri_reason *reason;              /* [B] */
    bool *idle;                      /* [B] done with, or given up: the sample is left alone */
    bool *active, *resting;          /* [B] the request counts for the sample, and the opposite */
    void *block;
};

/* -------------------------------------------------------------------------------------------------------- invert.c */

/* dst = sum_i coef[i] rows_i, the same coefficients for every sample */
nri_status nri_combine_all(nri_inversion *inv, int dst, nri_rows rows, const double *coef);

/* out[b] = |x[b]| */
nri_status nri_norms(nri_inversion *inv, int x, double *out);

/* Take the network's answer, of the samples that it was asked for, and count it. */
nri_status nri_load_answer(nri_inversion *inv, int dst, const nri_tensor *answer);

/* STATE is the latents to return, and the trajectory goes with it. */
nri_status nri_keep_best(nri_inversion *inv, const bool *which);

/* --------------------------------------------------------------------------------------------------------- sweep.c */

nri_status nri_begin_sweep(nri_inversion *inv);
nri_status nri_feed_sweep(nri_inversion *inv, const nri_tensor *answer);

/* What the finished samples of a step leave behind: log, state, network output. */
nri_status nri_settle(nri_inversion *inv);

/* -------------------------------------------------------------------------------------------------------- absorb.c */

/* Slope of f where the denoiser is flat: most of the spectrum of a denoiser's Jacobian lies there.  0 if it is not known. */
double nri_kappa(const nri_sampler *s, int j);

/* The noise that step j, and no other, draws; -1 if there is none, or it cannot absorb. */
int nri_absorbing_noise(const nri_sampler *s, const nri_options *o, int j);

/* A state of the forward process, drawn with the noise that is to absorb the step. */
nri_status nri_draw_state(nri_inversion *inv, int j);

nri_status nri_feed_absorb(nri_inversion *inv);

/* -------------------------------------------------------------------------------------------------------- passes.c */

/* How many slots passes need, and the inversion's `stack` and `step` on them. */
int nri_pass_slots(const nri_sampler *s, const nri_options *o, int depth);
nri_status nri_create_passes(nri_inversion *inv, int depth);

nri_status nri_begin_passes(nri_inversion *inv);
nri_status nri_feed_pass(nri_inversion *inv, const nri_tensor *answer);

/* Where s_j lies. */
int nri_pass_state(const nri_inversion *inv, int j);

/* ------------------------------------------------------------------------------------------------------- forward.c */

nri_status nri_begin_forward(nri_inversion *inv);
nri_status nri_feed_forward(nri_inversion *inv, const nri_tensor *answer);

#endif
