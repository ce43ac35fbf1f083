/* nrinv._C: the module. */
#define NRINV_MODULE
#include "python.h"

#include "aten.h"

/* Find libtorch's functions, once torch is imported. */
static int
load_aten(void)
{
    PyObject *torch_c = PyImport_ImportModule("torch._C");
    PyObject *file = torch_c ? PyObject_GetAttrString(torch_c, "__file__") : NULL;
    const char *path = file ? PyUnicode_AsUTF8AndSize(file, NULL) : NULL, *missing = path ? nri_aten_load(path) : NULL;
    int bad = !path || missing;
    if (missing) {
        PyErr_Format(PyExc_ImportError, "this torch does not have what nrinv needs (torch >= 2.10): %s", missing);
    }
    Py_XDECREF(torch_c);
    Py_XDECREF(file);
    return bad ? -1 : 0;
}

static PyObject *
reasons(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *out = PyDict_New();
    for (int i = 0; out && i < NRI_REASONS; i++) {
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

static const struct {
    PyType_Spec *spec;           /* of a class, or */
    PyStructSequence_Desc *desc; /* of a named tuple */
} types[TYPES] = {[SAMPLER] = {&sampler_spec, NULL},
                  [INVERSION] = {&inversion_spec, NULL},
                  [REQUEST] = {NULL, &request_desc},
                  [RESULT] = {NULL, &result_desc}};

static const struct {
    const char *name;
    const char *const *names;
} lists[] = {{"SOLVERS", nri_solver_names},
             {"ORDERS", nri_order_names},
             {"NOISES", nri_noise_names},
             {"PATHS", nri_path_names},
             {"SPACINGS", nri_spacing_names}};

static PyObject *
name_tuple(const char *const *names)
{
    Py_ssize_t n = 0;
    while (names[n]) {
        n++;
    }
    PyObject *out = PyTuple_New(n);
    for (Py_ssize_t i = 0; out && i < n; i++) {
        set_item(&out, i, PyUnicode_FromString(names[i]));
    }
    return out;
}

static int
module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) { /* what the slot says, where it is not asked */
        PyErr_SetString(PyExc_ImportError, "nrinv._C, like NumPy, can be used in the main interpreter only");
        return -1;
    }
    state->load_torch = load_aten;
    if (PyArray_ImportNumPyAPI() < 0 || PyModule_AddFunctions(module, path_methods)) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++) {
        PyObject *names = name_tuple(lists[i].names);
        int bad = !names || PyModule_AddObjectRef(module, lists[i].name, names);
        Py_XDECREF(names);
        if (bad) {
            return -1;
        }
    }
    for (int i = 0; i < TYPES; i++) {
        state->type[i] = types[i].spec ? PyType_FromModuleAndSpec(module, types[i].spec, NULL)
                                       : (PyObject *)PyStructSequence_NewType(types[i].desc);
        if (!state->type[i] || PyModule_AddType(module, (PyTypeObject *)state->type[i])) {
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

/*
Numbers of slots that the limited API of 3.11 does not name.  An interpreter refuses those that it does not know: the newest
stand first, and older interpreters start behind them.  NumPy's table of functions belongs to the process, hence to the
first of its interpreters.
*/
enum { INTERPRETERS_SLOT = 3, GIL_SLOT = 4 };
static PyModuleDef_Slot module_slots[] = {
    {GIL_SLOT, (void *)1},      /* Py_MOD_GIL_NOT_USED, 3.13 */
    {INTERPRETERS_SLOT, NULL},  /* Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED, 3.12 */
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "nrinv._C",
    .m_doc = "Samplers as linear forms and their inversion by reverse communication.",
    .m_size = sizeof(module_state),
    .m_methods = module_methods,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__C(void)
{
    definition.m_slots = module_slots + (Py_Version < 0x030C0000 ? 2 : Py_Version < 0x030D0000 ? 1 : 0);
    return PyModuleDef_Init(&definition);
}
