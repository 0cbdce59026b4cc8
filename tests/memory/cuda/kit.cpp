#include "kit.hpp"

#include <array>
#include <dlfcn.h>
#include <filesystem>
#include <spawn.h>
#include <stdexcept>
#include <sys/wait.h>

#include "test_kernels_image.h"

extern char** environ;

namespace ropeway::testing {
namespace {
#define ROPEWAY_STRING(name) #name
#define ROPEWAY_SYMBOL(name) ROPEWAY_STRING(name)
} // namespace

std::string no_device() {
  try {
    (void)memory::cuda::make_backend(0);
    return {};
  } catch (transfer_error const& error) { return error.what(); }
}

kit::kit(int which) : table(memory::cuda::load_driver()), ordinal(which) {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  auto load = [&](auto& member, char const* symbol) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(::dlsym(library, symbol));
    if (member == nullptr) throw std::runtime_error(std::string("the driver has no ") + symbol);
  };
#define ROPEWAY_LOAD(name) load(more.name, ROPEWAY_SYMBOL(name));
  ROPEWAY_TEST_FUNCTIONS(ROPEWAY_LOAD)
#undef ROPEWAY_LOAD
  check(table->cuDeviceGet(&id, ordinal), "cuDeviceGet");
  check(table->cuDevicePrimaryCtxRetain(&context, id), "cuDevicePrimaryCtxRetain");
  current here(*this);
  check(table->cuModuleLoadData(&module_, test_kernels), "cuModuleLoadData");
  copies_ = make_stream();
  // Lazy loading would synchronise in the middle of a test.
  for (char const* name : {"test_slow_fill", "test_wait", "test_trap"}) {
    CUfunction kernel = nullptr;
    int registers = 0;
    check(table->cuModuleGetFunction(&kernel, module_, name), name);
    check(table->cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, kernel), name);
  }
}

kit& kit::device(int ordinal) {
  if (ordinal == 0) {
    static kit zero(0);
    return zero;
  }
  static kit one(1);
  return one;
}

void kit::check(CUresult result, char const* what) const {
  if (result != CUDA_SUCCESS) throw std::runtime_error(std::string(what) + ": " + table->text(result));
}

std::shared_ptr<std::byte> kit::allocate(std::uint64_t bytes) {
  current here(*this);
  CUdeviceptr at = 0;
  check(more.cuMemAlloc(&at, bytes), "cuMemAlloc");
  return {reinterpret_cast<std::byte*>(at), [this](std::byte* p) {
            current inside(*this);
            (void)more.cuMemFree(reinterpret_cast<CUdeviceptr>(p));
          }};
}

std::shared_ptr<std::byte> kit::allocate_pinned(std::uint64_t bytes) {
  current here(*this);
  void* at = nullptr;
  check(table->cuMemHostAlloc(&at, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
        "cuMemHostAlloc");
  return {static_cast<std::byte*>(at), [this](std::byte* p) {
            current inside(*this);
            (void)table->cuMemFreeHost(p);
          }};
}

std::shared_ptr<std::byte> kit::allocate_managed(std::uint64_t bytes) {
  current here(*this);
  CUdeviceptr at = 0;
  check(more.cuMemAllocManaged(&at, bytes, CU_MEM_ATTACH_GLOBAL), "cuMemAllocManaged");
  return {reinterpret_cast<std::byte*>(at), [this](std::byte* p) {
            current inside(*this);
            (void)more.cuMemFree(reinterpret_cast<CUdeviceptr>(p));
          }};
}

std::shared_ptr<std::byte> kit::allocate_from_pool(std::uint64_t bytes) {
  current here(*this);
  CUdeviceptr at = 0;
  check(more.cuMemAllocAsync(&at, bytes, copies_), "cuMemAllocAsync");
  check(more.cuStreamSynchronize(copies_), "cuMemAllocAsync");
  return {reinterpret_cast<std::byte*>(at), [this](std::byte* p) {
            current inside(*this);
            (void)more.cuMemFreeAsync(reinterpret_cast<CUdeviceptr>(p), copies_);
          }};
}

void kit::write(std::byte* to, std::span<std::byte const> from) {
  current here(*this);
  check(more.cuMemcpyHtoDAsync(reinterpret_cast<CUdeviceptr>(to), from.data(), from.size(), copies_),
        "write");
  check(more.cuStreamSynchronize(copies_), "write");
}

void kit::read(std::span<std::byte> to, std::byte const* from) {
  current here(*this);
  check(more.cuMemcpyDtoHAsync(to.data(), reinterpret_cast<CUdeviceptr>(from), to.size(), copies_), "read");
  check(more.cuStreamSynchronize(copies_), "read");
}

CUstream kit::make_stream() {
  current here(*this);
  CUstream made = nullptr;
  check(more.cuStreamCreate(&made, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  return made;
}

namespace {
void launch(kit& with, CUmodule module, char const* name, CUstream on, void** parameters) {
  current here(with);
  CUfunction kernel = nullptr;
  with.check(with.table->cuModuleGetFunction(&kernel, module, name), name);
  with.check(with.table->cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, on, parameters, nullptr), name);
}
} // namespace

void kit::slow_fill(CUstream on, std::byte* to, std::uint32_t value, std::uint32_t count,
                    std::uint64_t nanoseconds) {
  void* parameters[] = {&to, &value, &count, &nanoseconds};
  launch(*this, module_, "test_slow_fill", on, parameters);
}

void kit::wait_for(CUstream on, std::uint32_t const* flag) {
  void* parameters[] = {&flag};
  launch(*this, module_, "test_wait", on, parameters);
}

void kit::trap(CUstream on) { launch(*this, module_, "test_trap", on, nullptr); }

int run_role(std::string const& role) {
  std::string program = std::filesystem::read_symlink("/proc/self/exe");
  std::string option = "--role=" + role;
  std::array<char*, 3> arguments{program.data(), option.data(), nullptr};
  pid_t child = 0;
  if (::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments.data(), environ) != 0) return -1;
  int status = 0;
  if (::waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace ropeway::testing
