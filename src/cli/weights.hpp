// The tensors of a model and the memory that they lie in, on the host or on a CUDA device.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cli/mapping.hpp"
#include "memory/memory.hpp"
#include "ropeway/checkpoint.hpp"
#include "ropeway/shared_memory.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::cli {

/// Allocates exactly what the tensors need, once. Host memory is not touched before something is written to
/// it.
class weights {
 public:
  struct entry {
    tensor_info info;
    std::uint64_t bytes = 0;
    std::byte* data = nullptr; ///< on `where()`
  };

  weights() = default;
  /// For these tensors, one after the other. Throws `errc::overflow`, `out_of_memory`, `no_device`.
  /// With `shared`, host memory is such as receivers can map.
  weights(std::span<tensor_info const> tensors, device where, bool shared = false);
  /// For the tensors of a checkpoint. On the host they lie as they lie in its files, so that the disk can put
  /// every byte where it is needed. `shared` as above.
  weights(checkpoint const& from, device where, bool shared = false);

  device where() const noexcept { return where_; }
  std::span<entry const> entries() const noexcept { return entries_; }
  std::uint64_t total_bytes() const noexcept;
  /// Whether these are the tensors, in this order.
  bool fits(std::span<tensor_info const> tensors) const noexcept;
  /// Memory that a sender is to share.
  std::span<shared_memory const> shared() const noexcept { return shared_; }
  std::vector<tensor_view> views() const;
  std::vector<mutable_tensor_view> mutable_views() const;

 private:
  void place(bool shared);

  device where_;
  std::vector<entry> entries_;
  std::vector<mapping> host_;
  std::vector<shared_memory> shared_;
  std::shared_ptr<memory::region> region_;
};

} // namespace ropeway::cli
