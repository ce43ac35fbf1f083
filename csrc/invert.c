/*
The inversion of a whole sampler as one stream of requests (index, timestep, sample): which phase comes when.

    correct    the target by the sampler's last steps, if asked for (correct.c)
    sweep      one step back from the target to z_T (sweep.c), or
    absorb     one whose noise takes up what it leaves (absorb.c)
    pass       every state of an estimated trajectory, in the sampler's order (passes.c)
    forward    the sampler itself, from z_T to the image (forward.c)

NRI_REVERSED: a step for each evaluation, the last first, then a forward run if the error is measured, then the next round of
both.  NRI_PASSES: passes, then a forward run if the error is measured.
*/
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "arena.h"
#include "inversion.h"

const nri_options nri_default_options = {
    .solver = NRI_AUTO,
    .order = NRI_REVERSED,
    .max_nfe = 3,
    .depth = 5,
    .rounds = 0,
    .tol = 1e-4,
    .atol = 0,
    .lam = 0.1,
    .floor = 0.5,
    .extrapolation = 1,
    .predictor = true,
    .correct_rounds = 2,
};

/* Anderson depth over the rounds: two slots each are little beside the sweep and the forward run that a round costs. */
enum { TARGET_DEPTH = 10 };

/* --------------------------------------------------------------------------------------------------------- options */

static nri_status
refuse(nri_problem *problem, const char *format, ...)
{
    va_list given;
    va_start(given, format);
    vsnprintf(problem->text, sizeof(problem->text), format, given);
    va_end(given);
    return NRI_BAD_ARGUMENT;
}

/* "<name> must <be what is allowed>, got <x>", x as Python writes it: the fewest digits that tell it apart. */
static nri_status
refuse_number(nri_problem *problem, const char *name, const char *allowed, double x)
{
    char text[40] = "nan";
    for (int digits = 1; digits <= 17 && strtod(text, NULL) != x && !isnan(x); digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, x);
    }
    if (x == rint(x) && fabs(x) < 1e15) {
        snprintf(text, sizeof(text), "%.1f", x);
    }
    return refuse(problem, "%s must %s, got %s", name, allowed, text);
}

/* A number of evaluations or rounds; `with`: what else than the sampler says how many they may be. */
static nri_status
check_count(nri_problem *problem, const char *name, int x, int least, int64_t most, const char *with)
{
    return x < least  ? refuse(problem, "%s must be at least %d, got %d", name, least, x)
           : x > most ? refuse(problem, "%s must be at most %d with this sampler%s, got %d", name, (int)most, with, x)
                      : NRI_OK;
}

/* Each number by itself. */
static nri_status
check_ranges(const nri_options *o, nri_problem *problem)
{
    const char *positive = "be a finite number above 0", *other = "be a finite number of at least 0", *part = "be in 0..1";
    const struct {
        const char *name, *allowed;
        double value;
        bool good;
    } numbers[] = {{"tol", other, o->tol, o->tol >= 0},
                   {"atol", other, o->atol, o->atol >= 0},
                   {"lam", other, o->lam, o->lam >= 0},
                   {"floor", positive, o->floor, o->floor > 0},
                   {"extrapolation", part, o->extrapolation, o->extrapolation >= 0 && o->extrapolation <= 1}};
    if ((unsigned)o->solver >= NRI_SOLVERS || (unsigned)o->order >= NRI_ORDERS) {
        return refuse(problem, "solver and order must be in their lists, got %d and %d", (int)o->solver, (int)o->order);
    }
    NRI_TRY(check_count(problem, "max_nfe", o->max_nfe, 1, INT_MAX, ""));
    if (o->depth < 0 || o->depth > NRI_MAX_DEPTH) {
        return refuse(problem, "depth must be in 0..%d, got %d", NRI_MAX_DEPTH, o->depth);
    }
    NRI_TRY(check_count(problem, "rounds", o->rounds, 0, INT_MAX, ""));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        if (!numbers[i].good || !isfinite(numbers[i].value)) {
            return refuse_number(problem, numbers[i].name, numbers[i].allowed, numbers[i].value);
        }
    }
    return NRI_OK;
}

