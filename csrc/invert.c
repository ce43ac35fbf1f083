/*
The inversion of a whole sampler as one stream of requests (index, timestep, sample).

    sweep      Psi: from a target y back to z_T, one implicit equation per step,
                   s_j = c + beta m_j(s_j),   c = (s_{j+1} - h m_{j+1} - C n) / A,   beta = -b / A
    forward    Phi: the sampler itself, from z_T to the image; it measures the error
    correct    y <- y + (z_0 - Phi(Psi(y))), accelerated by the same Anderson code, then the next sweep

A multistep sampler remembers network outputs of noisier steps, which a sweep does not know yet.  They are extrapolated
linearly in the step index from the two it knows, m_k = m_j + rho (j - k) (m_j - m_{j+1}), so that the step keeps the form
above with b = sum_{k<=j} b_k (1 + rho (j - k)) and h = -rho sum_{k<j} b_k (j - k).  The error this makes is what the
rounds correct; sweeps that reuse the outputs of the last round instead were seen to diverge.

The first guess of a step is c + beta m_{j+1}: the output of the cleaner step before it costs nothing.

The first step has none: its caller may give one (`guess`), best a natural noisy image of that level.

With a prior lam, Lavrentiev's regularisation, a step solves z = (f(z) + lam mu) / (1 + lam) instead, mu its first guess, which
lies where noise of that step lies.  Without a first guess, the first evaluation makes one.

A noisy step can absorb what it leaves instead of being solved.  Its state is drawn from the forward process given s_{j+1}
and z_0, with the caller's noise w as the draw,

    s_j = S_j z_0 + k (s_{j+1} - S_{j+1} z_0) + sigma_j C / sigma_{j+1} w        k = sigma_j sqrt(sigma_{j+1}^2 - C^2) / sigma_{j+1}^2

which is the joint law of the sampler with an ideal network, and n = (s_{j+1} - A s_j - b m_j) / C replaces w.  As long as
n is larger than noise, and than the noise in the state, (s_j - S_j z_0) / sigma_j, s_j <- s_j + 2 (C / A) (1 - 1 / rms(n)) n moves
the surplus into the state: a fixed-point step towards the equation with n on its shell, over-relaxed because these steps contract slowly.

`auto` is Anderson's method with E max_nfe evaluations dealt out by what the linear form tells; see nri_inversion_allowance.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nrinv.h"

const nri_options nri_default_options = {
    .solver = NRI_AUTO,
    .max_nfe = 3,
    .depth = 5,
    .refine = 0,
    .tol = 1e-4,
    .atol = 0,
    .lam = 0.1,
    .floor = 0.5,
    .extrapolation = 1,
    .predictor = true,
};

enum { TARGET_DEPTH = 10 };

/* A step with kappa above SLOW hardly contracts; from STIFF on two evaluations are mixed by type I. */
static const double SLOW = 0.75, STIFF = 0.8;
/* What `auto` gives a slow step, and the first one where the others absorb, over max_nfe. */
static const double SLOW_SHARE = 1.5, ABSORB_SHARE = 2;
static const double RELAXATION = 2;

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

typedef enum { SWEEP, FORWARD, DONE } phase;

struct nri_inversion {
    const nri_sampler *sampler;
    nri_options options;
    nri_space *v;
    nri_solve step, target;
    bool measure;       /* forward runs take place */
    phase phase;
    bool waiting;       /* a request is out */
    bool started;
    int j;              /* step of the current evaluation */
    bool have_prev;     /* M_PREV holds m_{j+1} */
    bool gradient;      /* the request is for a gradient */
    int absorbs;        /* the noise that takes up the current step, or -1 */
    double beta, prior; /* of the current step; prior is 0 as long as there is no mu */
    int states, outputs; /* rings of the forward run, window + 1 and window slots, then one for its noise */
    int noises, trajectory, best_trajectory; /* first slots, the last two -1 if not kept */
    int evaluations;
    double *residual, *error;        /* [E][B], [B] */
    double *defect;                  /* [B] |f(z) - z| of the last evaluation, where a prior keeps it apart from |r| */
    double *coef;                    /* [B][widest combination] */
    int *step_nfe, *nfe;             /* [E][B], [B] */
    nri_reason *reason;              /* [B] */
    bool *idle;                      /* [B] done with, or given up: the sample is left alone */
    void *block;
};

