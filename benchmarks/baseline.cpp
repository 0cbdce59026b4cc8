#include "baseline.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <thread>

#include "cli/mapping.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

class chained_memcpys final : public baseline {
 public:
  chained_memcpys(plan const& of, cli::weights const& from, std::vector<tensor_info> const& tensors)
      : from_(from), to_(tensors, device::host()), bucket_bytes_(of.bucket_bytes) {
    for (std::uint32_t i = 0; i < of.slots; ++i) slots_.emplace_back(bucket_bytes_);
  }

  void run() override {
    std::size_t slot = 0;
    std::uint64_t used = 0;
    for (std::size_t i = 0; i < from_.entries().size(); ++i) {
      auto const& tensor = from_.entries()[i];
      for (std::uint64_t at = 0; at < tensor.bytes;) {
        auto const part = std::min(bucket_bytes_ - used, tensor.bytes - at);
        std::byte* const place = slots_[slot].data() + used;
        std::memcpy(place, tensor.data + at, part);
        pieces_.push_back({to_.entries()[i].data + at, place, part});
        at += part;
        used = std::min(bucket_bytes_, (used + part + 255) / 256 * 256);
        if (used == bucket_bytes_) {
          unload();
          used = 0;
          slot = (slot + 1) % slots_.size();
        }
      }
    }
    unload();
  }
  std::string what() const override { return "two chained memcpys, one thread"; }

 private:
  struct piece {
    std::byte* to;
    std::byte const* from;
    std::uint64_t bytes;
  };
  void unload() {
    for (auto const& one : pieces_) std::memcpy(one.to, one.from, one.bytes);
    pieces_.clear();
  }

  cli::weights const& from_;
  cli::weights to_;
  std::uint64_t bucket_bytes_;
  std::vector<cli::mapping> slots_;
  std::vector<piece> pieces_;
};

/// The few functions of the driver that a copy takes. Benchmarks have no CUDA headers either.
class driver {
 public:
  explicit driver(int ordinal) : library_(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) throw transfer_error(errc::no_device, "libcuda.so.1 can't be loaded");
    int chosen = 0;
    check(call<int (*)(unsigned)>("cuInit")(0));
    check(call<int (*)(int*, int)>("cuDeviceGet")(&chosen, ordinal));
    check(call<int (*)(char*, int, int)>("cuDeviceGetName")(name_.data(), int(name_.size()) - 1, chosen));
    check(call<int (*)(void**, int)>("cuDevicePrimaryCtxRetain")(&context_, chosen));
  }
  std::string name() const { return name_.data(); }
  void copy(std::byte* to, std::byte const* from, std::uint64_t bytes) const {
    check(call<int (*)(void*)>("cuCtxSetCurrent")(context_));
    check(call<int (*)(std::byte*, std::byte const*, std::size_t)>("cuMemcpyDtoD_v2")(to, from, bytes));
    check(call<int (*)()>("cuCtxSynchronize")());
  }

 private:
  template <class Function>
  Function call(char const* symbol) const {
    void* const found = dlsym(library_, symbol);
    if (!found) throw transfer_error(errc::no_device, std::string(symbol) + " is not in libcuda.so.1");
    return reinterpret_cast<Function>(found);
  }
  static void check(int result) {
    if (result != 0) throw transfer_error(errc::device_failed, "CUDA error " + std::to_string(result));
  }
  void* library_;
  void* context_ = nullptr;
  std::array<char, 128> name_{};
};

class driver_copy final : public baseline {
 public:
  driver_copy(plan const& of, cli::weights const& from, std::vector<tensor_info> const& tensors)
      : from_(from), to_(tensors, of.where), driver_(of.where.ordinal()) {}
  void run() override {
    // Both lie in one piece, with the same gaps between tensors.
    auto const& first = from_.entries().front();
    auto const& last = from_.entries().back();
    auto const bytes = static_cast<std::uint64_t>(last.data - first.data) + last.bytes;
    driver_.copy(to_.entries().front().data, first.data, bytes);
  }
  std::string what() const override { return "one cuMemcpyDtoD of the same bytes"; }

 private:
  cli::weights const& from_;
  cli::weights to_;
  driver driver_;
};

} // namespace

std::unique_ptr<baseline> make_baseline(plan const& of, cli::weights const& from) {
  auto const tensors = shapes(of);
  if (!of.staged) return std::make_unique<chained_memcpys>(of, from, tensors);
  bool const one_device = std::ranges::all_of(of.receivers, [&](device to) { return to == of.where; });
  if (one_device) return std::make_unique<driver_copy>(of, from, tensors);
  return nullptr;
}

std::string device_name(device where) {
  if (where.is_cuda()) return driver(where.ordinal()).name();
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name"))
      return line.substr(line.find(':') + 2) + ", " + std::to_string(std::thread::hardware_concurrency()) +
             " cores";
  return "unknown processor";
}

} // namespace ropeway::bench
