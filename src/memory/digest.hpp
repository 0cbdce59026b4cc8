// The unit of work of a digest: one box of elements, and where they stand in the tensor as delivered. Pure
// data. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>

#include "memory/copy.hpp"

namespace ropeway::memory {

/// Adds what lies in a box to a sum. With rank 0 it is `bytes` contiguous bytes (conversion::none only);
/// otherwise a box of `extent` elements, outermost first, whose neighbours lie `data_stride` bytes apart, and
/// `image_stride` bytes in the dense row-major image of the tensor as delivered. No element of the image is
/// there twice. Addresses need not be aligned.
struct digest_op {
  std::uint64_t address = 0; ///< of the first element; from what a run gives as base, modulo 2^64
  std::uint64_t image = 0;   ///< byte of the image that the first element begins at
  std::uint64_t bytes = 0;   ///< rank 0
  device where;
  conversion convert = conversion::none; ///< to what is delivered
  std::uint8_t rank = 0;
  std::uint16_t data_element = 1, image_element = 1; ///< bytes of an element as it lies here, as delivered
  std::uint32_t sum = 0;                             ///< which sum takes it
  std::uint32_t group = 0;                           ///< ascending in a list; a run takes some of the groups
  std::array<std::uint64_t, max_rank> extent{}, image_stride{};
  std::array<std::int64_t, max_rank> data_stride{};
};

/// Bytes of the image; nothing overflows for operations that a backend accepts.
inline std::uint64_t bytes_of(digest_op const& op) noexcept {
  if (op.rank == 0) return op.bytes;
  std::uint64_t bytes = op.image_element;
  for (std::size_t d = 0; d < op.rank; ++d) bytes *= op.extent[d];
  return bytes;
}

} // namespace ropeway::memory
