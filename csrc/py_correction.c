/* nrinv._C.Correction: an encoded image, as the sampler draws it for the prompt. */
#include "python.h"

#include <math.h>

typedef struct {
    Machine machine;
    nri_correct_options options;
    nri_correction *core;
} Correction;

static int
check_draws(const Correction *self, PyObject *draws, PyObject *noises)
{
    const nri_sampler *s = self->machine.sampler->sampler;
    Py_ssize_t wanted = self->options.inverted ? 0 : self->options.rounds,
               all = (Py_ssize_t)self->options.rounds * s->noises;
    Py_ssize_t drawn = draws == Py_None ? 0 : PySequence_Size(draws), n = noises == Py_None ? 0 : PySequence_Size(noises);
    if (drawn < 0 || n < 0) {
        return -1;
    }
    if (drawn != wanted) {
        PyErr_Format(PyExc_ValueError, "draws must hold %zd tensors, one for each round with drawn noise, got %zd", wanted,
                     drawn);
        return -1;
    }
    if (n != all) {
        PyErr_Format(PyExc_ValueError, "noises must hold %zd tensors, %d for each round, got %zd", all, s->noises, n);
        return -1;
    }
    if (!self->options.inverted && !s->levels) {
        PyErr_SetString(PyExc_ValueError, "sampler must have levels where noise is drawn; leave out draws");
        return -1;
    }
    return 0;
}

