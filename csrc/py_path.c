/* nrinv._C.interpolate and nrinv._C.centroid: paths between noise vectors. */
#include "python.h"

#include <limits.h>
#include <math.h>
#include <string.h>

static const char *const method_names[] = {
#define NRI_PATH(id, name, text) name,
    NRI_PATH_LIST(NRI_PATH)
#undef NRI_PATH
};

static const char *const spacing_names[] = {
#define NRI_SPACING(id, name, text) name,
    NRI_SPACING_LIST(NRI_SPACING)
#undef NRI_SPACING
};

/* The place of a name among `count` names; -1 with an exception that lists them. */
static int
read_name(const char *argument, const char *given, const char *const *names, int count)
{
    PyObject *list;
    for (int i = 0; i < count; i++) {
        if (!strcmp(given, names[i])) {
            return i;
        }
    }
    list = PyUnicode_FromString(names[0]);
    for (int i = 1; list && i < count; i++) {
        PyObject *longer = PyUnicode_FromFormat("%U, %s", list, names[i]);
        Py_DECREF(list);
        list = longer;
    }
    if (list) {
        PyErr_Format(PyExc_ValueError, "%s must be one of %U, got '%s'", argument, list, given);
        Py_DECREF(list);
    }
    return -1;
}

/* Say what is wrong with the sample of a tensor. */
static void
raise_path_status(nri_status status, const nri_space *v, int64_t sample, const char *name)
{
    double low, high;
    if (status == NRI_NOT_FINITE) {
        PyErr_Format(PyExc_ValueError, "%s: sample %lld must be finite and not zero", name, (long long)sample);
    }
    else if (status == NRI_NO_NOISE && nri_path_norms(v->elements, &low, &high) == NRI_OK) {
        PyObject *from = PyFloat_FromDouble(low), *to = PyFloat_FromDouble(high);
        if (from && to) {
            PyErr_Format(PyExc_ValueError, "%s: sample %lld must have a norm in %R..%R, as noise has, for a geodesic", name,
                         (long long)sample, from, to);
        }
        Py_XDECREF(from);
        Py_XDECREF(to);
    }
    else if (status == NRI_BAD_ARGUMENT) {
        PyErr_Format(PyExc_ValueError, "%s must have at least 4 elements a sample for a geodesic, got %lld", name,
                     (long long)v->elements);
    }
    else if (status == NRI_NOT_UNIQUE) {
        PyErr_Format(PyExc_ValueError, "%s: %s", name, nri_status_text(status));
    }
    else {
        raise_status(status);
    }
}

/* The points, a list of n tensors like a. */
static PyObject *
points(nri_space *v, PyObject *like, bool torch, int n, const double *weights)
{
    PyObject *out = PyList_New(n);
    for (int i = 0; out && i < n; i++) {
        nri_status status;
        Py_BEGIN_ALLOW_THREADS
        status = v->ops->combine(v, NRI_PATH_POINT, (nri_rows){NRI_PATH_A, 3, 1}, weights + (int64_t)i * 3 * v->batch);
        Py_END_ALLOW_THREADS
        PyObject *x = status == NRI_OK ? give(v, NRI_PATH_POINT, like, torch, false) : raise_status(status);
        if (!x || PyList_SetItem(out, i, x)) {
            Py_CLEAR(out);
        }
    }
    return out;
}

const char path_interpolate_doc[] = "interpolate(a, b, fractions, direction, *, method='geodesic', spacing='metric')\n--\n\n"
                                    "Points between a and b [B, ...]: a list of tensors like a, one for each of the "
                                    "fractions (0..1), and the length [B] of\n"
                                    "each way in the metric -log f(|z|) |dz| if it is a geodesic, else NaN.  direction: a "
                                    "tensor like a, the way round for\n"
                                    "ends that are opposite.";

