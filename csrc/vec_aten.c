/*
Vectors as torch tensors, through libtorch's C shim: one code path for every device torch.empty_strided reaches.

A space is one float32 tensor [B, slots, D]; slots and rows are views of it.  A combination is rows * coef summed over the
rows, a multi-dot rows * x summed over the elements, each by mul.out into a scratch tensor and sum.IntList_out.  Matrix
products would be two to three times faster on a CPU and are not used on purpose: the user may have allowed them to run in
TF32 (CUDA) or bfloat16 (CPU, torch.set_float32_matmul_precision("medium")), which loses the digits a solver lives on.
The `out` overloads are also the ones autocast leaves alone.
*/
#include "aten.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dlpack.h"
#include "vec.h"

static struct {
#define FIELD(result, name, args) result(*name) args;
    NRI_ATEN_REQUIRED(FIELD)
    NRI_ATEN_OPTIONAL(FIELD)
#undef FIELD
} aten;
static void *(*operator_new)(size_t);
static bool loaded;

/* The release whose packing rules are followed; later ones translate. */
#define PACKING_RULES ((uint64_t)2 << 56 | (uint64_t)10 << 48)

/* torch reports failure as a nonzero error. */
#define ATEN(call) \
    do { \
        if (call) { \
            return failed(); \
        } \
    } while (0)

typedef struct {
    nri_space base;
    AtenTensorHandle arena;   /* [B, slots, D] */
    AtenTensorHandle scratch; /* [B, rows, D] */
    AtenTensorHandle small;   /* [B, rows] on the device */
    float *host;              /* [B, rows] */
    int rows;                 /* the most rows of an operation so far */
    int32_t device, device_index;
} space;

static const char *
load(const char *torch_c)
{
    const char *missing = NULL;
    void *f;
    if (loaded) {
        return NULL;
    }
    /* RTLD_NOLOAD: only what is in the process already.  dlsym on it also searches the libraries it depends on. */
    void *library = dlopen(torch_c, RTLD_NOW | RTLD_NOLOAD);
    if (!library) {
        return "torch._C is not loaded";
    }
    /* ISO C has no cast from an object to a function pointer, hence memcpy. */
#define LOAD(result, name, args) \
    f = dlsym(library, #name); \
    memcpy(&aten.name, &f, sizeof(f));
#define LOAD_REQUIRED(result, name, args) \
    LOAD(result, name, args) \
    if (!f) { \
        missing = #name; \
    }
    NRI_ATEN_REQUIRED(LOAD_REQUIRED)
    NRI_ATEN_OPTIONAL(LOAD)
#undef LOAD
#undef LOAD_REQUIRED
    f = dlsym(library, "_Znwm");
    memcpy(&operator_new, &f, sizeof(f));
    if (!missing && !aten.torch_new_stable_ivalue && !operator_new) {
        missing = "torch_new_stable_ivalue";
    }
    loaded = !missing;
    return missing;
}

/* Threads may come at the same time where Python has no GIL. */
const char *
nri_aten_load(const char *torch_c)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    const char *missing = load(torch_c);
    pthread_mutex_unlock(&mutex);
    return missing;
}

/* NRI_BACKEND, with what the last call on this thread said. */
static nri_status
failed(void)
{
    const char *what = aten.torch_exception_get_what_without_backtrace ? aten.torch_exception_get_what_without_backtrace()
                                                                       : NULL;
    nri_set_backend_error(what && *what ? what : "a libtorch call failed");
    return NRI_BACKEND;
}

static void
drop(AtenTensorHandle h)
{
    if (h) {
        aten.aoti_torch_delete_tensor_object(h);
    }
}

static StableIValue
pack(void *handle)
{
    return (StableIValue)(uintptr_t)handle;
}

/* A present `int[1]? dim`: a cell that holds a list, both freed by the call. */
static nri_status
pack_dim(int64_t dim, StableIValue *out)
{
    StableListHandle list = NULL;
    StableIValue *cell = NULL;
    ATEN(aten.torch_new_list_reserve_size(1, &list));
    ATEN(aten.torch_list_push_back(list, (StableIValue)dim));
    if (aten.torch_new_stable_ivalue) {
        ATEN(aten.torch_new_stable_ivalue(&cell));
    }
    else {
        cell = operator_new(sizeof(*cell));
    }
    *cell = pack(list);
    *out = pack(cell);
    return NRI_OK;
}