/* What does not go together, and what the sampler has to have. */
static nri_status
check_together(const nri_sampler *s, const nri_options *o, nri_problem *problem)
{
    const char *wrong = o->order != NRI_PASSES                   ? NULL
                        : o->solver == NRI_NEWTON                ? "solver='newton'"
                        : o->rounds > 0                          ? "rounds above 0"
                        : o->absorb                              ? "noise='absorb'"
                        : o->correct_from && o->correct_inverted ? "a correction without draws"
                                                                 : NULL;
    if (wrong) {
        return refuse(problem, "order='passes' does not go with %s; use order='reversed'", wrong);
    }
    const char *missing = !o->absorb        ? NULL
                          : !s->levels      ? "a sampler with levels"
                          : !s->first_order ? "a sampler that remembers no older network outputs"
                          : o->rounds > 0   ? "rounds=0"
                                            : NULL;
    return missing ? refuse(problem, "noise='absorb' needs %s; use noise='record'", missing) : NRI_OK;
}

static nri_status
check_correction(const nri_options *o, nri_problem *problem)
{
    if (!o->correct_from) {
        const char *alone = o->correct_only ? "correct_only" : o->correct_radius ? "radius" : NULL;
        return alone ? refuse(problem, "%s needs correct_from", alone) : NRI_OK;
    }
    int64_t most = INT_MAX / 2 / ((int64_t)o->correct_from->evaluations + o->correct_from->noises + 1);
    NRI_TRY(check_count(problem, "correct_rounds", o->correct_rounds, 1, most, ""));
    return o->correct_inverted || o->correct_from->levels
               ? NRI_OK
               : refuse(problem, "correct_from must have levels where noise is drawn; leave out draws");
}

/* Every evaluation is counted in an int. */
static nri_status
check_counts(const nri_sampler *s, const nri_options *o, nri_problem *problem)
{
    int64_t E = s->evaluations, sweeps = INT_MAX / 2 / E, rounds = sweeps / ((int64_t)o->max_nfe + 1) - 1;
    NRI_TRY(check_count(problem, "max_nfe", o->max_nfe, 1, sweeps - 1, ""));
    return check_count(problem, "rounds", o->rounds, 0, rounds, " and max_nfe");
}

static nri_status
check_steps(const nri_sampler *s, const char *name, nri_problem *problem)
{
    for (int j = 0; j < s->evaluations; j++) {
        if (s->singular[j]) {
            refuse(problem, "%s: step %d of %d cannot be inverted: %s", name, j, s->evaluations,
                   nri_status_text(NRI_SINGULAR_STEP));
            problem->step = j;
            return NRI_SINGULAR_STEP;
        }
    }
    return NRI_OK;
}

nri_status
nri_check_options(const nri_sampler *sampler, const nri_options *options, nri_problem *problem)
{
    *problem = (nri_problem){.step = -1};
    NRI_TRY(check_ranges(options, problem));
    NRI_TRY(check_correction(options, problem));
    NRI_TRY(check_together(sampler, options, problem));
    NRI_TRY(check_counts(sampler, options, problem));
    if (options->correct_from && options->correct_inverted) {
        NRI_TRY(check_steps(options->correct_from, "correct_from", problem));
    }
    return options->correct_only ? NRI_OK : check_steps(sampler, "sampler", problem);
}

/* --------------------------------------------------------------------------------------------------------- creation */

/* Whether forward runs take place. */
static bool
measures(const nri_options *o)
{
    return (o->rounds > 0 || o->verify) && !o->correct_only;
}

static int
target_depth(const nri_options *o)
{
    return o->rounds < TARGET_DEPTH ? o->rounds : TARGET_DEPTH;
}

/* A deeper ring than evaluations would never be filled. */
static int
step_depth(const nri_sampler *s, const nri_options *o)
{
    int depth = o->solver == NRI_NEWTON ? 0 : o->solver == NRI_FIXED_POINT ? o->order != NRI_PASSES : o->depth;
    int longest = nri_allot(s, o, NULL);
    return depth < longest ? depth : longest - 1;
}

/* First slots. */
typedef struct {
    int64_t step_rings, newton, target_rings, states;
    int64_t noises, correct_noises, draws, trajectory, best_trajectory, passes, end;
} layout;

