#include "plan/boxes.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "ropeway/error.hpp"

namespace ropeway::plan {
namespace {

std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<std::uint64_t>::max() : sum;
}

/// Cuts ranges of a row-major array; a step fixes one more of the outer dimensions.
struct range_cutter {
  shape const& dims;
  std::array<std::uint64_t, max_rank> inner; // elements of one step in each dimension
  std::vector<box>& out;
  box current; // start is fixed, and extent 1, for the dimensions outside of the one being cut

  /// Appends [low, high) of the sub-array from dimension d on.
  void cut(std::size_t d, std::uint64_t low, std::uint64_t high) {
    std::uint64_t const step = inner[d], first = low / step, last = high / step;
    std::uint64_t const head = low % step, tail = high % step;
    current.extent[d] = 1;
    if (first == last) return descend(d, first, head, tail);
    if (head != 0) descend(d, first, head, step);
    if (std::uint64_t const whole_from = first + (head != 0); whole_from < last) {
      current.start[d] = whole_from;
      current.extent[d] = last - whole_from;
      emit(d + 1);
      current.extent[d] = 1;
    }
    if (tail != 0) descend(d, last, 0, tail);
  }
  void descend(std::size_t d, std::uint64_t at, std::uint64_t low, std::uint64_t high) {
    current.start[d] = at;
    cut(d + 1, low, high);
  }
  /// Everything of the dimensions from d on.
  void emit(std::size_t d) {
    for (; d < dims.rank(); ++d) {
      current.start[d] = 0;
      current.extent[d] = dims[d];
    }
    out.push_back(current);
  }
};

} // namespace

std::string to_string(box const& what) {
  std::string text = "[";
  for (std::size_t d = 0; d < std::min<std::size_t>(what.rank, max_rank); ++d) {
    if (d != 0) text += ", ";
    text += std::to_string(what.start[d]) + "+" + std::to_string(what.extent[d]);
  }
  return text + "]";
}

box whole(shape const& dims) {
  box all;
  all.rank = static_cast<std::uint8_t>(dims.rank());
  std::copy(dims.extents().begin(), dims.extents().end(), all.extent.begin());
  return all;
}

void boxes_of_range(shape const& dims, std::uint64_t first, std::uint64_t count, std::vector<box>& out) {
  if (count == 0) return;
  auto const elements = dims.elements();
  if (!elements || first > *elements || count > *elements - first)
    throw transfer_error(errc::invalid_argument,
                         "elements " + std::to_string(first) + " and " + std::to_string(count) +
                             " more are not within a tensor of shape " + to_string(dims));
  range_cutter cutter{dims, {}, out, {}};
  cutter.current.rank = static_cast<std::uint8_t>(dims.rank());
  std::uint64_t step = 1;
  for (std::size_t d = dims.rank(); d-- > 0;) {
    cutter.inner[d] = step;
    step *= dims[d];
  }
  if (dims.rank() == 0)
    out.push_back(cutter.current);
  else
    cutter.cut(0, first, first + count);
}

bool intersect(box const& a, box const& b, box& out) {
  box common;
  if (a.rank != b.rank) {
    out = common;
    return false;
  }
  common.rank = a.rank;
  bool any = true;
  for (std::size_t d = 0; d < a.rank; ++d) {
    std::uint64_t const end =
        std::min(saturating_add(a.start[d], a.extent[d]), saturating_add(b.start[d], b.extent[d]));
    common.start[d] = std::max(a.start[d], b.start[d]);
    common.extent[d] = end > common.start[d] ? end - common.start[d] : 0;
    any = any && common.extent[d] != 0;
  }
  out = common;
  return any;
}

std::int64_t offset_of(box const& where, std::span<std::int64_t const> strides) noexcept {
  std::uint64_t sum = 0; // unsigned: wraps instead of undefined behaviour, whatever the strides
  for (std::size_t d = 0; d < where.rank && d < strides.size(); ++d)
    sum += where.start[d] * static_cast<std::uint64_t>(strides[d]);
  return static_cast<std::int64_t>(sum);
}

std::array<std::int64_t, max_rank> row_major(shape const& dims) noexcept {
  std::array<std::int64_t, max_rank> strides{};
  std::uint64_t step = 1;
  for (std::size_t d = dims.rank(); d-- > 0;) {
    strides[d] = static_cast<std::int64_t>(step);
    step *= dims[d];
  }
  return strides;
}

} // namespace ropeway::plan
