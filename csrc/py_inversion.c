/*
nrinv._C.Inversion: the noise from which a sampler draws its target.

One in use by one thread refuses another.
*/
#include "python.h"

#include <limits.h>
#include <math.h>
#include <stdatomic.h>

typedef struct {
    PyObject_HEAD
    PyObject *sampler, *correct_from; /* Samplers, which the core borrows */
    pattern target;
    nri_space *v;
    nri_options options;
    nri_inversion *core;
    atomic_bool busy; /* also where threads have no GIL */
} Inversion;

/* The arguments that are lists of tensors. */
enum { NOISES, DRAWS, CORRECT_NOISES, LISTS };
static const char *const list_names[LISTS] = {"noises", "draws", "correct_noises"};

/* The arguments that are objects. */
typedef struct {
    PyObject *sampler, *target, *guess, *correct_from, *radius, *lists[LISTS];
} given;

/* ------------------------------------------------------------------------------------------------------------ creation */

/* A whole number of any size: what no int holds becomes the largest or smallest, which the option's check refuses by name. */
static int
read_int(PyObject *x, void *out)
{
    int overflow;
    long n = PyLong_AsLongAndOverflow(x, &overflow);
    if (n == -1 && !overflow && PyErr_Occurred()) {
        return 0;
    }
    *(int *)out = overflow > 0 || n > INT_MAX ? INT_MAX : overflow < 0 || n < INT_MIN ? INT_MIN : (int)n;
    return 1;
}

/* A number of any size: what no double holds becomes infinity. */
static int
read_number(PyObject *x, void *out)
{
    double n = PyFloat_AsDouble(x);
    if (n == -1 && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        n = INFINITY;
    }
    *(double *)out = n;
    return !PyErr_Occurred();
}

static int
read_options(PyObject *args, PyObject *kwargs, given *g, nri_options *o)
{
    static char *names[] = {
        "sampler",   "target", "noises",         "guess",  "solver",       "noise",          "max_nfe",
        "depth",     "tol",    "atol",           "rounds", "lam",          "floor",          "extrapolation",
        "predictor", "verify", "trajectory",     "order",  "correct_from", "correct_rounds", "correct_only",
        "radius",    "draws",  "correct_noises", NULL};
    const char *solver = "auto", *noise = "record", *order = "reversed";
    int predictor, verify = 0, trajectory = 0, correct_only = 0;
    *o = nri_default_options;
    *g = (given){NULL, NULL, Py_None, Py_None, Py_None, {Py_None, Py_None, Py_None}};
    predictor = o->predictor;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO|$OOssO&O&O&O&O&O&O&O&pppsOO&pOOO:Inversion", names, &g->sampler, &g->target, &g->lists[NOISES],
            &g->guess, &solver, &noise, read_int, &o->max_nfe, read_int, &o->depth, read_number, &o->tol, read_number,
            &o->atol, read_int, &o->rounds, read_number, &o->lam, read_number, &o->floor, read_number, &o->extrapolation,
            &predictor, &verify, &trajectory, &order, &g->correct_from, read_int, &o->correct_rounds, &correct_only,
            &g->radius, &g->lists[DRAWS], &g->lists[CORRECT_NOISES])) {
        return -1;
    }
    int method = read_name("solver", solver, nri_solver_names);
    int kind = method < 0 ? -1 : read_name("noise", noise, nri_noise_names);
    int direction = kind < 0 ? -1 : read_name("order", order, nri_order_names);
    o->solver = (nri_solver)method;
    o->absorb = kind == NRI_ABSORB;
    o->order = (nri_order)direction;
    o->predictor = predictor;
    o->verify = verify;
    o->trajectory = trajectory;
    o->correct_only = correct_only;
    o->correct_inverted = g->lists[DRAWS] == Py_None;
    o->guess = g->guess != Py_None;
    return direction < 0 ? -1 : 0;
}

static const nri_sampler *
core_of(PyObject *sampler)
{
    return ((Sampler *)sampler)->sampler;
}

static int
check_sampler(PyObject *x, const char *name, PyObject *type)
{
    if (PyObject_TypeCheck(x, (PyTypeObject *)type)) {
        return 0;
    }
    return refuse("%s must be a Sampler, got %R", name, (PyObject *)Py_TYPE(x));
}

