/*
The part of DLPack 1.x (https://dmlc.github.io/dlpack) that a reader of tensors needs.  tests/conform.cpp checks the
layouts against torch's ATen/dlpack.h.
*/
#ifndef NRINV_DLPACK_H
#define NRINV_DLPACK_H

#include <stdint.h>

enum {
    NRI_DL_CPU = 1,
    NRI_DL_CUDA = 2,
    NRI_DL_CUDA_HOST = 3,
    NRI_DL_ROCM = 10,
    NRI_DL_ROCM_HOST = 11,
    NRI_DL_CUDA_MANAGED = 13
};
enum { NRI_DL_FLOAT = 2, NRI_DL_BFLOAT = 4 };

typedef struct {
    void *data;
    int32_t device_type, device_index;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements */
    uint64_t byte_offset;
} nri_dl_tensor;

/* A tensor type's attribute __dlpack_c_exchange_api__ is a capsule "dlpack_exchange_api" on this table. */
typedef struct nri_dl_exchange {
    uint32_t major, minor;
    struct nri_dl_exchange *prev; /* the table of an older major version */
    void *allocate, *from_py, *to_py;
    int (*view_py)(void *py, nri_dl_tensor *out); /* a borrowed view; may be NULL */
    void *current_stream;
} nri_dl_exchange;

#endif
