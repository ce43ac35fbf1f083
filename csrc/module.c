/* nrinv._C: the module. */
#define NRINV_MODULE
#include "python.h"

#include "aten.h"

PyObject *
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

int
check_status(nri_status status)
{
    if (status == NRI_OK) {
        return 0;
    }
    raise_status(status);
    return -1;
}

int
refuse_number(const char *name, const char *allowed, double value)
{
    PyObject *number = PyFloat_FromDouble(value);
    if (number) {
        PyErr_Format(PyExc_ValueError, "%s must be %s, got %R", name, allowed, number);
        Py_DECREF(number);
    }
    return -1;
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

int
create_space(PyObject *like, bool torch, const char *name, int slots, nri_space **out)
{
    intake in = {.owner = NULL};
    nri_status status;
    if ((torch && load_aten()) || take(like, torch, name, &in)) {
        release(&in);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = torch ? nri_space_create_aten(&in.t, slots, out) : nri_space_create_host(&in.t, slots, out);
    Py_END_ALLOW_THREADS
    release(&in);
    return check_status(status);
}

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
    {"interpolate", (PyCFunction)(void (*)(void))path_interpolate, METH_VARARGS | METH_KEYWORDS, path_interpolate_doc},
    {"centroid", (PyCFunction)(void (*)(void))path_centroid, METH_VARARGS | METH_KEYWORDS, path_centroid_doc},
    {NULL, NULL, 0, NULL},
};

static const struct {
    const char *name;
    PyType_Spec *spec;           /* of a class, or */
    PyStructSequence_Desc *desc; /* of a named tuple */
} types[TYPES] = {
    [SAMPLER] = {"Sampler", &sampler_spec, NULL},
    [INVERSION] = {"Inversion", &inversion_spec, NULL},
    [CORRECTION] = {"Correction", &correction_spec, NULL},
    [REQUEST] = {"Request", NULL, &request_desc},
    [RESULT] = {"Result", NULL, &result_desc},
    [CORRECTED] = {"Corrected", NULL, &corrected_desc},
};

static int
module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    for (int i = 0; i < TYPES; i++) {
        state->type[i] = types[i].spec ? PyType_FromModuleAndSpec(module, types[i].spec, NULL)
                                       : (PyObject *)PyStructSequence_NewType(types[i].desc);
        if (!state->type[i] || PyModule_AddObjectRef(module, types[i].name, state->type[i])) {
            return -1;
        }
    }
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    for (int i = 0; i < TYPES; i++) {
        Py_VISIT(state->type[i]);
    }
    return 0;
}

static int
module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    for (int i = 0; i < TYPES; i++) {
        Py_CLEAR(state->type[i]);
    }
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
