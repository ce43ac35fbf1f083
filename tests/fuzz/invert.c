/*
Fuzz target: an inversion, from bytes.

They say what the sampler is, the options, the size, the target, what the network answers, in which order the functions are
called, and which allocation fails.  What must hold is that calls end with a status, that there are no more requests than
nri_inversion_max_evaluations says, and that a sample whose reason is not NRI_NON_FINITE has finite results.
*/
#include "fuzz.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Beyond MOST_SLOTS a space is made too small, which has to be refused; after MOST_REQUESTS an inversion is given up. */
enum { MOST_E = 6, MOST_K = 3, MOST_B = 3, MOST_D = 5, MOST_ROUNDS = 4, MOST_SLOTS = 400, MOST_REQUESTS = 300 };
enum { VALUES = MOST_B * MOST_D };

typedef struct {
    int E, K;
    double timesteps[MOST_E], inputs[MOST_E], steps[MOST_E * (2 * MOST_E + MOST_K)], levels[2 * (MOST_E + 1)];
    bool leveled;
} form;

typedef struct {
    fuzz_bytes *in;
    nri_sampler *sampler, *from;
    nri_options options;
    double radius[MOST_B];
    nri_space *v;
    nri_inversion *inv;
    double amplitude, slope; /* of the network */
    int64_t requests, values;
} session;

/* --------------------------------------------------------------------------------------------------------- the sampler */

static double *
coefficient(form *f, int j, int k)
{
    return f->steps + j * (2 * f->E + f->K) + k;
}

/* Euler steps with falling noise levels; then some that remember, draw noise, or are anything. */
static void
draw_form(fuzz_bytes *in, form *f)
{
    *f = (form){.E = 1 + fuzz_pick(in, MOST_E), .K = fuzz_pick(in, MOST_K + 1), .leveled = fuzz_byte(in) & 1};
    double ratio = 0.2 + fuzz_pick(in, 32) / 32.0, top = 0.5 + fuzz_pick(in, 64) / 4.0;
    for (int j = 0; j <= f->E; j++) {
        f->levels[2 * j] = 1;
        f->levels[2 * j + 1] = j < f->E ? top * pow(ratio, j) : 0;
    }
    for (int j = 0; j < f->E; j++) {
        f->timesteps[j] = f->E - j;
        f->inputs[j] = 1 / hypot(1, f->levels[2 * j + 1]);
        *coefficient(f, j, j) = 1;
        *coefficient(f, j, f->E + j) = f->levels[2 * j + 3] - f->levels[2 * j + 1];
        if (f->K && j < f->E - 1) {
            *coefficient(f, j, 2 * f->E + j % f->K) = fuzz_pick(in, 8) / 8.0;
        }
    }
    for (int n = fuzz_pick(in, 4); n > 0; n--) { /* older states and outputs, whole multistep methods among them */
        int j = fuzz_pick(in, f->E), k = fuzz_pick(in, j + 1);
        *coefficient(f, j, fuzz_byte(in) & 1 ? k : f->E + k) = fuzz_plain(in);
    }
    for (int n = fuzz_rarely(in) ? fuzz_pick(in, 4) : 0; n > 0; n--) {
        f->steps[fuzz_pick(in, f->E * (2 * f->E + f->K))] = fuzz_number(in);
    }
    if (fuzz_rarely(in)) {
        double *anywhere[] = {f->timesteps, f->inputs, f->levels};
        anywhere[fuzz_pick(in, 3)][fuzz_pick(in, f->E)] = fuzz_number(in);
    }
}

