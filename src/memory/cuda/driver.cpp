// Loads libcuda.so.1 by hand, so that one build serves machines with and without a GPU.
// Part of ropeway; Apache-2.0.
#include "memory/cuda/driver.hpp"

#include <dlfcn.h>

namespace ropeway::memory::cuda {
namespace {

constexpr char const* what_to_do = "; install the NVIDIA driver, or use host memory";

#define ROPEWAY_STRING(name) #name
#define ROPEWAY_SYMBOL(name) ROPEWAY_STRING(name)

} // namespace

std::string driver::text(CUresult result) const {
  char const* words = nullptr;
  if (!cuGetErrorString || cuGetErrorString(result, &words) != CUDA_SUCCESS || !words)
    words = "unknown error";
  return std::string(words) + " (CUDA error " + std::to_string(static_cast<int>(result)) + ")";
}

void driver::fail(CUresult result, char const* what, errc code) const {
  throw transfer_error(code, std::string(what) + ": " + text(result));
}

std::shared_ptr<driver const> load_driver() {
  // Never closed: the driver has threads and exit handlers of its own.
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    char const* reason = ::dlerror();
    throw transfer_error(errc::no_device, std::string("the CUDA driver can't be loaded: ") +
                                              (reason ? reason : "libcuda.so.1 not found") + what_to_do);
  }
  auto table = std::make_shared<driver>();
  char const* missing = nullptr;
  auto load = [&](auto& member, char const* symbol) {
    void* address = ::dlsym(library, symbol);
    if (!address && !missing) missing = symbol;
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(address);
  };
#define ROPEWAY_LOAD(name) load(table->name, ROPEWAY_SYMBOL(name));
  ROPEWAY_CUDA_FUNCTIONS(ROPEWAY_LOAD)
#undef ROPEWAY_LOAD
  if (missing)
    throw transfer_error(errc::no_device, std::string("the CUDA driver is too old: it has no ") + missing +
                                              "; install a newer one, or use host memory");
  if (CUresult result = table->cuInit(0); result != CUDA_SUCCESS)
    throw transfer_error(errc::no_device,
                         "the CUDA driver does not start: " + table->text(result) + what_to_do);
  return table;
}

} // namespace ropeway::memory::cuda
