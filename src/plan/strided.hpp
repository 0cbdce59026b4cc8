// How the row-major image of a tensor (in slots) corresponds to an array with strides (the caller's memory).
// Pure arithmetic, all in elements. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <span>

#include "plan/boxes.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::plan {

/// `part` of the image lies in the array; the part's first element is the array's. Made with as few
/// dimensions as possible: a contiguous array is one dimension, whatever its rank was.
struct strided_part {
  shape dims; ///< of the image
  box part;
  std::array<std::int64_t, max_rank> strides{}; ///< of the array
};

/// Merges dimensions that are one on both sides. The tensor must have elements, and `part` lie within `dims`.
strided_part collapse(shape const& dims, box const& part, std::span<std::int64_t const> strides);

/// Whether the array is one run of memory in the image's order.
bool is_dense(strided_part const& array) noexcept;

/// A box that lies on both sides, not yet told which is read and which is written.
struct strided_box {
  std::uint64_t image = 0; ///< its first element, counted from the image's
  std::int64_t array = 0;  ///< and from the array's
  std::uint8_t rank = 0;   ///< 0 for a single element; neighbouring dimensions are merged where possible
  std::array<std::uint64_t, max_rank> extent{};
  std::array<std::int64_t, max_rank> image_stride{}, array_stride{};

  std::uint64_t elements() const noexcept;
  bool contiguous() const noexcept {
    return rank == 0 || (rank == 1 && image_stride[0] == 1 && array_stride[0] == 1);
  }
};

/// The part of `among` (a box of the image's dims) that is in the array; false if there is none.
bool locate(strided_part const& array, box const& among, strided_box& out) noexcept;

} // namespace ropeway::plan
