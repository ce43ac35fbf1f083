/* nrinv._C.Inversion: the noise from which a sampler draws its target. */
#include "python.h"

#include <math.h>
#include <string.h>

typedef struct {
    Machine machine;
    nri_options options;
    nri_inversion *inv;
} Inversion;

static int
check_options(const nri_options *o)
{
    if (o->max_nfe < 1) {
        PyErr_Format(PyExc_ValueError, "max_nfe must be at least 1, got %d", o->max_nfe);
        return -1;
    }
    if (o->depth < 0 || o->depth > NRI_MAX_DEPTH) {
        PyErr_Format(PyExc_ValueError, "depth must be in 0..%d, got %d", NRI_MAX_DEPTH, o->depth);
        return -1;
    }
    if (o->refine < 0) {
        PyErr_Format(PyExc_ValueError, "refine must be at least 0, got %d", o->refine);
        return -1;
    }
    if (!(o->tol >= 0) || !isfinite(o->tol)) {
        return refuse_number("tol", "a finite number of at least 0", o->tol);
    }
    if (!(o->atol >= 0) || !isfinite(o->atol)) {
        return refuse_number("atol", "a finite number of at least 0", o->atol);
    }
    if (!(o->prior >= 0) || !isfinite(o->prior)) {
        return refuse_number("prior", "a finite number of at least 0", o->prior);
    }
    if (!(o->lam >= 0) || !isfinite(o->lam)) {
        return refuse_number("lam", "a finite number of at least 0", o->lam);
    }
    if (!(o->floor > 0) || !isfinite(o->floor)) {
        return refuse_number("floor", "a finite number above 0", o->floor);
    }
    if (!(o->extrapolation >= 0 && o->extrapolation <= 1)) {
        return refuse_number("extrapolation", "in 0..1", o->extrapolation);
    }
    return 0;
}

static int
read_solver(const char *name, nri_solver *out)
{
    static const char *const names[] = {"auto", "anderson", "fixed_point", "newton"};
    for (int i = 0; i < (int)(sizeof(names) / sizeof(*names)); i++) {
        if (!strcmp(name, names[i])) {
            *out = (nri_solver)i; /* in the order of nri_solver */
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "solver must be 'auto', 'anderson', 'fixed_point' or 'newton', got '%s'", name);
    return -1;
}

static int
check_passes(const nri_options *o)
{
    const char *wrong = o->order != NRI_PASSES    ? NULL
                        : o->solver == NRI_NEWTON ? "solver='newton'"
                        : o->refine > 0           ? "refine above 0"
                        : o->prior > 0            ? "prior above 0"
                        : o->absorb               ? "noise='absorb'"
                                                  : NULL;
    if (wrong) {
        PyErr_Format(PyExc_ValueError, "order='passes' does not go with %s; use order='reversed'", wrong);
    }
    return wrong ? -1 : 0;
}

typedef struct {
    PyObject *sampler, *target, *noises, *guess;
} tensors;

static int
read_options(PyObject *args, PyObject *kwargs, tensors *given, nri_options *o)
{
    static char *names[] = {"sampler",       "target",    "noises", "guess",      "solver", "noise", "max_nfe",
                            "depth",         "tol",       "atol",   "refine",     "prior",  "lam",   "floor",
                            "extrapolation", "predictor", "verify", "trajectory", "order",  NULL};
    const char *solver = "auto", *noise = "record", *order = "reversed";
    int predictor, verify = 0, trajectory = 0;
    *o = nri_default_options;
    given->noises = given->guess = Py_None;
    predictor = o->predictor;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOssiiddiddddppps:Inversion", names, &given->sampler, &given->target,
                                     &given->noises, &given->guess, &solver, &noise, &o->max_nfe, &o->depth, &o->tol,
                                     &o->atol, &o->refine, &o->prior, &o->lam, &o->floor, &o->extrapolation, &predictor,
                                     &verify, &trajectory, &order)) {
        return -1;
    }
    o->predictor = predictor;
    o->verify = verify;
    o->trajectory = trajectory;
    o->guess = given->guess != Py_None;
    o->absorb = !strcmp(noise, "absorb");
    if (!o->absorb && strcmp(noise, "record")) {
        PyErr_Format(PyExc_ValueError, "noise must be 'record' or 'absorb', got '%s'", noise);
        return -1;
    }
    o->order = strcmp(order, "passes") ? NRI_REVERSED : NRI_PASSES;
    if (o->order == NRI_REVERSED && strcmp(order, "reversed")) {
        PyErr_Format(PyExc_ValueError, "order must be 'reversed' or 'passes', got '%s'", order);
        return -1;
    }
    return read_solver(solver, &o->solver) || check_options(o) ? -1 : check_passes(o);
}

