/*
nrinv._C: the types Sampler and Inversion, over torch tensors and NumPy arrays.

Arguments, handles and exceptions; no algorithm.  Built for the limited API of CPython 3.11.  A torch tensor is read in
place through the DLPack exchange table of its type, a C-contiguous NumPy array through the NumPy C API; both stay with
their owner.  The GIL is released around vector operations, and an Inversion in use by one thread refuses another.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <limits.h>
#include <math.h>
#include <string.h>

#include "aten.h"
#include "dlpack.h"
#include "nrinv.h"

_Static_assert(sizeof(npy_intp) == sizeof(int64_t), "shapes are handed to the core as they are");

typedef struct {
    PyObject *sampler_type, *inversion_type, *request_type, *result_type;
} module_state;

typedef struct {
    PyObject_HEAD
    nri_sampler *sampler;
} Sampler;

typedef struct {
    PyObject_HEAD
    Sampler *sampler;
    PyObject *like; /* the target, for the type, shape, dtype and device of what is given out */
    nri_options options;
    nri_space *v;
    nri_inversion *inv;
    bool torch, busy;
} Inversion;

/* ----------------------------------------------------------------------------------------------------------- failures */

static PyObject *
raise_status(nri_status status)
{
    if (status == NRI_NO_MEMORY) {
        return PyErr_NoMemory();
    }
    if (status == NRI_BACKEND) {
        return PyErr_Format(PyExc_RuntimeError, "torch: %s", nri_aten_error());
    }
    if (status == NRI_BAD_ORDER) {
        PyErr_SetString(PyExc_RuntimeError, nri_status_text(status));
        return NULL;
    }
    PyErr_SetString(PyExc_ValueError, nri_status_text(status));
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------------- intake */

/* Somebody's tensor for the time of one call. */
typedef struct {
    nri_tensor t;
    PyObject *owner;
    nri_dl_tensor view; /* holds what t points to */
} intake;

static void
release(intake *in)
{
    Py_CLEAR(in->owner);
}

static nri_dl_exchange *
exchange_of(PyObject *x)
{
    PyObject *capsule = PyObject_GetAttrString((PyObject *)Py_TYPE(x), "__dlpack_c_exchange_api__");
    if (!capsule) {
        PyErr_Clear();
        return NULL;
    }
    nri_dl_exchange *api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule);
    while (api && api->major > 1) {
        api = api->prev;
    }
    if (!api) {
        PyErr_Clear();
    }
    return api && api->view_py ? api : NULL;
}

static int
dtype_of_torch(const nri_dl_tensor *x, nri_dtype *out)
{
    int kind = x->code << 8 | x->bits;
    if (x->lanes != 1) {
        return -1;
    }
    switch (kind) {
    case NRI_DL_FLOAT << 8 | 16:
        *out = NRI_FLOAT16;
        return 0;
    case NRI_DL_BFLOAT << 8 | 16:
        *out = NRI_BFLOAT16;
        return 0;
    case NRI_DL_FLOAT << 8 | 32:
        *out = NRI_FLOAT32;
        return 0;
    case NRI_DL_FLOAT << 8 | 64:
        *out = NRI_FLOAT64;
        return 0;
    default:
        return -1;
    }
}

/* A lazily negated view looks like ordinary memory to DLPack; what it shows has to be computed. */
static PyObject *
without_lazy_sign(PyObject *x)
{
    PyObject *flag = PyObject_CallMethod(x, "is_neg", NULL);
    if (!flag) {
        PyErr_Clear();
        return Py_NewRef(x);
    }
    int negative = PyObject_IsTrue(flag);
    Py_DECREF(flag);
    return negative > 0 ? PyObject_CallMethod(x, "resolve_neg", NULL) : Py_NewRef(x);
}

