// Part of ropeway; Apache-2.0.
#include "memory/cuda/prepared.hpp"

#include <algorithm>
#include <utility>

#include "memory/cuda/handles.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

// The start of an engine copy costs 4 us; this takes 160 us over the fastest link, so that it is 3 % or less
// of a step of a paced load.
constexpr std::uint64_t longest_engine_copy = std::uint64_t{64} << 20;

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 255) / 256 * 256; }

template <class Entry>
std::uint64_t bytes_in(std::vector<Entry> const& entries) {
  return aligned(entries.size() * sizeof(Entry));
}

} // namespace

prepared::prepared(std::shared_ptr<gpu> owner, std::span<copy_op const> ops, list_shape shape)
    : owner_(std::move(owner)), shape_(shape) {
  sorting sorted(owner_);
  scope here(*owner_);
  (void)sorted.sort(ops);
  for (copy_op const& op : ops) bytes_ += bytes_of(op);
  engine_ = std::move(sorted.engine());
  cut(engine_, longest_engine_copy);
  staged_ = std::move(sorted.staged());
  chunk_table const table = sorted.lists().cut(shape.chunk_bytes);
  kernel_ = table.boxes.empty() ? copy_lists::kernel::prepared_pieces : copy_lists::kernel::prepared_boxes;
  list_.count = static_cast<std::uint32_t>(table.chunks.size());
  units_ = list_.count + engine_.size() + staged_.size();
  if (list_.count == 0) return;
  try {
    upload(table);
  } catch (...) {
    free();
    throw;
  }
}

prepared::~prepared() { free(); }

void prepared::free() noexcept {
  if (memory_ == 0) return;
  scope here(*owner_, std::nothrow);
  if (here.entered()) (void)owner_->call().cuMemFree(memory_);
}

void prepared::upload(chunk_table const& table) {
  driver const& d = owner_->call();
  std::uint64_t const boxes_at = bytes_in(table.chunks), dims_at = boxes_at + bytes_in(table.boxes),
                      bytes = dims_at + bytes_in(table.dims);
  if (CUresult result = d.cuMemAlloc(&memory_, bytes); result != CUDA_SUCCESS) {
    memory_ = 0;
    d.fail(result,
           ("no " + std::to_string(bytes) + " bytes on " + to_string(owner_->where()) +
            " to keep a list of copies")
               .c_str(),
           result == CUDA_ERROR_OUT_OF_MEMORY ? errc::out_of_memory : errc::device_failed);
  }
  list_.chunks = memory_;
  list_.boxes = memory_ + boxes_at;
  list_.dims = memory_ + dims_at;
  // On a stream of its own: the caller's copies neither wait for this nor are waited for.
  stream on(owner_);
  event done(owner_, true);
  auto put = [&](std::uint64_t to, auto const& entries) {
    if (entries.empty()) return;
    d.check(d.cuMemcpyHtoDAsync(to, entries.data(), entries.size() * sizeof entries[0], on.get()),
            "a list of copies can't be put on the device");
  };
  put(list_.chunks, table.chunks);
  put(list_.boxes, table.boxes);
  put(list_.dims, table.dims);
  d.check(d.cuEventRecord(done.get(), on.get()), "a list of copies can't be put on the device");
  d.check(d.cuEventSynchronize(done.get()), "a list of copies can't be put on the device");
}

prepared::part prepared::of(portion what) const noexcept {
  std::uint64_t const begin = std::min(what.first, units_),
                      end = begin + std::min(what.count, units_ - begin);
  // What of the range lies in `count` units behind `before`, as an offset and a length.
  auto overlap = [&](std::uint64_t before, std::uint64_t count) {
    std::uint64_t const from = std::clamp(begin, before, before + count) - before;
    return std::pair{from, std::clamp(end, before, before + count) - before - from};
  };
  part some;
  auto const [first, chunks] = overlap(0, list_.count);
  if (chunks > 0) {
    some.list = list_;
    some.list.first = static_cast<std::uint32_t>(first);
    some.list.count = static_cast<std::uint32_t>(chunks);
    some.kernel = kernel_;
    std::uint32_t most = what.most_blocks;
    if (most == 0) most = shape_.blocks_per_multiprocessor * owner_->multiprocessors();
    some.blocks = most == 0 ? some.list.count : std::min(some.list.count, most);
  }
  auto const [engine_first, engine_count] = overlap(list_.count, engine_.size());
  some.engine = std::span(engine_).subspan(engine_first, engine_count);
  auto const [staged_first, staged_count] = overlap(list_.count + engine_.size(), staged_.size());
  some.staged = std::span(staged_).subspan(staged_first, staged_count);
  return some;
}

void cut(std::vector<engine_copy>& copies, std::uint64_t most) {
  std::vector<engine_copy> parts;
  for (engine_copy whole : copies) {
    for (; whole.bytes > most; whole.bytes -= most) {
      parts.push_back({whole.from, whole.to, most, true});
      whole.from += most;
      whole.to += most;
    }
    parts.push_back(whole);
  }
  copies = std::move(parts);
}

} // namespace ropeway::memory::cuda
