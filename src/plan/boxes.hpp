// Which boxes of elements a linear piece of a tensor is, and what of it falls into a box. Pure arithmetic.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ropeway/tensor.hpp"

namespace ropeway::plan {

/// A box of a tensor: `extent[d]` elements from `start[d]` on, in each dimension. Rank as the tensor's.
struct box {
  std::uint8_t rank = 0;
  std::array<std::uint64_t, max_rank> start{}, extent{};
  friend bool operator==(box const&, box const&) = default;
};

/// "[0+2, 4+4]": start and extent of each dimension.
std::string to_string(box const& what);

/// The whole of a shape.
box whole(shape const& dims);

/// The elements [first, first + count) of a row-major tensor as disjoint boxes in ascending order (at most
/// 2 * rank - 1 of them), appended to `out`. Nothing for count 0.
void boxes_of_range(shape const& dims, std::uint64_t first, std::uint64_t count, std::vector<box>& out);

/// The common part; extent 0 somewhere if there is none.
bool intersect(box const& a, box const& b, box& out);

/// Sum of start[d] * stride[d].
std::int64_t offset_of(box const& where, std::span<std::int64_t const> strides) noexcept;

/// Row-major strides in elements.
std::array<std::int64_t, max_rank> row_major(shape const& dims) noexcept;

} // namespace ropeway::plan