static int
take_torch(PyObject *x, const char *name, intake *in)
{
    nri_dl_exchange *api = exchange_of(x);
    if (!api) {
        PyErr_Format(PyExc_ValueError, "%s must be a torch tensor like the target, got %R", name, (PyObject *)Py_TYPE(x));
        return -1;
    }
    in->owner = without_lazy_sign(x);
    if (!in->owner) {
        return -1;
    }
    int64_t elements = 1;
    if (api->view_py(in->owner, &in->view)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be a dense tensor on a CPU, CUDA or ROCm device, got %R", name, x);
        return -1;
    }
    for (int i = 0; i < in->view.ndim; i++) {
        elements *= in->view.shape[i];
    }
    if (!in->view.data && elements) {
        PyErr_Format(PyExc_ValueError, "%s has no memory: fake and meta tensors cannot be inverted", name);
        return -1;
    }
    in->t = (nri_tensor){(char *)in->view.data + in->view.byte_offset,
                         NRI_FLOAT32,
                         in->view.device_type,
                         in->view.device_index,
                         in->view.ndim,
                         in->view.shape,
                         in->view.strides};
    if (dtype_of_torch(&in->view, &in->t.dtype)) {
        PyErr_Format(PyExc_ValueError, "%s must be float16, bfloat16, float32 or float64", name);
        return -1;
    }
    return 0;
}