/* Call an operator whose only result is its `out`.  The call frees its arguments, whether it fails or not. */
static nri_status
call(const char *op, const char *overload, StableIValue *stack)
{
    ATEN(aten.torch_call_dispatcher(op, overload, stack, PACKING_RULES));
    drop((AtenTensorHandle)(uintptr_t)stack[0]);
    return NRI_OK;
}

/* Whether all of n handles are there; if not, all are dropped. */
static bool
complete(int n, const AtenTensorHandle *t)
{
    bool all = true;
    for (int i = 0; i < n; i++) {
        all &= t[i] != NULL;
    }
    for (int i = 0; !all && i < n; i++) {
        drop(t[i]);
    }
    return all;
}

/* An operator of up to two tensors and its `out`, last; consumes the handles, one that is NULL is a failure. */
static nri_status
elementwise(const char *op, int n, const AtenTensorHandle *t)
{
    StableIValue stack[3];
    if (!complete(n, t)) {
        return failed();
    }
    for (int i = 0; i < n; i++) {
        stack[i] = pack(t[i]);
    }
    return call(op, "out", stack);
}

/* t[1] = t[0] summed over dim; consumes the handles */
static nri_status
sum(int64_t dim, const AtenTensorHandle *t)
{
    if (!complete(2, t)) {
        return failed();
    }
    StableIValue stack[5] = {pack(t[0]), 0, 0 /* keepdim */, 0 /* dtype */, pack(t[1])};
    nri_status status = pack_dim(dim, &stack[1]);
    if (status != NRI_OK) {
        drop(t[0]);
        drop(t[1]);
        return status;
    }
    return call("aten::sum", "IntList_out", stack);
}

/* t[0] = t[1], between devices too; consumes the handles */
static nri_status
copy(const AtenTensorHandle *t)
{
    if (!complete(2, t)) {
        return failed();
    }
    AOTITorchError error = aten.aoti_torch_copy_(t[0], t[1], 0);
    drop(t[0]);
    drop(t[1]);
    return error ? failed() : NRI_OK;
}

/* Views by value, new handles each; NULL if there is none, which the operations above sort out. */
static AtenTensorHandle
view(AtenTensorHandle whole, int ndim, const int64_t *shape, const int64_t *strides, int64_t offset)
{
    AtenTensorHandle out = NULL;
    return aten.aoti_torch__reinterpret_tensor(whole, ndim, shape, strides, offset, &out) ? NULL : out;
}

/* [B, count, D] */
static AtenTensorHandle
view_rows(const space *s, nri_rows rows)
{
    int64_t D = s->base.elements, shape[3] = {s->base.batch, rows.count, D};
    return view(s->arena, 3, shape, (int64_t[]){s->base.slots * D, rows.step * D, 1}, rows.first * D);
}

/* [n, D]: n samples of a slot, from sample b on */
static AtenTensorHandle
view_samples(const space *s, int slot, int64_t b, int64_t n)
{
    int64_t D = s->base.elements, pitch = s->base.slots * D;
    return view(s->arena, 2, (int64_t[]){n, D}, (int64_t[]){pitch, 1}, b * pitch + slot * D);
}

static AtenTensorHandle
view_slot(const space *s, int slot)
{
    return view_samples(s, slot, 0, s->base.batch);
}

/* [B, rows, D], or [B, D] of one row */
static AtenTensorHandle
view_scratch(const space *s, int rows)
{
    int64_t B = s->base.batch, D = s->base.elements;
    return rows ? view(s->scratch, 3, (int64_t[]){B, rows, D}, (int64_t[]){rows * D, D, 1}, 0)
                : view(s->scratch, 2, (int64_t[]){B, D}, (int64_t[]){D, 1}, 0);
}

/* `small` as [B, rows] or [B, rows, 1] */
static AtenTensorHandle
view_small(const space *s, int rows, int ndim)
{
    return view(s->small, ndim, (int64_t[]){s->base.batch, rows, 1}, (int64_t[]){rows, 1, 1}, 0);
}

