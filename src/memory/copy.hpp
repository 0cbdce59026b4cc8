// The unit of work of a copy queue: one box of elements from here to there. Pure data.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "ropeway/tensor.hpp"

namespace ropeway::memory {

/// What happens to each element on its way.
enum class conversion : std::uint8_t { none, f32_to_bf16, f32_to_f16, bf16_to_f32, f16_to_f32 };

/// Copies `count()` elements. With rank 0 it is `bytes` contiguous bytes (conversion::none only); otherwise
/// a box of `extent` elements, outermost first, whose neighbours lie `from_stride` and `to_stride` *bytes*
/// apart. Source and target never overlap; targets of one list never overlap each other. Pointers need not be
/// aligned.
struct copy_op {
  std::byte const* from = nullptr;
  std::byte* to = nullptr;
  std::uint64_t bytes = 0;     ///< rank 0: bytes to copy
  device from_where, to_where; ///< host or which CUDA device; shared rings registered with CUDA say host
  conversion convert = conversion::none;
  std::uint8_t rank = 0;
  std::uint16_t from_element = 1; ///< bytes of one source element (rank > 0)
  std::uint16_t to_element = 1;   ///< bytes of one target element (rank > 0)
  std::array<std::uint64_t, max_rank> extent{};
  std::array<std::int64_t, max_rank> from_stride{}, to_stride{};
};

/// The bytes that it writes; nothing overflows for operations that the queue accepts.
std::uint64_t bytes_of(copy_op const& op) noexcept;

} // namespace ropeway::memory