/* The lists, read once, as tuples as long as the options want; None has no tensors.  Drop them also after a failure. */
static int
read_lists(const Inversion *self, const given *g, PyObject **tuples)
{
    const nri_options *o = &self->options;
    int64_t rounds = o->correct_from ? o->correct_rounds : 0, each = rounds ? o->correct_from->noises : 0;
    bool unused = o->correct_only && g->lists[NOISES] == Py_None;
    const struct {
        int64_t count;
        const char *what;
    } wanted[LISTS] = {{unused ? 0 : core_of(self->sampler)->noises, "one for each time the sampler draws noise"},
                       {o->correct_inverted ? 0 : rounds, "one for each round with drawn noise"},
                       {rounds * each, "each round's noises of correct_from"}};
    for (int i = 0; i < LISTS; i++) {
        tuples[i] = g->lists[i] == Py_None ? PyTuple_New(0) : PySequence_Tuple(g->lists[i]);
        if (!tuples[i]) {
            return -1;
        }
        if (PyTuple_Size(tuples[i]) != wanted[i].count) {
            return refuse("%s must hold %lld tensors, %s, got %zd", list_names[i], (long long)wanted[i].count,
                          wanted[i].what, PyTuple_Size(tuples[i]));
        }
    }
    return 0;
}

/* Load a tensor into a slot; numbers that are not finite would end as samples for which the network is blamed. */
static int
load(Inversion *self, int slot, PyObject *x, const char *name)
{
    nri_space *v = self->v;
    nri_status status;
    bool finite = true;
    double *norms = PyMem_Malloc(sizeof(*norms) * (size_t)v->batch);
    if (!norms) {
        PyErr_NoMemory();
        return -1;
    }
    int bad = exchange(v, slot, &self->target, x, name, NRI_LOAD);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        status = nri_norms(v, slot, norms);
        Py_END_ALLOW_THREADS
        bad = check_status(status);
    }
    for (int64_t b = 0; !bad && b < v->batch; b++) {
        finite &= isfinite(norms[b]) != 0;
    }
    PyMem_Free(norms);
    return bad || finite ? bad : refuse("%s must be finite, got NaN or infinity", name);
}

static int
load_all(Inversion *self, PyObject *guess, PyObject **tuples)
{
    nri_inputs to = nri_inversion_inputs(self->core);
    const int first[LISTS] = {to.noises, to.draws, to.correct_noises};
    int bad = load(self, to.target, self->target.like, "target")
              || (guess != Py_None && load(self, to.guess, guess, "guess"));
    for (int i = 0; !bad && i < LISTS; i++) {
        for (int k = 0; !bad && k < PyTuple_Size(tuples[i]); k++) {
            bad = load(self, first[i] + k, PyTuple_GetItem(tuples[i], k), list_names[i]);
        }
    }
    return bad;
}

