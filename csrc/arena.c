/* One allocation for all arrays of a struct, see arena.h. */
#include "arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16 };

/* The end of an array that starts at `at`, rounded up to where the next may start; false if it cannot be counted. */
static bool
advance(size_t *at, const nri_array *a)
{
    double bytes = (double)a->size * (double)a->rows * (double)a->columns;
    if (bytes > (double)(SIZE_MAX / 4) || *at > SIZE_MAX / 4) {
        return false;
    }
    *at = (*at + a->size * a->rows * a->columns + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return true;
}

void *
nri_carve(void *owner, const nri_array *list, size_t count)
{
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (!advance(&at, list + i)) {
            return NULL;
        }
    }
    char *block = calloc(1, at ? at : 1);
    at = 0;
    for (size_t i = 0; block && i < count; i++) {
        void *array = list[i].rows && list[i].columns ? block + at : NULL;
        memcpy((char *)owner + list[i].member, &array, sizeof(array)); /* the member's own type is not known here */
        advance(&at, list + i);
    }
    return block;
}
