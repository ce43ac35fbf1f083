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

With a prior lam, Lavrentiev's regularisation, a step solves z = (f(z) + lam mu) / (1 + lam) instead, mu its first guess, which
lies where noise of that step lies.  The first step has no free guess: its first evaluation makes one.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nrinv.h"

const nri_options nri_default_options = {
    .solver = NRI_ANDERSON,
    .max_nfe = 3,
    .depth = 3,
    .refine = 0,
    .tol = 1e-4,
    .atol = 0,
    .extrapolation = 1,
    .predictor = true,
};

enum { TARGET_DEPTH = 10 };

/* Fixed slots.  Rows of one linear combination are neighbours: STATE M_PREV NOISE, C M MU Z, and Z0 Y END. */
enum { STATE, M_PREV, NOISE, C, M, MU, Z, BEST_F, BEST_R, SPARE, Z0, Y, END, BEST, TARGET_BEST_F, TARGET_BEST_R, RINGS };

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
    double beta, lam;   /* of the current step; lam is 0 as long as there is no mu */
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

/* A deeper ring than evaluations would never be filled. */
static int
step_depth(const nri_options *o)
{
    int depth = o->solver == NRI_FIXED_POINT ? 0 : o->depth;
    return depth < o->max_nfe ? depth : o->max_nfe - 1;
}

typedef struct {
    int step_rings, target_rings, states, outputs, noises, trajectory, best_trajectory, end;
} layout;

static layout
lay_out(const nri_sampler *s, const nri_options *o)
{
    layout l = {.step_rings = RINGS};
    int forward = measures(o) ? 1 : 0, kept = o->trajectory ? s->evaluations + 1 : 0;
    l.target_rings = l.step_rings + 2 * (step_depth(o) + 1);
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
           && isfinite(o->prior) && (o->solver == NRI_ANDERSON || o->solver == NRI_FIXED_POINT);
}

static nri_status
allocate(nri_inversion *inv)
{
    size_t B = (size_t)inv->v->batch, E = (size_t)inv->sampler->evaluations;
    size_t widest = (size_t)most(inv->sampler->noises, 2 * inv->sampler->window + 2);
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
    int depth = step_depth(o);
    nri_solve_slots step = {l->step_rings, l->step_rings + depth + 1, BEST_F, BEST_R, SPARE, STATE};
    NRI_TRY(nri_solve_create(&inv->step, inv->v, o->solver, depth, o->max_nfe, o->tol, o->atol, step));
    depth = target_depth(o);
    nri_solve_slots target = {l->target_rings, l->target_rings + depth + 1, TARGET_BEST_F, TARGET_BEST_R, SPARE, Z0};
    return nri_solve_create(&inv->target, inv->v, NRI_ANDERSON, depth, o->refine + 1, o->tol, o->atol, target);
}

nri_status
nri_inversion_create(const nri_sampler *sampler, const nri_options *options, nri_space *v, nri_inversion **out, int *step)
{
    layout l = lay_out(sampler, options);
    *out = NULL;
    *step = -1;
    if (!valid_options(options) || v->slots < l.end) {
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

/* Lay out the equation of step j: C, beta and the first guess Z. */
static nri_status
begin_step(nri_inversion *inv, int j)
{
    const nri_sampler *s = inv->sampler;
    const double *row = s->back + (size_t)j * (size_t)(1 + s->evaluations + s->noises), A = row[0];
    double rho = inv->have_prev ? inv->options.extrapolation : 0, b = row[1 + j], h = 0;
    bool noisy;
    for (int k = 0; k < j; k++) {
        b += row[1 + k] * (1 + rho * (j - k));
        h -= row[1 + k] * rho * (j - k);
    }
    inv->j = j;
    inv->beta = -b / A;
    NRI_TRY(sum_noises(inv, NOISE, row + 1 + s->evaluations, &noisy));
    const nri_rows known = {STATE, 3, 1};
    double coef[3] = {1 / A, -h / A, noisy ? -1 / A : 0};
    NRI_TRY(combine_all(inv, C, known, coef));
    if (inv->options.predictor && inv->have_prev) {
        coef[1] += inv->beta;
        NRI_TRY(combine_all(inv, Z, known, coef));
    }
    else {
        NRI_TRY(inv->v->ops->copy(inv->v, Z, STATE, NULL));
    }
    inv->lam = inv->have_prev ? inv->options.prior : 0;
    if (inv->lam > 0) {
        NRI_TRY(inv->v->ops->copy(inv->v, MU, Z, NULL));
    }
    NRI_TRY(norms(inv, Z, inv->step.scale));
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
    double whole = 1 + inv->lam, coef[3] = {1 / whole, inv->beta / whole, inv->lam / whole};
    if (inv->options.prior > 0) {
        NRI_TRY(combine_all(inv, SPARE, (nri_rows){C, 4, 1}, (double[]){1, inv->beta, 0, -1}));
        NRI_TRY(norms(inv, SPARE, inv->coef));
        for (int64_t b = 0; b < inv->v->batch; b++) {
            if (inv->step.reason[b] == NRI_RUNNING && isfinite(inv->coef[b])) {
                inv->defect[b] = inv->coef[b];
            }
        }
    }
    NRI_TRY(combine_all(inv, f, (nri_rows){C, inv->lam > 0 ? 3 : 2, 1}, coef));
    return combine_all(inv, nri_solve_r(&inv->step), (nri_rows){Z, 2, f - Z}, (double[]){-1, 1});
}

static nri_status
feed_sweep(nri_inversion *inv, const nri_tensor *model_output)
{
    nri_solve *s = &inv->step;
    const nri_vec_ops *ops = inv->v->ops;
    bool failed = false, finished = false;
    NRI_TRY(ops->load(inv->v, M, model_output));
    NRI_TRY(evaluate(inv));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->nfe[b] += s->reason[b] == NRI_RUNNING;
    }
    NRI_TRY(nri_solve_advance(s, Z));
    if (inv->lam < inv->options.prior) {
        inv->lam = inv->options.prior;
        NRI_TRY(ops->copy(inv->v, MU, Z, NULL));
        nri_solve_forget(s); /* what it has seen was another equation */
    }
    for (int64_t b = 0; b < inv->v->batch; b++) {
        failed |= s->failed[b];
        finished |= s->finished[b];
        if (s->finished[b]) {
            log_step(inv, b);
        }
    }
    if (failed) {
        NRI_TRY(ops->copy(inv->v, M, M_PREV, s->failed));
    }
    /* s_{j+1} and m_{j+1} are in C already: their places take the results of finished samples. */
    if (finished) {
        NRI_TRY(ops->copy(inv->v, STATE, Z, s->finished));
        NRI_TRY(ops->copy(inv->v, M_PREV, M, s->finished));
    }
    return nri_solve_running(s) ? NRI_OK : end_step(inv);
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
        int slot = inv->phase == SWEEP ? Z : inv->states + inv->j % (inv->sampler->window + 1);
        *request = (nri_request){inv->j, inv->sampler->timesteps[inv->j], inv->sampler->inputs[inv->j], slot};
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
