/*
Vectors, as the solvers see them: a space holds S slots of B samples with D float32 elements each, and a slot is an index.

Six operations carry everything.  vec_host.c does them in plain loops, vec_aten.c through libtorch on any of its devices,
vec_stack.c on several slots of another space at once.
Every slot is finite at all times.  Slots start as zeros, and code that detects a non-finite slot must overwrite it: a
coefficient of 0 must drop a row, and 0 * NaN would not.
*/
#ifndef NRINV_VEC_H
#define NRINV_VEC_H

#include <stdbool.h>
#include <stdint.h>

#define NRI_STATUS_LIST(X) \
    X(OK, "ok") \
    X(NO_MEMORY, "out of memory") \
    X(BAD_ARGUMENT, "an argument is out of range") \
    X(NOT_FINITE, "a coefficient is not finite") \
    X(NOT_CAUSAL, "a step reads a state or a network output that does not exist yet") \
    X(SINGULAR_STEP, "the coefficient of the step's own state is 0") \
    X(BACKEND, "a vector operation failed") \
    X(BAD_ORDER, "next and feed were called out of order") \
    X(NO_NOISE, "the norm of a vector is too far from that of Gaussian noise") \
    X(NOT_UNIQUE, "the vectors cancel each other, so that no centroid is the nearest")

#define NRI_ID(id, ...) NRI_##id,
typedef enum { NRI_STATUS_LIST(NRI_ID) } nri_status;

const char *nri_status_text(nri_status status);

/* Return the failure of `call` to the caller. */
#define NRI_TRY(call) \
    do { \
        nri_status nri_try = (call); \
        if (nri_try != NRI_OK) { \
            return nri_try; \
        } \
    } while (0)

typedef enum { NRI_FLOAT16, NRI_BFLOAT16, NRI_FLOAT32, NRI_FLOAT64 } nri_dtype;

/* A tensor that belongs to the caller: [B, ...] with B * D elements. */
typedef struct {
    void *data;
    nri_dtype dtype;
    int32_t device_type, device_index; /* as DLPack numbers them */
    int32_t ndim;
    const int64_t *shape, *strides; /* strides in elements */
} nri_tensor;

typedef enum { NRI_LOAD, NRI_STORE } nri_direction;

/* The slots first, first + step, ... */
typedef struct {
    int first, count, step;
} nri_rows;

typedef struct nri_space nri_space;

typedef struct {
    void (*destroy)(nri_space *v);
    /* dst[b] = sum_i coef[b * pitch + i] * rows_i[b], pitch 0: all samples alike; dst may be one of the rows */
    nri_status (*combine)(nri_space *v, int dst, nri_rows rows, const double *coef, int pitch);
    /* out[b * count + i] = <x[b], rows_i[b]> */
    nri_status (*dots)(nri_space *v, int x, nri_rows rows, double *out);
    /* dst = sign(src) / max(|src|, floor), element by element; sign(src) alone if floor is 0.  NaN gives 0 or NaN. */
    nri_status (*sign)(nri_space *v, int dst, int src, double floor);
    /* dst[b] = src[b] where which[b], everywhere if which is NULL; free where nothing is marked */
    nri_status (*copy)(nri_space *v, int dst, int src, const bool *which);
    /* copy a tensor to a slot, or the slot to the tensor; NRI_BAD_ARGUMENT: it has another B or D than the space */
    nri_status (*exchange)(nri_space *v, int slot, const nri_tensor *t, nri_direction direction);
} nri_vec_ops;

struct nri_space {
    const nri_vec_ops *ops;
    int64_t batch, elements; /* B, D */
    int slots;
};

/* For implementations: the sizes of a space of `slots` slots like the tensor `like`; whether a tensor has its B and D. */
nri_status nri_space_init(nri_space *v, const nri_vec_ops *ops, const nri_tensor *like, int slots);
bool nri_space_fits(const nri_space *v, const nri_tensor *t);

/* What the last operation on this thread that returned NRI_BACKEND says; its implementation sets it. */
void nri_set_backend_error(const char *text);
const char *nri_backend_error(void);

/* Spaces like the tensor `like`, all slots zero; destroy(NULL) is a no-op. */
nri_status nri_space_create_host(const nri_tensor *like, int slots, nri_space **out);
nri_status nri_space_create_aten(const nri_tensor *like, int slots, nri_space **out);
void nri_space_destroy(nri_space *v);

/* Slot i is the slots first + i * blocks .. of `inner`, which is borrowed; weights [blocks] are those of inner products. */
nri_status nri_space_create_stack(nri_space *inner, int first, int blocks, int slots, const double *weights,
                                  nri_space **out);

/* out[b] = |x[b]| */
nri_status nri_norms(nri_space *v, int x, double *out);

#endif
