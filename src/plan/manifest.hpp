// The ordered tensors of an update without their bytes, cut into pieces and buckets. Pure data, built once a
// layout. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
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

/// What is accepted from a peer, and so what cut() makes at most.
struct manifest_limits {
  std::uint32_t tensors = 1u << 22;
  std::uint32_t name_bytes = 64 * 1024;
  std::uint64_t pieces = 1u << 24;
};

/// Less than this at the end of a bucket stays empty rather than take the head of a tensor that must be cut:
/// at most 1/64 of the bucket, and never more than 64 KiB.
constexpr std::uint64_t wasted_tail(std::uint64_t bucket_bytes) noexcept {
  return bucket_bytes / 64 < 64 * 1024 ? bucket_bytes / 64 : 64 * 1024;
}

/// Every piece starts aligned to this in its bucket (and so to any dtype's own alignment), also for vector
/// loads.
inline constexpr std::uint64_t piece_alignment = 256;

class manifest {
 public:
  manifest() = default;
  /// Cuts tensors into buckets of at most `bucket_bytes` (rounded down to piece_alignment, at least one
  /// unit). Tensors keep their order, and each bucket is filled before the next is begun: a tensor starts,
  /// aligned, where the one before it ended and goes on in the following bucket(s) if it does not fit. Only
  /// when it would have to be cut and less than wasted_tail() is left does it start in a fresh bucket, so
  /// that no crumb is split off. All cuts lie at multiples of piece_alignment in the tensor too: vector loads
  /// stay aligned on both sides, and no element is cut (the odd-sized f6 types, opaque bytes, excepted).
  /// Zero-element tensors have no piece. Throws transfer_error, naming the tensor: errc::duplicate_name,
  /// errc::invalid_argument (a name that is empty, not UTF-8 or has a NUL), errc::overflow (sizes, or more
  /// than manifest_limits allows), errc::unsupported (sub-byte elements that fill no whole bytes).
  static manifest cut(std::vector<tensor_info> tensors, std::uint64_t bucket_bytes);
  /// Reads what encode() wrote, trusting nothing: names unique and within limits, sizes without overflow,
  /// pieces of each tensor cover it exactly once and in order, pieces of a bucket ascend without overlap
  /// within bucket_bytes. Throws transfer_error(errc::protocol_error) with what is wrong.
  static manifest decode(std::span<std::byte const> bytes, manifest_limits const& limits = {});
  std::vector<std::byte> encode() const;

  /// Whether tensor `index` is exactly this one. Allocates nothing: senders ask it of every tensor of every
  /// update.
  bool same_tensor(std::uint32_t index, std::string_view name, dtype type, shape const& dims) const noexcept;

  std::span<tensor_info const> tensors() const noexcept { return tensors_; }
  std::span<piece const> pieces() const noexcept { return pieces_; }
  std::span<bucket_extent const> buckets() const noexcept { return buckets_; }
  /// Throws transfer_error(errc::invalid_argument) if there is no such bucket.
  std::span<piece const> pieces_of(std::uint32_t bucket) const;
  /// The pieces of a tensor, contiguous in pieces(): first and count. Throws as pieces_of.
  std::pair<std::uint32_t, std::uint32_t> pieces_of_tensor(std::uint32_t tensor) const;
  std::uint64_t tensor_bytes(std::uint32_t tensor) const noexcept { return tensor_bytes_[tensor]; }
  std::uint64_t total_bytes() const noexcept { return total_bytes_; }
  std::uint64_t bucket_bytes() const noexcept { return bucket_bytes_; }
  layout_hash const& layout() const noexcept { return layout_; }
  std::optional<std::uint32_t> find(std::string_view name) const;
  std::vector<std::uint64_t> bucket_sizes() const;

 private:
  void add_tensors(std::vector<tensor_info> tensors, manifest_limits const& limits);
  void add_piece(piece const& p);
  void name_layout(std::span<std::byte const> encoding);

  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> tensor_bytes_;
  std::vector<std::uint32_t> first_piece_; // one more than tensors: tensor t has [t] up to [t + 1]
  std::vector<piece> pieces_;
  std::vector<bucket_extent> buckets_;
  std::uint64_t total_bytes_ = 0, bucket_bytes_ = 0;
  layout_hash layout_{};
  std::unordered_map<std::string_view, std::uint32_t> index_; // views of tensors_; so: move-only
  manifest(manifest const&) = delete;
  manifest& operator=(manifest const&) = delete;

 public:
  manifest(manifest&&) noexcept = default;
  manifest& operator=(manifest&&) noexcept = default;
};

} // namespace ropeway::plan
