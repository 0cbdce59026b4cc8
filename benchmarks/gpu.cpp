#include "gpu.hpp"

#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>

#include "ropeway/error.hpp"

#if ROPEWAY_BENCH_KERNELS
#include "bench_kernels_image.h"
#endif

namespace ropeway::bench {
namespace {

void* symbol(char const* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw transfer_error(errc::no_device, "libcuda.so.1 can't be loaded");
  void* const found = dlsym(library, name);
  if (!found) throw transfer_error(errc::no_device, std::string(name) + " is not in libcuda.so.1");
  return found;
}

/// Calls a function of the driver and throws unless it succeeds.
template <class... Arguments>
void call(char const* name, Arguments... arguments) {
  int const result = reinterpret_cast<int (*)(Arguments...)>(symbol(name))(arguments...);
  constexpr int out_of_memory = 2;
  if (result == 0) return;
  throw transfer_error(result == out_of_memory ? errc::out_of_memory : errc::device_failed,
                       std::string(name) + " failed with CUDA error " + std::to_string(result));
}

using address = std::uint64_t;
address of_pointer(std::byte const* memory) { return reinterpret_cast<address>(memory); }
void* const no_stream = nullptr;

} // namespace

struct gpu::state {
  int id = 0;
  unsigned processors = 0;
  std::string name;
  void* context = nullptr;
  void *module = nullptr, *fill = nullptr, *compare = nullptr, *read = nullptr;
  address right = 0;

  /// This thread's calls go to this GPU.
  void enter() const { call("cuCtxSetCurrent", context); }
  void launch(void* kernel, void* stream, void** arguments) const {
    constexpr unsigned threads = 512;
    call("cuLaunchKernel", kernel, 4 * processors, 1U, 1U, threads, 1U, 1U, 0U, stream, arguments,
         static_cast<void**>(nullptr));
  }
  void load_kernels() {
#if ROPEWAY_BENCH_KERNELS
    if (module) return;
    call("cuModuleLoadData", &module, static_cast<void const*>(ropeway_bench_kernels));
    call("cuModuleGetFunction", &fill, module, "bench_fill");
    call("cuModuleGetFunction", &compare, module, "bench_compare");
    call("cuModuleGetFunction", &read, module, "bench_read");
    call("cuMemAlloc_v2", &right, sizeof(std::uint64_t));
    call("cuMemsetD8_v2", right, static_cast<unsigned char>(0), sizeof(std::uint64_t));
#else
    throw transfer_error(errc::unsupported, "this build has no kernels of its own: build it with nvcc");
#endif
  }
};

gpu::gpu(int ordinal) : state_(std::make_unique<state>()) {
  call("cuInit", 0U);
  call("cuDeviceGet", &state_->id, ordinal);
  std::array<char, 128> name{};
  call("cuDeviceGetName", name.data(), int(name.size()) - 1, state_->id);
  state_->name = name.data();
  int processors = 0;
  constexpr int multiprocessor_count = 16;
  call("cuDeviceGetAttribute", &processors, multiprocessor_count, state_->id);
  state_->processors = static_cast<unsigned>(processors);
  call("cuDevicePrimaryCtxRetain", &state_->context, state_->id);
}

gpu::~gpu() = default;

gpu& gpu::of(int ordinal) {
  // For the life of the process: the context is one that the process keeps anyway.
  static std::mutex guard;
  static std::map<int, std::unique_ptr<gpu>> all;
  std::lock_guard const lock(guard);
  auto& one = all[ordinal];
  if (!one) one.reset(new gpu(ordinal));
  return *one;
}

std::string gpu::name() const { return state_->name; }

std::byte* gpu::allocate(std::uint64_t bytes) {
  state_->enter();
  address memory = 0;
  call("cuMemAlloc_v2", &memory, static_cast<std::size_t>(bytes));
  return reinterpret_cast<std::byte*>(memory);
}

void gpu::free(std::byte* memory) noexcept {
  try {
    state_->enter();
    call("cuMemFree_v2", of_pointer(memory));
  } catch (transfer_error const&) {} // the device is lost, and the memory with it
}

void gpu::reach(gpu& peer) {
  state_->enter();
  int possible = 0;
  call("cuDeviceCanAccessPeer", &possible, state_->id, peer.state_->id);
  if (possible == 0) return;
  using enable = int (*)(void*, unsigned);
  // It may be enabled already, and is where the copy fails if it is not.
  (void)reinterpret_cast<enable>(symbol("cuCtxEnablePeerAccess"))(peer.state_->context, 0);
}

void gpu::copy(std::byte* to, std::byte const* from, std::uint64_t bytes) {
  state_->enter();
  call("cuMemcpyAsync", of_pointer(to), of_pointer(from), static_cast<std::size_t>(bytes), no_stream);
}

void gpu::wait() {
  state_->enter();
  call("cuCtxSynchronize");
}

bool gpu::has_kernels() noexcept { return ROPEWAY_BENCH_KERNELS; }

void gpu::fill(std::byte* memory, std::uint64_t bytes, std::uint64_t seed) {
  state_->enter();
  state_->load_kernels();
  address at = of_pointer(memory);
  std::array<void*, 3> arguments{&at, &bytes, &seed};
  state_->launch(state_->fill, no_stream, arguments.data());
}

void gpu::compare(std::byte const* memory, std::uint64_t bytes, std::uint64_t seed, std::uint64_t first,
                  std::uint64_t run, std::uint64_t step) {
  state_->enter();
  state_->load_kernels();
  address at = of_pointer(memory);
  std::array<void*, 7> arguments{&at, &bytes, &seed, &first, &run, &step, &state_->right};
  state_->launch(state_->compare, no_stream, arguments.data());
}

std::uint64_t gpu::right_words() {
  state_->enter();
  state_->load_kernels();
  std::uint64_t words = 0;
  call("cuMemcpyDtoH_v2", static_cast<void*>(&words), state_->right, sizeof words); // waits
  call("cuMemsetD8_v2", state_->right, static_cast<unsigned char>(0), sizeof words);
  return words;
}

gpu::reader::reader(gpu& on) : on_(on) {
  on.state_->enter();
  on.state_->load_kernels();
  int least = 0, greatest = 0;
  call("cuCtxGetStreamPriorityRange", &least, &greatest);
  constexpr unsigned non_blocking = 1;
  call("cuStreamCreateWithPriority", &stream_, non_blocking, greatest);
  sink_ = on.allocate(64);
}

gpu::reader::~reader() {
  on_.free(sink_);
  try {
    call("cuStreamDestroy_v2", stream_);
  } catch (transfer_error const&) {} // as above
}

void gpu::reader::read(std::byte const* memory, std::uint64_t bytes) {
  on_.state_->enter();
  address at = of_pointer(memory), sink = of_pointer(sink_);
  std::uint64_t count = bytes / 16;
  std::array<void*, 3> arguments{&at, &count, &sink};
  on_.state_->launch(on_.state_->read, stream_, arguments.data());
}

void gpu::reader::wait() { call("cuStreamSynchronize", stream_); }

} // namespace ropeway::bench
