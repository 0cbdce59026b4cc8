// Cuts boxes into units, and lists into launches. Part of ropeway; Apache-2.0.
#include "memory/cuda/lists.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ropeway::memory::cuda {
namespace {

constexpr std::uint64_t longest_piece = std::uint64_t{1} << 31;
constexpr std::uint64_t most_units = (std::uint64_t{1} << 31) - 1;
// A row this long pays for an entry of its own where it can't be moved in units of 16 bytes.
constexpr std::uint64_t long_row = 32 * 1024;

std::uint64_t address(std::byte const* p) { return reinterpret_cast<std::uint64_t>(p); }

/// Whether all addresses of a box are multiples of `from` and `to`, the innermost dimension set aside.
bool aligned(box const& area, std::uint64_t from, std::uint64_t to) {
  std::uint64_t from_bits = address(area.from), to_bits = address(area.to);
  for (std::size_t d = 0; d + 1 < area.rank; ++d) {
    from_bits |= static_cast<std::uint64_t>(area.from_stride[d]);
    to_bits |= static_cast<std::uint64_t>(area.to_stride[d]);
  }
  return from_bits % from == 0 && to_bits % to == 0;
}

/// Makes `count` neighbours of the innermost dimension one unit.
box grouped(box area, std::uint64_t count) {
  std::size_t const inner = area.rank - 1;
  area.extent[inner] /= count;
  area.from_stride[inner] *= static_cast<std::int64_t>(count);
  area.to_stride[inner] *= static_cast<std::int64_t>(count);
  if (area.extent[inner] == 1 && area.rank > 1) --area.rank;
  return area;
}

ropeway_unit offset(ropeway_unit first, conversion convert) {
  return static_cast<ropeway_unit>(first + static_cast<int>(convert) -
                                   static_cast<int>(conversion::f32_to_bf16));
}

} // namespace

// For n < 2^31: n / extent == (high half of n * multiplier + n) >> bits of (extent - 1).
ropeway_dim make_dim(std::uint64_t extent, std::int64_t from_stride, std::int64_t to_stride) {
  std::uint64_t const shift = static_cast<std::uint64_t>(std::bit_width(extent - 1));
  std::uint64_t const multiplier =
      ((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - extent)) / extent + 1;
  return {from_stride, to_stride, static_cast<std::uint32_t>(extent), static_cast<std::uint32_t>(multiplier)};
}

copy_lists::copy_lists(std::uint32_t busy_blocks, bool large)
    : busy_blocks_(busy_blocks), large_(large), list_(std::make_unique<any_list>()) {
  static_assert(sizeof(ropeway_small_piece_list) <= 4096 && sizeof(ropeway_small_box_list) <= 4096);
  static_assert(sizeof(ropeway_large_piece_list) <= 32764 && sizeof(ropeway_large_box_list) <= 32764);
}

void copy_lists::clear() noexcept {
  pieces_.clear();
  boxes_.clear();
  dims_.clear();
  piece_bytes_ = box_units_ = 0;
  next_piece_ = next_box_ = next_dim_ = 0;
}

void copy_lists::add_piece(std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  piece_bytes_ += bytes;
  while (bytes > 0) {
    std::uint64_t const now = std::min(bytes, longest_piece);
    pieces_.push_back({from, to, static_cast<std::uint32_t>(now), 0});
    from += now;
    to += now;
    bytes -= now;
  }
}

void copy_lists::add_box(box const& area) {
  if (area.empty()) return;
  if (area.contiguous()) return add_piece(address(area.from), address(area.to), area.extent[0]);
  std::size_t const inner = area.rank - 1;
  bool const runs = area.from_stride[inner] == area.from_element && area.to_stride[inner] == area.to_element;
  if (area.convert == conversion::none) {
    std::uint64_t unit = 16;
    while (unit > 1 && !(runs && area.extent[inner] % unit == 0 && aligned(area, unit, unit))) unit /= 2;
    if (runs && unit < 16 && area.extent[inner] >= long_row) return add_rows(area);
    return add_units(grouped(area, unit), static_cast<ropeway_unit>(ropeway_copy_1 + std::countr_zero(unit)));
  }
  box whole = area;
  auto is_element_aligned = [](box const& b) {
    return aligned(b, b.from_element, b.to_element) && b.from_stride[b.rank - 1] % b.from_element == 0 &&
           b.to_stride[b.rank - 1] % b.to_element == 0;
  };
  if (!is_element_aligned(area)) return add_units(area, offset(ropeway_f32_bf16_u, area.convert));
  if (!runs || !aligned(area, 4 * area.from_element, 4 * area.to_element))
    return add_units(area, offset(ropeway_f32_bf16, area.convert));
  std::uint64_t const rest = area.extent[inner] % 4;
  if (rest == 0) return add_units(grouped(area, 4), offset(ropeway_f32_bf16_4, area.convert));
  whole.extent[inner] -= rest;
  if (whole.extent[inner] > 0) add_units(grouped(whole, 4), offset(ropeway_f32_bf16_4, area.convert));
  box last = area;
  last.from += static_cast<std::int64_t>(whole.extent[inner]) * area.from_element;
  last.to += static_cast<std::int64_t>(whole.extent[inner]) * area.to_element;
  last.extent[inner] = rest;
  add_units(last, offset(ropeway_f32_bf16, area.convert));
}

