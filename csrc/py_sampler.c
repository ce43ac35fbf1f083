/* nrinv._C.Sampler: a sampler as a linear form. */
#include "python.h"

#include <limits.h>

static int
check_shapes(PyArrayObject *timesteps, PyArrayObject *steps, PyArrayObject *inputs, PyArrayObject *levels)
{
    npy_intp E = PyArray_NDIM(timesteps) == 1 ? PyArray_DIM(timesteps, 0) : 0;
    if (E < 1 || E > INT_MAX / 4) {
        return refuse("timesteps must be a vector of at least one timestep");
    }
    if (PyArray_NDIM(inputs) != 1 || PyArray_DIM(inputs, 0) != E) {
        return refuse("inputs must be a vector of %zd numbers, one per timestep", (Py_ssize_t)E);
    }
    if (PyArray_NDIM(steps) != 2 || PyArray_DIM(steps, 0) != E || PyArray_DIM(steps, 1) < 2 * E
        || PyArray_DIM(steps, 1) > INT_MAX) {
        return refuse("steps must be a matrix of %zd rows and at least %zd columns", (Py_ssize_t)E, (Py_ssize_t)(2 * E));
    }
    if (levels && (PyArray_NDIM(levels) != 2 || PyArray_DIM(levels, 0) != E + 1 || PyArray_DIM(levels, 1) != 2)) {
        return refuse("levels must be a matrix of %zd rows and 2 columns", (Py_ssize_t)(E + 1));
    }
    return 0;
}

static PyObject *
sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timesteps", "steps", "inputs", "levels", NULL};
    PyObject *given[4] = {NULL, NULL, NULL, Py_None};
    PyArrayObject *array[4] = {NULL, NULL, NULL, NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O:Sampler", names, &given[0], &given[1], &given[2], &given[3])) {
        return NULL;
    }
    int bad = 0, step;
    for (int i = 0; !bad && i < (given[3] == Py_None ? 3 : 4); i++) {
        array[i] = (PyArrayObject *)PyArray_FROM_OTF(given[i], NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
        bad = !array[i];
    }
    bad = bad || check_shapes(array[0], array[1], array[2], array[3]);
    Sampler *self = bad ? NULL : (Sampler *)PyType_GenericAlloc(type, 0);
    if (self) {
        int E = (int)PyArray_DIM(array[0], 0), K = (int)PyArray_DIM(array[1], 1) - 2 * E;
        nri_status status = nri_sampler_create(E, K, PyArray_DATA(array[0]), PyArray_DATA(array[1]), PyArray_DATA(array[2]),
                                               array[3] ? PyArray_DATA(array[3]) : NULL, &self->sampler, &step);
        if (status != NRI_OK) {
            Py_CLEAR(self);
            bad = step < 0 ? check_status(status) : refuse("steps: step %d of %d: %s", step, E, nri_status_text(status));
        }
    }
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
    PyObject_Free(op);
    Py_DECREF(type);
}

static Py_ssize_t
sampler_length(PyObject *op)
{
    return ((Sampler *)op)->sampler->evaluations;
}

static PyObject *
singular_steps(const nri_sampler *s)
{
    PyObject *list = PyList_New(0), *out = NULL;
    for (int j = 0; list && j < s->evaluations; j++) {
        PyObject *n = PyLong_FromLong(j);
        if (!n || (s->singular[j] && PyList_Append(list, n))) {
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

/* The attributes, as closures of their getter. */
enum { TIMESTEPS, INPUTS, STEPS, STATES, LEVELS, NUM_NOISES, FIRST_ORDER, SINGULAR };

static PyObject *
sampler_get(PyObject *op, void *which)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    npy_intp E = s->evaluations, K = s->noises;
    switch ((intptr_t)which) {
    case TIMESTEPS:
        return numbers(NPY_DOUBLE, 1, &E, s->timesteps);
    case INPUTS:
        return numbers(NPY_DOUBLE, 1, &E, s->inputs);
    case STEPS:
        return numbers(NPY_DOUBLE, 2, (npy_intp[]){E, 2 * E + K}, s->steps);
    case STATES:
        return numbers(NPY_DOUBLE, 2, (npy_intp[]){E + 1, 1 + E + K}, s->states);
    case LEVELS:
        return numbers(NPY_DOUBLE, 2, (npy_intp[]){E + 1, 2}, s->levels);
    case NUM_NOISES:
        return PyLong_FromLong(s->noises);
    case FIRST_ORDER:
        return PyBool_FromLong(s->first_order);
    default:
        return singular_steps(s);
    }
}

static PyGetSetDef sampler_getset[] = {
    {"timesteps", sampler_get, NULL, "[E] float64: the timestep of each evaluation", (void *)TIMESTEPS},
    {"inputs", sampler_get, NULL, "[E] float64: the network sees inputs[j] * s_j", (void *)INPUTS},
    {"steps", sampler_get, NULL, "[E, 2E + K] float64: s_{j+1} in the states, network outputs and noises", (void *)STEPS},
    {"states", sampler_get, NULL, "[E + 1, 1 + E + K] float64: s_j in z_T, network outputs and noises", (void *)STATES},
    {"levels", sampler_get, NULL,
     "[E + 1, 2] float64: S_j, sigma_j of the forward process s_j ~ S_j z_0 + sigma_j n, or None", (void *)LEVELS},
    {"num_noises", sampler_get, NULL, "K: how many times the sampler draws noise", (void *)NUM_NOISES},
    {"first_order", sampler_get, NULL, "whether every step reads its own network output only", (void *)FIRST_ORDER},
    {"singular", sampler_get, NULL, "the steps that cannot be inverted: the coefficient of their own state is 0",
     (void *)SINGULAR},
    {.name = NULL},
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

PyType_Spec sampler_spec = {"nrinv._C.Sampler", sizeof(Sampler), 0, Py_TPFLAGS_DEFAULT, sampler_slots};
