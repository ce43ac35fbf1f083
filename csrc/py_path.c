/* nrinv._C.interpolate and nrinv._C.centroid: paths between noise vectors. */
#include "python.h"

#include <float.h>
#include <limits.h>
#include <math.h>

/* 0, or -1 with what is wrong with the sample of a tensor. */
static int
check_path(nri_status status, const nri_space *v, int64_t sample, const char *name)
{
    double low, high;
    if (status == NRI_NOT_FINITE) {
        return refuse("%s: sample %lld must be finite and not zero", name, (long long)sample);
    }
    if (status == NRI_NO_NOISE && nri_path_norms(v->elements, &low, &high) == NRI_OK) {
        PyObject *range = Py_BuildValue("dd", low, high);
        if (range) {
            refuse("%s: sample %lld must have a norm in %R..%R, as noise has, for a geodesic", name, (long long)sample,
                   PyTuple_GetItem(range, 0), PyTuple_GetItem(range, 1));
            Py_DECREF(range);
        }
        return -1;
    }
    if (status == NRI_BAD_ARGUMENT) {
        return refuse("%s must have at least 4 elements a sample for a geodesic, got %lld", name, (long long)v->elements);
    }
    return status == NRI_NOT_UNIQUE ? refuse("%s: %s", name, nri_status_text(status)) : check_status(status);
}

/* Whether all numbers of a vector are in 0..most, and at least one is above 0 if `some`. */
static bool
in_range(PyArrayObject *a, double most, bool some)
{
    const double *x = PyArray_DATA(a);
    bool good = true;
    for (npy_intp i = 0; i < PyArray_DIM(a, 0); i++) {
        good &= x[i] >= 0 && x[i] <= most;
        some &= !(x[i] > 0);
    }
    return good && !some;
}

/* The points, a list of n tensors like a. */
static PyObject *
points(nri_space *v, const pattern *p, int n, const double *weights)
{
    PyObject *out = PyList_New(n);
    for (int i = 0; out && i < n; i++) {
        nri_status status;
        Py_BEGIN_ALLOW_THREADS
        status = v->ops->combine(v, NRI_PATH_POINT, (nri_rows){NRI_PATH_A, 3, 1}, weights + (int64_t)i * 3 * v->batch, 3);
        Py_END_ALLOW_THREADS
        set_item(&out, i, check_status(status) ? NULL : give(v, NRI_PATH_POINT, p, false));
    }
    return out;
}

/* The ways from a to b, once all is read. */
static PyObject *
interpolate(nri_space *v, const pattern *p, nri_path method, nri_spacing spacing, PyArrayObject *fractions)
{
    npy_intp B = (npy_intp)v->batch;
    int n = (int)PyArray_DIM(fractions, 0);
    int64_t sample = -1;
    nri_status status;
    double *weights = PyMem_Malloc(sizeof(*weights) * (size_t)B * (3 * (size_t)n + 1));
    if (!weights) {
        return PyErr_NoMemory();
    }
    double *length = weights + 3 * B * n;
    Py_BEGIN_ALLOW_THREADS
    status = nri_interpolate(v, method, spacing, n, PyArray_DATA(fractions), weights, length, &sample);
    Py_END_ALLOW_THREADS
    PyObject *list = check_path(status, v, sample, "a and b") ? NULL : points(v, p, n, weights);
    PyObject *out = list ? Py_BuildValue("NN", list, numbers(NPY_DOUBLE, 1, &B, length)) : NULL;
    PyMem_Free(weights);
    return out;
}

