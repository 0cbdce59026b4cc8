// Merges the dimensions of a copy operation. Part of ropeway; Apache-2.0.
#include <algorithm>

#include "memory/cuda/lists.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

bool elements_fit(copy_op const& op) noexcept {
  switch (op.convert) {
  case conversion::none: return op.from_element == op.to_element && op.from_element > 0;
  case conversion::f32_to_bf16:
  case conversion::f32_to_f16: return op.from_element == 4 && op.to_element == 2;
  case conversion::bf16_to_f32:
  case conversion::f16_to_f32: return op.from_element == 2 && op.to_element == 4;
  }
  return false;
}

/// Adds a dimension outside of what is there, or widens the outermost one where the two continue each other.
void prepend(box& area, std::uint64_t extent, std::int64_t from_stride, std::int64_t to_stride) {
  if (extent == 1) return;
  if (area.rank > 0) {
    std::int64_t const whole = static_cast<std::int64_t>(area.extent[0]);
    std::int64_t from_end = 0, to_end = 0;
    bool const fits = !__builtin_mul_overflow(whole, area.from_stride[0], &from_end) &&
                      !__builtin_mul_overflow(whole, area.to_stride[0], &to_end);
    if (fits && from_end == from_stride && to_end == to_stride) {
      area.extent[0] *= extent;
      return;
    }
  }
  for (std::size_t d = area.rank; d > 0; --d) {
    area.extent[d] = area.extent[d - 1];
    area.from_stride[d] = area.from_stride[d - 1];
    area.to_stride[d] = area.to_stride[d - 1];
  }
  area.extent[0] = extent;
  area.from_stride[0] = from_stride;
  area.to_stride[0] = to_stride;
  ++area.rank;
}

address_range range(std::uintptr_t base, box const& area,
                    std::array<std::int64_t, max_rank + 1> const& strides, std::uint32_t element) {
  address_range out{base, base + element};
  for (std::size_t d = 0; d < area.rank; ++d) {
    // Unsigned arithmetic wraps, and so comes out right for negative strides.
    std::uintptr_t const reach = (area.extent[d] - 1) * static_cast<std::uintptr_t>(strides[d]);
    (strides[d] < 0 ? out.low : out.high) += reach;
  }
  return out;
}

} // namespace

box simplify(copy_op const& op) {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  box area;
  area.from = op.from;
  area.to = op.to;
  area.convert = op.convert;
  if (op.rank == 0) {
    if (op.convert != conversion::none)
      throw transfer_error(errc::invalid_argument, "a copy that converts needs elements; give it a rank");
    if (op.bytes > most) throw transfer_error(errc::overflow, "a copy is longer than any memory");
    if (op.bytes == 0) return area;
    area.rank = 1;
    area.extent[0] = op.bytes;
    area.from_stride[0] = area.to_stride[0] = 1;
    return area;
  }
  if (op.rank > max_rank) throw transfer_error(errc::invalid_argument, "a copy has too many dimensions");
  if (!elements_fit(op))
    throw transfer_error(errc::invalid_argument,
                         "a copy's element sizes do not fit each other or its conversion");
  std::uint64_t bytes = std::max(op.from_element, op.to_element);
  for (std::size_t d = 0; d < op.rank; ++d) {
    if (op.extent[d] == 0) return area;
    if (__builtin_mul_overflow(bytes, op.extent[d], &bytes) || bytes > most)
      throw transfer_error(errc::overflow, "a copy has more elements than any memory");
  }
  if (op.convert == conversion::none) {
    prepend(area, op.from_element, 1, 1);
  } else {
    area.from_element = op.from_element;
    area.to_element = op.to_element;
  }
  for (std::size_t d = op.rank; d > 0; --d)
    prepend(area, op.extent[d - 1], op.from_stride[d - 1], op.to_stride[d - 1]);
  if (area.rank == 0) { // a single element
    area.rank = 1;
    area.extent[0] = 1;
    area.from_stride[0] = area.from_element;
    area.to_stride[0] = area.to_element;
  }
  return area;
}

std::uint64_t box::elements() const noexcept {
  if (rank == 0) return 0;
  std::uint64_t count = 1;
  for (std::size_t d = 0; d < rank; ++d) count *= extent[d];
  return count;
}

address_range from_range(box const& area) noexcept {
  return range(reinterpret_cast<std::uintptr_t>(area.from), area, area.from_stride, area.from_element);
}
address_range to_range(box const& area) noexcept {
  return range(reinterpret_cast<std::uintptr_t>(area.to), area, area.to_stride, area.to_element);
}

} // namespace ropeway::memory::cuda