static int
load_noises(Inversion *self, PyObject *noises)
{
    int K = self->machine.sampler->sampler->noises;
    Py_ssize_t n = noises == Py_None ? 0 : PySequence_Size(noises);
    if (n < 0) {
        return -1;
    }
    if (n != K) {
        PyErr_Format(PyExc_ValueError, "noises must hold %d tensors, one for each time the sampler draws noise, got %zd", K,
                     n);
        return -1;
    }
    for (int k = 0; k < K; k++) {
        PyObject *x = PySequence_GetItem(noises, k);
        int bad = !x || machine_load(&self->machine, nri_inversion_noise(self->inv, k), x, "noises");
        Py_XDECREF(x);
        if (bad) {
            return -1;
        }
    }
    return 0;
}

static int
check_absorb(const nri_sampler *s, const nri_options *o)
{
    const char *missing = !o->absorb        ? NULL
                          : !s->levels      ? "a sampler with levels"
                          : !s->first_order ? "a sampler that remembers no older network outputs"
                          : o->refine > 0   ? "refine=0"
                                            : NULL;
    if (missing) {
        PyErr_Format(PyExc_ValueError, "noise='absorb' needs %s; use noise='record'", missing);
    }
    return missing ? -1 : 0;
}

static int
inversion_open(Inversion *self, PyObject *noises, PyObject *guess)
{
    Machine *m = &self->machine;
    nri_request request;
    bool done;
    int step, slots = nri_inversion_slots(m->sampler->sampler, &self->options);
    if (check_absorb(m->sampler->sampler, &self->options) || create_space(m->like, m->torch, "target", slots, &m->v)) {
        return -1;
    }
    nri_status status = nri_inversion_create(m->sampler->sampler, &self->options, m->v, &self->inv, &step);
    if (status == NRI_SINGULAR_STEP) {
        PyErr_Format(PyExc_ValueError, "sampler: step %d of %d cannot be inverted: %s", step,
                     self->machine.sampler->sampler->evaluations, nri_status_text(status));
        return -1;
    }
    if (check_status(status) || machine_load(&self->machine, nri_inversion_target(self->inv), self->machine.like, "target")
        || load_noises(self, noises)
        || (self->options.guess && machine_load(&self->machine, nri_inversion_guess(self->inv), guess, "guess"))) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_inversion_next(self->inv, &request, &done);
    Py_END_ALLOW_THREADS
    if (status == NRI_NOT_FINITE) {
        PyErr_SetString(PyExc_ValueError, "target must be finite, got NaN or infinity");
        return -1;
    }
    return check_status(status);
}

