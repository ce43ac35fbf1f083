/*
What the fuzz targets share: bytes that become numbers, and what must hold.

A target is LLVMFuzzerTestOneInput.  libFuzzer calls it where clang has it; driver.c where not.
*/
#ifndef NRINV_FUZZ_H
#define NRINV_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "alloc.h"
#include "nrinv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is left of the input; behind its end all bytes are 0, which every target takes for the plainest choice. */
typedef struct {
    const uint8_t *at, *end;
} fuzz_bytes;

int fuzz_byte(fuzz_bytes *in);
int fuzz_pick(fuzz_bytes *in, int count);  /* 0..count - 1 */
bool fuzz_rarely(fuzz_bytes *in);          /* once in 16 times */
double fuzz_plain(fuzz_bytes *in);         /* -4..4 in steps of 1/32 */
double fuzz_number(fuzz_bytes *in);        /* anything: NaN, infinity, denormal, huge */
int fuzz_int(fuzz_bytes *in, int usual);   /* 0..usual, rarely anything */

/* float32 host tensor [batch, elements]; `shape` must live as long as the tensor. */
nri_tensor fuzz_tensor(void *data, int64_t shape[2], int64_t batch, int64_t elements);

/* Stops the run where something does not hold. */
#define MUST(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
            abort(); \
        } \
    } while (0)

#endif