static int
most(int a, int b)
{
    return a > b ? a : b;
}

static bool
measures(const nri_options *o)
{
    return o->refine > 0 || o->verify;
}

static int
target_depth(const nri_options *o)
{
    return o->refine < TARGET_DEPTH ? o->refine : TARGET_DEPTH;
}

static const double *
back_row(const nri_sampler *s, int j)
{
    return s->back + (size_t)j * (size_t)(1 + s->evaluations + s->noises);
}

/* The noise that step j, and no other, draws; -1 if there is none, or it cannot absorb. */
static int
absorbing_noise(const nri_sampler *s, const nri_options *o, int j)
{
    int found = -1;
    if (!o->absorb || !s->levels || s->levels[2 * j + 1] <= 0 || s->levels[2 * j + 3] <= 0) {
        return -1;
    }
    for (int k = 0; k < s->noises; k++) {
        int users = 0;
        for (int i = 0; i < s->evaluations; i++) {
            users += back_row(s, i)[1 + s->evaluations + k] != 0;
        }
        if (back_row(s, j)[1 + s->evaluations + k] != 0) {
            if (found >= 0 || users != 1) {
                return -1;
            }
            found = k;
        }
    }
    return found;
}

/* Slope of f where the denoiser is flat: most of the spectrum of a denoiser's Jacobian lies there.  0 if it is not known. */
static double
kappa(const nri_sampler *s, int j)
{
    double sigma = s->levels ? s->levels[2 * j + 1] : 0;
    return sigma > 0 ? fabs(back_row(s, j)[1 + j] / (back_row(s, j)[0] * sigma)) : 0;
}

/*
`auto`: a minority of slow steps gets half as many again each; where steps absorb, the first step, which alone is solved, gets
twice as many.  The others share the rest, the noisiest first.
*/
int
nri_inversion_allowance(const nri_sampler *s, const nri_options *o, int j)
{
    int E = s->evaluations, slow = 0, absorbing = 0;
    if (o->solver != NRI_AUTO || !s->first_order || o->max_nfe < 2) {
        return o->max_nfe;
    }
    for (int i = 0; i < E; i++) {
        slow += kappa(s, i) > SLOW;
        absorbing += absorbing_noise(s, o, i) >= 0;
    }
    bool few = slow && slow <= E / 4, own = absorbing ? j == E - 1 : kappa(s, j) > SLOW;
    if (E == 1 || !(absorbing || few)) {
        return o->max_nfe;
    }
    int favoured = absorbing ? 1 : slow, rank = 0;
    int more = (int)ceil((absorbing ? ABSORB_SHARE : SLOW_SHARE) * o->max_nfe);
    int rest = E * o->max_nfe - favoured * more, sharing = E - favoured;
    if (rest < sharing) { /* every step needs one */
        return o->max_nfe;
    }
    for (int i = 0; i < j; i++) {
        rank += absorbing || kappa(s, i) <= SLOW;
    }
    return own ? more : rest / sharing + (rank < rest % sharing);
}

/* A deeper ring than evaluations would never be filled. */
static int
step_depth(const nri_sampler *s, const nri_options *o)
{
    int depth = o->solver == NRI_FIXED_POINT || o->solver == NRI_NEWTON ? 0 : o->depth;
    int longest = 1;
    for (int j = 0; j < s->evaluations; j++) {
        longest = most(longest, nri_inversion_allowance(s, o, j));
    }
    return depth < longest ? depth : longest - 1;
}

typedef struct {
    int step_rings, newton, target_rings, states, outputs, noises, trajectory, best_trajectory, end;
} layout;

static layout
lay_out(const nri_sampler *s, const nri_options *o)
{
    layout l = {.step_rings = RINGS};
    int forward = measures(o) ? 1 : 0, kept = o->trajectory ? s->evaluations + 1 : 0;
    l.newton = l.step_rings + 2 * (step_depth(s, o) + 1);
    l.target_rings = l.newton + (o->solver == NRI_NEWTON ? NRI_NEWTON_SLOTS : 0);
    l.states = l.target_rings + forward * 2 * (target_depth(o) + 1);
    l.outputs = l.states + forward * (s->window + 1);
    l.noises = l.outputs + forward * (s->window + 1);
    l.trajectory = l.noises + s->noises;
    l.best_trajectory = l.trajectory + kept;
    l.end = l.best_trajectory + forward * kept;
    return l;
}