static nri_status
create_sampler(fuzz_bytes *in, nri_sampler **out)
{
    form f;
    int step;
    draw_form(in, &f);
    nri_status status = nri_sampler_create(f.E, f.K, f.timesteps, f.steps, f.inputs, f.leveled ? f.levels : NULL, out,
                                           &step);
    MUST((status == NRI_OK) == (*out != NULL));
    MUST(status == NRI_OK || status == NRI_NO_MEMORY || status == NRI_NOT_FINITE || status == NRI_NOT_CAUSAL);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- the options */

static void
draw_options(session *s, int batch)
{
    nri_options *o = &s->options;
    fuzz_bytes *in = s->in;
    int flags = fuzz_byte(in), max_nfe = fuzz_int(in, 11);
    *o = nri_default_options;
    o->solver = (nri_solver)fuzz_int(in, NRI_SOLVERS - 1);
    o->order = (nri_order)fuzz_int(in, NRI_ORDERS - 1);
    o->max_nfe = max_nfe >= 0 && max_nfe < 12 ? max_nfe + 1 : max_nfe; /* the plainest choice is 1, not 0 */
    o->depth = fuzz_int(in, NRI_MAX_DEPTH);
    o->rounds = fuzz_byte(in) & 1 ? fuzz_int(in, MOST_ROUNDS) : 0;
    o->tol = fuzz_rarely(in) ? fuzz_number(in) : pow(10, -fuzz_pick(in, 12));
    o->atol = fuzz_rarely(in) ? fuzz_number(in) : fuzz_pick(in, 4) / 1024.0;
    o->lam = fuzz_rarely(in) ? fuzz_number(in) : fuzz_pick(in, 8) / 8.0;
    o->floor = fuzz_rarely(in) ? fuzz_number(in) : 0.5;
    o->extrapolation = fuzz_rarely(in) ? fuzz_number(in) : 1 - fuzz_pick(in, 5) / 4.0;
    o->predictor = !(flags & 1);
    o->guess = flags & 2;
    o->absorb = flags & 4;
    o->verify = flags & 8;
    o->trajectory = flags & 16;
    o->correct_inverted = flags & 32;
    o->correct_only = (flags & 64) && fuzz_byte(in) & 1;
    o->correct_rounds = fuzz_int(in, MOST_ROUNDS);
    if (flags & 128) {
        o->correct_from = s->from;
        for (int b = 0; b < batch; b++) {
            s->radius[b] = fuzz_number(in);
        }
        o->correct_radius = fuzz_byte(in) & 1 ? s->radius : NULL;
    }
}

/* ---------------------------------------------------------------------------------------------------------- the tensors */

/* Something in a slot, finite unless `spoil`: the target alone is checked by the core. */
static nri_status
load(session *s, int slot, bool spoil)
{
    float x[VALUES];
    int64_t shape[2], n = s->v->batch * s->v->elements;
    nri_tensor t = fuzz_tensor(x, shape, s->v->batch, s->v->elements);
    double scale = fuzz_rarely(s->in) ? fuzz_number(s->in) : 1;
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * sin(1.7 * (double)i + slot));
        x[i] = spoil || isfinite(x[i]) ? x[i] : FLT_MAX;
    }
    for (int k = spoil && fuzz_rarely(s->in) ? fuzz_pick(s->in, 4) : 0; k > 0; k--) {
        x[fuzz_pick(s->in, (int)n)] = (float)fuzz_number(s->in);
    }
    return s->v->ops->exchange(s->v, slot, &t, NRI_LOAD);
}

static nri_status
load_inputs(session *s)
{
    nri_inputs to = nri_inversion_inputs(s->inv);
    const nri_options *o = &s->options;
    int rounds = o->correct_from ? o->correct_rounds : 0;
    NRI_TRY(load(s, to.target, true));
    if (o->guess) {
        NRI_TRY(load(s, to.guess, false));
    }
    for (int k = 0; k < s->sampler->noises; k++) {
        NRI_TRY(load(s, to.noises + k, false));
    }
    for (int k = 0; !o->correct_inverted && k < rounds; k++) {
        NRI_TRY(load(s, to.draws + k, false));
    }
    for (int k = 0; rounds && k < rounds * s->from->noises; k++) {
        NRI_TRY(load(s, to.correct_noises + k, false));
    }
    return NRI_OK;
}

static void
store(session *s, int slot, float *x)
{
    int64_t shape[2];
    nri_tensor t = fuzz_tensor(x, shape, s->v->batch, s->v->elements);
    MUST(slot >= 0 && slot < s->v->slots);
    MUST(s->v->ops->exchange(s->v, slot, &t, NRI_STORE) == NRI_OK);
}

static void
must_be_finite(session *s, int slot, const bool *which)
{
    float x[VALUES];
    store(s, slot, x);
    for (int64_t i = 0; i < s->v->batch * s->v->elements; i++) {
        MUST(!which[i / s->v->elements] || isfinite(x[i]));
    }
}

/* ---------------------------------------------------------------------------------------------------------- the network */