static PyObject *
inversion_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    tensors given;
    nri_options options;
    module_state *state = PyType_GetModuleState(type);
    if (!state || read_options(args, kwargs, &given, &options) || machine_check(given.sampler, state->type[SAMPLER])) {
        return NULL;
    }
    Inversion *self = (Inversion *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self) {
        return NULL;
    }
    machine_init(&self->machine, given.sampler, given.target);
    self->options = options;
    if (inversion_open(self, given.noises, given.guess)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void
inversion_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    nri_inversion_destroy(((Inversion *)op)->inv);
    machine_clear(&((Inversion *)op)->machine);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static nri_status
ask(void *core, nri_request *request, bool *done)
{
    return nri_inversion_next(core, request, done);
}

static nri_status
answer(void *core, const nri_tensor *model_output)
{
    return nri_inversion_feed(core, model_output);
}

static PyObject *
inversion_next(PyObject *op, PyObject *unused)
{
    (void)unused;
    return machine_next((Machine *)op, ((Inversion *)op)->inv, ask);
}

static PyObject *
inversion_feed(PyObject *op, PyObject *model_output)
{
    return machine_feed((Machine *)op, ((Inversion *)op)->inv, answer, model_output);
}

static PyObject *
reason_names(const nri_result *r, int64_t batch)
{
    PyObject *out = PyList_New((Py_ssize_t)batch);
    for (int64_t b = 0; out && b < batch; b++) {
        PyObject *name = PyUnicode_FromString(nri_reason_name(r->reason[b]));
        if (!name || PyList_SetItem(out, (Py_ssize_t)b, name)) {
            Py_CLEAR(out);
        }
    }
    return out;
}

static PyObject *
give_trajectory(const Machine *m, const nri_result *r)
{
    int count = m->sampler->sampler->evaluations + 1;
    return r->trajectory < 0 ? Py_NewRef(Py_None) : give_list(m->v, r->trajectory, count, m->like, m->torch);
}

static PyObject *
give_noises(const Machine *m, const nri_options *o, const nri_result *r)
{
    return o->absorb ? give_list(m->v, r->noises, m->sampler->sampler->noises, m->like, m->torch) : Py_NewRef(Py_None);
}

static PyObject *
inversion_result(PyObject *op, PyObject *unused)
{
    Inversion *self = (Inversion *)op;
    Machine *m = &self->machine;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_result r;
    (void)unused;
    if (!state || machine_enter(m)) {
        return NULL;
    }
    PyObject *out = NULL;
    if (nri_inversion_result(self->inv, &r) != NRI_OK) {
        PyErr_SetString(PyExc_RuntimeError, "the inversion is not finished: next() has to return None first");
    }
    else {
        npy_intp B = (npy_intp)m->v->batch, logs[2] = {m->sampler->sampler->evaluations, B};
        PyObject *fields[] = {
            give(m->v, r.latents, m->like, m->torch, true),
            doubles(2, logs, r.residual),
            integers(2, logs, r.step_nfe),
            integers(1, &B, r.nfe),
            reason_names(&r, m->v->batch),
            doubles(1, &B, r.error),
            PyLong_FromLong(r.evaluations),
            give_trajectory(m, &r),
            give_noises(m, &self->options, &r),
        };
        out = pack_fields(state->type[RESULT], 9, fields);
    }
    m->busy = false;
    return out;
}

static PyObject *
inversion_max_evaluations(PyObject *op, void *unused)
{
    Inversion *self = (Inversion *)op;
    (void)unused;
    return PyLong_FromLongLong(nri_inversion_max_evaluations(self->machine.sampler->sampler, &self->options));
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
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot inversion_slots[] = {
    {Py_tp_doc,
     "Inversion(sampler, target, *, noises=None, guess=None, solver='auto', noise='record', max_nfe=3, depth=5, "
     "tol=0.0001,\n"
     "          atol=0.0, refine=0, prior=0.0, lam=0.1, floor=0.5, extrapolation=1.0, predictor=True, verify=False,\n"
     "          trajectory=False, order='reversed')\n--\n\n"
     "Find the noise z_T from which `sampler` draws `target` [B, ...], a torch tensor or a NumPy array, in float32.\n\n"
     "The network is yours:\n\n"
     "    while request := inversion.next():\n"
     "        inversion.feed(network(request.scale * request.sample, request.timestep))\n"
     "    noise = inversion.result().latents\n\n"
     "noises: the sampler's K noise draws, in its order; needed if sampler.num_noises > 0.  guess: where the first step\n"
     "starts, by default the target.  noise: 'absorb' lets noises take up what their steps leave, the result has them.\n"
     "solver: 'auto', 'anderson', 'fixed_point' or 'newton' (which asks for gradients, see Request).  max_nfe: network\n"
     "evaluations a step, at least 1; 'auto' deals them out unevenly.  depth: Anderson memory, 0..15.\n"
     "tol: a step ends at |f(z) - z| <= tol |z|.  atol: or at a root mean square of atol.\n"
     "refine: rounds of defect correction for samplers that remember older network outputs; each measures the error.\n"
     "prior: weight of Lavrentiev's regularisation towards the first guess, at least 0; residuals stay |f(z) - z|.\n"
     "lam, floor: of 'newton', weight of the forward process and floor of the gradient.\n"
     "extrapolation: how far outputs not yet known are extrapolated, 0..1.  predictor: first guess of a step from the\n"
     "network output before it.  verify: end with a forward run that measures the error.  trajectory: keep all states.\n"
     "order: 'reversed' solves step by step from the image to the noise; 'passes' asks for the sampler's evaluations in\n"
     "the sampler's order, max_nfe times over, and solves for all states at once: not with 'newton', refine, prior or\n"
     "'absorb'; tol and atol refer to all states, each relative to its noise level.\n\n"
     "Raises ValueError for options out of range, for tensors unlike the target, and if a step cannot be inverted."},
    {Py_tp_new, inversion_new},
    {Py_tp_dealloc, inversion_dealloc},
    {Py_tp_methods, inversion_methods},
    {Py_tp_getset, inversion_getset},
    {0, NULL},
};

PyType_Spec inversion_spec = {"nrinv._C.Inversion", sizeof(Inversion), 0, Py_TPFLAGS_DEFAULT, inversion_slots};

static PyStructSequence_Field result_fields[] = {
    {"latents", "[B, ...] float32: the noise z_T"},
    {"residuals", "[E, B] |f(z) - z| / |z| at the last evaluation of each step, of the last sweep or pass"},
    {"step_nfe", "[E, B] network evaluations of each step in the last sweep, or in all passes"},
    {"nfe", "[B] network evaluations in all"},
    {"reasons", "B names: why each sample ended"},
    {"error", "[B] |z_0 - sampler(z_T)| / |z_0| measured by a forward run, NaN if none was made"},
    {"evaluations", "network calls for the whole batch"},
    {"trajectory", "E + 1 states from z_T to z_0 if they were kept, else None"},
    {"noises", "K noises that the sampler has to draw, with noise='absorb', else None"},
    {NULL, NULL},
};
PyStructSequence_Desc result_desc = {"nrinv.Result", "What an Inversion found.", result_fields, 9};