int
nri_inversion_slots(const nri_sampler *sampler, const nri_options *options)
{
    return lay_out(sampler, options).end;
}

int64_t
nri_inversion_max_evaluations(const nri_sampler *sampler, const nri_options *options)
{
    int64_t sweep = (int64_t)sampler->evaluations * options->max_nfe;
    int64_t forward = measures(options) ? sampler->evaluations : 0;
    return (options->refine + 1) * (sweep + forward);
}

static bool
valid_options(const nri_options *o)
{
    return o->max_nfe >= 1 && o->depth >= 0 && o->depth <= NRI_MAX_DEPTH && o->refine >= 0 && o->tol >= 0 && o->atol >= 0
           && isfinite(o->tol) && isfinite(o->atol) && o->extrapolation >= 0 && o->extrapolation <= 1 && o->prior >= 0
           && isfinite(o->prior) && o->lam >= 0 && isfinite(o->lam)
           && ((o->floor > 0 && isfinite(o->floor)) || o->solver != NRI_NEWTON) && o->solver >= NRI_AUTO
           && o->solver <= NRI_NEWTON;
}

static bool
can_absorb(const nri_sampler *s, const nri_options *o)
{
    return !o->absorb || (s->levels && s->first_order && o->refine == 0);
}

static nri_status
allocate(nri_inversion *inv)
{
    size_t B = (size_t)inv->v->batch, E = (size_t)inv->sampler->evaluations;
    size_t widest = (size_t)most(most(inv->sampler->noises, Z + 1), 2 * inv->sampler->window + 2);
    inv->block = calloc(1,
                        B * (sizeof(double) * (E + 2 + widest) + sizeof(int) * (E + 1) + sizeof(nri_reason) + sizeof(bool)));
    if (!inv->block) {
        return NRI_NO_MEMORY;
    }
    inv->residual = inv->block;
    inv->error = inv->residual + E * B;
    inv->defect = inv->error + B;
    inv->coef = inv->defect + B;
    inv->step_nfe = (int *)(inv->coef + widest * B);
    inv->nfe = inv->step_nfe + E * B;
    inv->reason = (nri_reason *)(inv->nfe + B);
    inv->idle = (bool *)(inv->reason + B);
    return NRI_OK;
}

static nri_status
create_solves(nri_inversion *inv, const layout *l)
{
    const nri_options *o = &inv->options;
    int depth = step_depth(inv->sampler, o);
    nri_solve_slots step = {l->step_rings, l->step_rings + depth + 1, BEST_F, BEST_R, SPARE, STATE, l->newton};
    NRI_TRY(nri_solve_create(&inv->step, inv->v, o->solver, depth, o->max_nfe, o->tol, o->atol, step));
    inv->step.lam = o->lam;
    inv->step.floor = o->floor;
    depth = target_depth(o);
    nri_solve_slots target = {l->target_rings, l->target_rings + depth + 1, TARGET_BEST_F, TARGET_BEST_R, SPARE, Z0, -1};
    return nri_solve_create(&inv->target, inv->v, NRI_ANDERSON, depth, o->refine + 1, o->tol, o->atol, target);
}

nri_status
nri_inversion_create(const nri_sampler *sampler, const nri_options *options, nri_space *v, nri_inversion **out, int *step)
{
    *out = NULL;
    *step = -1;
    if (!valid_options(options) || !can_absorb(sampler, options)) {
        return NRI_BAD_ARGUMENT;
    }
    layout l = lay_out(sampler, options);
    if (v->slots < l.end) {
        return NRI_BAD_ARGUMENT;
    }
    for (int j = 0; j < sampler->evaluations; j++) {
        if (sampler->singular[j]) {
            *step = j;
            return NRI_SINGULAR_STEP;
        }
    }
    nri_inversion *inv = calloc(1, sizeof(*inv));
    if (!inv) {
        return NRI_NO_MEMORY;
    }
    inv->sampler = sampler;
    inv->options = *options;
    inv->v = v;
    inv->measure = measures(options);
    inv->states = l.states;
    inv->outputs = l.outputs;
    inv->noises = l.noises;
    inv->trajectory = options->trajectory ? l.trajectory : -1;
    inv->best_trajectory = options->trajectory && inv->measure ? l.best_trajectory : -1;
    nri_status status = allocate(inv);
    if (status == NRI_OK) {
        status = create_solves(inv, &l);
    }
    if (status != NRI_OK) {
        nri_inversion_destroy(inv);
        return status;
    }
    *out = inv;
    return NRI_OK;
}