static layout
lay_out(const nri_sampler *s, const nri_options *o)
{
    layout l = {.step_rings = RINGS};
    bool solved = !o->correct_only, passes = solved && o->order == NRI_PASSES, forward = measures(o);
    int kept = solved && o->trajectory ? s->evaluations + 1 : 0;
    int rings = most(forward ? nri_run_slots(s) : 0, o->correct_from ? nri_run_slots(o->correct_from) : 0);
    l.newton = l.step_rings + (solved && !passes ? 2 * (step_depth(s, o) + 1) : 0);
    l.target_rings = l.newton + (o->solver == NRI_NEWTON ? NRI_NEWTON_SLOTS : 0);
    l.states = l.target_rings + (forward ? 2 * (target_depth(o) + 1) : 0);
    l.noises = l.states + rings;
    l.correct_noises = l.noises + s->noises;
    l.draws = l.correct_noises + (o->correct_from ? (int64_t)o->correct_rounds * o->correct_from->noises : 0);
    l.trajectory = l.draws + (o->correct_from && !o->correct_inverted ? o->correct_rounds : 0);
    l.best_trajectory = l.trajectory + kept;
    l.passes = l.best_trajectory + (forward ? kept : 0);
    l.end = l.passes + (passes ? nri_passes_slots(s, step_depth(s, o)) : 0);
    return l;
}

int
nri_inversion_slots(const nri_sampler *sampler, const nri_options *options)
{
    int64_t end = lay_out(sampler, options).end;
    return end < INT_MAX ? (int)end : INT_MAX; /* more than any space has */
}

int64_t
nri_inversion_max_evaluations(const nri_sampler *sampler, const nri_options *options)
{
    const nri_options *o = options;
    int64_t sweep = (int64_t)sampler->evaluations * o->max_nfe, forward = measures(o) ? sampler->evaluations : 0;
    int64_t round = o->correct_from ? (int64_t)o->correct_from->evaluations * (o->correct_inverted ? 2 : 1) : 0;
    return round * o->correct_rounds + (o->correct_only ? 0 : ((int64_t)o->rounds + 1) * (sweep + forward));
}

static nri_status
allocate(nri_inversion *inv)
{
    const nri_sampler *s = inv->sampler, *from = inv->options.correct_from;
    int64_t B = inv->v->batch, E = s->evaluations, corrected = from ? B : 0;
    int longest = from ? most(s->evaluations, from->evaluations) : s->evaluations; /* a window is no longer */
#define ARRAY(member, rows, columns) NRI_ARRAY(nri_inversion, member, rows, columns)
    const nri_array arrays[] = {ARRAY(result.residual, E, B),
                                ARRAY(result.step_nfe, E, B),
                                ARRAY(result.nfe, B, 1),
                                ARRAY(result.reason, B, 1),
                                ARRAY(result.error, B, 1),
                                ARRAY(result.measured, B, 1),
                                ARRAY(result.growth, B, 1),
                                ARRAY(grown, B, 1),
                                ARRAY(missed, B, 1),
                                ARRAY(rate, B, 1),
                                ARRAY(stretch, B, 1),
                                ARRAY(result.restarts, B, 1),
                                ARRAY(result.rejected, B, 1),
                                ARRAY(result.failed, B, 1),
                                ARRAY(result.moved, corrected, 1),
                                ARRAY(result.held, corrected, 1),
                                ARRAY(radius, corrected, 1),
                                ARRAY(spoiled, corrected, 1),
                                ARRAY(allowance, E, 1),
                                ARRAY(surplus, B, 1),
                                ARRAY(natural, B, 1),
                                ARRAY(idle, B, 1),
                                ARRAY(active, B, 1),
                                ARRAY(resting, B, 1),
                                ARRAY(coef, 3 * B + 2 * longest + 2, 1)};
    inv->block = NRI_CARVE(inv, arrays);
    return inv->block ? NRI_OK : NRI_NO_MEMORY;
}

