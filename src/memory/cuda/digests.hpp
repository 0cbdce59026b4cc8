// Digests of device memory: lists that lie there, and the sums beside them. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "memory/cuda/gpu.hpp"
#include "memory/cuda/lists.hpp"
#include "memory/memory.hpp"

namespace ropeway::memory::cuda {

/// A list as it lies in device memory. Pure: tested without a device.
struct digest_table {
  std::vector<ropeway_digest_task> tasks;
  std::vector<ropeway_digest_box> boxes;
  std::vector<ropeway_dim> dims;
  std::vector<std::uint32_t> first; ///< task of each group, and one more
  std::uint64_t bytes = 0;          ///< of the image

  /// Throws `transfer_error` (invalid_argument, overflow).
  digest_table(std::span<digest_op const> ops, std::uint32_t sums);

 private:
  void add(digest_op const& op);
  void add_run(digest_op const& op, std::uint64_t bytes, ropeway_digest_form form);
  void add_units(box const& area, std::uint64_t unit, ropeway_unit which, std::uint32_t sum);
};

class device_digests final : public prepared_digests {
 public:
  /// Waits for the device. Throws transfer_error.
  device_digests(std::shared_ptr<gpu> owner, std::span<digest_op const> ops, std::uint32_t sums);
  /// May wait for the device.
  ~device_digests() override;
  device_digests(device_digests const&) = delete;
  device_digests& operator=(device_digests const&) = delete;

  std::span<digest128 const> sums() const noexcept override { return {fetched_, count_}; }
  gpu const* owner() const noexcept { return owner_.get(); }
  /// In a scope of the owner: puts a run on a stream.
  void launch(digest_run const& what, CUstream on) const;

 private:
  void make(digest_table const& table);
  void free() noexcept;
  std::shared_ptr<gpu> owner_;
  std::uint32_t count_;
  bool boxes_ = false; ///< else there are only runs
  std::vector<std::uint32_t> first_;
  CUdeviceptr memory_ = 0;
  ropeway_digest_list list_{};
  digest128* fetched_ = nullptr; ///< pinned
};

} // namespace ropeway::memory::cuda
