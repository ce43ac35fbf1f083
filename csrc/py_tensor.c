/*
Tensors in and out of nrinv._C.

A torch tensor is read in place through the DLPack exchange table of its type, a C-contiguous NumPy array through the NumPy C
API; both stay with their owner.  The GIL is released around vector operations.
*/
#include "python.h"

#include <string.h>

_Static_assert(sizeof(npy_intp) == sizeof(int64_t), "shapes are handed to the core as they are");

/* ------------------------------------------------------------------------------------------------------------- intake */

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

/* An nri_dtype, or -1. */
static int
dtype_of_torch(const nri_dl_tensor *x)
{
    static const uint8_t known[][2] = {[NRI_FLOAT16] = {NRI_DL_FLOAT, 16},
                                       [NRI_BFLOAT16] = {NRI_DL_BFLOAT, 16},
                                       [NRI_FLOAT32] = {NRI_DL_FLOAT, 32},
                                       [NRI_FLOAT64] = {NRI_DL_FLOAT, 64}};
    for (int i = 0; x->lanes == 1 && i < (int)(sizeof(known) / sizeof(*known)); i++) {
        if (x->code == known[i][0] && x->bits == known[i][1]) {
            return i;
        }
    }
    return -1;
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
refuse_device(PyObject *x, const char *name)
{
    PyObject *layout = PyObject_GetAttrString(x, "layout"), *device = layout ? PyObject_GetAttrString(x, "device") : NULL;
    if (device) {
        refuse("%s must be a dense tensor on a CPU, CUDA or ROCm device, got layout %R on %S", name, layout, device);
    }
    Py_XDECREF(layout);
    Py_XDECREF(device);
    return -1;
}

static int
take_torch(PyObject *x, const char *name, intake *in)
{
    nri_dl_exchange *api = exchange_of(x);
    if (!api) {
        return refuse("%s must be a torch tensor like the target, got %R", name, (PyObject *)Py_TYPE(x));
    }
    in->owner = without_lazy_sign(x);
    if (!in->owner) {
        return -1;
    }
    int64_t elements = 1;
    if (api->view_py(in->owner, &in->view)) {
        PyErr_Clear();
        return refuse_device(x, name);
    }
    for (int i = 0; i < in->view.ndim; i++) {
        elements *= in->view.shape[i];
    }
    if (!in->view.data && elements) {
        return refuse("%s has no memory: fake and meta tensors cannot be inverted", name);
    }
    int dtype = dtype_of_torch(&in->view);
    if (dtype < 0) {
        return refuse("%s must be float16, bfloat16, float32 or float64", name);
    }
    in->t = (nri_tensor){(char *)in->view.data + in->view.byte_offset,
                         (nri_dtype)dtype,
                         in->view.device_type,
                         in->view.device_index,
                         in->view.ndim,
                         in->view.shape,
                         in->view.strides};
    return 0;
}

static int
take_numpy(PyObject *x, const char *name, intake *in)
{
    if (!PyArray_Check(x)) {
        return refuse("%s must be a NumPy array or a torch tensor, got %R", name, (PyObject *)Py_TYPE(x));
    }
    in->owner = PyArray_FROM_OF(x, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    if (!in->owner) {
        return -1;
    }
    PyArrayObject *a = (PyArrayObject *)in->owner;
    int type = PyArray_TYPE(a);
    if (type != NPY_HALF && type != NPY_FLOAT && type != NPY_DOUBLE) {
        return refuse("%s must be float16, float32 or float64", name);
    }
    nri_dtype dtype = type == NPY_HALF ? NRI_FLOAT16 : type == NPY_FLOAT ? NRI_FLOAT32 : NRI_FLOAT64;
    in->t = (nri_tensor){PyArray_DATA(a), dtype, NRI_DL_CPU, 0, PyArray_NDIM(a), (int64_t *)PyArray_DIMS(a), NULL};
    return 0;
}

static int
take(PyObject *x, bool torch, const char *name, intake *in)
{
    memset(in, 0, sizeof(*in));
    if (torch ? take_torch(x, name, in) : take_numpy(x, name, in)) {
        return -1;
    }
    if (in->t.ndim < 1 || in->t.ndim > MAX_DIMENSIONS) {
        return refuse(in->t.ndim ? "%s has too many dimensions" : "%s must have a batch dimension", name);
    }
    for (int i = 0; i < in->t.ndim; i++) {
        if (in->t.shape[i] < 1) {
            return refuse("%s must not be empty", name);
        }
    }
    return 0;
}

static PyObject *
shape_tuple(int ndim, const int64_t *shape)
{
    PyObject *out = PyTuple_New(ndim);
    for (int i = 0; out && i < ndim; i++) {
        set_item(&out, i, PyLong_FromLongLong(shape[i]));
    }
    return out;
}

int
read_pattern(PyObject *like, const char *name, const char *argument, pattern *p)
{
    intake in;
    *p = (pattern){.name = name, .torch = !PyArray_Check(like) && exchange_of(like)};
    int bad = take(like, p->torch, argument, &in);
    if (!bad) {
        p->like = Py_NewRef(like);
        p->ndim = in.t.ndim;
        memcpy(p->shape, in.t.shape, sizeof(*p->shape) * (size_t)p->ndim);
        p->device_type = in.t.device_type;
        p->device_index = in.t.device_index;
    }
    Py_XDECREF(in.owner);
    return bad;
}

int
take_like(const pattern *p, PyObject *x, const char *name, intake *in)
{
    if (take(x, p->torch, name, in)) {
        return -1;
    }
    if (in->t.ndim != p->ndim || memcmp(in->t.shape, p->shape, sizeof(*p->shape) * (size_t)p->ndim)) {
        PyObject *got = shape_tuple(in->t.ndim, in->t.shape), *want = shape_tuple(p->ndim, p->shape);
        if (got && want) {
            refuse("%s must have %s's shape %R, got %R", name, p->name, want, got);
        }
        Py_XDECREF(got);
        Py_XDECREF(want);
        return -1;
    }
    if (in->t.device_type != p->device_type || in->t.device_index != p->device_index) {
        return refuse("%s must be on %s's device", name, p->name);
    }
    return 0;
}

int
create_space(const module_state *state, const pattern *p, int slots, nri_space **out)
{
    intake in = {.owner = NULL};
    nri_status status;
    if ((p->torch && state->load_torch()) || take_like(p, p->like, p->name, &in)) {
        Py_XDECREF(in.owner);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = p->torch ? nri_space_create_aten(&in.t, slots, out) : nri_space_create_host(&in.t, slots, out);
    Py_END_ALLOW_THREADS
    Py_XDECREF(in.owner);
    return check_status(status);
}

int
exchange(nri_space *v, int slot, const pattern *p, PyObject *x, const char *name, nri_direction direction)
{
    intake in;
    nri_status status = NRI_OK;
    int bad = take_like(p, x, name, &in);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        status = v->ops->exchange(v, slot, &in.t, direction);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(in.owner);
    return bad ? -1 : check_status(status);
}

/* -------------------------------------------------------------------------------------------------------------- outputs */

/* Py_BuildValue consumes what it is given by "N", and fails if that is NULL. */
static PyObject *
empty_torch(PyObject *like, bool float32)
{
    PyObject *torch = PyImport_ImportModule("torch");
    if (!torch) {
        return NULL;
    }
    PyObject *make = PyObject_GetAttrString(torch, "empty_like"), *args = PyTuple_Pack(1, like);
    PyObject *kwargs = Py_BuildValue("{sNsNsO}", "memory_format", PyObject_GetAttrString(torch, "contiguous_format"),
                                     "dtype", PyObject_GetAttrString(float32 ? torch : like, float32 ? "float32" : "dtype"),
                                     "requires_grad", Py_False);
    PyObject *out = make && args && kwargs ? PyObject_Call(make, args, kwargs) : NULL;
    Py_DECREF(torch);
    Py_XDECREF(make);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return out;
}

static PyObject *
empty_numpy(const pattern *p, bool float32)
{
    return PyArray_SimpleNew(p->ndim, (npy_intp *)p->shape, float32 ? NPY_FLOAT : PyArray_TYPE((PyArrayObject *)p->like));
}

PyObject *
give(nri_space *v, int slot, const pattern *p, bool float32)
{
    PyObject *out = p->torch ? empty_torch(p->like, float32) : empty_numpy(p, float32);
    /* `like` may have been resized, by its owner */
    if (out && exchange(v, slot, p, out, "a resized target", NRI_STORE)) {
        Py_CLEAR(out);
    }
    return out;
}

PyObject *
numbers(int type, int ndim, const npy_intp *shape, const void *x)
{
    if (!x) {
        return Py_NewRef(Py_None);
    }
    PyObject *view = PyArray_SimpleNewFromData(ndim, shape, type, (void *)x), *out = NULL;
    if (view) {
        out = PyArray_FROM_OTF(view, type == NPY_INT ? NPY_INT64 : type, NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY);
        Py_DECREF(view);
    }
    return out;
}