void
nri_inversion_destroy(nri_inversion *inv)
{
    if (inv) {
        nri_solve_destroy(&inv->step);
        nri_solve_destroy(&inv->target);
        free(inv->block);
        free(inv);
    }
}

int
nri_inversion_target(const nri_inversion *inv)
{
    (void)inv;
    return Z0;
}

int
nri_inversion_guess(const nri_inversion *inv)
{
    (void)inv;
    return GUESS;
}

int
nri_inversion_noise(const nri_inversion *inv, int k)
{
    return inv->noises + k;
}

/* dst = sum_i coef[i] rows_i, the same coefficients for every sample */
static nri_status
combine_all(nri_inversion *inv, int dst, nri_rows rows, const double *coef)
{
    for (int64_t b = 0; b < inv->v->batch; b++) {
        memmove(inv->coef + b * rows.count, coef, sizeof(*coef) * (size_t)rows.count);
    }
    return inv->v->ops->combine(inv->v, dst, rows, inv->coef);
}

static nri_status
norms(nri_inversion *inv, int x, double *out)
{
    NRI_TRY(inv->v->ops->dots(inv->v, x, (nri_rows){x, 1, 1}, out));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        out[b] = sqrt(out[b]);
    }
    return NRI_OK;
}

/* dst = sum_k coef[k] n_k, if any coefficient is not 0 */
static nri_status
sum_noises(nri_inversion *inv, int dst, const double *coef, bool *used)
{
    int first = 0, last = inv->sampler->noises - 1;
    while (first <= last && coef[first] == 0) {
        first++;
    }
    while (last >= first && coef[last] == 0) {
        last--;
    }
    *used = first <= last;
    if (!*used) {
        return NRI_OK;
    }
    return combine_all(inv, dst, (nri_rows){inv->noises + first, last - first + 1, 1}, coef + first);
}

/* ------------------------------------------------------------------------------------------------------------- sweep */

/* A state of the forward process, drawn with the noise that is to absorb the step. */
static nri_status
draw_state(nri_inversion *inv, int j)
{
    const nri_vec_ops *ops = inv->v->ops;
    const double *now = inv->sampler->levels + 2 * j, *next = now + 2;
    double C_n = back_row(inv->sampler, j)[1 + inv->sampler->evaluations + inv->absorbs];
    double share = now[1] * sqrt(fmax(next[1] * next[1] - C_n * C_n, 0)) / (next[1] * next[1]);
    NRI_TRY(combine_all(inv, Z, (nri_rows){STATE, 2, Z0 - STATE}, (double[]){share, now[0] - share * next[0]}));
    NRI_TRY(ops->copy(inv->v, SPARE, inv->noises + inv->absorbs, NULL));
    return combine_all(inv, Z, (nri_rows){Z, 2, SPARE - Z}, (double[]){1, now[1] * fabs(C_n) / next[1]});
}

/* The first guess Z of a step whose equation is laid out; coef: of the rows STATE, M_PREV, NOISE in C. */
static nri_status
guess_state(nri_inversion *inv, double *coef)
{
    const nri_vec_ops *ops = inv->v->ops;
    if (inv->absorbs >= 0) {
        return draw_state(inv, inv->j);
    }
    if (inv->options.predictor && inv->have_prev) {
        coef[1] += inv->beta;
        return combine_all(inv, Z, (nri_rows){STATE, 3, 1}, coef);
    }
    if (inv->have_prev || !inv->options.guess) {
        return ops->copy(inv->v, Z, STATE, NULL);
    }
    if (inv->target.k > 0) { /* a guess that does not follow the target slows the rounds down */
        return combine_all(inv, Z, (nri_rows){Z0, 4, 1}, (double[]){-1, 1, 0, 1});
    }
    return ops->copy(inv->v, Z, GUESS, NULL);
}

