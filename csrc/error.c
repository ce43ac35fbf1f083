/* Exceptions of nrinv._C, and the names that it reads. */
#include "python.h"

#include <stdarg.h>
#include <string.h>

PyObject *
raise_status(nri_status status)
{
    if (status == NRI_NO_MEMORY) {
        return PyErr_NoMemory();
    }
    if (status == NRI_BACKEND) {
        return PyErr_Format(PyExc_RuntimeError, "torch: %s", nri_backend_error());
    }
    PyErr_SetString(status == NRI_BAD_ORDER ? PyExc_RuntimeError : PyExc_ValueError, nri_status_text(status));
    return NULL;
}

int
refuse(const char *format, ...)
{
    va_list given;
    va_start(given, format);
    PyErr_FormatV(PyExc_ValueError, format, given);
    va_end(given);
    return -1;
}

int
check_status(nri_status status)
{
    if (status != NRI_OK) {
        raise_status(status);
    }
    return status == NRI_OK ? 0 : -1;
}

int
check_problem(nri_status status, const nri_problem *problem)
{
    if (status == NRI_OK || !*problem->text) {
        return check_status(status);
    }
    return refuse("%s", problem->text);
}

void
set_item(PyObject **sequence, Py_ssize_t i, PyObject *item)
{
    if (!*sequence || !item) {
        Py_XDECREF(item);
        Py_CLEAR(*sequence);
    }
    else if (PyTuple_Check(*sequence) ? PyTuple_SetItem(*sequence, i, item) : PyList_SetItem(*sequence, i, item)) {
        Py_CLEAR(*sequence);
    }
}

PyObject *
name_tuple(const char *const *names)
{
    Py_ssize_t n = 0;
    while (names[n]) {
        n++;
    }
    PyObject *out = PyTuple_New(n);
    for (Py_ssize_t i = 0; i < n; i++) {
        set_item(&out, i, PyUnicode_FromString(names[i]));
    }
    return out;
}

int
read_name(const char *argument, const char *given, const char *const *names)
{
    for (int i = 0; names[i]; i++) {
        if (!strcmp(given, names[i])) {
            return i;
        }
    }
    PyObject *comma = PyUnicode_FromString(", "), *tuple = name_tuple(names), *list = NULL;
    if (comma && tuple) {
        list = PyUnicode_Join(comma, tuple);
    }
    if (list) {
        PyErr_Format(PyExc_ValueError, "%s must be one of %U, got '%s'", argument, list, given);
    }
    Py_XDECREF(comma);
    Py_XDECREF(tuple);
    Py_XDECREF(list);
    return -1;
}
