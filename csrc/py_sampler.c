/* nrinv._C.Sampler: a sampler as a linear form. */
#include "python.h"

#include <limits.h>

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

/* The output arrays, as closures of their getter. */
enum { TIMESTEPS, INPUTS, STEPS, STATES, LEVELS };

static PyObject *
sampler_array(PyObject *op, void *which)
{
    const nri_sampler *s = ((Sampler *)op)->sampler;
    npy_intp E = s->evaluations, K = s->noises;
    switch ((intptr_t)which) {
    case TIMESTEPS:
        return doubles(1, &E, s->timesteps);
    case INPUTS:
        return doubles(1, &E, s->inputs);
    case STEPS:
        return doubles(2, (npy_intp[]){E, 2 * E + K}, s->steps);
    case STATES:
        return doubles(2, (npy_intp[]){E + 1, 1 + E + K}, s->states);
    default:
        return doubles(2, (npy_intp[]){E + 1, 2}, s->levels);
    }
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
    {"timesteps", sampler_array, NULL, "[E] float64: the timestep of each evaluation", (void *)TIMESTEPS},
    {"inputs", sampler_array, NULL, "[E] float64: the network sees inputs[j] * s_j", (void *)INPUTS},
    {"steps", sampler_array, NULL, "[E, 2E + K] float64: s_{j+1} in the states, network outputs and noises", (void *)STEPS},
    {"states", sampler_array, NULL, "[E + 1, 1 + E + K] float64: s_j in z_T, network outputs and noises", (void *)STATES},
    {"levels", sampler_array, NULL,
     "[E + 1, 2] float64: S_j, sigma_j of the forward process s_j ~ S_j z_0 + sigma_j n, or None", (void *)LEVELS},
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

PyType_Spec sampler_spec = {"nrinv._C.Sampler", sizeof(Sampler), 0, Py_TPFLAGS_DEFAULT, sampler_slots};