/* mu and w of the scalar Newton objective. */
static nri_status
forward_mean(nri_inversion *inv, double A)
{
    inv->step.weight = fabs(A) > 1 ? 1 / (1 - 1 / (A * A)) : 1;
    return combine_all(inv, inv->step.slot.newton + NRI_NEWTON_MEAN, (nri_rows){STATE, 1, 1}, (double[]){1 / A});
}

/* Lay out the equation of step j: C, beta and the first guess Z. */
static nri_status
begin_step(nri_inversion *inv, int j)
{
    const nri_sampler *s = inv->sampler;
    const double *row = back_row(s, j), A = row[0];
    double rho = inv->have_prev ? inv->options.extrapolation : 0, b = row[1 + j], h = 0;
    bool noisy;
    for (int k = 0; k < j; k++) {
        b += row[1 + k] * (1 + rho * (j - k));
        h -= row[1 + k] * rho * (j - k);
    }
    inv->j = j;
    inv->beta = -b / A;
    inv->absorbs = absorbing_noise(s, &inv->options, j);
    NRI_TRY(sum_noises(inv, NOISE, row + 1 + s->evaluations, &noisy));
    double coef[3] = {1 / A, -h / A, noisy ? -1 / A : 0};
    NRI_TRY(combine_all(inv, C, (nri_rows){STATE, 3, 1}, coef));
    NRI_TRY(guess_state(inv, coef));
    bool guessed = inv->have_prev || inv->options.guess;
    inv->prior = guessed ? inv->options.prior : 0;
    if (inv->prior > 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, MU, Z, NULL));
    }
    if (inv->options.solver == NRI_NEWTON) {
        NRI_TRY(forward_mean(inv, A));
    }
    NRI_TRY(norms(inv, Z, inv->step.scale));
    inv->step.max_nfe = nri_inversion_allowance(s, &inv->options, j);
    inv->step.type_one = inv->options.solver == NRI_AUTO && inv->step.max_nfe == 2 && kappa(s, j) >= STIFF;
    nri_solve_begin(&inv->step, inv->idle);
    return NRI_OK;
}

static nri_status
begin_sweep(nri_inversion *inv)
{
    inv->phase = SWEEP;
    inv->have_prev = false;
    NRI_TRY(inv->v->ops->copy(inv->v, STATE, Y, NULL));
    if (inv->trajectory >= 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->trajectory + inv->sampler->evaluations, Y, NULL));
    }
    return begin_step(inv, inv->sampler->evaluations - 1);
}

static nri_status
begin_forward(nri_inversion *inv)
{
    inv->phase = FORWARD;
    inv->j = 0;
    return inv->v->ops->copy(inv->v, inv->states, STATE, NULL);
}

/* The worse of two ends of a sample. */
static nri_reason
worse(nri_reason a, nri_reason b)
{
    return a > b ? a : b;
}

static void
log_step(nri_inversion *inv, int64_t b)
{
    int64_t at = inv->j * inv->v->batch + b;
    double norm = inv->step.residual[b];
    if (inv->options.prior > 0 && !isnan(norm)) { /* else the defect is that of an older step */
        norm = inv->defect[b];
    }
    inv->residual[at] = inv->step.scale[b] > 0 ? norm / inv->step.scale[b] : norm;
    inv->step_nfe[at] = inv->step.nfe[b];
    if (inv->j == inv->sampler->evaluations - 1) {
        inv->reason[b] = NRI_RUNNING;
    }
    inv->reason[b] = worse(inv->reason[b], inv->step.reason[b]);
}

static nri_status
keep_best(nri_inversion *inv, const bool *which)
{
    NRI_TRY(inv->v->ops->copy(inv->v, BEST, STATE, which));
    for (int j = 0; inv->best_trajectory >= 0 && j <= inv->sampler->evaluations; j++) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->best_trajectory + j, inv->trajectory + j, which));
    }
    return NRI_OK;
}

static nri_status
end_step(nri_inversion *inv)
{
    bool running = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->idle[b] |= inv->step.reason[b] == NRI_NON_FINITE;
        running |= !inv->idle[b];
    }
    inv->have_prev = true;
    if (inv->trajectory >= 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->trajectory + inv->j, STATE, NULL));
    }
    if (inv->measure && inv->target.k == 0 && (inv->j == 0 || !running)) {
        NRI_TRY(keep_best(inv, NULL)); /* something to return if nothing can be measured */
    }
    if (running && inv->j > 0) {
        return begin_step(inv, inv->j - 1);
    }
    if (running && inv->measure) {
        return begin_forward(inv);
    }
    inv->phase = DONE;
    return NRI_OK;
}

