// Cuts a list that is kept into the chunks that blocks take. Part of ropeway; Apache-2.0.
#include <algorithm>

#include "memory/cuda/lists.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

// A chunk of small units is many loads of few bytes.
constexpr std::uint32_t most_units = 1 << 14;
// Cuts lie where a line of memory begins in the target, so that only the first chunk of a run has odd ends.
constexpr std::uint64_t line = 128;
// The kernel counts chunks in 32 bits, adding to them the number of blocks, which may be as large.
constexpr std::uint64_t most_chunks = (std::uint64_t{1} << 31) - 1;

struct run {
  std::uint64_t from, to, bytes;
};

std::uint32_t bytes_of_unit(std::uint8_t unit) {
  if (unit <= ropeway_copy_16) return std::uint32_t{1} << unit;
  return unit >= ropeway_f32_bf16_4 && unit <= ropeway_f16_f32_4 ? 16 : 4; // as f32
}

void add(chunk_table& table, ropeway_chunk const& one) {
  if (table.chunks.size() >= most_chunks)
    throw transfer_error(errc::overflow, "a list of copies has 2^31 chunks or more; split it");
  table.chunks.push_back(one);
}

void add(chunk_table& table, run next, std::uint32_t chunk_bytes) {
  while (next.bytes > 0) {
    std::uint64_t now = chunk_bytes - next.to % line;
    if (now >= next.bytes) now = next.bytes;
    add(table, {next.from, next.to, static_cast<std::uint32_t>(now), 0, 0});
    next.from += now;
    next.to += now;
    next.bytes -= now;
  }
}

} // namespace

chunk_table copy_lists::cut(std::uint32_t chunk_bytes) const {
  chunk_bytes = std::max<std::uint32_t>(chunk_bytes / line, 2) * line;
  std::vector<run> runs;
  runs.reserve(pieces_.size());
  for (ropeway_piece const& one : pieces_) runs.push_back({one.from, one.to, one.bytes});
  std::sort(runs.begin(), runs.end(),
            [](run const& a, run const& b) { return a.from != b.from ? a.from < b.from : a.to < b.to; });
  chunk_table table;
  table.chunks.reserve(piece_bytes_ / chunk_bytes + 2 * runs.size());
  for (std::size_t i = 0; i < runs.size();) {
    run whole = runs[i++];
    for (;
         i < runs.size() && runs[i].from == whole.from + whole.bytes && runs[i].to == whole.to + whole.bytes;
         ++i)
      whole.bytes += runs[i].bytes;
    add(table, whole, chunk_bytes);
  }
  std::uint32_t first_dim = 0;
  for (ropeway_box const& one : boxes_) {
    table.boxes.push_back(one);
    table.boxes.back().first_dim = first_dim;
    first_dim += one.rank;
    std::uint32_t const units = std::min(most_units, chunk_bytes / bytes_of_unit(one.unit));
    for (std::uint32_t begin = 0; begin < one.units; begin += std::min(units, one.units - begin))
      add(table,
          {begin, 0, std::min(units, one.units - begin), static_cast<std::uint32_t>(table.boxes.size()), 0});
  }
  table.dims = dims_;
  return table;
}

} // namespace ropeway::memory::cuda