static int
take_numpy(PyObject *x, const char *name, intake *in)
{
    if (!PyArray_Check(x)) {
        PyErr_Format(PyExc_ValueError, "%s must be a NumPy array or a torch tensor, got %R", name, (PyObject *)Py_TYPE(x));
        return -1;
    }
    PyArrayObject *a;
    in->owner = PyArray_FROM_OF(x, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    if (!in->owner) {
        return -1;
    }
    a = (PyArrayObject *)in->owner;
    in->t = (nri_tensor){PyArray_DATA(a), NRI_FLOAT32, NRI_DL_CPU, 0, PyArray_NDIM(a), (int64_t *)PyArray_DIMS(a), NULL};
    switch (PyArray_TYPE(a)) {
    case NPY_HALF:
        in->t.dtype = NRI_FLOAT16;
        return 0;
    case NPY_FLOAT:
        return 0;
    case NPY_DOUBLE:
        in->t.dtype = NRI_FLOAT64;
        return 0;
    default:
        PyErr_Format(PyExc_ValueError, "%s must be float16, float32 or float64", name);
        return -1;
    }
}

/* A [B, ...] tensor for the backend in use; `release` it also after a failure. */
static int
take(PyObject *x, bool torch, const char *name, intake *in)
{
    memset(in, 0, sizeof(*in));
    if (torch ? take_torch(x, name, in) : take_numpy(x, name, in)) {
        return -1;
    }
    if (in->t.ndim < 1) {
        PyErr_Format(PyExc_ValueError, "%s must have a batch dimension", name);
        return -1;
    }
    for (int i = 0; i < in->t.ndim; i++) {
        if (in->t.shape[i] < 1) {
            PyErr_Format(PyExc_ValueError, "%s must not be empty", name);
            return -1;
        }
    }
    return 0;
}

static PyObject *
shape_of(const nri_tensor *t)
{
    PyObject *shape = PyTuple_New(t->ndim);
    for (int i = 0; shape && i < t->ndim; i++) {
        PyObject *n = PyLong_FromLongLong(t->shape[i]);
        if (!n || PyTuple_SetItem(shape, i, n)) {
            Py_CLEAR(shape);
        }
    }
    return shape;
}

/* Take `x`, which has to look like the target. */
static int
take_like(Inversion *self, PyObject *x, const char *name, intake *in)
{
    intake like;
    int bad = take(self->like, self->torch, "target", &like);
    if (bad) {
        memset(in, 0, sizeof(*in));
    }
    else {
        bad = take(x, self->torch, name, in);
    }
    if (!bad && (in->t.ndim != like.t.ndim || memcmp(in->t.shape, like.t.shape, sizeof(int64_t) * (size_t)like.t.ndim))) {
        PyObject *got = shape_of(&in->t), *want = shape_of(&like.t);
        if (got && want) {
            PyErr_Format(PyExc_ValueError, "%s must have the target's shape %R, got %R", name, want, got);
        }
        Py_XDECREF(got);
        Py_XDECREF(want);
        bad = -1;
    }
    if (!bad && (in->t.device_type != like.t.device_type || in->t.device_index != like.t.device_index)) {
        PyErr_Format(PyExc_ValueError, "%s must be on the target's device", name);
        bad = -1;
    }
    release(&like);
    return bad;
}

/* -------------------------------------------------------------------------------------------------------------- given */

static PyObject *
empty_torch(PyObject *like, bool float32)
{
    PyObject *torch = PyImport_ImportModule("torch"), *make = NULL, *args = NULL, *kwargs = NULL, *format = NULL,
             *out = NULL;
    PyObject *dtype = NULL;
    if (torch) {
        make = PyObject_GetAttrString(torch, "empty_like");
        format = PyObject_GetAttrString(torch, "contiguous_format");
        dtype = PyObject_GetAttrString(float32 ? torch : like, float32 ? "float32" : "dtype");
        args = PyTuple_Pack(1, like);
    }
    if (make && format && dtype && args) {
        kwargs = Py_BuildValue("{sOsOsO}", "memory_format", format, "dtype", dtype, "requires_grad", Py_False);
    }
    if (kwargs) {
        out = PyObject_Call(make, args, kwargs);
    }
    Py_XDECREF(torch);
    Py_XDECREF(make);
    Py_XDECREF(format);
    Py_XDECREF(dtype);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return out;
}

static PyObject *
empty_numpy(PyObject *like, bool float32)
{
    PyArrayObject *a = (PyArrayObject *)like;
    return PyArray_SimpleNew(PyArray_NDIM(a), PyArray_DIMS(a), float32 ? NPY_FLOAT : PyArray_TYPE(a));
}

/* A fresh tensor with the values of a slot, in the target's dtype or in float32. */
static PyObject *
give(Inversion *self, int slot, bool float32)
{
    intake in;
    nri_status status;
    PyObject *out = self->torch ? empty_torch(self->like, float32) : empty_numpy(self->like, float32);
    if (!out) {
        return NULL;
    }
    if (take(out, self->torch, "sample", &in)) {
        release(&in);
        Py_DECREF(out);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = self->v->ops->store(self->v, slot, &in.t);
    Py_END_ALLOW_THREADS
    release(&in);
    if (status != NRI_OK) {
        Py_DECREF(out);
        return raise_status(status);
    }
    return out;
}

/* ------------------------------------------------------------------------------------------------------------ Sampler */

static PyObject *
doubles(int ndim, npy_intp *shape, const double *x)
{
    PyObject *out = PyArray_SimpleNew(ndim, shape, NPY_DOUBLE);
    if (out) {
        memcpy(PyArray_DATA((PyArrayObject *)out), x, sizeof(*x) * (size_t)PyArray_SIZE((PyArrayObject *)out));
    }
    return out;
}

static int
check_sampler_shapes(PyArrayObject *timesteps, PyArrayObject *steps, PyArrayObject *inputs, PyArrayObject *levels)
{
    if (PyArray_NDIM(timesteps) != 1 || PyArray_DIM(timesteps, 0) < 1 || PyArray_DIM(timesteps, 0) > INT_MAX / 4) {
        PyErr_SetString(PyExc_ValueError, "timesteps must be a vector of at least one timestep");
        return -1;
    }
    npy_intp E = PyArray_DIM(timesteps, 0);
    if (PyArray_NDIM(inputs) != 1 || PyArray_DIM(inputs, 0) != E) {
        PyErr_Format(PyExc_ValueError, "inputs must be a vector of %zd numbers, one per timestep", (Py_ssize_t)E);
        return -1;
    }
    if (PyArray_NDIM(steps) != 2 || PyArray_DIM(steps, 0) != E || PyArray_DIM(steps, 1) < 2 * E
        || PyArray_DIM(steps, 1) > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "steps must be a matrix of %zd rows and at least %zd columns", (Py_ssize_t)E,
                     (Py_ssize_t)(2 * E));
        return -1;
    }
    if (levels && (PyArray_NDIM(levels) != 2 || PyArray_DIM(levels, 0) != E + 1 || PyArray_DIM(levels, 1) != 2)) {
        PyErr_Format(PyExc_ValueError, "levels must be a matrix of %zd rows and 2 columns", (Py_ssize_t)(E + 1));
        return -1;
    }
    return 0;
}

static PyObject *
sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timesteps", "steps", "inputs", "levels", NULL};
    PyObject *given[4] = {NULL, NULL, NULL, Py_None};
    PyArrayObject *array[4] = {NULL, NULL, NULL, NULL};
    Sampler *self = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O:Sampler", names, &given[0], &given[1], &given[2], &given[3])) {
        return NULL;
    }
    for (int i = 0; i < (given[3] == Py_None ? 3 : 4); i++) {
        array[i] = (PyArrayObject *)PyArray_FROM_OTF(given[i], NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
        if (!array[i]) {
            goto end;
        }
    }
    if (check_sampler_shapes(array[0], array[1], array[2], array[3])) {
        goto end;
    }
    int E = (int)PyArray_DIM(array[0], 0), K = (int)PyArray_DIM(array[1], 1) - 2 * E, step;
    self = (Sampler *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self) {
        nri_status status = nri_sampler_create(E, K, PyArray_DATA(array[0]), PyArray_DATA(array[1]), PyArray_DATA(array[2]),
                                               array[3] ? PyArray_DATA(array[3]) : NULL, &self->sampler, &step);
        if (status != NRI_OK) {
            Py_CLEAR(self);
            if (step >= 0) {
                PyErr_Format(PyExc_ValueError, "steps: step %d of %d: %s", step, E, nri_status_text(status));
            }
            else {
                raise_status(status);
            }
        }
    }
end:
    for (int i = 0; i < 4; i++) {
        Py_XDECREF((PyObject *)array[i]);
    }
    return (PyObject *)self;
}