/* f and r of the current iterate, and with a prior the defect of the unregularised equation. */
static nri_status
evaluate(nri_inversion *inv)
{
    int f = nri_solve_f(&inv->step);
    double whole = 1 + inv->prior, coef[3] = {1 / whole, inv->beta / whole, inv->prior / whole};
    if (inv->options.prior > 0) {
        NRI_TRY(combine_all(inv, SPARE, (nri_rows){C, 4, 1}, (double[]){1, inv->beta, 0, -1}));
        NRI_TRY(norms(inv, SPARE, inv->coef));
        for (int64_t b = 0; b < inv->v->batch; b++) {
            if (inv->step.reason[b] == NRI_RUNNING && isfinite(inv->coef[b])) {
                inv->defect[b] = inv->coef[b];
            }
        }
    }
    NRI_TRY(combine_all(inv, f, (nri_rows){C, inv->prior > 0 ? 3 : 2, 1}, coef));
    return combine_all(inv, nri_solve_r(&inv->step), (nri_rows){Z, 2, f - Z}, (double[]){-1, 1});
}

/* What the finished samples of a step leave behind: log, state, network output. */
static nri_status
settle(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool finished = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        finished |= s->finished[b];
        if (s->finished[b]) {
            log_step(inv, b);
        }
    }
    if (!finished) {
        return NRI_OK;
    }
    /* s_{j+1} and m_{j+1} are in C already: their places take the results of finished samples. */
    NRI_TRY(ops->copy(inv->v, STATE, Z, s->finished));
    if (inv->sampler->first_order && inv->absorbs < 0 && inv->options.prior == 0 && inv->beta != 0) {
        /* the output that belongs to z = c + beta m, a mixture like z, is nearer to that at z than the last one; with memory
           beta can all but vanish, and rounding would be what is left */
        NRI_TRY(combine_all(inv, M, (nri_rows){C, 2, Z - C}, (double[]){-1 / inv->beta, 1 / inv->beta}));
    }
    return ops->copy(inv->v, M_PREV, M, s->finished);
}

static nri_status
feed_solve(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool failed = false;
    NRI_TRY(evaluate(inv));
    NRI_TRY(nri_solve_advance(s, Z));
    if (inv->prior < inv->options.prior) {
        inv->prior = inv->options.prior;
        NRI_TRY(ops->copy(inv->v, MU, Z, NULL));
        nri_solve_forget(s); /* what it has seen was another equation */
    }
    for (int64_t b = 0; b < inv->v->batch; b++) {
        failed |= s->failed[b];
    }
    if (failed) {
        NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
    }
    return settle(inv);
}

/* An evaluation, or the gradient that it has asked for. */
static nri_status
feed_newton(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool failed = false, gradient = inv->gradient;
    if (gradient) {
        inv->gradient = false;
    }
    else {
        NRI_TRY(evaluate(inv));
        if (inv->prior < inv->options.prior) {
            inv->prior = inv->options.prior;
            NRI_TRY(ops->copy(inv->v, MU, nri_solve_f(s), NULL));
            NRI_TRY(evaluate(inv));
        }
        NRI_TRY(nri_newton_judge(s, Z, &inv->gradient));
        for (int64_t b = 0; b < inv->v->batch; b++) {
            failed |= s->failed[b];
        }
        if (failed) {
            NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
        }
        NRI_TRY(settle(inv));
        if (inv->gradient) {
            return NRI_OK;
        }
    }
    NRI_TRY(nri_newton_step(s, Z, inv->beta / (1 + inv->prior), gradient));
    return gradient ? settle(inv) : NRI_OK;
}

