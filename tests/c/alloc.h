/*
Allocations that are counted, and fail.  The linker sends malloc, calloc and free of a whole program to alloc.c
(-Wl,--wrap); only while it is armed is anything counted or refused.
*/
#ifndef NRINV_TEST_ALLOC_H
#define NRINV_TEST_ALLOC_H

#include <stdbool.h>

/* From here on the n-th allocation fails, the first for 0, none if n < 0. */
void alloc_arm(int n);
bool alloc_failed(void); /* whether one has failed */
int alloc_disarm(void);  /* how many were made and not freed */

#endif
