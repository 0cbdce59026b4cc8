#include "session/digester.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "ropeway/error.hpp"

namespace ropeway::session {
namespace {
/// Of one process, and the host.
constexpr std::size_t most_devices = 65;
} // namespace

protocol::bytes16 bytes_of(digest128 const& what) noexcept {
  protocol::bytes16 bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(what.lanes[i / 8] >> (56 - 8 * (i % 8)));
  return bytes;
}

digest128 digest_of(protocol::bytes16 const& bytes) noexcept {
  digest128 what;
  for (std::size_t i = 0; i < bytes.size(); ++i) what.lanes[i / 8] = what.lanes[i / 8] << 8 | bytes[i];
  return what;
}

digest_list::digest_list(memory::backends& memory, std::vector<memory::digest_op> ops, std::uint32_t sums) {
  auto const key = [](memory::digest_op const& op) { return op.where.is_cuda() ? op.where.ordinal() : -1; };
  auto const before = [&](auto const& a, auto const& b) {
    return std::pair(key(a), a.group) < std::pair(key(b), b.group);
  };
  std::sort(ops.begin(), ops.end(), before);
  for (auto first = ops.begin(); first != ops.end();) {
    auto const last = std::find_if(first, ops.end(), [&](auto const& op) { return key(op) != key(*first); });
    auto const where = first->where;
    parts_.push_back({where, memory.get(where)->prepare_digests(std::span(first, last), sums)});
    first = last;
  }
  if (parts_.size() > most_devices)
    throw transfer_error(errc::unsupported, "digests of memory of more than " + std::to_string(most_devices) +
                                                " devices in one update");
}

std::uint64_t digest_list::bytes() const noexcept {
  std::uint64_t all = 0;
  for (part const& one : parts_) all += one.list->bytes();
  return all;
}

void digest_list::add_to(std::span<digest128> sums) const noexcept {
  for (part const& one : parts_) {
    auto const fetched = one.list->sums();
    for (std::size_t i = 0; i < std::min(sums.size(), fetched.size()); ++i) sums[i] += fetched[i];
  }
}

copy_stream& digester::stream_of(device where) {
  for (entry const& one : streams_)
    if (one.where == where) return *one.stream;
  auto done = [weak = weak_from_this()](copied& what, std::error_code error) {
    if (auto const self = weak.lock()) self->part_done(what, error);
  };
  auto made = std::make_shared<copy_stream>(strand_, memory_->get(where)->make_queue(), std::move(done),
                                            poll_time(where));
  std::scoped_lock lock(mutex_);
  if (shut_) throw transfer_error(errc::not_open, "the session is closed");
  streams_.push_back({where, made});
  return *streams_.back().stream;
}

void digester::run(std::span<run_of const> runs, ready_after const& when, copied what) {
  // Which devices take part.
  std::array<copy_stream*, most_devices> used{};
  std::size_t count = 0;
  std::error_code error;
  try {
    for (run_of const& one : runs) {
      if (!one.list) continue;
      for (auto const& part : one.list->parts()) {
        auto& stream = stream_of(part.where);
        if (std::find(used.begin(), used.begin() + count, &stream) == used.begin() + count) {
          if (count == used.size())
            throw transfer_error(errc::unsupported, "digests of memory of too many devices in one update");
          if (part.where.is_cuda()) stream.start_after(when);
          used[count++] = &stream;
        }
        stream.digest(*part.list, one.how);
      }
    }
    if (count == 0) used[count++] = &stream_of(device::host()); // nothing to wait for, but not at once
  } catch (transfer_error const& failed) {
    if (count == 0) throw;
    error = failed.code(); // something was queued, which must be waited for
  }
  if (count == 1 && !error) return used[0]->then(std::move(what));
  auto const all = std::make_shared<joint>();
  all->left = count;
  all->what = std::move(what);
  all->error = error;
  for (std::size_t i = 0; i < count; ++i) {
    copied share;
    share.whose = all;
    share.what = copied::kind::joint;
    used[i]->then(std::move(share));
  }
}

void digester::part_done(copied& what, std::error_code error) {
  if (what.what != copied::kind::joint) return done_(what, error);
  auto const all = std::static_pointer_cast<joint>(what.whose);
  if (all->what.began == std::chrono::steady_clock::time_point()) all->what.began = what.began;
  all->what.began = std::min(all->what.began, what.began);
  all->what.ended = std::max(all->what.ended, what.ended);
  if (error) all->error = error;
  if (--all->left == 0) done_(all->what, all->error);
}

void digester::replace_failed() {
  std::scoped_lock lock(mutex_);
  std::erase_if(streams_, [](entry const& one) { return one.stream->failed(); });
}

bool digester::shut(std::chrono::steady_clock::time_point end) noexcept {
  std::vector<entry> all;
  {
    std::scoped_lock lock(mutex_);
    shut_ = true;
    all.swap(streams_);
  }
  bool drained = true;
  for (entry const& one : all) drained = one.stream->shut(end) && drained;
  std::scoped_lock lock(mutex_);
  streams_.swap(all);
  return drained;
}

bool digester::drain(std::chrono::steady_clock::time_point end) noexcept {
  std::vector<std::shared_ptr<copy_stream>> all;
  {
    std::scoped_lock lock(mutex_);
    for (entry const& one : streams_) all.push_back(one.stream);
  }
  bool drained = true;
  for (auto const& stream : all) drained = stream->drain(end) && drained;
  return drained;
}

void digester::finish() {
  for (entry const& one : streams_) one.stream->finish();
}

void digester::forget() noexcept {
  for (entry const& one : streams_) one.stream->forget();
}

} // namespace ropeway::session