/* The noise takes up what the step leaves; as long as it is too large, the state takes its share. */
static nri_status
feed_absorb(nri_inversion *inv)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    const double *row = back_row(inv->sampler, inv->j), A = row[0];
    double scale = row[1 + inv->sampler->evaluations + inv->absorbs], D = (double)inv->v->elements;
    double natural = 1 + 2 / sqrt(2 * D); /* two standard errors */
    const double *level = inv->sampler->levels + 2 * inv->j;
    bool failed = false;
    NRI_TRY(combine_all(inv, SPARE, (nri_rows){STATE, Z + 1, 1},
                        (double[Z + 1]){[STATE] = 1 / scale, [M] = -row[1 + inv->j] / scale, [Z] = -A / scale}));
    NRI_TRY(combine_all(inv, BEST_F, (nri_rows){Z, 2, Z0 - Z}, (double[]){1 / level[1], -level[0] / level[1]}));
    NRI_TRY(norms(inv, BEST_F, s->best)); /* of the noise in the state */
    NRI_TRY(norms(inv, SPARE, inv->defect));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        double rms = inv->defect[b] / sqrt(D);
        bool running = s->reason[b] == NRI_RUNNING;
        s->finished[b] = false;
        s->failed[b] = !isfinite(rms);
        failed |= s->failed[b];
        s->nfe[b] += running;
        inv->coef[2 * b] = 1;
        inv->coef[2 * b + 1] = 0;
        if (running && s->failed[b]) {
            nri_solve_finish(s, b, NRI_NON_FINITE);
        }
        else if (running && (rms <= natural || inv->defect[b] <= s->best[b] || s->nfe[b] >= s->max_nfe)) {
            nri_solve_finish(s, b, NRI_TOL);
            s->residual[b] = inv->defect[b] = 0;
        }
        else if (running) {
            inv->coef[2 * b + 1] = RELAXATION * scale / A * (1 - 1 / rms);
        }
    }
    if (failed) {
        NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
        NRI_TRY(ops->copy(inv->v, SPARE, inv->noises + inv->absorbs, s->failed));
    }
    NRI_TRY(ops->copy(inv->v, inv->noises + inv->absorbs, SPARE, s->finished));
    NRI_TRY(ops->combine(inv->v, Z, (nri_rows){Z, 2, SPARE - Z}, inv->coef));
    return settle(inv);
}

static nri_status
feed_sweep(nri_inversion *inv, const nri_tensor *answer)
{
    nri_solve *s = &inv->step;
    bool newton = inv->options.solver == NRI_NEWTON;
    NRI_TRY(inv->v->ops->load(inv->v, inv->gradient ? s->slot.newton + NRI_NEWTON_PRODUCT : M, answer));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->nfe[b] += inv->gradient ? s->wants[b] : s->reason[b] == NRI_RUNNING;
    }
    NRI_TRY(inv->absorbs >= 0 ? feed_absorb(inv) : newton ? feed_newton(inv) : feed_solve(inv));
    return inv->gradient || nri_solve_running(s) ? NRI_OK : end_step(inv);
}

/* ----------------------------------------------------------------------------------------------------------- forward */

/* A network output that is not finite poisons the rings of its sample, and 0 * NaN would keep it there. */
static nri_status
clean_rings(nri_inversion *inv, const bool *failed)
{
    for (int i = inv->states; i < inv->noises; i++) {
        NRI_TRY(inv->v->ops->copy(inv->v, i, Z0, failed));
    }
    return inv->v->ops->copy(inv->v, END, Z0, failed);
}

static void
log_target(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->error[b] = isinf(s->best[b]) ? NAN : s->scale[b] > 0 ? s->best[b] / s->scale[b] : s->best[b];
        if (s->reason[b] == NRI_NON_FINITE) {
            inv->reason[b] = NRI_NON_FINITE;
        }
        else if (s->finished[b] && inv->options.refine > 0 && inv->reason[b] != NRI_NON_FINITE) {
            inv->reason[b] = s->reason[b];
        }
        inv->idle[b] |= s->reason[b] != NRI_RUNNING;
    }
}

static nri_status
end_forward(nri_inversion *inv)
{
    nri_solve *s = &inv->target;
    bool running = false, failed = false;
    NRI_TRY(combine_all(inv, nri_solve_f(s), (nri_rows){Z0, 3, 1}, (double[]){1, 1, -1}));
    NRI_TRY(combine_all(inv, nri_solve_r(s), (nri_rows){Z0, 2, END - Z0}, (double[]){1, -1}));
    NRI_TRY(nri_solve_advance(s, Y));
    NRI_TRY(keep_best(inv, s->improved));
    log_target(inv);
    for (int64_t b = 0; b < inv->v->batch; b++) {
        running |= !inv->idle[b];
        failed |= s->failed[b];
    }
    if (failed) {
        NRI_TRY(clean_rings(inv, s->failed));
    }
    if (running) {
        return begin_sweep(inv);
    }
    inv->phase = DONE;
    return NRI_OK;
}

