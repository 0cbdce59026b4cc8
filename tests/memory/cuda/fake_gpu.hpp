// A driver with one GPU that does nothing, for what can be tested without a device. Part of ropeway;
// Apache-2.0.
#pragma once
#include <memory>

#include "memory/cuda/driver.hpp"

namespace ropeway::testing {

/// Enough of the driver to make a `gpu` of ordinal 0 with four multiprocessors, streams and events. Tests set
/// what else they need.
inline std::shared_ptr<memory::cuda::driver> fake_gpu() {
  auto d = std::make_shared<memory::cuda::driver>();
  d->cuGetErrorString = [](CUresult, char const** out) { return *out = "as planned", CUDA_SUCCESS; };
  d->cuDeviceGetCount = [](int* out) { return *out = 1, CUDA_SUCCESS; };
  d->cuDeviceGet = [](CUdevice* out, int ordinal) { return *out = ordinal, CUDA_SUCCESS; };
  d->cuDeviceGetUuid = [](CUuuid* out, CUdevice) { return out->bytes[0] = 1, CUDA_SUCCESS; };
  d->cuDeviceGetAttribute = [](int* out, CUdevice_attribute, CUdevice) { return *out = 4, CUDA_SUCCESS; };
  d->cuDevicePrimaryCtxRetain = [](CUcontext* out, CUdevice) {
    return *out = reinterpret_cast<CUcontext>(16), CUDA_SUCCESS;
  };
  d->cuDevicePrimaryCtxRelease = [](CUdevice) { return CUDA_SUCCESS; };
  d->cuCtxGetId = [](CUcontext, unsigned long long* out) { return *out = 5, CUDA_SUCCESS; };
  d->cuCtxPushCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  d->cuCtxPopCurrent = [](CUcontext*) { return CUDA_SUCCESS; };
  d->cuThreadExchangeStreamCaptureMode = [](CUstreamCaptureMode*) { return CUDA_SUCCESS; };
  d->cuModuleLoadData = [](CUmodule*, void const*) { return CUDA_SUCCESS; };
  d->cuModuleUnload = [](CUmodule) { return CUDA_SUCCESS; };
  d->cuModuleGetFunction = [](CUfunction* out, CUmodule, char const*) {
    return *out = reinterpret_cast<CUfunction>(32), CUDA_SUCCESS;
  };
  d->cuFuncGetAttribute = [](int*, CUfunction_attribute, CUfunction) { return CUDA_SUCCESS; };
  d->cuStreamCreateWithPriority = [](CUstream*, unsigned, int) { return CUDA_SUCCESS; };
  d->cuStreamDestroy = [](CUstream) { return CUDA_SUCCESS; };
  d->cuEventCreate = [](CUevent* out, unsigned) {
    return *out = reinterpret_cast<CUevent>(48), CUDA_SUCCESS;
  };
  d->cuEventDestroy = [](CUevent) { return CUDA_SUCCESS; };
  d->cuEventRecord = [](CUevent, CUstream) { return CUDA_SUCCESS; };
  d->cuEventSynchronize = [](CUevent) { return CUDA_SUCCESS; };
  return d;
}

} // namespace ropeway::testing
