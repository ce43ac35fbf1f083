/*
What the phases of an inversion share.

A phase has a `begin` and a `feed`, which takes the answer to a request and says whether the phase has ended.  No phase
knows another: invert.c alone decides which comes next.  A phase is one step of a sweep (sweep.c, absorb.c), all passes
(passes.c), a forward run (forward.c), or the correction of the target (correct.c).
*/
#ifndef NRINV_INVERSION_H
#define NRINV_INVERSION_H

#include "run.h"
#include "solve.h"

/* Fixed slots.  Rows of one linear combination are neighbours: STATE M_PREV NOISE, C M Z, and Z0 Y END GUESS. */
enum { STATE, M_PREV, NOISE, C, M, Z, BEST_F, BEST_R, SPARE, Z0, Y, END, GUESS, BEST, TARGET_BEST_F, TARGET_BEST_R, RINGS };

/* Functions of a phase, a constant in its file. */
typedef struct {
    nri_status (*begin)(nri_inversion *inv);
    nri_status (*feed)(nri_inversion *inv, const nri_tensor *answer, bool *ended);
    int (*sample)(const nri_inversion *inv); /* the slot to evaluate at; NULL: always Z */
    bool solves;                             /* for the samples whose equation is open; else for all that are not idle */
} nri_phase;

extern const nri_phase nri_sweep, nri_absorb, nri_passes, nri_forward, nri_correct;

struct nri_inversion {
    const nri_sampler *sampler;
    nri_options options;
    nri_space *v;
    nri_solve step, target; /* the equation of a step or of all passes; that of the rounds, y = y + z_0 - Phi(Psi(y)) */
    const nri_phase *phase; /* the current one, NULL at the end */
    bool waiting;       /* a request is out */
    bool started;
    int j;              /* step of the current evaluation */
    bool have_prev;     /* M_PREV holds m_{j+1} */
    int absorbs;        /* the noise that takes up the current step, or -1 */
    double beta;        /* of the current step */
    nri_run forward;    /* of the sampler */
    int passes;         /* first slot of passes.c */
    nri_space *stack;   /* NRI_PASSES: the iterate of `step` is a whole trajectory */
    int trajectory;     /* of the current round: first slot, -1 if not kept */
    nri_inputs inputs;
    nri_result result;

    /* correct.c */
    nri_run denoise;    /* of correct_from; in the rings of `forward`, where there are any */
    int round;
    bool inverting;     /* the steps of the round are being inverted */
    double *radius;     /* [B] */
    bool *spoiled;      /* [B] not finite in this round */

    double *grown, *missed;    /* [B] state.c: how much an error of the present step grows, and what all have missed */
    double *rate, *stretch;    /* [B] of the last step that has told them */
    int *allowance;            /* [E] evaluations that each step may take */
    double *surplus, *natural; /* [B] absorb.c: norms of the noise that takes up the step, and of the one in the state */
    double *coef;              /* [3 B + 2 E + 2] scratch, E of the longer sampler */
    bool *idle;                /* [B] finished or failed: the sample is left alone */
    bool *active, *resting;    /* [B] samples being evaluated, and the others */
    void *block;
};

/* --------------------------------------------------------------------------------------------------------- state.c */

/* dst = sum_i coef[i] rows_i, the same coefficients for every sample */
nri_status nri_combine_all(nri_inversion *inv, int dst, nri_rows rows, const double *coef);

/* Take the network's answer of the samples that are being evaluated, and count it. */
nri_status nri_load_answer(nri_inversion *inv, int dst, const nri_tensor *answer);

/* STATE is the latents to return, and the trajectory goes with it. */
nri_status nri_keep_best(nri_inversion *inv, const bool *which);

/* The slot `state` is s_j: a copy to the trajectory, if that is kept. */
nri_status nri_keep_state(nri_inversion *inv, int j, int state);

/* The first step of a sweep starts from its target: STATE = Y.  Later ones find s_{j+1} there. */
nri_status nri_begin_step(nri_inversion *inv);

/* A first guess is in Z: start the step's equation. */
nri_status nri_begin_equation(nri_inversion *inv);

/* The estimated error of sample b, where the image misses its target by `missed`. */
void nri_say_error(nri_inversion *inv, int64_t b, double missed);

/* What the samples that finish with an evaluation leave behind: log, state, network output.  The last ends the step. */
nri_status nri_settle(nri_inversion *inv, bool *ended);

/* At the end: samples whose results are not finite say so. */
nri_status nri_seal(nri_inversion *inv);

/* ---------------------------------------------------------------------------------------------------------- auto.c */

/* Slope of f where the denoiser is flat: most of the spectrum of a denoiser's Jacobian lies there.  0 if it is not known. */
double nri_kappa(const nri_sampler *s, int j);

/* The noise that step j, and no other, draws; -1 if there is none, or it cannot absorb. */
int nri_absorbing_noise(const nri_sampler *s, const nri_options *o, int j);

/* allowance [E], or NULL: the evaluations that each step may take; returns the largest of them. */
int nri_allot(const nri_sampler *s, const nri_options *o, int *allowance);

/* -------------------------------------------------------------------------------------------------------- passes.c */

/* How many slots passes need, and the inversion's `stack`. */
int64_t nri_passes_slots(const nri_sampler *s, int depth);
nri_status nri_create_stack(nri_inversion *inv, int depth, nri_solve_slots *slot);

#endif
