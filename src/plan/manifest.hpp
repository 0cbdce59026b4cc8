// The ordered tensors of an update without their bytes, cut into pieces and buckets. Pure data, built once a layout.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ropeway/tensor.hpp"

namespace ropeway::plan {

using layout_hash = std::array<std::uint8_t, 16>;

/// The unit of copying: `bytes` of a tensor's contiguous row-major image, and where they lie in a bucket.
struct piece {
  std::uint32_t tensor = 0;
  std::uint32_t bucket = 0;
  std::uint64_t tensor_offset = 0, bucket_offset = 0, bytes = 0;
  friend bool operator==(piece const&, piece const&) = default;
};

/// One bucket: a run of pieces. `bytes` is what it fills of a slot, alignment gaps included.
struct bucket_extent {
  std::uint32_t first_piece = 0, pieces = 0;
  std::uint64_t bytes = 0;
};

/// What is accepted from a peer.
struct manifest_limits {
  std::uint32_t tensors = 1u << 22;
  std::uint32_t name_bytes = 64 * 1024;
  std::uint64_t pieces = 1u << 24;
};

/// Every piece starts aligned to this in its bucket (and so to any dtype's own alignment), also for vector loads.
inline constexpr std::uint64_t piece_alignment = 256;

class manifest {
 public:
  manifest() = default;
  /// Cuts tensors into buckets of at most `bucket_bytes` (rounded down to piece_alignment, at least one unit).
  /// Tensors keep their order; a tensor that does not fit into what is left of a bucket starts there and goes on in
  /// the next one(s), except that one that would fit whole into a fresh bucket and whose head would be under 1 MiB...
  /// (see manifest.cpp for the rule and why). Zero-element tensors have no piece. Throws transfer_error:
  /// errc::duplicate_name (naming it), errc::overflow, errc::unsupported (sub-byte sizes that are no whole bytes).
  static manifest cut(std::vector<tensor_info> tensors, std::uint64_t bucket_bytes);
  /// Reads what encode() wrote, trusting nothing: names unique and within limits, sizes without overflow, pieces of
  /// each tensor cover it exactly once and in order, pieces of a bucket ascend without overlap within bucket_bytes.
  /// Throws transfer_error(errc::protocol_error) with what is wrong.
  static manifest decode(std::span<std::byte const> bytes, manifest_limits const& limits = {});
  std::vector<std::byte> encode() const;

  std::span<tensor_info const> tensors() const noexcept { return tensors_; }
  std::span<piece const> pieces() const noexcept { return pieces_; }
  std::span<bucket_extent const> buckets() const noexcept { return buckets_; }
  std::span<piece const> pieces_of(std::uint32_t bucket) const;
  /// The pieces of a tensor, contiguous in pieces(): first and count.
  std::pair<std::uint32_t, std::uint32_t> pieces_of_tensor(std::uint32_t tensor) const;
  std::uint64_t tensor_bytes(std::uint32_t tensor) const noexcept { return tensor_bytes_[tensor]; }
  std::uint64_t total_bytes() const noexcept { return total_bytes_; }
  std::uint64_t bucket_bytes() const noexcept { return bucket_bytes_; }
  layout_hash const& layout() const noexcept { return layout_; }
  std::optional<std::uint32_t> find(std::string_view name) const;
  std::vector<std::uint64_t> bucket_sizes() const;

 private:
  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> tensor_bytes_;
  std::vector<std::uint32_t> first_piece_;
  std::vector<piece> pieces_;
  std::vector<bucket_extent> buckets_;
  std::uint64_t total_bytes_ = 0, bucket_bytes_ = 0;
  layout_hash layout_{};
  std::unordered_map<std::string_view, std::uint32_t> index_;  // views of tensors_; so: move-only
  manifest(manifest const&) = delete;
  manifest& operator=(manifest const&) = delete;

 public:
  manifest(manifest&&) noexcept = default;
  manifest& operator=(manifest&&) noexcept = default;
};

}  // namespace ropeway::plan
