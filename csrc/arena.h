/*
One allocation for all arrays of a struct.

A list says once which member points to how many elements; it both sizes the block and points the members into it.
*/
#ifndef NRINV_ARENA_H
#define NRINV_ARENA_H

#include <stddef.h>

/* A member of rows * columns elements. */
typedef struct {
    size_t member, size, rows, columns;
} nri_array;

#define NRI_ARRAY(owner, member, rows, columns) \
    {offsetof(owner, member), sizeof(*((owner *)NULL)->member), (size_t)(rows), (size_t)(columns)}
#define NRI_CARVE(owner, list) nri_carve(owner, list, sizeof(list) / sizeof(*(list)))

/*
Point the members of *owner into one zeroed block, which the caller frees; a member without elements becomes NULL.
NULL: no memory, or a size that overflows.
*/
void *nri_carve(void *owner, const nri_array *list, size_t count);

#endif
