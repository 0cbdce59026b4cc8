// The tensors of a model in memory of one of the kinds that applications use. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "cli/weights.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::bench {

class device_block;
class sharable;

enum class memory_kind : std::uint8_t {
  region,   ///< one piece that holds all: of a device one exportable allocation, of the host anonymous memory
  segments, ///< of a device many, as PyTorch's allocator makes them: 2 MiB, 20 MiB, or a tensor of its own
  shared,   ///< of the host: what receivers can map
};
char const* name(memory_kind kind);
std::optional<memory_kind> parse_memory_kind(std::string_view text);

class model_memory {
 public:
  model_memory(std::vector<tensor_info> const& tensors, device where, memory_kind kind);
  ~model_memory();
  using entry = cli::weights::entry;
  device where() const noexcept { return where_; }
  std::span<entry const> entries() const noexcept { return entries_; }
  std::uint64_t total_bytes() const noexcept;
  /// All of it as one range, gaps between tensors and all, if it is one.
  std::span<std::byte> whole() const noexcept;
  std::vector<tensor_view> views() const;
  std::vector<mutable_tensor_view> mutable_views() const;
  /// What a sender's receivers can map only if the sender is told of it, or null.
  sharable const* shared() const noexcept { return shared_.get(); }

 private:
  void place_segments();
  void place_shared();
  device where_;
  std::vector<entry> entries_;
  std::uint64_t whole_bytes_ = 0;
  std::optional<cli::weights> region_;
  std::vector<std::unique_ptr<device_block>> blocks_;
  std::unique_ptr<sharable> shared_;
};

} // namespace ropeway::bench
