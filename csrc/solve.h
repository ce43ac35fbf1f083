/*
One implicit equation z = f(z) for a batch: per-sample weights, stopping, restarts and reasons.

solve.c has fixed-point iteration and Anderson acceleration, anderson.c its weights, newton.c the scalar Newton-Raphson; none
knows the others, the member `feed` says which is at work.
The caller evaluates what `asks` says and feeds it, and need not know which method is at work.
*/
#ifndef NRINV_SOLVE_H
#define NRINV_SOLVE_H

#include "nrinv.h"

/* ------------------------------------------------------------------------------------------------------ anderson.c */

/*
Weights w of the next iterate sum_i w_i f_i: argmin |sum_i w_i r_i| subject to sum_i w_i = 1, from the Gram matrix
gram[i * ld + j] = <r_i, r_j> restricted to the n rows `index`, the newest last.  False: no usable weights, take f_newest.
*/
bool nri_anderson_weights(int n, const int *index, const double *gram, int ld, double *w);

/* -------------------------------------------------------------------------------------------------------- stretch.c */

typedef struct nri_solve nri_solve;

void nri_stretch_begin(nri_solve *s, int64_t b);

/* The next iterate, of ring entry `next`, is sum_i w[i] f_i over the ring's first `count` entries. */
void nri_stretch_move(nri_solve *s, int64_t b, const double *w, int count, int next);

/* The next iterate, of ring entry `next`, is none of these. */
void nri_stretch_lose(nri_solve *s, int64_t b, int next);

/* What the newest iterate, ring entry k, tells beside the older one i. */
void nri_stretch_measure(nri_solve *s, int64_t b, int i, int k);

/* |sum_i w_i r_i| */
double nri_mixed_norm(const double *gram, int ld, const double *w, int count);

/* --------------------------------------------------------------------------------------------------------- solve.c */

/* Not finite so often in a row: the sample ends. */
enum { NRI_MAX_FAILURES = 2 };

/* The slots of one solve, in this order; `rings` are depth + 1 slots each. */
typedef struct {
    int f, r;               /* rings of f_k and r_k */
    int best_f, best_r;     /* two neighbouring slots */
    int spare;
    int origin;             /* where to go when not even the first evaluation is finite */
    int newton;             /* NRI_NEWTON: NRI_NEWTON_SLOTS slots */
} nri_solve_slots;

/* [B] totals over all equations, see nri_result. */
typedef struct {
    int *restarts, *rejected, *failed;
} nri_tally;

/* What has to be fed next: f and r of the iterate, the gradient J^T v, or nothing, since all samples are finished. */
typedef enum { NRI_NOTHING, NRI_VALUE, NRI_GRADIENT } nri_asks;

struct nri_solve {
    /* set by the caller before nri_solve_create */
    nri_space *v;
    nri_solver solver;
    nri_status (*feed)(nri_solve *s, int z); /* nri_iterate or nri_newton */
    int depth;
    double tol, atol, lam, floor; /* lam and floor of NRI_NEWTON */
    nri_solve_slots slot;
    nri_tally tally;

    /* set by the caller before, or `scale` soon after, nri_solve_begin */
    int max_nfe;
    bool type_one;        /* the second evaluation is mixed by Anderson's type I */
    double slope, weight; /* NRI_NEWTON: df/dm, w of F */
    double *scale;        /* [B] norm that tol refers to */

    /* for the caller to read */
    nri_asks asks;
    bool differentiates;    /* gradients may be asked for */
    int mean;               /* the slot where mu is needed before nri_solve_begin; -1: nowhere */
    int cotangent, product; /* slots of a gradient's v and of J^T v, J the network's Jacobian at the iterate */
    int k;                  /* evaluations since begin */
    nri_reason *reason;     /* [B] */
    int *nfe;               /* [B] */
    double *residual;       /* [B] norm of the last finite residual */
    double *best;           /* [B] smallest norm so far, infinite before the first */
    bool *improved;         /* [B] the last evaluation set `best` */
    bool *finished;         /* [B] the last feed ended the sample */
    bool *failed;           /* [B] what was fed last was not finite */
    double *mixed; /* [B] norm of the residual that the next iterate is made with: it ends with `rate` times that */
    double *stretch, *rate; /* [B] largest |r - r'| and |f - f'| over |z - z'| of two iterates, NaN where none were seen */

    /* of solve.c and newton.c alone */
    double *merit, *length, *pull; /* [B] smallest F / D, length of the step tried, lam w / rms(z - mu) */
    int *best_at, *restarts, *failures; /* [B] of this equation */
    bool *wants; /* [B] waits for a gradient */
    bool *valid; /* [B][depth + 1] ring entries that may be mixed */
    double *gram; /* [B][depth + 1][depth + 1] */
    double *apart; /* [B][depth + 1][depth + 1] of stretch.c */
    double *dots, *coef; /* [B][the widest combination] */
    bool *mark; /* [B] scratch */
    uint8_t *moves; /* [B] what each sample does next */
    void *block; /* the allocation behind the arrays */
};

nri_status nri_solve_create(nri_solve *s);
void nri_solve_destroy(nri_solve *s);

/* Start a new equation; samples with skip[b] are left alone. */
void nri_solve_begin(nri_solve *s, const bool *skip);

/* A method takes what was asked for, and writes the next iterate, for finished samples the final one, to slot z. */
nri_status nri_iterate(nri_solve *s, int z);
nri_status nri_newton(nri_solve *s, int z);

static inline bool
nri_solve_running(const nri_solve *s)
{
    for (int64_t b = 0; b < s->v->batch; b++) {
        if (s->reason[b] == NRI_RUNNING) {
            return true;
        }
    }
    return false;
}

/* Whether sample b takes part in what is asked for. */
static inline bool
nri_solve_active(const nri_solve *s, int64_t b)
{
    return s->asks == NRI_GRADIENT ? s->wants[b] : s->reason[b] == NRI_RUNNING;
}

/* Where f_k and r_k of the coming evaluation belong. */
static inline int
nri_solve_f(const nri_solve *s)
{
    return s->slot.f + s->k % (s->depth + 1);
}

static inline int
nri_solve_r(const nri_solve *s)
{
    return s->slot.r + s->k % (s->depth + 1);
}

/* The end of sample b. */
static inline void
nri_solve_finish(nri_solve *s, int64_t b, nri_reason reason)
{
    s->reason[b] = reason;
    s->finished[b] = true;
}

/* From `slot.newton` on: the cotangent, its product, the best z, mu of the forward process, a direction. */
enum { NRI_NEWTON_SIGN, NRI_NEWTON_PRODUCT, NRI_NEWTON_BEST, NRI_NEWTON_MEAN, NRI_NEWTON_DIRECTION, NRI_NEWTON_SLOTS };

#endif