static bool
same(const nri_request *a, const nri_request *b)
{
    return a->index == b->index && a->timestep == b->timestep && a->scale == b->scale && a->slot == b->slot
           && a->active == b->active && a->wants_gradient == b->wants_gradient && a->cotangent == b->cotangent
           && a->correcting == b->correcting;
}

static void
check_request(session *s, const nri_request *q)
{
    const nri_sampler *from = q->correcting ? s->from : s->sampler;
    bool any = false;
    MUST(q->index >= 0 && q->index < from->evaluations);
    MUST(q->timestep == from->timesteps[q->index] && q->scale == from->inputs[q->index]);
    for (int64_t b = 0; b < s->v->batch; b++) {
        any |= q->active[b];
    }
    MUST(any);
    MUST(q->cotangent < 0 || s->options.solver == NRI_NEWTON);
    s->values += q->cotangent < 0;
    s->requests++;
    MUST(s->values <= nri_inversion_max_evaluations(s->sampler, &s->options));
}

/* What the network says: amplitude tanh(slope x), or its gradient; now and then something else. */
static void
answer(session *s, const nri_request *q, float *m)
{
    float x[VALUES], v[VALUES];
    int64_t D = s->v->elements, n = s->v->batch * D;
    store(s, q->slot, x);
    if (q->cotangent >= 0) {
        store(s, q->cotangent, v);
    }
    for (int64_t i = 0; i < n; i++) {
        double y = tanh(s->slope * q->scale * (double)x[i]);
        double slope = s->amplitude * s->slope * q->scale * (1 - y * y);
        m[i] = (float)(q->cotangent >= 0 ? slope * (double)v[i] : s->amplitude * y);
        m[i] = q->active[i / D] ? m[i] : NAN;
    }
    int what = fuzz_byte(s->in), b = fuzz_pick(s->in, (int)s->v->batch);
    if (what >= 192) { /* one sample */
        float value = (float)fuzz_number(s->in);
        for (int64_t i = b * D; i < (b + 1) * D; i++) {
            m[i] = value;
        }
    }
    else if (what >= 144) { /* one element */
        m[fuzz_pick(s->in, (int)n)] = (float)fuzz_number(s->in);
    }
}

/* Feeds an answer; or first one that does not fit, which has to be refused and the request to stay. */
static nri_status
feed(session *s, const nri_request *q)
{
    float m[VALUES + MOST_D];
    int64_t shape[2];
    nri_tensor t = fuzz_tensor(m, shape, s->v->batch, s->v->elements);
    nri_request again;
    bool done;
    answer(s, q, m);
    if (fuzz_rarely(s->in)) {
        MUST(nri_inversion_next(s->inv, &again, &done) == NRI_OK && !done && same(q, &again));
        shape[fuzz_byte(s->in) & 1]++;
        MUST(nri_inversion_feed(s->inv, &t) == NRI_BAD_ARGUMENT);
        MUST(nri_inversion_next(s->inv, &again, &done) == NRI_OK && !done && same(q, &again));
        t = fuzz_tensor(m, shape, s->v->batch, s->v->elements);
    }
    nri_status status = nri_inversion_feed(s->inv, &t);
    MUST(nri_inversion_feed(s->inv, &t) == NRI_BAD_ORDER);
    return status;
}

/* ----------------------------------------------------------------------------------------------------------- the result */

static void
check_samples(session *s, const nri_result *r)
{
    int64_t B = s->v->batch;
    for (int64_t b = 0; b < B; b++) {
        bool sound = r->reason[b] != NRI_NON_FINITE;
        MUST((unsigned)r->reason[b] < NRI_REASONS && r->reason[b] != NRI_RUNNING);
        MUST(r->nfe[b] >= 0 && r->nfe[b] <= r->evaluations);
        MUST(!isinf(r->error[b]) && !(r->error[b] < 0));
        for (int64_t at = b; at < B * s->sampler->evaluations; at += B) {
            MUST(r->step_nfe[at] >= 0 && !(r->residual[at] < 0));
            MUST(!sound || s->options.correct_only || isfinite(r->residual[at]));
        }
        MUST(!r->moved || !sound || (isfinite(r->moved[b]) && r->moved[b] >= 0));
    }
}

