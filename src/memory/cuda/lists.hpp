// From copy operations to what the kernels are given. Pure: no driver, no device; tested without either.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory/copy.hpp"
#include "memory/cuda/kernels.h"

namespace ropeway::memory::cuda {

/// A copy_op with its dimensions merged as far as they go. Without a conversion its elements are single
/// bytes, and an element of several bytes is one dimension more.
struct box {
  std::byte const* from = nullptr;
  std::byte* to = nullptr;
  conversion convert = conversion::none;
  std::uint32_t from_element = 1, to_element = 1;
  std::uint32_t rank = 0; ///< outermost first; 0 only where nothing is to be copied
  std::array<std::uint64_t, max_rank + 1> extent{};
  std::array<std::int64_t, max_rank + 1> from_stride{}, to_stride{};

  bool empty() const noexcept { return rank == 0; }
  /// Plain bytes in a row on both sides.
  bool contiguous() const noexcept {
    return convert == conversion::none && rank == 1 && from_stride[0] == 1 && to_stride[0] == 1;
  }
  std::uint64_t elements() const noexcept;
};

/// Throws `transfer_error` (invalid_argument, overflow) for operations that make no sense.
box simplify(copy_op const& op);

/// The addresses that one side of an operation touches: [low, high).
struct address_range {
  std::uintptr_t low = 0, high = 0;
};
address_range from_range(box const& area) noexcept;
address_range to_range(box const& area) noexcept;

/// A list as it lies in device memory, to be copied again and again.
struct chunk_table {
  std::vector<ropeway_chunk> chunks;
  std::vector<ropeway_box> boxes;
  std::vector<ropeway_dim> dims;
};

/// How to divide by an extent, and steps; for numbers below 2^31.
ropeway_dim make_dim(std::uint64_t extent, std::int64_t from_stride, std::int64_t to_stride);

/// Collects copies and hands them out as kernel launches. Keeps its memory from list to list.
class copy_lists {
 public:
  enum class kernel : std::uint8_t {
    small_pieces,
    large_pieces,
    small_boxes,
    large_boxes,
    prepared_pieces,
    prepared_boxes, ///< and pieces
    digest_runs,
    digest_boxes, ///< and runs
  };
  static constexpr std::size_t kernels = 8;
  struct launch {
    kernel which;
    void const* parameters; ///< valid until the next call
    std::uint32_t blocks;
  };

  /// `busy_blocks` keep the device busy: where there is little to copy, chunks are cut smaller so that there
  /// are as many. Each chunk has a block of its own; in the order of their numbers, they work on neighbouring
  /// memory at a time. `large` says whether the kernels with large parameters exist.
  copy_lists(std::uint32_t busy_blocks, bool large);

  void clear() noexcept;
  bool empty() const noexcept { return pieces_.empty() && boxes_.empty(); }
  void add_piece(std::uint64_t from, std::uint64_t to, std::uint64_t bytes);
  /// Adds a box whose pointers are what the device sees.
  void add_box(box const& area);
  /// The next launch; false when all were handed out.
  bool next(launch& out);
  /// The other way to hand them out: cut into chunks of about so many bytes. Runs of bytes come first, in the
  /// order in which their sources lie, and those that continue each other on both sides are one. Throws
  /// `transfer_error(errc::overflow)`.
  chunk_table cut(std::uint32_t chunk_bytes) const;

 private:
  void add_units(box const& area, ropeway_unit unit);
  void add_rows(box area);
  template <class Parameters>
  launch fill_pieces(Parameters& list, kernel which, std::size_t capacity);
  template <class Parameters>
  launch fill_boxes(Parameters& list, kernel which, std::size_t capacity, std::size_t dims);

  std::uint32_t busy_blocks_;
  bool large_;
  std::vector<ropeway_piece> pieces_;
  std::vector<ropeway_box> boxes_;
  std::vector<ropeway_dim> dims_;
  std::uint64_t piece_bytes_ = 0, box_units_ = 0;
  std::size_t next_piece_ = 0, next_box_ = 0, next_dim_ = 0;
  union any_list {
    ropeway_small_piece_list small_pieces;
    ropeway_large_piece_list large_pieces;
    ropeway_small_box_list small_boxes;
    ropeway_large_box_list large_boxes;
  };
  std::unique_ptr<any_list> list_;
};

} // namespace ropeway::memory::cuda
