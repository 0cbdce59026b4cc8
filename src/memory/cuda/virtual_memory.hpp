// Physical allocations behind file descriptors, and address ranges that they are mapped into. Part of
// ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <vector>

#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

/// What memory that can be shared is made of.
CUmemAllocationProp shareable_memory(gpu const& owner) noexcept;
/// The size of a mapping is a multiple of this, on all devices alike, so that importer and exporter agree.
/// Throws transfer_error.
std::uint64_t page_bytes(gpu const& owner);

/// Holds a physical allocation; mappings keep it alive by themselves.
class physical {
 public:
  physical(gpu const& owner, CUmemGenericAllocationHandle handle) : owner_(owner), handle_(handle) {}
  ~physical() { (void)owner_.call().cuMemRelease(handle_); }
  physical(physical const&) = delete;
  physical& operator=(physical const&) = delete;
  CUmemGenericAllocationHandle get() const noexcept { return handle_; }
  /// Throws transfer_error.
  unique_fd share() const;

 private:
  gpu const& owner_;
  CUmemGenericAllocationHandle handle_;
};

/// An address range that allocations are mapped into, one behind the other.
class mapping {
 public:
  /// Reserves the addresses. Throws `transfer_error(errc::out_of_memory)`.
  mapping(std::shared_ptr<gpu> owner, std::uint64_t bytes);
  ~mapping();
  mapping(mapping&& other) noexcept;
  mapping& operator=(mapping&&) = delete;

  /// Maps the next; `bytes` is its exact size, or the driver refuses.
  CUresult map(CUmemGenericAllocationHandle handle, std::uint64_t bytes);
  /// Once all is mapped.
  CUresult allow(CUmemAccess_flags how) const;
  CUdeviceptr begin() const noexcept { return begin_; }
  std::uint64_t bytes() const noexcept { return bytes_; }
  std::uint64_t mapped() const noexcept { return mapped_; }
  std::shared_ptr<gpu> const& owner() const noexcept { return owner_; }

 private:
  std::shared_ptr<gpu> owner_;
  CUdeviceptr begin_ = 0;
  std::uint64_t bytes_, mapped_ = 0;
  std::vector<std::uint64_t> parts_; // they must be unmapped as they were mapped
};

/// Memory that a peer made.
struct peer_memory {
  device_uuid origin;
  bool of_peer;      ///< it lies on another device
  std::string name;  ///< of it, for messages
  std::string reach; ///< what to say when it can't be mapped

  peer_memory(gpu const& owner, device_uuid const& made_on);
};

/// Takes a peer's descriptor, maps it as the next part of `into`, and closes it. Throws transfer_error
/// (bad_region, not_reachable). In a scope of the owner.
void import_part(mapping& into, peer_memory const& from, unique_fd handle, std::uint64_t bytes,
                 std::uint64_t announced);
/// For reading, if that is possible, once all parts are there. Throws `transfer_error(errc::not_reachable)`.
void allow_reading(mapping const& whole, peer_memory const& from);

/// Throws `transfer_error(errc::bad_region)` for a descriptor that is no device memory, as far as that can be
/// checked from outside.
void check_descriptor(int fd);
[[noreturn]] void refuse_descriptor(std::string const& why);

/// Mapped device memory as a region.
class device_region final : public region {
 public:
  device_region(mapping memory, std::uint64_t bytes, bool of_peer);
  ~device_region() override;

 private:
  mapping memory_;
  bool of_peer_;
};

} // namespace ropeway::memory::cuda
