// Part of ropeway; Apache-2.0.
#include "memory/cuda/sorting.hpp"

#include <algorithm>

#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

// From here on the copy engine beats the kernel; below, its start costs more than the bytes.
// Measured on an H100: 4 us for each copy of the engine, so that 64 KiB pieces of pinned memory come at 16
// GB/s by the engine and at 43 by the kernel, 1 MiB pieces at 46. Over a link to another GPU the two are
// closer: 396 and 376 GB/s, so that the start of the engine is made good only here:
constexpr std::uint64_t engine_bytes = std::uint64_t{1} << 20, engine_bytes_link = std::uint64_t{32} << 20;

// Between devices that can't map each other the copy engine takes one row at a time, 4 us each: more than
// these would hold up an update for longer than a mistake should.
constexpr std::uint64_t most_far_rows = std::uint64_t{1} << 16;

// What `simplify` refuses.
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 62;

bool is_host(place where) noexcept { return where == place::pinned || where == place::pageable; }

} // namespace

sorting::sorting(std::shared_ptr<gpu> owner)
    : owner_(std::move(owner))
    , here_(owner_->where())
    , places_(*owner_)
    , lists_(2 * owner_->multiprocessors(), owner_->kernel(copy_lists::kernel::large_pieces) &&
                                                owner_->kernel(copy_lists::kernel::large_boxes)) {}

bool sorting::sort(std::span<copy_op const> ops, bool one_run_by_driver) {
  places_.forget();
  lists_.clear();
  engine_.clear();
  here_runs_.clear();
  link_runs_.clear();
  staged_.clear();
  for (copy_op const& op : ops) sort_one(op);
  sort_runs(one_run_by_driver);
  return !staged_.empty();
}

/// Small tensors that lie side by side on both sides are one copy, which may be large enough for the engine.
void sorting::sort_runs(bool one_by_driver) {
  auto const by_kernel = [&](engine_copy const& one) { lists_.add_piece(one.from, one.to, one.bytes); };
  join(link_runs_);
  for (engine_copy rest : link_runs_) {
    while (rest.bytes >= engine_bytes_link) {
      engine_copy part = rest;
      part.bytes = std::min({rest.bytes, left_of_allocation(rest.from), left_of_allocation(rest.to)});
      if (part.bytes == 0) break; // the driver does not know it
      if (part.bytes >= engine_bytes_link)
        engine_.push_back(part);
      else
        by_kernel(part);
      rest.from += part.bytes;
      rest.to += part.bytes;
      rest.bytes -= part.bytes;
    }
    if (rest.bytes > 0) by_kernel(rest);
  }
  join(here_runs_);
  bool const alone = one_by_driver && here_runs_.size() == 1 && lists_.empty() && engine_.empty();
  for (engine_copy const& one : here_runs_) {
    if (alone && one.bytes >= engine_bytes && left_of_allocation(one.from) >= one.bytes &&
        left_of_allocation(one.to) >= one.bytes)
      engine_.push_back(one);
    else
      by_kernel(one);
  }
}

/// Allocations may lie side by side, and tensors in them. The kernel does not see where one ends, but the
/// driver refuses copies across it.
std::uint64_t sorting::left_of_allocation(std::uint64_t address) const noexcept {
  CUdeviceptr begin = 0;
  std::size_t bytes = 0;
  if (owner_->call().cuMemGetAddressRange(&begin, &bytes, address) != CUDA_SUCCESS || address < begin ||
      address - begin >= bytes)
    return 0;
  return bytes - (address - begin);
}

void sorting::sort_one(copy_op const& op) {
  // The common case takes no looking up: a list may have thousands of these.
  if (op.rank == 0 && op.convert == conversion::none && op.from_where == here_ && op.to_where == here_ &&
      !owner_->has_peer_memory() && op.bytes < most_bytes) {
    if (op.bytes > 0)
      here_runs_.push_back(
          {reinterpret_cast<std::uint64_t>(op.from), reinterpret_cast<std::uint64_t>(op.to), op.bytes});
    return;
  }
  box area = simplify(op);
  if (area.empty()) return;
  end const from = places_.find(op.from_where, from_range(area));
  end const to = places_.find(op.to_where, to_range(area));
  if (!to.writable)
    throw transfer_error(errc::invalid_argument,
                         "a copy would write into host memory that is registered for reading");
  bool const far = from.where == place::far || to.where == place::far;
  bool const pageable = from.where == place::pageable || to.where == place::pageable;
  if (pageable || (is_host(from.where) && is_host(to.where)) || (far && op.convert != conversion::none)) {
    staged_.push_back(op);
    return;
  }
  if (far) {
    std::size_t const inner = area.rank - 1;
    bool const dense = area.from_stride[inner] == 1 && area.to_stride[inner] == 1;
    std::uint64_t rows = 1;
    for (std::size_t d = 0; d < (dense ? inner : area.rank); ++d) rows *= area.extent[d];
    if (rows > most_far_rows)
      throw transfer_error(errc::unsupported, "a tensor on another GPU than the ring lies in " +
                                                  std::to_string(rows) +
                                                  " separate runs; make it contiguous, or move it");
    return add_rows(area);
  }
  if (area.contiguous()) {
    bool const host = is_host(from.where) || is_host(to.where);
    bool const peer = from.where == place::peer || to.where == place::peer;
    std::uint64_t const bytes = area.extent[0];
    if (host && bytes >= engine_bytes) return add_rows(area);
    if (!host)
      return (peer ? link_runs_ : here_runs_)
          .push_back(
              {reinterpret_cast<std::uint64_t>(area.from), reinterpret_cast<std::uint64_t>(area.to), bytes});
  }
  area.from += from.shift;
  area.to += to.shift;
  lists_.add_box(area);
}

/// Copies for the engine, one a row.
void sorting::add_rows(box area) {
  std::size_t const inner = area.rank - 1;
  bool const rows = area.from_stride[inner] == 1 && area.to_stride[inner] == 1;
  std::uint64_t const bytes = rows ? area.extent[inner] : 1;
  std::size_t const outer = rows ? inner : area.rank;
  std::array<std::uint64_t, max_rank + 1> at{};
  for (;;) {
    engine_.push_back(
        {reinterpret_cast<std::uint64_t>(area.from), reinterpret_cast<std::uint64_t>(area.to), bytes});
    std::size_t d = outer;
    for (; d > 0; --d) {
      area.from += area.from_stride[d - 1];
      area.to += area.to_stride[d - 1];
      if (++at[d - 1] < area.extent[d - 1]) break;
      area.from -= area.from_stride[d - 1] * static_cast<std::int64_t>(area.extent[d - 1]);
      area.to -= area.to_stride[d - 1] * static_cast<std::int64_t>(area.extent[d - 1]);
      at[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

void join(std::vector<engine_copy>& copies) {
  auto const in_order = [](engine_copy const& a, engine_copy const& b) {
    return a.from != b.from ? a.from < b.from : a.to < b.to;
  };
  // As a rule they are: tensors of a bucket lie in it as they follow each other.
  if (!std::is_sorted(copies.begin(), copies.end(), in_order))
    std::sort(copies.begin(), copies.end(), in_order);
  std::size_t joined = 0;
  for (engine_copy const& next : copies) {
    if (joined != 0 && copies[joined - 1].continued_by(next))
      copies[joined - 1].bytes += next.bytes;
    else
      copies[joined++] = next;
  }
  copies.resize(joined);
}

} // namespace ropeway::memory::cuda