static void
sampler_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    nri_sampler_destroy(((Sampler *)op)->sampler);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static Py_ssize_t
sampler_length(PyObject *op)
{
    return ((Sampler *)op)->sampler->evaluations;
}

static PyObject *
sampler_timesteps(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    (void)unused;
    return doubles(1, (npy_intp[]){s->evaluations}, s->timesteps);
}

static PyObject *
sampler_inputs(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    (void)unused;
    return doubles(1, (npy_intp[]){s->evaluations}, s->inputs);
}

static PyObject *
sampler_steps(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    (void)unused;
    return doubles(2, (npy_intp[]){s->evaluations, 2 * s->evaluations + s->noises}, s->steps);
}

static PyObject *
sampler_states(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    (void)unused;
    return doubles(2, (npy_intp[]){s->evaluations + 1, 1 + s->evaluations + s->noises}, s->states);
}

static PyObject *
sampler_levels(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    (void)unused;
    return s->levels ? doubles(2, (npy_intp[]){s->evaluations + 1, 2}, s->levels) : Py_NewRef(Py_None);
}

static PyObject *
sampler_num_noises(PyObject *op, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((Sampler *)op)->sampler->noises);
}

static PyObject *
sampler_first_order(PyObject *op, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Sampler *)op)->sampler->first_order);
}

static PyObject *
sampler_singular(PyObject *op, void *unused)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    PyObject *list = PyList_New(0), *out = NULL;
    (void)unused;
    for (int j = 0; list && j < s->evaluations; j++) {
        PyObject *n = s->singular[j] ? PyLong_FromLong(j) : NULL;
        if (s->singular[j] && (!n || PyList_Append(list, n))) {
            Py_CLEAR(list);
        }
        Py_XDECREF(n);
    }
    if (list) {
        out = PyList_AsTuple(list);
        Py_DECREF(list);
    }
    return out;
}

