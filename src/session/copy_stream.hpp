// A copy queue as the event loop sees it: callbacks in order, on the strand, once copies were seen to finish.
// Part of ropeway; Apache-2.0.
#pragma once
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "memory/memory.hpp"

namespace ropeway::session {

using strand = asio::strand<asio::any_io_executor>;

/// How long to poll a device's queue.
inline std::chrono::microseconds poll_time(device where) noexcept {
  return where.is_cuda() ? std::chrono::microseconds(1000) : std::chrono::microseconds(0);
}

/// Owned by a session's core; used on its strand, but for shut().
class copy_stream : public std::enable_shared_from_this<copy_stream> {
 public:
  using callback = std::function<void(std::error_code)>;

  /// With `poll_for`, a queue that has work is asked again and again, one turn of the loop each, until it has
  /// finished nothing for so long; then its wake-up is waited for. Being told by the driver takes tens of
  /// microseconds longer than asking (docs/performance.md), and both processes pay that for every bucket.
  copy_stream(strand const& on, std::unique_ptr<memory::queue> queue,
              std::chrono::microseconds poll_for = {});

  void start_after(ready_after const& when);
  /// Throws transfer_error(errc::not_open) after shut().
  void copy(std::span<memory::copy_op const> ops);
  /// Calls `done` on the strand, never from inside this call, once everything queued so far was seen to
  /// finish, with an error if the device failed. Callbacks come in order.
  void then(callback done);
  bool idle() const noexcept { return waiting_.empty(); }
  /// Lets nothing in any more and waits for what runs, at most queue::drain_limit. Any thread. False: it
  /// still runs.
  bool shut() noexcept;
  /// Forgets the callbacks and stops watching; what they hold is let go of. On the strand, after shut().
  void forget() noexcept;

 private:
  struct waiter {
    std::uint64_t ticket;
    callback done;
  };
  void ask_again();
  void watch_wakeups();
  void watch_clock();
  void look();

  strand strand_;
  std::mutex mutex_; // the queue is for one thread at a time, and shut() comes from the destructor's
  std::unique_ptr<memory::queue> queue_;
  bool shut_ = false;
  asio::posix::stream_descriptor wakeups_;
  asio::steady_timer
      second_look_; // a CUDA host function is not called after a context error: ask now and then
  bool watching_wakeups_ = false, watching_clock_ = false, asking_ = false;
  std::chrono::microseconds const poll_for_;
  std::chrono::steady_clock::time_point last_news_{};
  std::deque<waiter> waiting_;
};

} // namespace ropeway::session
