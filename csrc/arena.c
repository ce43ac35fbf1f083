/* One allocation for all arrays of a struct, see arena.h. */
#include "arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 16 };

static bool
multiply(size_t *x, size_t factor)
{
    if (factor && *x > SIZE_MAX / factor) {
        return false;
    }
    *x *= factor;
    return true;
}

/* The end of an array that starts at `at`, rounded up to where the next may start. */
static bool
advance(size_t *at, const nri_array *a)
{
    size_t bytes = a->size;
    if (!multiply(&bytes, a->rows) || !multiply(&bytes, a->columns) || bytes > SIZE_MAX / 2 || *at > SIZE_MAX / 2 - bytes) {
        return false;
    }
    *at = (*at + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
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