static PyGetSetDef sampler_getset[] = {
    {"timesteps", sampler_timesteps, NULL, "[E] float64: the timestep of each evaluation", NULL},
    {"inputs", sampler_inputs, NULL, "[E] float64: the network sees inputs[j] * s_j", NULL},
    {"steps", sampler_steps, NULL, "[E, 2E + K] float64: s_{j+1} in the states, network outputs and noises", NULL},
    {"states", sampler_states, NULL, "[E + 1, 1 + E + K] float64: s_j in z_T, network outputs and noises", NULL},
    {"levels", sampler_levels, NULL,
     "[E + 1, 2] float64: S_j, sigma_j of the forward process s_j ~ S_j z_0 + sigma_j n, or None", NULL},
    {"num_noises", sampler_num_noises, NULL, "K: how many times the sampler draws noise", NULL},
    {"first_order", sampler_first_order, NULL, "whether every step reads its own network output only", NULL},
    {"singular", sampler_singular, NULL, "the steps that cannot be inverted: the coefficient of their own state is 0", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot sampler_slots[] = {
    {Py_tp_doc,
     "Sampler(timesteps, steps, inputs, levels=None)\n--\n\n"
     "A sampler as a linear form: E evaluations, K noise draws.\n\n"
     "timesteps [E]; steps [E, 2E + K], row j the coefficients of s_0..s_{E-1}, m_0..m_{E-1} and n_0..n_{K-1} in s_{j+1};\n"
     "inputs [E], the network is evaluated at inputs[j] * s_j; levels [E + 1, 2], signal and noise of the forward process,\n"
     "s_j ~ S_j z_0 + sigma_j n, which `auto` and noise='absorb' use.  Usually made by nrinv.read_sampler.\n\n"
     "Raises ValueError if a coefficient is not finite or a step reads what does not exist yet."},
    {Py_tp_new, sampler_new},
    {Py_tp_dealloc, sampler_dealloc},
    {Py_tp_getset, sampler_getset},
    {Py_sq_length, sampler_length},
    {0, NULL},
};

static PyType_Spec sampler_spec = {"nrinv._C.Sampler", sizeof(Sampler), 0, Py_TPFLAGS_DEFAULT, sampler_slots};

/* ---------------------------------------------------------------------------------------------------------- Inversion */

/* Raise "<name> must be <allowed>, got <value>". */
static int
refuse_number(const char *name, const char *allowed, double value)
{
    PyObject *number = PyFloat_FromDouble(value);
    if (number) {
        PyErr_Format(PyExc_ValueError, "%s must be %s, got %R", name, allowed, number);
        Py_DECREF(number);
    }
    return -1;
}

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

/* Make sure that libtorch's functions are at hand. */
static int
load_aten(void)
{
    PyObject *torch_c = PyImport_ImportModule("torch._C"), *file = NULL;
    const char *path, *missing = NULL;
    if (torch_c) {
        file = PyObject_GetAttrString(torch_c, "__file__");
        Py_DECREF(torch_c);
    }
    path = file ? PyUnicode_AsUTF8AndSize(file, NULL) : NULL;
    if (path) {
        missing = nri_aten_load(path);
    }
    Py_XDECREF(file);
    if (!path) {
        return -1;
    }
    if (missing) {
        PyErr_Format(PyExc_ImportError, "this torch does not have what nrinv needs (torch >= 2.10): %s", missing);
        return -1;
    }
    return 0;
}

static int
load_into(Inversion *self, int slot, PyObject *x, const char *name)
{
    intake in;
    nri_status status;
    if (take_like(self, x, name, &in)) {
        release(&in);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = self->v->ops->load(self->v, slot, &in.t);
    Py_END_ALLOW_THREADS
    release(&in);
    if (status != NRI_OK) {
        raise_status(status);
        return -1;
    }
    return 0;
}

static int
load_noises(Inversion *self, PyObject *noises)
{
    int K = self->sampler->sampler->noises;
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
        int bad = !x || load_into(self, nri_inversion_noise(self->inv, k), x, "noises");
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
    intake like = {.owner = NULL};
    nri_status status = NRI_OK;
    nri_request request;
    bool done;
    int step, slots = nri_inversion_slots(self->sampler->sampler, &self->options);
    if (check_absorb(self->sampler->sampler, &self->options) || (self->torch && load_aten())
        || take(self->like, self->torch, "target", &like)) {
        release(&like);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = self->torch ? nri_space_create_aten(&like.t, slots, &self->v) : nri_space_create_host(&like.t, slots, &self->v);
    Py_END_ALLOW_THREADS
    release(&like);
    if (status == NRI_OK) {
        status = nri_inversion_create(self->sampler->sampler, &self->options, self->v, &self->inv, &step);
    }
    if (status == NRI_SINGULAR_STEP) {
        PyErr_Format(PyExc_ValueError, "sampler: step %d of %d cannot be inverted: %s", step,
                     self->sampler->sampler->evaluations, nri_status_text(status));
        return -1;
    }
    if (status != NRI_OK) {
        raise_status(status);
        return -1;
    }
    if (load_into(self, nri_inversion_target(self->inv), self->like, "target") || load_noises(self, noises)
        || (self->options.guess && load_into(self, nri_inversion_guess(self->inv), guess, "guess"))) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_inversion_next(self->inv, &request, &done);
    Py_END_ALLOW_THREADS
    if (status == NRI_NOT_FINITE) {
        PyErr_SetString(PyExc_ValueError, "target must be finite, got NaN or infinity");
        return -1;
    }
    if (status != NRI_OK) {
        raise_status(status);
        return -1;
    }
    return 0;
}

static PyObject *
inversion_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    tensors given;
    nri_options options;
    module_state *state = PyType_GetModuleState(type);
    if (!state || read_options(args, kwargs, &given, &options)) {
        return NULL;
    }
    if (!PyObject_TypeCheck(given.sampler, (PyTypeObject *)state->sampler_type)) {
        return PyErr_Format(PyExc_ValueError, "sampler must be a Sampler, got %R", (PyObject *)Py_TYPE(given.sampler));
    }
    Inversion *self = (Inversion *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self) {
        return NULL;
    }
    self->sampler = (Sampler *)Py_NewRef(given.sampler);
    self->like = Py_NewRef(given.target);
    self->options = options;
    self->torch = !PyArray_Check(given.target) && exchange_of(given.target);
    if (inversion_open(self, given.noises, given.guess)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void
inversion_dealloc(PyObject *op)
{
    Inversion *self = (Inversion *)op;
    PyTypeObject *type = Py_TYPE(op);
    nri_inversion_destroy(self->inv);
    nri_space_destroy(self->v);
    Py_XDECREF(self->like);
    Py_XDECREF((PyObject *)self->sampler);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static int
enter(Inversion *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this Inversion is in use by another thread");
        return -1;
    }
    self->busy = true;
    return 0;
}

/* A new tuple type instance that owns `items`; NULL if one of them is missing. */
static PyObject *
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

static PyObject *
booleans(npy_intp n, const bool *x)
{
    PyObject *out = PyArray_SimpleNew(1, &n, NPY_BOOL);
    for (npy_intp i = 0; out && i < n; i++) {
        ((npy_bool *)PyArray_DATA((PyArrayObject *)out))[i] = x[i];
    }
    return out;
}

static PyObject *
inversion_next(PyObject *op, PyObject *unused)
{
    Inversion *self = (Inversion *)op;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_request request;
    nri_status status;
    bool done = false;
    (void)unused;
    if (!state || enter(self)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_inversion_next(self->inv, &request, &done);
    Py_END_ALLOW_THREADS
    PyObject *out = NULL;
    if (status != NRI_OK) {
        raise_status(status);
    }
    else if (done) {
        out = Py_NewRef(Py_None);
    }
    else {
        PyObject *fields[] = {PyLong_FromLong(request.index),
                              PyFloat_FromDouble(request.timestep),
                              give(self, request.slot, false),
                              PyFloat_FromDouble(request.scale),
                              PyBool_FromLong(request.wants_gradient),
                              request.cotangent < 0 ? Py_NewRef(Py_None) : give(self, request.cotangent, false),
                              booleans((npy_intp)self->v->batch, request.active)};
        out = pack_fields(state->request_type, 7, fields);
    }
    self->busy = false;
    return out;
}

static PyObject *
inversion_feed(PyObject *op, PyObject *model_output)
{
    Inversion *self = (Inversion *)op;
    intake in;
    nri_status status;
    if (enter(self)) {
        return NULL;
    }
    if (take_like(self, model_output, "model_output", &in)) {
        release(&in);
        self->busy = false;
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_inversion_feed(self->inv, &in.t);
    Py_END_ALLOW_THREADS
    release(&in);
    self->busy = false;
    if (status == NRI_BAD_ORDER) {
        PyErr_SetString(PyExc_RuntimeError, "feed needs a request: call next() first");
        return NULL;
    }
    return status == NRI_OK ? Py_NewRef(Py_None) : raise_status(status);
}

static PyObject *
integers(int ndim, npy_intp *shape, const int *x)
{
    PyObject *out = PyArray_SimpleNew(ndim, shape, NPY_INT64);
    for (npy_intp i = 0; out && i < PyArray_SIZE((PyArrayObject *)out); i++) {
        ((int64_t *)PyArray_DATA((PyArrayObject *)out))[i] = x[i];
    }
    return out;
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
give_list(Inversion *self, int first, int n)
{
    PyObject *out = PyList_New(n);
    for (int j = 0; out && j < n; j++) {
        PyObject *x = give(self, first + j, true);
        if (!x || PyList_SetItem(out, j, x)) {
            Py_CLEAR(out);
        }
    }
    return out;
}

static PyObject *
give_trajectory(Inversion *self, const nri_result *r)
{
    return r->trajectory < 0 ? Py_NewRef(Py_None) : give_list(self, r->trajectory, self->sampler->sampler->evaluations + 1);
}

static PyObject *
give_noises(Inversion *self, const nri_result *r)
{
    return self->options.absorb ? give_list(self, r->noises, self->sampler->sampler->noises) : Py_NewRef(Py_None);
}

static PyObject *
inversion_result(PyObject *op, PyObject *unused)
{
    Inversion *self = (Inversion *)op;
    module_state *state = PyType_GetModuleState(Py_TYPE(op));
    nri_result r;
    (void)unused;
    if (!state || enter(self)) {
        return NULL;
    }
    PyObject *out = NULL;
    if (nri_inversion_result(self->inv, &r) != NRI_OK) {
        PyErr_SetString(PyExc_RuntimeError, "the inversion is not finished: next() has to return None first");
    }
    else {
        npy_intp B = (npy_intp)self->v->batch, logs[2] = {self->sampler->sampler->evaluations, B};
        PyObject *fields[] = {
            give(self, r.latents, true),    doubles(2, logs, r.residual),     integers(2, logs, r.step_nfe),
            integers(1, &B, r.nfe),         reason_names(&r, self->v->batch), doubles(1, &B, r.error),
            PyLong_FromLong(r.evaluations), give_trajectory(self, &r),        give_noises(self, &r),
        };
        out = pack_fields(state->result_type, 9, fields);
    }
    self->busy = false;
    return out;
}

static PyObject *
inversion_max_evaluations(PyObject *op, void *unused)
{
    Inversion *self = (Inversion *)op;
    (void)unused;
    return PyLong_FromLongLong(nri_inversion_max_evaluations(self->sampler->sampler, &self->options));
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

static PyType_Spec inversion_spec = {"nrinv._C.Inversion", sizeof(Inversion), 0, Py_TPFLAGS_DEFAULT, inversion_slots};

/* ------------------------------------------------------------------------------------------------------------- module */

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
static PyStructSequence_Desc request_desc = {"nrinv.Request", "A network evaluation that an Inversion asks for.",
                                             request_fields, 7};

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
static PyStructSequence_Desc result_desc = {"nrinv.Result", "What an Inversion found.", result_fields, 9};

static PyObject *
reasons(PyObject *module, PyObject *unused)
{
    PyObject *out = PyDict_New();
    (void)module;
    (void)unused;
    for (int i = 0; out && i <= NRI_NON_FINITE; i++) {
        PyObject *text = PyUnicode_FromString(nri_reason_text((nri_reason)i));
        if (!text || PyDict_SetItemString(out, nri_reason_name((nri_reason)i), text)) {
            Py_CLEAR(out);
        }
        Py_XDECREF(text);
    }
    return out;
}

static PyMethodDef module_methods[] = {
    {"reasons", reasons, METH_NOARGS, "reasons()\n--\n\nThe names in Result.reasons and what they mean."},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    state->sampler_type = PyType_FromModuleAndSpec(module, &sampler_spec, NULL);
    state->inversion_type = PyType_FromModuleAndSpec(module, &inversion_spec, NULL);
    state->request_type = (PyObject *)PyStructSequence_NewType(&request_desc);
    state->result_type = (PyObject *)PyStructSequence_NewType(&result_desc);
    if (!state->sampler_type || !state->inversion_type || !state->request_type || !state->result_type) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "Sampler", state->sampler_type)
                   || PyModule_AddObjectRef(module, "Inversion", state->inversion_type)
                   || PyModule_AddObjectRef(module, "Request", state->request_type)
                   || PyModule_AddObjectRef(module, "Result", state->result_type)
               ? -1
               : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->sampler_type);
    Py_VISIT(state->inversion_type);
    Py_VISIT(state->request_type);
    Py_VISIT(state->result_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->sampler_type);
    Py_CLEAR(state->inversion_type);
    Py_CLEAR(state->request_type);
    Py_CLEAR(state->result_type);
    return 0;
}

static void
module_free(void *module)
{
    module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "nrinv._C",
    .m_doc = "Samplers as linear forms and their inversion by reverse communication.",
    .m_size = sizeof(module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__C(void)
{
    return PyModuleDef_Init(&definition);
}