static nri_status
feed_forward(nri_inversion *inv, const nri_tensor *model_output)
{
    const nri_sampler *s = inv->sampler;
    const nri_vec_ops *ops = inv->v->ops;
    int j = inv->j, E = s->evaluations, W = s->window, noise = inv->outputs + W;
    int next = j + 1 < E ? inv->states + (j + 1) % (W + 1) : END;
    const double *row = s->steps + (size_t)j * (size_t)(2 * E + s->noises);
    bool noisy;
    NRI_TRY(ops->load(inv->v, inv->outputs + j % W, model_output));
    NRI_TRY(sum_noises(inv, noise, row + 2 * E, &noisy));
    memset(inv->coef, 0, sizeof(*inv->coef) * (size_t)(2 * W + 2));
    for (int k = most(0, j - W + 1); k <= j; k++) {
        inv->coef[k % (W + 1)] = row[k];
        inv->coef[W + 1 + k % W] = row[E + k];
    }
    inv->coef[2 * W + 1] = noisy;
    NRI_TRY(combine_all(inv, next, (nri_rows){inv->states, 2 * W + 2, 1}, inv->coef));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->nfe[b] += !inv->idle[b];
    }
    if (inv->trajectory >= 0) {
        NRI_TRY(ops->copy(inv->v, inv->trajectory + j + 1, next, NULL));
    }
    inv->j = j + 1;
    return inv->j < E ? NRI_OK : end_forward(inv);
}

/* ------------------------------------------------------------------------------------------------------------ public */

static nri_status
start(nri_inversion *inv)
{
    NRI_TRY(norms(inv, Z0, inv->target.scale));
    nri_solve_begin(&inv->target, NULL);
    for (int64_t i = 0; i < inv->v->batch * inv->sampler->evaluations; i++) {
        inv->residual[i] = NAN;
    }
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->error[b] = NAN;
        if (!isfinite(inv->target.scale[b])) {
            return NRI_NOT_FINITE;
        }
    }
    NRI_TRY(inv->v->ops->copy(inv->v, Y, Z0, NULL));
    NRI_TRY(begin_sweep(inv));
    inv->started = true;
    return NRI_OK;
}

nri_status
nri_inversion_next(nri_inversion *inv, nri_request *request, bool *done)
{
    if (!inv->started) {
        NRI_TRY(start(inv));
    }
    *done = inv->phase == DONE;
    inv->waiting = !*done;
    if (!*done) {
        bool sweep = inv->phase == SWEEP;
        int slot = sweep ? Z : inv->states + inv->j % (inv->sampler->window + 1);
        bool newton = inv->options.solver == NRI_NEWTON && sweep && inv->absorbs < 0 && inv->step.max_nfe > 2;
        int cotangent = inv->gradient ? inv->step.slot.newton + NRI_NEWTON_SIGN : -1;
        *request = (nri_request){inv->j,   inv->sampler->timesteps[inv->j], inv->sampler->inputs[inv->j], slot, newton,
                                 cotangent};
    }
    return NRI_OK;
}

nri_status
nri_inversion_feed(nri_inversion *inv, const nri_tensor *model_output)
{
    if (!inv->waiting) {
        return NRI_BAD_ORDER;
    }
    inv->waiting = false;
    inv->evaluations++;
    return inv->phase == SWEEP ? feed_sweep(inv, model_output) : feed_forward(inv, model_output);
}

nri_status
nri_inversion_result(const nri_inversion *inv, nri_result *result)
{
    if (inv->phase != DONE) {
        return NRI_BAD_ORDER;
    }
    *result = (nri_result){
        .latents = inv->measure ? BEST : STATE,
        .noises = inv->noises,
        .trajectory = inv->best_trajectory >= 0 ? inv->best_trajectory : inv->trajectory,
        .evaluations = inv->evaluations,
        .residual = inv->residual,
        .step_nfe = inv->step_nfe,
        .nfe = inv->nfe,
        .reason = inv->reason,
        .error = inv->error,
    };
    return NRI_OK;
}
