/* Exceptions of nrinv._C, and the names that it reads. */
#include "python.h"

#include <stdarg.h>
#include <string.h>

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
    if (status == NRI_NO_MEMORY) {
        PyErr_NoMemory();
    }
    else if (status == NRI_BACKEND) {
        PyErr_Format(PyExc_RuntimeError, "torch: %s", nri_backend_error());
    }
    else if (status != NRI_OK) {
        PyErr_SetString(status == NRI_BAD_ORDER ? PyExc_RuntimeError : PyExc_ValueError, nri_status_text(status));
    }
    return status == NRI_OK ? 0 : -1;
}

int
check_problem(nri_status status, const nri_problem *problem)
{
    return status == NRI_OK || !*problem->text ? check_status(status) : refuse("%s", problem->text);
}

void
set_item(PyObject **sequence, Py_ssize_t i, PyObject *item)
{
    if (!item || (PyTuple_Check(*sequence) ? PyTuple_SetItem : PyList_SetItem)(*sequence, i, item)) {
        Py_CLEAR(*sequence);
    }
}

int
read_name(const char *argument, const char *given, const char *const *names)
{
    char list[200] = "";
    for (int i = 0; names[i]; i++) {
        if (!strcmp(given, names[i])) {
            return i;
        }
        PyOS_snprintf(list + strlen(list), sizeof(list) - strlen(list), i ? ", %s" : "%s", names[i]);
    }
    return refuse("%s must be one of %s, got '%s'", argument, list, given);
}
