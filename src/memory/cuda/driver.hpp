// The CUDA driver, loaded when it is first needed: a table of its functions, and errors in its words.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cuda.h>

#include <memory>
#include <string>

#include "memory/memory.hpp"
#include "ropeway/error.hpp"

// Every driver function that this library calls. cuda.h maps names to versions (cuMemAlloc to cuMemAlloc_v2),
// and because the list is expanded, so are the symbols that are looked up.
// clang-format off
#define ROPEWAY_CUDA_FUNCTIONS(X)                                                                            \
  X(cuInit) X(cuGetErrorString)                                                                              \
  X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetUuid) X(cuDeviceGetAttribute) X(cuDeviceCanAccessPeer)     \
  X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease)                                                   \
  X(cuCtxPushCurrent) X(cuCtxPopCurrent) X(cuCtxGetId) X(cuThreadExchangeStreamCaptureMode)                  \
  X(cuModuleLoadData) X(cuModuleUnload) X(cuModuleGetFunction) X(cuFuncGetAttribute) X(cuLaunchKernel)       \
  X(cuStreamCreateWithPriority) X(cuStreamDestroy) X(cuStreamQuery) X(cuStreamWaitEvent) X(cuStreamGetCtx)   \
  X(cuStreamIsCapturing) X(cuStreamAddCallback)                                                              \
  X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) X(cuEventSynchronize) X(cuEventQuery)                  \
  X(cuMemcpyAsync) X(cuMemcpyHtoDAsync) X(cuMemsetD8Async)                                                   \
  X(cuPointerGetAttributes) X(cuMemGetAddressRange) X(cuMemGetInfo)                                          \
  X(cuMemAlloc) X(cuMemFree) X(cuMemHostAlloc) X(cuMemFreeHost)                                              \
  X(cuMemHostRegister) X(cuMemHostUnregister)                                                                \
  X(cuMemGetAllocationGranularity) X(cuMemCreate) X(cuMemRelease)                                            \
  X(cuMemAddressReserve) X(cuMemAddressFree) X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess)                     \
  X(cuMemExportToShareableHandle) X(cuMemImportFromShareableHandle) X(cuMemRetainAllocationHandle)           \
  X(cuIpcGetMemHandle) X(cuIpcOpenMemHandle) X(cuIpcCloseMemHandle)
// clang-format on

namespace ropeway::memory::cuda {

/// The functions of libcuda.so.1. Tests wrap single entries to count or to fail calls.
struct driver {
#define ROPEWAY_MEMBER(name) decltype(&::name) name = nullptr;
  ROPEWAY_CUDA_FUNCTIONS(ROPEWAY_MEMBER)
#undef ROPEWAY_MEMBER

  /// What the driver says about an error, for people.
  std::string text(CUresult result) const;
  /// Throws `transfer_error(code)` with `what` and the driver's words unless `result` is success.
  void check(CUresult result, char const* what, errc code = errc::device_failed) const {
    if (result != CUDA_SUCCESS) fail(result, what, code);
  }
  [[noreturn]] void fail(CUresult result, char const* what, errc code) const;

  /// A number that no other context has; 0 for what is no context any more. An application may reset or
  /// destroy a context under our feet, and handles that belonged to it must then not even be destroyed.
  unsigned long long id_of(CUcontext context) const noexcept {
    unsigned long long id = 0;
    return cuCtxGetId(context, &id) == CUDA_SUCCESS ? id : 0;
  }
};

/// Loads and initialises the driver. Throws `transfer_error(errc::no_device)` with the reason. The library
/// stays loaded for good: unloading it is not safe.
std::shared_ptr<driver const> load_driver();

/// The backend of a device with a given driver table: what `make_backend` does after `load_driver`.
std::shared_ptr<backend> make_backend(std::shared_ptr<driver const> table, int ordinal);

} // namespace ropeway::memory::cuda
