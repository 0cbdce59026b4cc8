#include "cli/load.hpp"

#include <algorithm>
#include <asio/error.hpp>
#include <deque>
#include <vector>

#include "ropeway/error.hpp"

namespace ropeway::cli {
namespace {

/// Large enough for the disk, small enough for a smooth progress bar and a quick end.
constexpr std::uint64_t most_at_once = std::uint64_t(8) << 20;
/// What a disk wants its target to be aligned to when the page cache is left out.
constexpr std::uint64_t disk_alignment = 4096;

void check(std::atomic<bool> const& stop) {
  if (stop) throw transfer_error(asio::error::operation_aborted, "interrupted");
}

void load_host(checkpoint_reader& reader, weights const& into,
               std::function<void(std::uint64_t)> const& progress, std::atomic<bool> const& stop) {
  // So many reads are started ahead that the queue never runs dry, whatever the tensors' sizes are.
  constexpr std::size_t ahead = 64;
  struct read {
    checkpoint_reader::ticket ticket;
    std::uint64_t bytes;
  };
  std::deque<read> started;
  std::uint64_t done = 0;
  auto const finish_one = [&] {
    check(stop);
    reader.wait(started.front().ticket);
    done += started.front().bytes;
    started.pop_front();
    progress(done);
  };
  for (std::size_t i = 0; i < into.entries().size(); ++i) {
    auto const& tensor = into.entries()[i];
    for (std::uint64_t at = 0; at < tensor.bytes;) {
      auto const part = std::min(most_at_once, tensor.bytes - at);
      while (started.size() >= ahead) finish_one();
      started.push_back({reader.start(i, at, {tensor.data + at, part}), part});
      at += part;
    }
  }
  while (!started.empty()) finish_one();
}

/// Through the window: as many tensors, or parts of them, as it holds are read together, then copied
/// together.
void load_device(checkpoint const& from, checkpoint_reader& reader, weights const& into, host_window& window,
                 std::function<void(std::uint64_t)> const& progress, std::atomic<bool> const& stop) {
  struct part {
    std::uint64_t place;
    std::byte* to;
    std::uint64_t bytes;
  };
  std::vector<part> parts;
  std::uint64_t used = 0, done = 0;
  auto const flush = [&] {
    check(stop);
    reader.wait_all();
    for (auto const& one : parts) {
      window.queue_to_device(one.place, one.to, one.bytes);
      done += one.bytes;
    }
    window.finish();
    parts.clear();
    used = 0;
    progress(done);
  };
  auto const buffer = window.buffer();
  for (std::size_t i = 0; i < into.entries().size(); ++i) {
    auto const& tensor = into.entries()[i];
    for (std::uint64_t at = 0; at < tensor.bytes;) {
      // Where the disk can put it without a copy.
      auto const inside = (from.tensors()[i].offset + at) % disk_alignment;
      auto place = (used + disk_alignment - 1) / disk_alignment * disk_alignment + inside;
      if (place >= buffer.size()) {
        flush();
        place = inside;
      }
      auto const bytes = std::min(buffer.size() - place, tensor.bytes - at);
      reader.start(i, at, buffer.subspan(place, bytes));
      parts.push_back({place, tensor.data + at, bytes});
      used = place + bytes;
      at += bytes;
    }
  }
  flush();
}

} // namespace

void load(checkpoint const& from, weights const& into, host_window& window,
          std::function<void(std::uint64_t bytes)> const& progress, std::atomic<bool> const& stop,
          read_options const& options) {
  checkpoint_reader reader(from, options);
  if (into.where().is_cuda())
    load_device(from, reader, into, window, progress, stop);
  else
    load_host(reader, into, progress, stop);
}

} // namespace ropeway::cli
