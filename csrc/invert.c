/*
The inversion of a whole sampler as one stream of requests (index, timestep, sample).

    sweep      from a target back to z_T, step by step (sweep.c, absorb.c)
    pass       every state of an estimated trajectory, in the sampler's order (passes.c)
    forward    the sampler itself, from z_T to the image (forward.c)

NRI_REVERSED: a sweep, then a forward run if the error is measured, then the next round of both.  NRI_PASSES: passes, then
a forward run if the error is measured.
*/
#include <math.h>
#include <stdlib.h>

#include "inversion.h"

const nri_options nri_default_options = {
    .solver = NRI_AUTO,
    .order = NRI_REVERSED,
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
    int step_rings, newton, target_rings, states, outputs, passes, noises, trajectory, best_trajectory, end;
} layout;

static layout
lay_out(const nri_sampler *s, const nri_options *o)
{
    layout l = {.step_rings = RINGS};
    int forward = measures(o) ? 1 : 0, kept = o->trajectory ? s->evaluations + 1 : 0;
    int step_rings = o->order == NRI_REVERSED ? 2 * (step_depth(s, o) + 1) : 0;
    l.newton = l.step_rings + step_rings;
    l.target_rings = l.newton + (o->solver == NRI_NEWTON ? NRI_NEWTON_SLOTS : 0);
    l.states = l.target_rings + forward * 2 * (target_depth(o) + 1);
    l.outputs = l.states + forward * (s->window + 1);
    l.noises = l.states + forward * nri_run_slots(s);
    l.trajectory = l.noises + s->noises;
    l.best_trajectory = l.trajectory + kept;
    l.passes = l.best_trajectory + forward * kept;
    l.end = l.passes + nri_pass_slots(s, o, step_depth(s, o));
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
           && o->solver <= NRI_NEWTON && (o->order == NRI_REVERSED || o->order == NRI_PASSES);
}

static bool
can_absorb(const nri_sampler *s, const nri_options *o)
{
    return !o->absorb || (s->levels && s->first_order && o->refine == 0);
}

static bool
can_pass(const nri_options *o)
{
    return o->order != NRI_PASSES || (o->solver != NRI_NEWTON && o->refine == 0 && o->prior == 0 && !o->absorb);
}

static nri_status
allocate(nri_inversion *inv)
{
    size_t B = (size_t)inv->v->batch, E = (size_t)inv->sampler->evaluations;
    size_t widest = (size_t)most(most(inv->sampler->noises, Z + 1), most(nri_run_slots(inv->sampler), (int)E));
    inv->block = calloc(
        1, B * (sizeof(double) * (E + 2 + widest) + sizeof(int) * (E + 1) + sizeof(nri_reason) + 3 * sizeof(bool)));
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
    inv->active = inv->idle + B;
    inv->resting = inv->active + B;
    return NRI_OK;
}

static nri_status
create_solves(nri_inversion *inv, const layout *l)
{
    const nri_options *o = &inv->options;
    int depth = step_depth(inv->sampler, o);
    nri_solve_slots step = {l->step_rings, l->step_rings + depth + 1, BEST_F, BEST_R, SPARE, STATE, l->newton};
    if (o->order == NRI_PASSES) {
        NRI_TRY(nri_create_passes(inv, depth));
    }
    else {
        NRI_TRY(nri_solve_create(&inv->step, inv->v, o->solver, depth, o->max_nfe, o->tol, o->atol, step));
    }
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
    if (!valid_options(options) || !can_absorb(sampler, options) || !can_pass(options)) {
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
    inv->passes = l.passes;
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
        nri_space_destroy(inv->stack);
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

nri_status
nri_combine_all(nri_inversion *inv, int dst, nri_rows rows, const double *coef)
{
    return nri_combine_same(inv->v, inv->coef, dst, rows, coef);
}

nri_status
nri_norms(nri_inversion *inv, int x, double *out)
{
    NRI_TRY(inv->v->ops->dots(inv->v, x, (nri_rows){x, 1, 1}, out));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        out[b] = sqrt(out[b]);
    }
    return NRI_OK;
}

/* What stands in the rows of resting samples may be anything, and 0 * NaN would spread it. */
nri_status
nri_load_answer(nri_inversion *inv, int dst, const nri_tensor *answer)
{
    bool any = false;
    NRI_TRY(inv->v->ops->load(inv->v, dst, answer));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        any |= inv->resting[b];
        inv->nfe[b] += inv->active[b];
    }
    return any ? inv->v->ops->copy(inv->v, dst, Z0, inv->resting) : NRI_OK;
}

nri_status
nri_keep_best(nri_inversion *inv, const bool *which)
{
    NRI_TRY(inv->v->ops->copy(inv->v, BEST, STATE, which));
    for (int j = 0; inv->best_trajectory >= 0 && j <= inv->sampler->evaluations; j++) {
        NRI_TRY(inv->v->ops->copy(inv->v, inv->best_trajectory + j, inv->trajectory + j, which));
    }
    return NRI_OK;
}

static nri_status
start(nri_inversion *inv)
{
    NRI_TRY(nri_norms(inv, Z0, inv->target.scale));
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
    NRI_TRY(inv->options.order == NRI_PASSES ? nri_begin_passes(inv) : nri_begin_sweep(inv));
    inv->started = true;
    return NRI_OK;
}

/* The samples that the coming request is for. */
static void
find_active(nri_inversion *inv)
{
    for (int64_t b = 0; b < inv->v->batch; b++) {
        bool running = inv->step.reason[b] == NRI_RUNNING;
        inv->active[b] = inv->phase == FORWARD ? !inv->idle[b] : inv->gradient ? inv->step.wants[b] : running;
        inv->resting[b] = !inv->active[b];
    }
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
        find_active(inv);
        bool sweep = inv->phase == SWEEP;
        int slot = sweep                ? Z
                   : inv->phase == PASS ? nri_pass_state(inv, inv->j)
                                        : nri_run_state(inv->sampler, inv->states, inv->j);
        bool newton = inv->options.solver == NRI_NEWTON && sweep && inv->absorbs < 0 && inv->step.max_nfe > 2;
        int cotangent = inv->gradient ? inv->step.slot.newton + NRI_NEWTON_SIGN : -1;
        *request = (nri_request){.index = inv->j,
                                 .timestep = inv->sampler->timesteps[inv->j],
                                 .scale = inv->sampler->inputs[inv->j],
                                 .slot = slot,
                                 .active = inv->active,
                                 .wants_gradient = newton,
                                 .cotangent = cotangent};
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
    return inv->phase == SWEEP  ? nri_feed_sweep(inv, model_output)
           : inv->phase == PASS ? nri_feed_pass(inv, model_output)
                                : nri_feed_forward(inv, model_output);
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