/* The radius as [B] doubles, or NULL with an exception. */
static PyArrayObject *
read_radius(PyObject *radius, int64_t batch)
{
    PyArrayObject *a = (PyArrayObject *)PyArray_FROM_OTF(radius, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    if (a && (PyArray_NDIM(a) != 1 || PyArray_DIM(a, 0) != batch)) {
        PyObject *shape = PyObject_GetAttrString((PyObject *)a, "shape");
        if (shape) {
            refuse("radius must hold a norm of at least 0 for each of the %lld samples, got shape %R", (long long)batch,
                   shape);
            Py_DECREF(shape);
        }
        Py_CLEAR(a);
    }
    return a;
}

static int
create_core(Inversion *self, PyObject *radius)
{
    nri_options o = self->options;
    nri_problem problem;
    PyArrayObject *norms = radius == Py_None ? NULL : read_radius(radius, self->v->batch);
    if (radius != Py_None && !norms) {
        return -1;
    }
    o.correct_radius = norms ? PyArray_DATA(norms) : NULL;
    nri_status status = nri_inversion_create(core_of(self->sampler), &o, self->v, &self->core, &problem);
    Py_XDECREF((PyObject *)norms);
    return check_problem(status, &problem);
}

/* Everything is read and checked before it is loaded. */
static int
inversion_open(Inversion *self, const module_state *state, const given *g)
{
    const nri_sampler *sampler = core_of(self->sampler);
    nri_problem problem;
    PyObject *tuples[LISTS] = {NULL, NULL, NULL};
    int bad = check_problem(nri_check_options(sampler, &self->options, &problem), &problem)
              || read_pattern(g->target, "the target", "target", &self->target) || read_lists(self, g, tuples)
              || create_space(state, &self->target, nri_inversion_slots(sampler, &self->options), &self->v)
              || create_core(self, g->radius) || load_all(self, g->guess, tuples);
    for (int i = 0; i < LISTS; i++) {
        Py_XDECREF(tuples[i]);
    }
    return bad ? -1 : 0;
}

static PyObject *
inversion_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    given g;
    nri_options options;
    module_state *state = PyType_GetModuleState(type);
    if (!state || read_options(args, kwargs, &g, &options) || check_sampler(g.sampler, "sampler", state->type[SAMPLER])
        || (g.correct_from != Py_None && check_sampler(g.correct_from, "correct_from", state->type[SAMPLER]))) {
        return NULL;
    }
    Inversion *self = (Inversion *)PyType_GenericAlloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->sampler = Py_NewRef(g.sampler);
    self->correct_from = Py_NewRef(g.correct_from);
    options.correct_from = g.correct_from == Py_None ? NULL : core_of(g.correct_from);
    self->options = options;
    if (inversion_open(self, state, &g)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
inversion_traverse(PyObject *op, visitproc visit, void *arg)
{
    Inversion *self = (Inversion *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->target.like);
    Py_VISIT(self->sampler);
    Py_VISIT(self->correct_from);
    return 0;
}

/* The core goes before what it borrows. */
static int
inversion_clear(PyObject *op)
{
    Inversion *self = (Inversion *)op;
    nri_inversion_destroy(self->core);
    nri_space_destroy(self->v);
    self->core = NULL;
    self->v = NULL;
    Py_CLEAR(self->target.like);
    Py_CLEAR(self->sampler);
    Py_CLEAR(self->correct_from);
    return 0;
}

static void
inversion_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    inversion_clear(op);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

/* ------------------------------------------------------------------------------------------------------------- methods */

/* Refuse a second thread, and a call from a finalizer after inversion_clear. */
static int
enter(Inversion *self)
{
    if (atomic_exchange(&self->busy, true)) {
        PyErr_SetString(PyExc_RuntimeError, "this Inversion is in use by another thread");
        return -1;
    }
    if (!self->core) {
        PyErr_SetString(PyExc_RuntimeError, "this Inversion has been collected");
        self->busy = false;
        return -1;
    }
    return 0;
}

/* A slot as a tensor, in the target's dtype or in float32; None without a slot. */
static PyObject *
tensor(const Inversion *self, int slot, bool float32)
{
    return slot < 0 ? Py_NewRef(Py_None) : give(self->v, slot, &self->target, float32);
}

/* Named tuples are made of one argument, a tuple; what is given by "N" is consumed, and NULL a failure. */
static PyObject *
pack_request(const Inversion *self, const nri_request *r, PyObject *type)
{
    npy_intp B = (npy_intp)self->v->batch;
    return PyObject_CallFunction(type, "((idNdNNNN))", r->index, r->timestep, tensor(self, r->slot, false), r->scale,
                                 PyBool_FromLong(r->wants_gradient), tensor(self, r->cotangent, false),
                                 numbers(NPY_BOOL, 1, &B, r->active), PyBool_FromLong(r->correcting));
}

static PyObject *
inversion_next(PyObject *op, PyObject *Py_UNUSED(unused))
{
    Inversion *self = (Inversion *)op;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_request request;
    nri_status status;
    bool done = false;
    if (!state || enter(self)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_inversion_next(self->core, &request, &done);
    Py_END_ALLOW_THREADS
    PyObject *out = check_status(status) ? NULL
                    : done               ? Py_NewRef(Py_None)
                                         : pack_request(self, &request, state->type[REQUEST]);
    self->busy = false;
    return out;
}

static PyObject *
inversion_feed(PyObject *op, PyObject *model_output)
{
    Inversion *self = (Inversion *)op;
    intake in;
    nri_status status = NRI_OK;
    if (enter(self)) {
        return NULL;
    }
    int bad = take_like(&self->target, model_output, "model_output", &in);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        status = nri_inversion_feed(self->core, &in.t);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(in.owner);
    self->busy = false;
    if (status == NRI_BAD_ORDER) {
        PyErr_SetString(PyExc_RuntimeError, "feed needs a request: call next() first");
        return NULL;
    }
    return bad || check_status(status) ? NULL : Py_NewRef(Py_None);
}

static PyObject *
reason_list(const nri_result *r, int64_t batch)
{
    PyObject *out = PyList_New((Py_ssize_t)batch);
    for (int64_t b = 0; out && b < batch; b++) {
        set_item(&out, (Py_ssize_t)b, PyUnicode_FromString(nri_reason_name(r->reason[b])));
    }
    return out;
}

/* n slots as tensors in float32, or None. */
static PyObject *
tensors(const Inversion *self, bool kept, int first, int n)
{
    PyObject *out = kept ? PyList_New(n) : Py_NewRef(Py_None);
    for (int i = 0; kept && out && i < n; i++) {
        set_item(&out, i, tensor(self, first + i, true));
    }
    return out;
}

static PyObject *
pack_result(const Inversion *self, const nri_result *r, PyObject *type)
{
    const nri_sampler *s = core_of(self->sampler);
    bool absorbed = self->options.absorb && !self->options.correct_only;
    npy_intp B = (npy_intp)self->v->batch, logs[2] = {s->evaluations, B};
    return PyObject_CallFunction(
        type, "((NNNNNNiNNNNNNNNNN))", tensor(self, r->latents, true), numbers(NPY_DOUBLE, 2, logs, r->residual),
        numbers(NPY_INT, 2, logs, r->step_nfe), numbers(NPY_INT, 1, &B, r->nfe), reason_list(r, self->v->batch),
        numbers(NPY_DOUBLE, 1, &B, r->error), r->evaluations,
        tensors(self, r->trajectory >= 0, r->trajectory, s->evaluations + 1), tensors(self, absorbed, r->noises, s->noises),
        numbers(NPY_INT, 1, &B, r->restarts), numbers(NPY_INT, 1, &B, r->rejected), numbers(NPY_INT, 1, &B, r->failed),
        tensor(self, r->corrected, true), numbers(NPY_DOUBLE, 1, &B, r->moved), numbers(NPY_BOOL, 1, &B, r->held),
        numbers(NPY_BOOL, 1, &B, r->measured), numbers(NPY_DOUBLE, 1, &B, r->growth));
}

static PyObject *
inversion_result(PyObject *op, PyObject *Py_UNUSED(unused))
{
    Inversion *self = (Inversion *)op;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_result r;
    PyObject *out = NULL;
    if (!state || enter(self)) {
        return NULL;
    }
    if (nri_inversion_result(self->core, &r) == NRI_OK) {
        out = pack_result(self, &r, state->type[RESULT]);
    }
    else {
        PyErr_SetString(PyExc_RuntimeError, "the inversion is not finished: next() has to return None first");
    }
    self->busy = false;
    return out;
}

static PyObject *
inversion_max_evaluations(PyObject *op, void *Py_UNUSED(unused))
{
    Inversion *self = (Inversion *)op;
    if (enter(self)) {
        return NULL;
    }
    self->busy = false;
    return PyLong_FromLongLong(nri_inversion_max_evaluations(core_of(self->sampler), &self->options));
}

static PyMethodDef inversion_methods[] = {
    {"next", inversion_next, METH_NOARGS,
     "next($self, /)\n--\n\nThe Request to be answered by feed, or None at the end.  Asking again gives the same request."},
    {"feed", inversion_feed, METH_O,
     "feed($self, model_output, /)\n--\n\nThe network's output at the last request, or the product the request's cotangent "
     "asks for,\nshaped like the target; any float dtype."},
    {"result", inversion_result, METH_NOARGS, "result($self, /)\n--\n\nThe Result, after next() returned None."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef inversion_getset[] = {
    {"max_evaluations", inversion_max_evaluations, NULL, "the largest number of requests there can be", NULL},
    {.name = NULL},
};

static PyType_Slot inversion_slots[] = {
    {Py_tp_doc,
     "Inversion(sampler, target, *, noises=None, guess=None, solver='auto', noise='record', max_nfe=3, depth=5,\n"
     "          tol=0.0001, atol=0.0, rounds=0, lam=0.1, floor=0.5, extrapolation=1.0, predictor=True, verify=False,\n"
     "          trajectory=False, order='reversed', correct_from=None, correct_rounds=2, correct_only=False,\n"
     "          radius=None, draws=None, correct_noises=None)\n--\n\n"
     "Find the noise z_T from which `sampler` draws `target` [B, ...], a torch tensor or a NumPy array, in float32.\n\n"
     "The network is yours:\n\n"
     "    while request := inversion.next():\n"
     "        inversion.feed(network(request.scale * request.sample, request.timestep))\n"
     "    noise = inversion.result().latents\n\n"
     "noises: the sampler's K noise draws, in its order; needed if sampler.num_noises > 0.  guess: where the first step\n"
     "starts, by default the target.  noise: 'absorb' lets noises take up what their steps leave, the result has them.\n"
     "solver: one of SOLVERS; 'newton' asks for gradients, see Request.  max_nfe: network evaluations a step, at least 1;\n"
     "'auto' deals them out unevenly.  depth: Anderson memory, 0..15.\n"
     "tol: a step ends at |f(z) - z| <= tol |z|.  atol: or at a root mean square of atol.\n"
     "rounds: of defect correction, for samplers that remember older network outputs; each measures the error.\n"
     "lam, floor: of 'newton', weight of the forward process and floor of the gradient.\n"
     "extrapolation: how far outputs not yet known are extrapolated, 0..1.  predictor: first guess of a step from the\n"
     "network output before it.  verify: end with a forward run that measures the error.  trajectory: keep all states.\n"
     "order: 'reversed' solves step by step from the image to the noise; 'passes' asks for the sampler's evaluations in\n"
     "the sampler's order, max_nfe times over, and solves for all states at once: not with 'newton', rounds or 'absorb';\n"
     "tol and atol refer to all states, each relative to its noise level.\n\n"
     "correct_from: first correct the target (arXiv 2312.12540v2, prompt-aware adjustment).  A Sampler, the last steps of\n"
     "`sampler`, nrinv.read_sampler(scheduler, start=...): each of correct_rounds adds noise to the target and denoises it\n"
     "by these steps; requests say so by `correcting`.  draws: the noise that is added, a tensor like the target for each\n"
     "round; without them the steps are inverted instead, at one evaluation each.  correct_noises: the noise draws of\n"
     "correct_from, round after round.  radius [B]: how far, as a norm, a sample is moved at most.  correct_only: the\n"
     "result's latents are the corrected target.\n\n"
     "Raises ValueError for options out of range, for tensors unlike the target, and if a step cannot be inverted."},
    {Py_tp_new, inversion_new},
    {Py_tp_dealloc, inversion_dealloc},
    {Py_tp_traverse, inversion_traverse},
    {Py_tp_clear, inversion_clear},
    {Py_tp_methods, inversion_methods},
    {Py_tp_getset, inversion_getset},
    {0, NULL},
};

PyType_Spec inversion_spec = {"nrinv._C.Inversion", sizeof(Inversion), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                              inversion_slots};

static PyStructSequence_Field request_fields[] = {
    {"index", "j, the step of the sampler"},
    {"timestep", "the timestep to evaluate at"},
    {"sample", "[B, ...] the state s_j, in the target's dtype"},
    {"scale", "the network sees scale * sample"},
    {"wants_gradient", "whether a request with a cotangent may follow at this sample: keep what a gradient needs"},
    {"cotangent", "None, or v [B, ...]: feed J^T v instead of an output, J the Jacobian of the network's output in sample"},
    {"active", "[B] bool: the samples that are evaluated; other rows are ignored in what is fed"},
    {"correcting", "whether index and timestep are those of correct_from"},
    {NULL, NULL},
};
PyStructSequence_Desc request_desc = {"nrinv.Request", "A network evaluation that an Inversion asks for.", request_fields,
                                      8};

static PyStructSequence_Field result_fields[] = {
    {"latents", "[B, ...] float32: the noise z_T; with correct_only, the corrected target"},
    {"residuals", "[E, B] |f(z) - z| / |z| at the last evaluation of each step, of the last sweep or pass"},
    {"step_nfe", "[E, B] network evaluations of each step in the last sweep, or in all passes"},
    {"nfe", "[B] network evaluations in all"},
    {"reasons", "B names: why each sample ended; with correct_only 'max_nfe', or 'non_finite' where every round failed"},
    {"error", "[B] |z_0 - sampler(z_T)| / |z_0| measured by a forward run, else estimated; NaN where it ended non_finite"},
    {"evaluations", "network calls for the whole batch"},
    {"trajectory", "E + 1 states from z_T to z_0 if they were kept, else None"},
    {"noises", "K noises that the sampler has to draw, with noise='absorb', else None"},
    {"restarts", "[B] how often a solver went back to its best iterate, or its start, for a shorter step"},
    {"rejected", "[B] mixtures of iterates whose weights were not usable"},
    {"failed", "[B] evaluations, products and rounds of the correction that were not finite"},
    {"corrected", "[B, ...] float32: the corrected target, or None without correct_from"},
    {"moved", "[B] |corrected - target| / |target|, or None"},
    {"held", "[B] bool: the radius has held the last round of the correction back, or None"},
    {"measured", "[B] bool: the error is that of a forward run"},
    {"growth", "[B] how much a step was seen to stretch a difference of states at most, NaN where that was not seen"},
    {NULL, NULL},
};
PyStructSequence_Desc result_desc = {"nrinv.Result", "What an Inversion found.", result_fields, 17};