static nri_status
create_solves(nri_inversion *inv, const layout *l)
{
    const nri_options *o = &inv->options;
    int depth = step_depth(inv->sampler, o), rings = (int)l->step_rings, outer = (int)l->target_rings;
    inv->step = (nri_solve){.v = inv->v,
                            .solver = o->solver,
                            .feed = o->solver == NRI_NEWTON ? nri_newton : nri_iterate,
                            .depth = depth,
                            .max_nfe = o->max_nfe,
                            .tol = o->tol,
                            .atol = o->atol,
                            .lam = o->lam,
                            .floor = o->floor,
                            .tally = {inv->result.restarts, inv->result.rejected, inv->result.failed},
                            .slot = {rings, rings + depth + 1, BEST_F, BEST_R, SPARE, STATE, (int)l->newton}};
    inv->target = inv->step;
    inv->target.solver = NRI_ANDERSON;
    inv->target.feed = nri_iterate;
    inv->target.depth = target_depth(o);
    inv->target.max_nfe = o->rounds + 1;
    inv->target.slot = (nri_solve_slots){outer, outer + inv->target.depth + 1, TARGET_BEST_F, TARGET_BEST_R, SPARE, Z0, -1};
    if (o->order == NRI_PASSES && !o->correct_only) {
        NRI_TRY(nri_create_stack(inv, depth, &inv->step.slot));
        inv->step.v = inv->stack;
    }
    NRI_TRY(nri_solve_create(&inv->step));
    return nri_solve_create(&inv->target);
}

/* The radius of each sample's correction, if there is one. */
static nri_status
take_radius(nri_inversion *inv, nri_problem *problem)
{
    const double *given = inv->options.correct_radius;
    for (int64_t b = 0; inv->radius && b < inv->v->batch; b++) {
        inv->radius[b] = given ? given[b] : INFINITY;
        if (!(inv->radius[b] >= 0)) {
            return refuse_number(problem, "radius", "hold a norm of at least 0 for each sample", inv->radius[b]);
        }
    }
    inv->options.correct_radius = NULL; /* it was borrowed for this call */
    return NRI_OK;
}

static nri_status
fill(nri_inversion *inv, nri_problem *problem)
{
    const nri_options *o = &inv->options;
    layout l = lay_out(inv->sampler, o);
    if (inv->v->slots < l.end) {
        return refuse(problem, "the inversion needs %lld slots, its space has %d", (long long)l.end, inv->v->slots);
    }
    NRI_TRY(allocate(inv));
    inv->forward = (nri_run){inv->sampler, inv->v, (int)l.states, (int)l.noises, inv->coef};
    inv->denoise = (nri_run){o->correct_from, inv->v, (int)l.states, (int)l.correct_noises, inv->coef};
    inv->inputs = (nri_inputs){Z0, GUESS, (int)l.noises, (int)l.draws, (int)l.correct_noises};
    inv->passes = (int)l.passes;
    inv->trajectory = o->trajectory && !o->correct_only ? (int)l.trajectory : -1;
    inv->result.latents = o->correct_only ? Z0 : measures(o) ? BEST : STATE;
    inv->result.trajectory = inv->trajectory >= 0 && measures(o) ? (int)l.best_trajectory : inv->trajectory;
    inv->result.noises = (int)l.noises;
    inv->result.corrected = o->correct_from ? Z0 : -1;
    nri_allot(inv->sampler, o, inv->allowance);
    NRI_TRY(take_radius(inv, problem));
    return create_solves(inv, &l);
}