/* The radius as [B] doubles; NULL if there is none, or with an exception. */
static double *
read_radius(PyObject *radius, int64_t batch)
{
    double *out;
    PyArrayObject *a = (PyArrayObject *)PyArray_FROM_OTF(radius, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    if (!a) {
        return NULL;
    }
    bool bad = PyArray_NDIM(a) != 1 || PyArray_DIM(a, 0) != batch;
    for (int64_t b = 0; !bad && b < batch; b++) {
        bad = !(((double *)PyArray_DATA(a))[b] >= 0);
    }
    if (bad) {
        PyErr_Format(PyExc_ValueError, "radius must hold a norm of at least 0 for each of the %lld samples, got %R",
                     (long long)batch, radius);
        Py_DECREF(a);
        return NULL;
    }
    out = PyMem_Malloc(sizeof(*out) * (size_t)batch);
    for (int64_t b = 0; out && b < batch; b++) {
        out[b] = ((double *)PyArray_DATA(a))[b];
    }
    Py_DECREF(a);
    return out ? out : (double *)PyErr_NoMemory();
}

static int
load_list(Correction *self, PyObject *list, bool drawn)
{
    int K = drawn ? 1 : self->machine.sampler->sampler->noises;
    Py_ssize_t n = list == Py_None ? 0 : PySequence_Size(list);
    for (Py_ssize_t i = 0; i < n; i++) {
        int round = (int)i / K,
            slot = drawn ? nri_correction_draw(self->core, round) : nri_correction_noise(self->core, round, (int)i % K);
        PyObject *x = PySequence_GetItem(list, i);
        int bad = !x || machine_load(&self->machine, slot, x, drawn ? "draws" : "noises");
        Py_XDECREF(x);
        if (bad) {
            return -1;
        }
    }
    return 0;
}

static int
correction_open(Correction *self, PyObject *radius, PyObject *draws, PyObject *noises)
{
    Machine *m = &self->machine;
    nri_request request;
    bool done;
    double *norms = NULL;
    int step, slots = nri_correction_slots(m->sampler->sampler, &self->options);
    if (check_draws(self, draws, noises) || create_space(m->like, m->torch, "target", slots, &m->v)) {
        return -1;
    }
    if (radius != Py_None) {
        norms = read_radius(radius, m->v->batch);
        if (!norms) {
            return -1;
        }
    }
    nri_status status = nri_correction_create(m->sampler->sampler, &self->options, norms, m->v, &self->core, &step);
    PyMem_Free(norms);
    if (status == NRI_SINGULAR_STEP) {
        PyErr_Format(PyExc_ValueError, "sampler: step %d of %d cannot be inverted: %s", step,
                     m->sampler->sampler->evaluations, nri_status_text(status));
        return -1;
    }
    if (status == NRI_OK
        && (machine_load(m, nri_correction_image(self->core), m->like, "target") || load_list(self, draws, true)
            || load_list(self, noises, false))) {
        return -1;
    }
    if (status == NRI_OK) {
        Py_BEGIN_ALLOW_THREADS
        status = nri_correction_next(self->core, &request, &done);
        Py_END_ALLOW_THREADS
    }
    if (status == NRI_NOT_FINITE) {
        PyErr_SetString(PyExc_ValueError, "target must be finite, got NaN or infinity");
        return -1;
    }
    return check_status(status);
}

static PyObject *
correction_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sampler", "target", "draws", "noises", "rounds", "radius", NULL};
    PyObject *sampler, *target, *draws = Py_None, *noises = Py_None, *radius = Py_None;
    module_state *state = PyType_GetModuleState(type);
    nri_correct_options options = nri_default_correct_options;
    if (!state
        || !PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOiO:Correction", names, &sampler, &target, &draws, &noises,
                                        &options.rounds, &radius)
        || machine_check(sampler, state->type[SAMPLER])) {
        return NULL;
    }
    options.inverted = draws == Py_None;
    if (options.rounds < 1) {
        return PyErr_Format(PyExc_ValueError, "rounds must be at least 1, got %d", options.rounds);
    }
    Correction *self = (Correction *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self) {
        return NULL;
    }
    machine_init(&self->machine, sampler, target);
    self->options = options;
    if (correction_open(self, radius, draws, noises)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void
correction_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    nri_correction_destroy(((Correction *)op)->core);
    machine_clear(&((Correction *)op)->machine);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static nri_status
ask(void *core, nri_request *request, bool *done)
{
    return nri_correction_next(core, request, done);
}

static nri_status
answer(void *core, const nri_tensor *model_output)
{
    return nri_correction_feed(core, model_output);
}

static PyObject *
correction_next(PyObject *op, PyObject *unused)
{
    (void)unused;
    return machine_next((Machine *)op, ((Correction *)op)->core, ask);
}

static PyObject *
correction_feed(PyObject *op, PyObject *model_output)
{
    return machine_feed((Machine *)op, ((Correction *)op)->core, answer, model_output);
}

static PyObject *
correction_result(PyObject *op, PyObject *unused)
{
    Machine *m = (Machine *)op;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_corrected r;
    (void)unused;
    if (!state || machine_enter(m)) {
        return NULL;
    }
    PyObject *out = NULL;
    if (nri_correction_result(((Correction *)op)->core, &r) != NRI_OK) {
        PyErr_SetString(PyExc_RuntimeError, "the correction is not finished: next() has to return None first");
    }
    else {
        npy_intp B = (npy_intp)m->v->batch;
        PyObject *fields[] = {give(m->v, r.latents, m->like, m->torch, true), doubles(1, &B, r.moved), booleans(B, r.held),
                              booleans(B, r.failed), PyLong_FromLong(r.evaluations)};
        out = pack_fields(state->type[CORRECTED], 5, fields);
    }
    m->busy = false;
    return out;
}

static PyObject *
correction_max_evaluations(PyObject *op, void *unused)
{
    Correction *self = (Correction *)op;
    (void)unused;
    return PyLong_FromLongLong(nri_correction_max_evaluations(self->machine.sampler->sampler, &self->options));
}

static PyMethodDef correction_methods[] = {
    {"next", correction_next, METH_NOARGS,
     "next($self, /)\n--\n\nThe Request to be answered by feed, or None at the end.  Asking again gives the same request."},
    {"feed", correction_feed, METH_O,
     "feed($self, model_output, /)\n--\n\nThe network's output at the last request, shaped like the target; any float "
     "dtype."},
    {"result", correction_result, METH_NOARGS, "result($self, /)\n--\n\nThe Corrected, after next() returned None."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef correction_getset[] = {
    {"max_evaluations", correction_max_evaluations, NULL, "the number of requests there will be", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot correction_slots[] = {
    {Py_tp_doc,
     "Correction(sampler, target, *, draws=None, noises=None, rounds=2, radius=None)\n--\n\n"
     "Bring `target` [B, ...], an encoded image, to where `sampler` draws it (arXiv 2312.12540v2, prompt-aware "
     "adjustment).\n\n"
     "sampler: the last steps of one, nrinv.read_sampler(scheduler, start=...).  Each round adds noise to the image and\n"
     "denoises it by these steps; the network is yours, as in Inversion, with the prompt and the guidance that the image "
     "is\n"
     "to be drawn with.\n\n"
     "draws: a tensor like the target for each round, the noise that is added; without them the steps are inverted "
     "instead,\n"
     "at one evaluation each.  noises: the sampler's own noise draws, round after round.\n"
     "radius [B]: how far from the target, as a norm, a sample is moved at most; None: anywhere.\n\n"
     "Raises ValueError for options out of range, for tensors unlike the target, and if a step cannot be inverted."},
    {Py_tp_new, correction_new},
    {Py_tp_dealloc, correction_dealloc},
    {Py_tp_methods, correction_methods},
    {Py_tp_getset, correction_getset},
    {0, NULL},
};

PyType_Spec correction_spec = {"nrinv._C.Correction", sizeof(Correction), 0, Py_TPFLAGS_DEFAULT, correction_slots};

static PyStructSequence_Field corrected_fields[] = {
    {"latents", "[B, ...] float32: the corrected image"},
    {"moved", "[B] |corrected - target| / |target|"},
    {"held", "[B] bool: the radius has held the last round back"},
    {"failed", "[B] bool: a round gave values that are not finite, and was left out"},
    {"evaluations", "network calls for the whole batch"},
    {NULL, NULL},
};
PyStructSequence_Desc corrected_desc = {"nrinv.Corrected", "What a Correction found.", corrected_fields, 5};
