/*
What the parts of nrinv._C share.  Arrows point down:

    module.c        the module; alone loads libtorch
    py_sampler.c py_inversion.c py_path.c      the types and functions
    py_tensor.c     tensors in and out, spaces like a tensor
    error.c         exceptions, names

Arguments, handles and exceptions; no algorithm.  Built for the limited API of CPython 3.11.
*/
#ifndef NRINV_PYTHON_H
#define NRINV_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL nrinv_array_api
#ifndef NRINV_MODULE
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "dlpack.h"
#include "nrinv.h"

/* The types of the module. */
enum { SAMPLER, INVERSION, REQUEST, RESULT, TYPES };

typedef struct {
    PyObject *type[TYPES];
    int (*load_torch)(void); /* make libtorch's functions available; -1 with an exception */
} module_state;

typedef struct {
    PyObject_HEAD
    nri_sampler *sampler;
} Sampler;

enum { MAX_DIMENSIONS = 64 };

/* The tensor that all others of an operation have to look like, as it was when the operation began. */
typedef struct {
    PyObject *like;
    const char *name; /* in messages */
    bool torch;
    int ndim;
    int64_t shape[MAX_DIMENSIONS];
    int32_t device_type, device_index;
} pattern;

/* A caller's tensor for the time of one call. */
typedef struct {
    nri_tensor t;
    PyObject *owner;
    nri_dl_tensor view; /* holds what t points to */
} intake;

/* ------------------------------------------------------------------------------------------------------------ error.c */

/* -1 with a ValueError; the format is PyErr_Format's. */
int refuse(const char *format, ...);

/* 0, or -1 with the exception of a failure; with the problem's text, if it has one. */
int check_status(nri_status status);
int check_problem(nri_status status, const nri_problem *problem);

/* The place of a name in a list that ends with NULL; -1 with an exception that lists them. */
int read_name(const char *argument, const char *given, const char *const *names);

/* Give an item to a new list or tuple; an item that is NULL, with an exception, drops it. */
void set_item(PyObject **sequence, Py_ssize_t i, PyObject *item);

/* -------------------------------------------------------------------------------------------------------- py_tensor.c */

/* Take a [B, ...] tensor that looks like the pattern; drop its owner also after a failure. */
int take_like(const pattern *p, PyObject *x, const char *name, intake *in);

/* Make a pattern, with a reference to `like`, and a space of slots like it. */
int read_pattern(PyObject *like, const char *name, const char *argument, pattern *p);
int create_space(const module_state *state, const pattern *p, int slots, nri_space **out);

/* Load a tensor that looks like the pattern into a slot, or store a slot in it. */
int exchange(nri_space *v, int slot, const pattern *p, PyObject *x, const char *name, nri_direction direction);

/* A fresh tensor with the values of a slot, in the pattern's dtype or in float32. */
PyObject *give(nri_space *v, int slot, const pattern *p, bool float32);

/* An array with a copy of x: NPY_DOUBLE, NPY_BOOL, or NPY_INT, which Python sees as int64; None where x is NULL. */
PyObject *numbers(int type, int ndim, const npy_intp *shape, const void *x);

/* --------------------------------------------------------------------------------------------------- types and functions */

extern PyType_Spec sampler_spec, inversion_spec;
extern PyStructSequence_Desc request_desc, result_desc;

extern PyMethodDef path_methods[];

#endif
