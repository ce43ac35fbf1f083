/*
The functions of libtorch's C shim that are used: X(result, name, arguments).

torch's own headers declare them in C++ syntax; here they are in C.  Nothing is linked: vec_aten.c looks them up in the
torch that Python has loaded.  tests/conform.cpp expands the same lists beside torch's real headers, so that a prototype
that drifts does not compile.

StableIValue packs one argument of an operator: a tensor or list handle, an int, a bool, or for a present `T?` the
address of a cell made by libtorch.
*/
#ifndef NRINV_ATEN_H
#define NRINV_ATEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef int32_t AOTITorchError;
typedef uint64_t StableIValue;
typedef struct StableListOpaque *StableListHandle;

/* Present in every torch >= 2.10. */
#define NRI_ATEN_REQUIRED(X) \
    X(int32_t, aoti_torch_dtype_float16, (void)) \
    X(int32_t, aoti_torch_dtype_bfloat16, (void)) \
    X(int32_t, aoti_torch_dtype_float32, (void)) \
    X(int32_t, aoti_torch_dtype_float64, (void)) \
    X(int32_t, aoti_torch_device_type_cpu, (void)) \
    X(int32_t, aoti_torch_device_type_cuda, (void)) \
    X(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle)) \
    X(AOTITorchError, aoti_torch_empty_strided, \
      (int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, AtenTensorHandle *)) \
    X(AOTITorchError, aoti_torch_create_tensor_from_blob, \
      (void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t, AtenTensorHandle *)) \
    X(AOTITorchError, aoti_torch__reinterpret_tensor, \
      (AtenTensorHandle, int64_t, const int64_t *, const int64_t *, int64_t, AtenTensorHandle *)) \
    X(AOTITorchError, aoti_torch_copy_, (AtenTensorHandle, AtenTensorHandle, int32_t)) \
    X(AOTITorchError, aoti_torch_zero_, (AtenTensorHandle)) \
    X(AOTITorchError, torch_call_dispatcher, (const char *, const char *, StableIValue *, uint64_t)) \
    X(AOTITorchError, torch_new_list_reserve_size, (size_t, StableListHandle *)) \
    X(AOTITorchError, torch_list_push_back, (StableListHandle, StableIValue))

/* Since torch 2.13; without them a cell comes from C++'s operator new, and errors have no text. */
#define NRI_ATEN_OPTIONAL(X) \
    X(AOTITorchError, torch_new_stable_ivalue, (StableIValue **)) \
    X(const char *, torch_exception_get_what_without_backtrace, (void))

/* Find the functions; NULL, or what is missing.  `torch_c` is torch._C.__file__, already loaded. */
const char *nri_aten_load(const char *torch_c);

#endif
