// Where the bytes of each tensor lie in the sender's own memory, for receivers that map it. Pure data; made
// anew when a tensor has moved, and kept by both sides. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/manifest.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::plan {

/// A contiguous range of memory that receivers can map.
struct segment {
  std::uint64_t id = 0; ///< never reused by a sender instance
  std::uint64_t bytes = 0;
  std::uint32_t parts = 0;               ///< allocations side by side
  std::uint8_t kind = 0;                 ///< a memory::part_kind, of all parts
  std::array<std::uint8_t, 16> origin{}; ///< the device's UUID; zero for the host
  friend bool operator==(segment const&, segment const&) = default;
};

/// One tensor of the manifest.
struct placed_tensor {
  static constexpr std::uint32_t nowhere = ~std::uint32_t(0);
  std::uint32_t segment = nowhere; ///< index; nowhere: its bytes come through the ring
  std::uint64_t offset = 0;        ///< of its first element from the segment's begin, in bytes
  dtype type = dtype::u8;          ///< as it lies there; converted on its way if the manifest says another
  bool strided = false;
  std::array<std::int64_t, max_rank> strides{}; ///< in elements, of strided ones
  friend bool operator==(placed_tensor const&, placed_tensor const&) = default;

  bool mapped() const noexcept { return segment != nowhere; }
};

class placement {
 public:
  std::vector<segment> segments;
  std::vector<placed_tensor> tensors; ///< by the manifest's index

  /// Reads what encode() wrote, trusting nothing: as many tensors as the manifest has, segment ids that
  /// differ, sizes and parts within limits, every element of every tensor within its segment, conversions
  /// that exist. Throws transfer_error(errc::protocol_error) with what is wrong.
  static placement decode(std::span<std::byte const> bytes, manifest const& of);
  std::vector<std::byte> encode() const;

  /// By bucket: whether a receiver that maps needs it, because a tensor of it is nowhere.
  std::vector<bool> needed_buckets(manifest const& of) const;
  /// As a view without a name: the tensor as it lies at `base`, where its segment is mapped.
  tensor_view view(std::uint32_t tensor, manifest const& of, std::byte const* base, device where) const;

  static constexpr std::size_t most_segments = 65'536;
  static constexpr std::uint32_t most_parts = 1u << 20;
  static constexpr std::uint64_t most_bytes = std::uint64_t(1) << 48; ///< of a segment
  friend bool operator==(placement const&, placement const&) = default;
};

/// The bytes that a tensor touches around its first element: [low, high), low <= 0 for negative strides.
/// False if that overflows.
struct reach {
  std::int64_t low = 0, high = 0;
};
bool reach_of(shape const& dims, std::span<std::int64_t const> strides, std::uint32_t element_bits,
              reach& out) noexcept;

} // namespace ropeway::plan