static PyObject *
path_interpolate(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"a", "b", "fractions", "direction", "method", "spacing", NULL};
    PyObject *a, *b, *given, *direction, *out = NULL;
    const char *method = "geodesic", *spacing = "metric";
    nri_space *v = NULL;
    pattern p = {.like = NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$ss:interpolate", names, &a, &b, &given, &direction, &method,
                                     &spacing)) {
        return NULL;
    }
    int how = read_name("method", method, nri_path_names);
    int equal = how < 0 ? -1 : read_name("spacing", spacing, nri_spacing_names);
    PyArrayObject *fractions = equal < 0 ? NULL : (PyArrayObject *)PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    if (!fractions) {
        return NULL;
    }
    if (PyArray_NDIM(fractions) != 1 || PyArray_DIM(fractions, 0) < 1 || PyArray_DIM(fractions, 0) > INT_MAX) {
        refuse("fractions must be a vector of at least one number");
    }
    else if (!in_range(fractions, 1, false)) {
        refuse("fractions must be in 0..1");
    }
    else if (!read_pattern(a, "a", "a", &p) && !create_space(PyModule_GetState(module), &p, NRI_PATH_SLOTS, &v)
             && !exchange(v, NRI_PATH_A, &p, a, "a", NRI_LOAD) && !exchange(v, NRI_PATH_B, &p, b, "b", NRI_LOAD)
             && !exchange(v, NRI_PATH_DIRECTION, &p, direction, "direction", NRI_LOAD)) {
        out = interpolate(v, &p, (nri_path)how, (nri_spacing)equal, fractions);
    }
    nri_space_destroy(v);
    Py_XDECREF(p.like);
    Py_DECREF((PyObject *)fractions);
    return out;
}

/* The centroid of the slots 0..K-1, once all is read; slot K is free. */
static PyObject *
centroid(nri_space *v, const pattern *p, int K, const double *shares)
{
    int64_t sample = -1;
    nri_status status;
    double *weights = PyMem_Malloc(sizeof(*weights) * (size_t)v->batch * (size_t)K);
    if (!weights) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    status = nri_centroid(v, K, shares, weights, &sample);
    if (status == NRI_OK) {
        status = v->ops->combine(v, K, (nri_rows){0, K, 1}, weights, K);
    }
    Py_END_ALLOW_THREADS
    PyMem_Free(weights);
    return check_path(status, v, sample, "latents") ? NULL : give(v, K, p, false);
}

static PyObject *
path_centroid(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"latents", "shares", NULL};
    PyObject *list, *given, *out = NULL;
    nri_space *v = NULL;
    pattern p = {.like = NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:centroid", names, &list, &given)) {
        return NULL;
    }
    PyObject *latents = PySequence_Tuple(list);
    PyArrayObject *shares = latents ? (PyArrayObject *)PyArray_FROM_OTF(given, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY) : NULL;
    Py_ssize_t K = latents ? PyTuple_Size(latents) : -1;
    int bad = !shares;
    if (!bad && (K < 1 || K > INT_MAX / 4 || PyArray_NDIM(shares) != 1 || PyArray_DIM(shares, 0) != K)) {
        bad = refuse("shares must be a vector of %zd numbers, one for each of the latents", K);
    }
    if (!bad && !in_range(shares, DBL_MAX, true)) {
        bad = refuse("shares must be finite, at least 0 and not all 0");
    }
    bad = bad || read_pattern(PyTuple_GetItem(latents, 0), "the first", "latents", &p)
          || create_space(PyModule_GetState(module), &p, (int)K + 1, &v);
    for (Py_ssize_t k = 0; !bad && k < K; k++) {
        bad = exchange(v, (int)k, &p, PyTuple_GetItem(latents, k), "latents", NRI_LOAD);
    }
    if (!bad) {
        out = centroid(v, &p, (int)K, PyArray_DATA(shares));
    }
    nri_space_destroy(v);
    Py_XDECREF(p.like);
    Py_XDECREF(latents);
    Py_XDECREF((PyObject *)shares);
    return out;
}

PyMethodDef path_methods[] = {
    {"interpolate", (PyCFunction)(void (*)(void))path_interpolate, METH_VARARGS | METH_KEYWORDS,
     "interpolate(a, b, fractions, direction, *, method='geodesic', spacing='metric')\n--\n\n"
     "Points between a and b [B, ...]: a list of tensors like a, one for each of the fractions (0..1), and the length [B] "
     "of\n"
     "each way in the metric -log f(|z|) |dz| if it is a geodesic, else NaN.  direction: a tensor like a, the way round "
     "for\n"
     "ends that are opposite."},
    {"centroid", (PyCFunction)(void (*)(void))path_centroid, METH_VARARGS | METH_KEYWORDS,
     "centroid(latents, shares)\n--\n\n"
     "The centroid [B, ...] of K tensors [B, ...]: in their span, with the least sum of share times squared length of the\n"
     "geodesic to each; shares [K], at least 0 and not all 0."},
    {NULL, NULL, 0, NULL},
};