/// Each row becomes a piece.
void copy_lists::add_rows(box area) {
  if (area.rank == 1) return add_piece(address(area.from), address(area.to), area.extent[0]);
  std::uint64_t const count = area.extent[0];
  std::int64_t const from = area.from_stride[0], to = area.to_stride[0];
  --area.rank;
  std::copy(area.extent.begin() + 1, area.extent.end(), area.extent.begin());
  std::copy(area.from_stride.begin() + 1, area.from_stride.end(), area.from_stride.begin());
  std::copy(area.to_stride.begin() + 1, area.to_stride.end(), area.to_stride.begin());
  for (std::uint64_t i = 0; i < count; ++i) {
    add_rows(area);
    area.from += from;
    area.to += to;
  }
}

void copy_lists::add_units(box const& area, ropeway_unit unit) {
  std::uint64_t const units = area.elements();
  if (units > most_units) { // too many for 32-bit arithmetic: halve the outermost dimension
    std::size_t d = 0;
    while (area.extent[d] == 1) ++d;
    box first = area, second = area;
    first.extent[d] = area.extent[d] / 2;
    second.extent[d] -= first.extent[d];
    second.from += static_cast<std::int64_t>(first.extent[d]) * area.from_stride[d];
    second.to += static_cast<std::int64_t>(first.extent[d]) * area.to_stride[d];
    add_units(first, unit);
    return add_units(second, unit);
  }
  box_units_ += units;
  boxes_.push_back({address(area.from), address(area.to), static_cast<std::uint32_t>(units), 0, 0,
                    static_cast<std::uint8_t>(area.rank), static_cast<std::uint8_t>(unit), 0});
  for (std::size_t d = 0; d < area.rank; ++d)
    dims_.push_back(make_dim(area.extent[d], area.from_stride[d], area.to_stride[d]));
}

namespace {

/// Chunks so small that all blocks have some, and so large that finding them costs nothing.
std::uint32_t chunk_shift(std::uint64_t total, std::uint32_t blocks, std::uint32_t least,
                          std::uint32_t most) {
  std::uint32_t shift = most;
  while (shift > least && (total >> shift) < 2 * std::uint64_t{blocks}) --shift;
  return shift;
}

std::uint32_t chunks_of(std::uint32_t size, std::uint32_t shift) {
  return static_cast<std::uint32_t>((std::uint64_t{size} + (std::uint64_t{1} << shift) - 1) >> shift);
}

} // namespace

template <class Parameters>
copy_lists::launch copy_lists::fill_pieces(Parameters& list, kernel which, std::size_t capacity) {
  list.count = list.chunks = list.unused = 0;
  list.chunk_shift = chunk_shift(piece_bytes_, busy_blocks_, 14, 16);
  for (; next_piece_ < pieces_.size() && list.count < capacity; ++next_piece_) {
    ropeway_piece& piece = list.pieces[list.count++];
    piece = pieces_[next_piece_];
    piece.first_chunk = list.chunks;
    list.chunks += chunks_of(piece.bytes, list.chunk_shift);
  }
  return {which, &list, list.chunks};
}

template <class Parameters>
copy_lists::launch copy_lists::fill_boxes(Parameters& list, kernel which, std::size_t capacity,
                                          std::size_t dims) {
  list.count = list.chunks = list.unused = 0;
  list.chunk_shift = chunk_shift(box_units_, busy_blocks_, 11, 14);
  std::size_t used = 0;
  for (; next_box_ < boxes_.size() && list.count < capacity; ++next_box_) {
    ropeway_box const& next = boxes_[next_box_];
    if (used + next.rank > dims) break;
    ropeway_box& here = list.boxes[list.count++];
    here = next;
    here.first_chunk = list.chunks;
    here.first_dim = static_cast<std::uint32_t>(used);
    std::memcpy(list.dims + used, dims_.data() + next_dim_, next.rank * sizeof(ropeway_dim));
    used += next.rank;
    next_dim_ += next.rank;
    list.chunks += chunks_of(here.units, list.chunk_shift);
  }
  return {which, &list, list.chunks};
}

bool copy_lists::next(launch& out) {
  if (next_piece_ < pieces_.size()) {
    bool const large = large_ && pieces_.size() - next_piece_ > ropeway_small_pieces;
    out = large ? fill_pieces(list_->large_pieces, kernel::large_pieces, ropeway_large_pieces)
                : fill_pieces(list_->small_pieces, kernel::small_pieces, ropeway_small_pieces);
    return true;
  }
  if (next_box_ < boxes_.size()) {
    bool const large = large_ && (boxes_.size() - next_box_ > ropeway_small_boxes ||
                                  dims_.size() - next_dim_ > ropeway_small_dims);
    out = large
              ? fill_boxes(list_->large_boxes, kernel::large_boxes, ropeway_large_boxes, ropeway_large_dims)
              : fill_boxes(list_->small_boxes, kernel::small_boxes, ropeway_small_boxes, ropeway_small_dims);
    return true;
  }
  return false;
}

} // namespace ropeway::memory::cuda
