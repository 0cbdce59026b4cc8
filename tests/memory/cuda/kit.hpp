// What the CUDA tests need beside the library: memory, streams, slow kernels. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/cuda/cuda.hpp"
#include "memory/cuda/driver.hpp"

// clang-format off
#define ROPEWAY_TEST_FUNCTIONS(X)                                                                            \
  X(cuMemAlloc) X(cuMemFree) X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemsetD8Async)                    \
  X(cuStreamCreate) X(cuStreamSynchronize) X(cuStreamBeginCapture) X(cuStreamEndCapture)                     \
  X(cuGraphGetNodes) X(cuGraphDestroy) X(cuCtxGetCurrent) X(cuDevicePrimaryCtxReset)                         \
  X(cuMemAllocManaged) X(cuMemAllocAsync) X(cuMemFreeAsync)
// clang-format on

namespace ropeway::testing {

/// Why there is no device; empty if there is one.
std::string no_device();

/// One device, through its primary context, which stays as long as the process.
class kit {
 public:
  explicit kit(int ordinal);
  static kit& device(int ordinal); // 0 or 1

  std::shared_ptr<memory::cuda::driver const> table;
  struct functions {
#define ROPEWAY_MEMBER(name) decltype(&::name) name = nullptr;
    ROPEWAY_TEST_FUNCTIONS(ROPEWAY_MEMBER)
#undef ROPEWAY_MEMBER
  } more;
  int ordinal;
  CUdevice id = 0;
  CUcontext context = nullptr;

  void check(CUresult result, char const* what) const;
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes);
  std::shared_ptr<std::byte> allocate_pinned(std::uint64_t bytes);
  std::shared_ptr<std::byte> allocate_managed(std::uint64_t bytes);
  std::shared_ptr<std::byte> allocate_from_pool(std::uint64_t bytes);
  void write(std::byte* to, std::span<std::byte const> from);
  void read(std::span<std::byte> to, std::byte const* from);
  CUstream make_stream(); // non-blocking; never destroyed
  void slow_fill(CUstream on, std::byte* to, std::uint32_t value, std::uint32_t count,
                 std::uint64_t nanoseconds);
  void wait_for(CUstream on, std::uint32_t const* flag);
  void trap(CUstream on);

 private:
  CUmodule module_ = nullptr;
  CUstream copies_ = nullptr;
};

/// Makes the kit's context current while it lives.
class current {
 public:
  explicit current(kit& of) : kit_(of) { kit_.check(kit_.table->cuCtxPushCurrent(kit_.context), "push"); }
  ~current() {
    CUcontext popped = nullptr;
    (void)kit_.table->cuCtxPopCurrent(&popped);
  }
  current(current const&) = delete;
  current& operator=(current const&) = delete;

 private:
  kit& kit_;
};

/// Runs this program again in another role; its exit status.
int run_role(std::string const& role);

} // namespace ropeway::testing
