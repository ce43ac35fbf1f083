/*
What Inversion and Correction have in common: a sampler, a target, slots like it, and requests for network evaluations.

One in use by one thread refuses another.
*/
#include "python.h"

static PyStructSequence_Field request_fields[] = {
    {"index", "j, the step of the sampler"},
    {"timestep", "the timestep to evaluate at"},
    {"sample", "[B, ...] the state s_j, in the target's dtype"},
    {"scale", "the network sees scale * sample"},
    {"wants_gradient", "whether a request with a cotangent may follow at this sample: keep what a gradient needs"},
    {"cotangent", "None, or v [B, ...]: feed J^T v instead of an output, J the Jacobian of the network's output in sample"},
    {"active", "[B] bool: the samples that the request is for; what is fed in the rows of the others does not matter"},
    {NULL, NULL},
};
PyStructSequence_Desc request_desc = {"nrinv.Request", "A network evaluation that an Inversion or a Correction asks for.",
                                      request_fields, 7};

int
machine_check(PyObject *sampler, PyObject *type)
{
    if (!PyObject_TypeCheck(sampler, (PyTypeObject *)type)) {
        PyErr_Format(PyExc_ValueError, "sampler must be a Sampler, got %R", (PyObject *)Py_TYPE(sampler));
        return -1;
    }
    return 0;
}

void
machine_init(Machine *self, PyObject *sampler, PyObject *target)
{
    self->sampler = (Sampler *)Py_NewRef(sampler);
    self->like = Py_NewRef(target);
    self->torch = is_torch(target);
}

/* After what uses the space. */
void
machine_clear(Machine *self)
{
    nri_space_destroy(self->v);
    Py_XDECREF(self->like);
    Py_XDECREF((PyObject *)self->sampler);
}

int
machine_load(Machine *self, int slot, PyObject *x, const char *name)
{
    return load_slot(self->v, slot, self->like, "the target", self->torch, x, name);
}

int
machine_enter(Machine *self)
{
    if (self->busy) {
        PyObject *name = PyType_GetName(Py_TYPE((PyObject *)self));
        if (name) {
            PyErr_Format(PyExc_RuntimeError, "this %U is in use by another thread", name);
            Py_DECREF(name);
        }
        return -1;
    }
    self->busy = true;
    return 0;
}

PyObject *
pack_fields(PyObject *type, int n, PyObject **items)
{
    bool complete = true;
    for (int i = 0; i < n; i++) {
        complete &= items[i] != NULL;
    }
    PyObject *out = complete ? PyStructSequence_New((PyTypeObject *)type) : NULL;
    for (int i = 0; i < n; i++) {
        if (out) {
            PyStructSequence_SetItem(out, i, items[i]);
        }
        else {
            Py_XDECREF(items[i]);
        }
    }
    return out;
}

PyObject *
machine_next(Machine *self, void *core, machine_next_call call)
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    nri_request request;
    nri_status status;
    bool done = false;
    if (!state || machine_enter(self)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = call(core, &request, &done);
    Py_END_ALLOW_THREADS
    PyObject *out = NULL;
    if (status != NRI_OK) {
        raise_status(status);
    }
    else if (done) {
        out = Py_NewRef(Py_None);
    }
    else {
        int v = request.cotangent;
        PyObject *fields[] = {PyLong_FromLong(request.index),
                              PyFloat_FromDouble(request.timestep),
                              give(self->v, request.slot, self->like, self->torch, false),
                              PyFloat_FromDouble(request.scale),
                              PyBool_FromLong(request.wants_gradient),
                              v < 0 ? Py_NewRef(Py_None) : give(self->v, v, self->like, self->torch, false),
                              booleans((npy_intp)self->v->batch, request.active)};
        out = pack_fields(state->type[REQUEST], 7, fields);
    }
    self->busy = false;
    return out;
}

PyObject *
machine_feed(Machine *self, void *core, machine_feed_call call, PyObject *model_output)
{
    intake in;
    nri_status status;
    if (machine_enter(self)) {
        return NULL;
    }
    if (take_like(self->like, "the target", self->torch, model_output, "model_output", &in)) {
        release(&in);
        self->busy = false;
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = call(core, &in.t);
    Py_END_ALLOW_THREADS
    release(&in);
    self->busy = false;
    if (status == NRI_BAD_ORDER) {
        PyErr_SetString(PyExc_RuntimeError, "feed needs a request: call next() first");
        return NULL;
    }
    return status == NRI_OK ? Py_NewRef(Py_None) : raise_status(status);
}