nri_status
nri_inversion_create(const nri_sampler *sampler, const nri_options *options, nri_space *v, nri_inversion **out,
                     nri_problem *problem)
{
    *out = NULL;
    NRI_TRY(nri_check_options(sampler, options, problem));
    nri_inversion *inv = calloc(1, sizeof(*inv));
    if (!inv) {
        return NRI_NO_MEMORY;
    }
    *inv = (nri_inversion){.sampler = sampler, .options = *options, .v = v};
    nri_status status = fill(inv, problem);
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

nri_inputs
nri_inversion_inputs(const nri_inversion *inv)
{
    return inv->inputs;
}

/* ----------------------------------------------------------------------------------------------------------- phases */

/* The way back at step j. */
static const nri_phase *
step_back(nri_inversion *inv, int j)
{
    inv->j = j;
    inv->absorbs = nri_absorbing_noise(inv->sampler, &inv->options, j);
    return inv->absorbs >= 0 ? &nri_absorb : &nri_sweep;
}

static const nri_phase *
way_back(nri_inversion *inv)
{
    return inv->options.order == NRI_PASSES ? &nri_passes : step_back(inv, inv->sampler->evaluations - 1);
}

/* What comes next, NULL at the end; a step gets its j, passes leave it at 0. */
static const nri_phase *
next_phase(nri_inversion *inv)
{
    bool awake = false;
    for (int64_t b = 0; b < inv->v->batch; b++) {
        awake |= !inv->idle[b];
    }
    if (inv->phase == &nri_correct) {
        return inv->options.correct_only ? NULL : way_back(inv);
    }
    if (!awake) {
        return NULL;
    }
    if (inv->phase == &nri_forward) {
        return way_back(inv); /* another round */
    }
    return inv->j > 0 ? step_back(inv, inv->j - 1) : measures(&inv->options) ? &nri_forward : NULL;
}

/* Z0 is the target: it has to be finite, and the first round starts from it. */
static nri_status
take_target(nri_inversion *inv)
{
    NRI_TRY(nri_norms(inv->v, Z0, inv->target.scale));
    for (int64_t b = 0; b < inv->v->batch; b++) {
        if (!isfinite(inv->target.scale[b])) {
            return NRI_NOT_FINITE;
        }
    }
    nri_solve_begin(&inv->target, NULL);
    return inv->v->ops->copy(inv->v, Y, Z0, NULL);
}

static nri_status
enter(nri_inversion *inv, const nri_phase *next)
{
    inv->phase = next;
    return next ? next->begin(inv) : nri_seal(inv);
}

/* A phase has ended. */
static nri_status
go_on(nri_inversion *inv)
{
    const nri_phase *last = inv->phase, *next = next_phase(inv);
    if (last == &nri_correct && next) {
        NRI_TRY(take_target(inv));
    }
    if (measures(&inv->options) && inv->target.k == 0 && (next == &nri_forward || !next)) {
        NRI_TRY(nri_keep_best(inv, NULL)); /* something to return if nothing can be measured */
    }
    return enter(inv, next);
}

static nri_status
start(nri_inversion *inv)
{
    for (int64_t i = 0; i < inv->v->batch * inv->sampler->evaluations; i++) {
        inv->result.residual[i] = NAN;
    }
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->result.error[b] = inv->result.growth[b] = NAN;
    }
    NRI_TRY(take_target(inv));
    NRI_TRY(enter(inv, inv->options.correct_from ? &nri_correct : way_back(inv)));
    inv->started = true;
    return NRI_OK;
}

/* ---------------------------------------------------------------------------------------------------------- requests */

/* The samples that the coming request is for. */
static void
find_active(nri_inversion *inv)
{
    for (int64_t b = 0; b < inv->v->batch; b++) {
        inv->active[b] = inv->phase->solves ? nri_solve_active(&inv->step, b) : !inv->idle[b];
        inv->resting[b] = !inv->active[b];
    }
}

nri_status
nri_inversion_next(nri_inversion *inv, nri_request *request, bool *done)
{
    if (!inv->started) {
        NRI_TRY(start(inv));
    }
    const nri_phase *phase = inv->phase;
    *done = !phase;
    inv->waiting = !*done;
    if (phase) {
        bool correcting = phase == &nri_correct, sweeping = phase == &nri_sweep;
        const nri_sampler *s = correcting ? inv->options.correct_from : inv->sampler;
        find_active(inv);
        *request = (nri_request){.index = inv->j,
                                 .timestep = s->timesteps[inv->j],
                                 .scale = s->inputs[inv->j],
                                 .slot = phase->sample ? phase->sample(inv) : Z,
                                 .active = inv->active,
                                 .wants_gradient = sweeping && inv->step.differentiates,
                                 .cotangent = sweeping && inv->step.asks == NRI_GRADIENT ? inv->step.cotangent : -1,
                                 .correcting = correcting};
    }
    return NRI_OK;
}

nri_status
nri_inversion_feed(nri_inversion *inv, const nri_tensor *model_output)
{
    bool ended = false;
    if (!inv->waiting) {
        return NRI_BAD_ORDER;
    }
    inv->waiting = false; /* also after a failure: what has been done cannot be done again */
    NRI_TRY(inv->phase->feed(inv, model_output, &ended));
    return ended ? go_on(inv) : NRI_OK;
}

nri_status
nri_inversion_result(const nri_inversion *inv, nri_result *result)
{
    if (!inv->started || inv->phase) {
        return NRI_BAD_ORDER;
    }
    *result = inv->result;
    return NRI_OK;
}
