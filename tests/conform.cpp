/*
Test only, never shipped: torch's real headers beside our C declarations of them.  What has drifted does not compile.

    g++ -std=c++17 -fsyntax-only -w -I$TORCH/include -Icsrc tests/conform.cpp
*/
#include <cstddef>
#include <type_traits>

#include <ATen/dlpack.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "aten.h" // redeclares torch's handles: these types have to agree as well
#include "dlpack.h"

// Required: torch declares it, with exactly this type.
#define EXACT(result, name, args) static_assert(std::is_same<decltype(&name), result(*) args>::value, #name);
NRI_ATEN_REQUIRED(EXACT)

// Optional: where torch declares it, it has this type, or the two declarations are in conflict.
#define AGAIN(result, name, args) extern "C" result name args;
NRI_ATEN_OPTIONAL(AGAIN)

#define PLACE(ours, o, theirs, t) \
    static_assert(offsetof(ours, o) == offsetof(theirs, t), #o); \
    static_assert(sizeof(ours::o) == sizeof(theirs::t), #o);

static_assert(sizeof(nri_dl_tensor) == sizeof(DLTensor), "DLTensor");
PLACE(nri_dl_tensor, data, DLTensor, data)
PLACE(nri_dl_tensor, device_type, DLTensor, device.device_type)
PLACE(nri_dl_tensor, device_index, DLTensor, device.device_id)
PLACE(nri_dl_tensor, ndim, DLTensor, ndim)
PLACE(nri_dl_tensor, code, DLTensor, dtype.code)
PLACE(nri_dl_tensor, bits, DLTensor, dtype.bits)
PLACE(nri_dl_tensor, lanes, DLTensor, dtype.lanes)
PLACE(nri_dl_tensor, shape, DLTensor, shape)
PLACE(nri_dl_tensor, strides, DLTensor, strides)
PLACE(nri_dl_tensor, byte_offset, DLTensor, byte_offset)

static_assert(sizeof(nri_dl_exchange) == sizeof(DLPackExchangeAPI), "DLPackExchangeAPI");
PLACE(nri_dl_exchange, major, DLPackExchangeAPI, header.version.major)
PLACE(nri_dl_exchange, minor, DLPackExchangeAPI, header.version.minor)
PLACE(nri_dl_exchange, prev, DLPackExchangeAPI, header.prev_api)
PLACE(nri_dl_exchange, allocate, DLPackExchangeAPI, managed_tensor_allocator)
PLACE(nri_dl_exchange, from_py, DLPackExchangeAPI, managed_tensor_from_py_object_no_sync)
PLACE(nri_dl_exchange, to_py, DLPackExchangeAPI, managed_tensor_to_py_object_no_sync)
PLACE(nri_dl_exchange, view_py, DLPackExchangeAPI, dltensor_from_py_object_no_sync)
PLACE(nri_dl_exchange, current_stream, DLPackExchangeAPI, current_work_stream)
static_assert(std::is_same<DLPackDLTensorFromPyObjectNoSync, int (*)(void *, DLTensor *)>::value, "view_py");

static_assert(NRI_DL_CPU == (int)kDLCPU && NRI_DL_CUDA == (int)kDLCUDA && NRI_DL_CUDA_HOST == (int)kDLCUDAHost, "devices");
static_assert(NRI_DL_ROCM == (int)kDLROCM && NRI_DL_ROCM_HOST == (int)kDLROCMHost, "devices");
static_assert(NRI_DL_CUDA_MANAGED == (int)kDLCUDAManaged, "devices");
static_assert(NRI_DL_FLOAT == (int)kDLFloat && NRI_DL_BFLOAT == (int)kDLBfloat, "types");
