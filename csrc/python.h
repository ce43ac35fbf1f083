/*
What the parts of nrinv._C share: module.c defines the module and alone knows ATen, py_tensor.c brings tensors in and out,
py_sampler.c, py_machine.c (what Inversion and Correction have in common), py_inversion.c, py_correction.c and py_path.c hold
the rest.

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
enum { SAMPLER, INVERSION, CORRECTION, REQUEST, RESULT, CORRECTED, TYPES };

typedef struct {
    PyObject *type[TYPES];
} module_state;

typedef struct {
    PyObject_HEAD
    nri_sampler *sampler;
} Sampler;

/* What asks for network evaluations. */
typedef struct {
    PyObject_HEAD
    Sampler *sampler;
    PyObject *like; /* the target, for the type, shape, dtype and device of what is given out */
    nri_space *v;
    bool torch, busy;
} Machine;

/* Somebody's tensor for the time of one call. */
typedef struct {
    nri_tensor t;
    PyObject *owner;
    nri_dl_tensor view; /* holds what t points to */
} intake;

/* ----------------------------------------------------------------------------------------------------------- module.c */

PyObject *raise_status(nri_status status);

/* 0, or -1 with the exception of a failure. */
int check_status(nri_status status);

/* Raise "<name> must be <allowed>, got <value>"; -1. */
int refuse_number(const char *name, const char *allowed, double value);

/* A space of slots like a tensor, of torch's or of floats. */
int create_space(PyObject *like, bool torch, const char *name, int slots, nri_space **out);

/* -------------------------------------------------------------------------------------------------------- py_tensor.c */

/* Whether x is a torch tensor. */
bool is_torch(PyObject *x);

/* A [B, ...] tensor for the backend in use; `release` it also after a failure. */
int take(PyObject *x, bool torch, const char *name, intake *in);
void release(intake *in);

/* Take `x`, which has to look like `like`, called `model`. */
int take_like(PyObject *like, const char *model, bool torch, PyObject *x, const char *name, intake *in);

/* Load a tensor, which has to look like `like`, into a slot. */
int load_slot(nri_space *v, int slot, PyObject *like, const char *model, bool torch, PyObject *x, const char *name);

/* A fresh tensor with the values of a slot, in the dtype of `like` or in float32; a list of n of them. */
PyObject *give(nri_space *v, int slot, PyObject *like, bool torch, bool float32);
PyObject *give_list(nri_space *v, int first, int n, PyObject *like, bool torch);

PyObject *doubles(int ndim, npy_intp *shape, const double *x);
PyObject *integers(int ndim, npy_intp *shape, const int *x);
PyObject *booleans(npy_intp n, const bool *x);

/* ------------------------------------------------------------------------------------------------------- py_machine.c */

extern PyStructSequence_Desc request_desc;

/* Open self->v with the sampler and the target; -1 with an exception. */
int machine_check(PyObject *sampler, PyObject *type);
void machine_init(Machine *self, PyObject *sampler, PyObject *target);
void machine_clear(Machine *self);
int machine_load(Machine *self, int slot, PyObject *x, const char *name);

/* Refuse a second thread; -1. */
int machine_enter(Machine *self);

typedef nri_status (*machine_next_call)(void *core, nri_request *request, bool *done);
typedef nri_status (*machine_feed_call)(void *core, const nri_tensor *model_output);
PyObject *machine_next(Machine *self, void *core, machine_next_call call);
PyObject *machine_feed(Machine *self, void *core, machine_feed_call call, PyObject *model_output);

/* A new tuple type instance that owns `items`; NULL if one of them is missing. */
PyObject *pack_fields(PyObject *type, int n, PyObject **items);

/* ------------------------------------------------------------------------------------------------------ the types etc. */

extern PyType_Spec sampler_spec, inversion_spec, correction_spec;
extern PyStructSequence_Desc result_desc, corrected_desc;

PyObject *path_interpolate(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *path_centroid(PyObject *module, PyObject *args, PyObject *kwargs);
extern const char path_interpolate_doc[], path_centroid_doc[];

#endif