static void
check_result(session *s)
{
    nri_result r;
    bool sound[MOST_B];
    MUST(nri_inversion_result(s->inv, &r) == NRI_OK);
    MUST(r.evaluations == s->requests);
    check_samples(s, &r);
    for (int64_t b = 0; b < s->v->batch; b++) {
        sound[b] = r.reason[b] != NRI_NON_FINITE;
    }
    must_be_finite(s, r.latents, sound);
    for (int j = 0; r.trajectory >= 0 && j <= s->sampler->evaluations; j++) {
        must_be_finite(s, r.trajectory + j, sound);
    }
    for (int k = 0; !s->options.correct_only && k < s->sampler->noises; k++) {
        must_be_finite(s, r.noises + k, sound);
    }
    if (r.corrected >= 0) {
        must_be_finite(s, r.corrected, sound);
    }
}

/* ----------------------------------------------------------------------------------------------------------------- a run */

static nri_status
drive(session *s)
{
    nri_request q;
    nri_result r;
    bool done;
    for (;;) {
        NRI_TRY(nri_inversion_next(s->inv, &q, &done));
        if (done) {
            check_result(s);
            MUST(nri_inversion_next(s->inv, &q, &done) == NRI_OK && done);
            return NRI_OK;
        }
        MUST(nri_inversion_result(s->inv, &r) == NRI_BAD_ORDER);
        check_request(s, &q);
        if (s->requests > MOST_REQUESTS || fuzz_byte(s->in) == 255) {
            return NRI_OK;
        }
        NRI_TRY(feed(s, &q));
    }
}

static nri_status
open_space(session *s, int64_t batch, int64_t elements)
{
    float x[VALUES] = {0};
    int64_t shape[2];
    nri_tensor like = fuzz_tensor(x, shape, batch, elements);
    int slots = nri_inversion_slots(s->sampler, &s->options);
    bool small = slots > MOST_SLOTS || fuzz_rarely(s->in);
    nri_problem problem;
    MUST(slots > 0);
    NRI_TRY(nri_space_create_host(&like, small ? 1 + slots % MOST_SLOTS % slots : slots, &s->v));
    nri_status status = nri_inversion_create(s->sampler, &s->options, s->v, &s->inv, &problem);
    MUST(s->v->slots >= slots || status != NRI_OK);
    MUST((status == NRI_OK) == (s->inv != NULL));
    MUST(status == NRI_OK || status == NRI_NO_MEMORY || (status == NRI_BAD_ARGUMENT && *problem.text));
    return status;
}

static nri_status
run(session *s)
{
    nri_problem problem;
    int64_t batch = 1 + fuzz_pick(s->in, MOST_B), elements = 1 + fuzz_pick(s->in, MOST_D);
    NRI_TRY(create_sampler(s->in, &s->sampler));
    NRI_TRY(create_sampler(s->in, &s->from));
    draw_options(s, (int)batch);
    nri_status status = nri_check_options(s->sampler, &s->options, &problem);
    MUST((status == NRI_OK) == !*problem.text);
    MUST(status == NRI_OK || nri_inversion_create(s->sampler, &s->options, s->v, &s->inv, &problem) == status);
    NRI_TRY(status);
    NRI_TRY(open_space(s, batch, elements));
    s->amplitude = fuzz_rarely(s->in) ? fuzz_number(s->in) : 0.5 + fuzz_pick(s->in, 8) / 4.0;
    s->slope = fuzz_rarely(s->in) ? fuzz_number(s->in) : 0.5;
    NRI_TRY(load_inputs(s));
    return drive(s);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bytes in = {data, data + size};
    session s = {.in = &in};
    alloc_arm(fuzz_rarely(&in) ? fuzz_pick(&in, 12) : -1);
    nri_status status = run(&s);
    MUST(!alloc_failed() || status == NRI_NO_MEMORY);
    MUST(alloc_failed() || status != NRI_NO_MEMORY);
    MUST((size_t)status <= NRI_NOT_UNIQUE && status != NRI_BACKEND && status != NRI_BAD_ORDER);
    nri_inversion_destroy(s.inv);
    nri_space_destroy(s.v);
    nri_sampler_destroy(s.sampler);
    nri_sampler_destroy(s.from);
    MUST(alloc_disarm() == 0);
    return 0;
}