static AtenTensorHandle
view_memory(const nri_tensor *t, int32_t dtype, int32_t device)
{
    AtenTensorHandle out = NULL;
    int32_t index = t->device_index;
    return aten.aoti_torch_create_tensor_from_blob(t->data, t->ndim, t->shape, t->strides, 0, dtype, device, index, &out)
               ? NULL
               : out;
}

static nri_status
empty(const space *s, int64_t n, AtenTensorHandle *out)
{
    int64_t stride = 1;
    ATEN(aten.aoti_torch_empty_strided(1, &n, &stride, aten.aoti_torch_dtype_float32(), s->device, s->device_index, out));
    return NRI_OK;
}

static void
drop_scratch(space *s)
{
    drop(s->scratch);
    drop(s->small);
    free(s->host);
    s->scratch = s->small = NULL;
    s->host = NULL;
    s->rows = 0;
}

/* Room for operations on `rows` rows. */
static nri_status
reserve(space *s, int rows)
{
    int64_t n = s->base.batch * rows;
    if (rows <= s->rows) {
        return NRI_OK;
    }
    drop_scratch(s);
    s->host = malloc(sizeof(*s->host) * (size_t)n);
    if (!s->host) {
        return NRI_NO_MEMORY;
    }
    NRI_TRY(empty(s, n, &s->small));
    NRI_TRY(empty(s, n * s->base.elements, &s->scratch));
    s->rows = rows;
    return NRI_OK;
}

/* Between host and device, `count` numbers a sample: one transfer. */
static nri_status
transfer(space *s, int count, bool to_host)
{
    nri_tensor t = {
        .data = s->host, .ndim = 2, .shape = (int64_t[]){s->base.batch, count}, .strides = (int64_t[]){count, 1}};
    AtenTensorHandle device = view_small(s, count, 2);
    AtenTensorHandle host = view_memory(&t, aten.aoti_torch_dtype_float32(), aten.aoti_torch_device_type_cpu());
    return copy(to_host ? (AtenTensorHandle[]){host, device} : (AtenTensorHandle[]){device, host});
}

static nri_status
combine_aten(nri_space *v, int dst, nri_rows rows, const double *coef, int pitch)
{
    space *s = (space *)v;
    int n = rows.count;
    NRI_TRY(reserve(s, n));
    for (int64_t i = 0; i < v->batch * n; i++) {
        s->host[i] = (float)coef[i / n * pitch + i % n];
    }
    NRI_TRY(transfer(s, n, false));
    NRI_TRY(elementwise("aten::mul", 3, (AtenTensorHandle[]){view_rows(s, rows), view_small(s, n, 3), view_scratch(s, n)}));
    return sum(1, (AtenTensorHandle[]){view_scratch(s, n), view_slot(s, dst)});
}

static nri_status
dots_aten(nri_space *v, int x, nri_rows rows, double *out)
{
    space *s = (space *)v;
    int n = rows.count;
    NRI_TRY(reserve(s, n));
    NRI_TRY(elementwise("aten::mul", 3,
                        (AtenTensorHandle[]){view_rows(s, rows), view_rows(s, (nri_rows){x, 1, 1}), view_scratch(s, n)}));
    NRI_TRY(sum(2, (AtenTensorHandle[]){view_scratch(s, n), view_small(s, n, 2)}));
    NRI_TRY(transfer(s, n, true));
    for (int64_t i = 0; i < v->batch * n; i++) {
        out[i] = (double)s->host[i];
    }
    return NRI_OK;
}

static nri_status
sign_aten(nri_space *v, int dst, int src, double floor)
{
    space *s = (space *)v;
    NRI_TRY(reserve(s, 1));
    if (floor > 0) {
        for (int64_t b = 0; b < v->batch; b++) {
            s->host[b] = (float)floor;
        }
        NRI_TRY(transfer(s, 1, false));
        NRI_TRY(elementwise("aten::abs", 2, (AtenTensorHandle[]){view_slot(s, src), view_scratch(s, 0)}));
        NRI_TRY(elementwise("aten::maximum", 3,
                            (AtenTensorHandle[]){view_scratch(s, 0), view_small(s, 1, 2), view_scratch(s, 0)}));
    }
    NRI_TRY(elementwise("aten::sign", 2, (AtenTensorHandle[]){view_slot(s, src), view_slot(s, dst)}));
    if (floor > 0) {
        NRI_TRY(elementwise("aten::div", 3, (AtenTensorHandle[]){view_slot(s, dst), view_scratch(s, 0), view_slot(s, dst)}));
    }
    return NRI_OK;
}

