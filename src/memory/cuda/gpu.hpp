// One CUDA device as this process holds it: the primary context, the kernels, and what is known of addresses.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "memory/cuda/driver.hpp"
#include "memory/cuda/lists.hpp"

namespace ropeway::memory::cuda {

/// Shared by the backend and all regions and queues made of it; the last one gives the primary context back.
class gpu {
 public:
  /// Throws `transfer_error(errc::no_device)`.
  gpu(std::shared_ptr<driver const> table, int ordinal);
  ~gpu();
  gpu(gpu const&) = delete;
  gpu& operator=(gpu const&) = delete;

  driver const& call() const noexcept { return *driver_; }
  CUcontext context() const noexcept { return context_; }
  unsigned long long context_id() const noexcept { return context_id_; }
  CUdevice id() const noexcept { return device_; }
  int ordinal() const noexcept { return ordinal_; }
  device where() const noexcept { return device::cuda(ordinal_); }
  device_uuid const& uuid() const noexcept { return uuid_; }
  std::uint32_t multiprocessors() const noexcept { return multiprocessors_; }
  int attribute(CUdevice_attribute which) const;

  /// Null for a kernel that this build does not have.
  CUfunction kernel(copy_lists::kernel which) const noexcept {
    return kernels_[static_cast<std::size_t>(which)];
  }

  /// Imported memory that lies on another GPU: the copy engines are better at it than kernels.
  void add_peer_memory(std::uintptr_t begin, std::uint64_t bytes);
  void remove_peer_memory(std::uintptr_t begin) noexcept;
  bool has_peer_memory() const noexcept { return peer_ranges_.load(std::memory_order_acquire) != 0; }
  bool is_peer_memory(std::uintptr_t address) const noexcept;

  /// Legacy handles that are open. The driver gives who opens one of the same bytes the old mapping, although
  /// the memory may have been freed and made anew since.
  using legacy_handle = std::array<std::uint8_t, 64>;
  /// Takes the handle over; false if it is open already.
  bool add_handle(legacy_handle const& handle);
  void remove_handle(legacy_handle const& handle) noexcept;

 private:
  void load_kernels();
  struct range {
    std::uintptr_t begin, end;
  };
  std::shared_ptr<driver const> driver_;
  int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  unsigned long long context_id_ = 0;
  CUmodule module_ = nullptr;
  std::array<CUfunction, copy_lists::kernels> kernels_{};
  device_uuid uuid_{};
  std::uint32_t multiprocessors_ = 1;
  mutable std::mutex mutex_;
  std::vector<range> peer_memory_;
  std::vector<legacy_handle> handles_;
  std::atomic<std::size_t> peer_ranges_{0};
};

/// While it lives, this thread's calls go to a context, and stream captures elsewhere in the process don't
/// forbid them. Afterwards all is as it was.
class scope {
 public:
  /// Throws `transfer_error(errc::device_failed)` if the context is gone.
  explicit scope(gpu const& owner) : scope(owner.call(), owner.context(), owner.context_id()) {}
  scope(driver const& table, CUcontext context, unsigned long long id);
  /// For destructors: enters if it can.
  scope(gpu const& owner, std::nothrow_t) noexcept;
  ~scope();
  scope(scope const&) = delete;
  scope& operator=(scope const&) = delete;
  bool entered() const noexcept { return entered_; }

 private:
  CUresult enter(CUcontext context, unsigned long long id) noexcept;
  driver const& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
  bool entered_ = false;
};

/// The UUIDs of all devices, by ordinal.
std::vector<device_uuid> list_devices(driver const& table);

} // namespace ropeway::memory::cuda