PyObject *
path_interpolate(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"a", "b", "fractions", "direction", "method", "spacing", NULL};
    PyObject *a, *b, *given, *direction, *list = NULL, *out = NULL;
    const char *method = "geodesic", *spacing = "metric";
    int how, equal;
    nri_space *v = NULL;
    int64_t sample = -1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$ss:interpolate", names, &a, &b, &given, &direction, &method,
                                     &spacing)) {
        return NULL;
    }
    how = read_name("method", method, method_names, (int)(sizeof(method_names) / sizeof(*method_names)));
    equal = how < 0 ? -1 : read_name("spacing", spacing, spacing_names, NRI_SPACINGS);
    if (equal < 0) {
        return NULL;
    }
    bool torch = is_torch(a);
    PyArrayObject *fractions = (PyArrayObject *)PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    double *weights = NULL;
    if (!fractions || PyArray_NDIM(fractions) != 1 || PyArray_DIM(fractions, 0) < 1 || PyArray_DIM(fractions, 0) > INT_MAX) {
        if (fractions) {
            PyErr_SetString(PyExc_ValueError, "fractions must be a vector of at least one number");
        }
        goto end;
    }
    int n = (int)PyArray_DIM(fractions, 0);
    if (create_space(a, torch, "a", NRI_PATH_SLOTS, &v) || load_slot(v, NRI_PATH_A, a, "a", torch, a, "a")
        || load_slot(v, NRI_PATH_B, a, "a", torch, b, "b")
        || load_slot(v, NRI_PATH_DIRECTION, a, "a", torch, direction, "direction")) {
        goto end;
    }
    npy_intp B = (npy_intp)v->batch;
    weights = PyMem_Malloc(sizeof(*weights) * (size_t)B * (3 * (size_t)n + 1));
    if (!weights) {
        PyErr_NoMemory();
        goto end;
    }
    nri_status status;
    double *length = weights + 3 * B * n;
    Py_BEGIN_ALLOW_THREADS
    status = nri_interpolate(v, (nri_path)how, (nri_spacing)equal, n, PyArray_DATA(fractions), weights, length, &sample);
    Py_END_ALLOW_THREADS
    if (status != NRI_OK) {
        raise_path_status(status, v, sample, "a and b");
        goto end;
    }
    list = points(v, a, torch, n, weights);
    PyObject *lengths = list ? doubles(1, &B, length) : NULL;
    if (lengths) {
        out = PyTuple_Pack(2, list, lengths);
        Py_DECREF(lengths);
    }
end:
    PyMem_Free(weights);
    nri_space_destroy(v);
    Py_XDECREF(list);
    Py_XDECREF((PyObject *)fractions);
    return out;
}

const char path_centroid_doc[]
    = "centroid(latents, shares)\n--\n\n"
      "The centroid [B, ...] of K tensors [B, ...]: in their span, with the least sum of share times squared length of the\n"
      "geodesic to each; shares [K], at least 0 and not all 0.";

PyObject *
path_centroid(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"latents", "shares", NULL};
    PyObject *list, *given, *first = NULL, *out = NULL;
    PyArrayObject *shares = NULL;
    nri_space *v = NULL;
    double *weights = NULL;
    int64_t sample = -1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:centroid", names, &list, &given)) {
        return NULL;
    }
    Py_ssize_t K = PySequence_Size(list);
    if (K < 0) {
        return NULL;
    }
    shares = (PyArrayObject *)PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    if (!shares) {
        return NULL;
    }
    if (K < 1 || K > INT_MAX / 4 || PyArray_NDIM(shares) != 1 || PyArray_DIM(shares, 0) != K) {
        PyErr_Format(PyExc_ValueError, "shares must be a vector of %zd numbers, one for each of the latents", K);
        goto end;
    }
    first = PySequence_GetItem(list, 0);
    if (!first) {
        goto end;
    }
    bool torch = is_torch(first);
    if (create_space(first, torch, "latents", (int)K + 1, &v)) {
        goto end;
    }
    for (Py_ssize_t k = 0; k < K; k++) {
        PyObject *x = PySequence_GetItem(list, k);
        int bad = !x || load_slot(v, (int)k, first, "the first", torch, x, "latents");
        Py_XDECREF(x);
        if (bad) {
            goto end;
        }
    }
    weights = PyMem_Malloc(sizeof(*weights) * (size_t)v->batch * (size_t)K);
    if (!weights) {
        PyErr_NoMemory();
        goto end;
    }
    nri_status status;
    Py_BEGIN_ALLOW_THREADS
    status = nri_centroid(v, (int)K, PyArray_DATA(shares), weights, &sample);
    Py_END_ALLOW_THREADS
    if (status != NRI_OK) {
        raise_path_status(status, v, sample, "latents");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    status = v->ops->combine(v, (int)K, (nri_rows){0, (int)K, 1}, weights);
    Py_END_ALLOW_THREADS
    out = status == NRI_OK ? give(v, (int)K, first, torch, false) : raise_status(status);
end:
    PyMem_Free(weights);
    nri_space_destroy(v);
    Py_XDECREF(first);
    Py_XDECREF((PyObject *)shares);
    return out;
}