/* One copy for every run of neighbouring samples. */
static nri_status
copy_aten(nri_space *v, int dst, int src, const bool *which)
{
    const space *s = (const space *)v;
    for (int64_t b = 0, end; b < v->batch; b = end + 1) {
        for (end = b; end < v->batch && (!which || which[end]); end++) {
        }
        if (end > b) {
            NRI_TRY(copy((AtenTensorHandle[]){view_samples(s, dst, b, end - b), view_samples(s, src, b, end - b)}));
        }
    }
    return NRI_OK;
}

static int32_t
dtype_of(nri_dtype dtype)
{
    int32_t (*const known[])(void) = {[NRI_FLOAT16] = aten.aoti_torch_dtype_float16,
                                      [NRI_BFLOAT16] = aten.aoti_torch_dtype_bfloat16,
                                      [NRI_FLOAT32] = aten.aoti_torch_dtype_float32,
                                      [NRI_FLOAT64] = aten.aoti_torch_dtype_float64};
    return known[dtype]();
}

/* torch calls a ROCm device "cuda". */
static int32_t
device_of(int32_t dlpack)
{
    switch (dlpack) {
    case NRI_DL_CPU:
    case NRI_DL_CUDA_HOST:
    case NRI_DL_ROCM_HOST:
        return aten.aoti_torch_device_type_cpu();
    case NRI_DL_CUDA:
    case NRI_DL_CUDA_MANAGED:
    case NRI_DL_ROCM:
        return aten.aoti_torch_device_type_cuda();
    default:
        return -1;
    }
}

/* Copy between a slot, seen with the shape of the tensor, and the caller's memory; converts the dtype. */
static nri_status
exchange_aten(nri_space *v, int slot, const nri_tensor *t, nri_direction direction)
{
    const space *s = (const space *)v;
    int64_t strides[64], pitch = 1;
    int32_t device = device_of(t->device_type);
    if (t->ndim > 64 || device != s->device || !nri_space_fits(v, t)) {
        return NRI_BAD_ARGUMENT;
    }
    for (int i = t->ndim - 1; i > 0; i--) {
        strides[i] = pitch;
        pitch *= t->shape[i];
    }
    strides[0] = v->slots * v->elements;
    AtenTensorHandle ours = view(s->arena, t->ndim, t->shape, strides, slot * v->elements);
    AtenTensorHandle theirs = view_memory(t, dtype_of(t->dtype), device);
    return copy(direction == NRI_LOAD ? (AtenTensorHandle[]){ours, theirs} : (AtenTensorHandle[]){theirs, ours});
}

static void
destroy_aten(nri_space *v)
{
    space *s = (space *)v;
    drop(s->arena);
    drop_scratch(s);
    free(s);
}

static const nri_vec_ops aten_ops = {destroy_aten, combine_aten, dots_aten, sign_aten, copy_aten, exchange_aten};

nri_status
nri_space_create_aten(const nri_tensor *like, int slots, nri_space **out)
{
    *out = NULL;
    if (!loaded || device_of(like->device_type) < 0) {
        return NRI_BAD_ARGUMENT;
    }
    space *s = calloc(1, sizeof(*s));
    if (!s) {
        return NRI_NO_MEMORY;
    }
    nri_status status = nri_space_init(&s->base, &aten_ops, like, slots);
    s->device = device_of(like->device_type);
    s->device_index = like->device_index;
    if (status == NRI_OK) {
        status = empty(s, s->base.batch * slots * s->base.elements, &s->arena);
    }
    if (status == NRI_OK && aten.aoti_torch_zero_(s->arena)) {
        status = failed();
    }
    if (status != NRI_OK) {
        destroy_aten(&s->base);
        return status;
    }
    *out = &s->base;
    return NRI_OK;
}
