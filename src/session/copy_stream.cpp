#include "session/copy_stream.hpp"

#include <algorithm>
#include <asio/post.hpp>
#include <cerrno>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include "base/unique_fd.hpp"
#include "ropeway/error.hpp"

namespace ropeway::session {
namespace {

constexpr auto second_look_after = std::chrono::milliseconds(50);
/// A timer wakes a loop that sleeps so much later than it was set to.
constexpr auto wake_time = std::chrono::microseconds(25);

wire::descriptor watch(strand const& on, int fd) {
  unique_fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no descriptor to watch copies; raise RLIMIT_NOFILE");
  wire::descriptor watched(on, copy.get());
  (void)copy.release();
  return watched;
}

} // namespace

copy_stream::copy_stream(strand const& on, std::unique_ptr<memory::queue> queue, callback done,
                         std::chrono::microseconds poll_for)
    : strand_(on)
    , queue_(std::move(queue))
    , done_(std::move(done))
    , wakeups_(watch(on, queue_->event_fd()))
    , expected_(on)
    , second_look_(on)
    , poll_for_(poll_for) {}

void copy_stream::start_after(ready_after const& when) {
  std::scoped_lock lock(mutex_);
  queue_->start_after(when);
}

void copy_stream::copy(std::span<memory::copy_op const> ops, memory::effort how) {
  std::scoped_lock lock(mutex_);
  if (shut_) throw transfer_error(errc::not_open, "the session is closed");
  queue_->copy(ops, how);
}

void copy_stream::repeat(memory::prepared_copies const& list, memory::portion what) {
  std::scoped_lock lock(mutex_);
  if (shut_) throw transfer_error(errc::not_open, "the session is closed");
  queue_->repeat(list, what);
}

void copy_stream::digest(memory::prepared_digests& list, memory::digest_run const& what) {
  std::scoped_lock lock(mutex_);
  if (shut_) throw transfer_error(errc::not_open, "the session is closed");
  queue_->digest(list, what);
}

void copy_stream::then(copied what) {
  std::uint64_t ticket;
  {
    std::scoped_lock lock(mutex_);
    ticket = poll_for_.count() != 0 ? queue_->mark_quietly() : queue_->mark();
  }
  auto const now = std::chrono::steady_clock::now();
  waiting_.push_back({ticket, std::move(what), now});
  if (waiting_.size() == 1) show_first();
  last_news_ = now;
  if (poll_for_.count() != 0) return ask_again();
  watch_wakeups();
  watch_clock();
}

void copy_stream::expect(std::chrono::steady_clock::duration so_long, std::function<void()> soon) {
  bool const shortly = so_long <= poll_for_;
  if (shortly && so_long <= 2 * wake_time) return; // it is asked for all that time
  resting_ = shortly;
  expected_.expires_after(so_long - (shortly ? wake_time : poll_for_ / 2));
  if (shortly) soon = nullptr;
  expected_.async_wait([weak = weak_from_this(), soon = std::move(soon)](std::error_code error) {
    auto const self = weak.lock();
    if (!self || error) return;
    self->rested_ = std::exchange(self->resting_, false);
    if (self->waiting_.empty()) return;
    if (soon) soon();
    self->last_news_ = std::chrono::steady_clock::now();
    self->look();
  });
}

bool copy_stream::failed() {
  std::scoped_lock lock(mutex_);
  failed_ = failed_ || queue_->poll().error;
  return failed_;
}

void copy_stream::ask_again() {
  if (std::exchange(asking_, true)) return;
  asio::post(strand_, [weak = weak_from_this()] {
    auto const self = weak.lock();
    if (!self) return;
    self->asking_ = false;
    self->look();
  });
}

void copy_stream::watch_wakeups() {
  if (std::exchange(watching_wakeups_, true)) return;
  wakeups_.async_wait(wire::descriptor::wait_read, [weak = weak_from_this()](std::error_code error) {
    auto const self = weak.lock();
    if (!self || error) return;
    std::uint64_t count;
    [[maybe_unused]] auto const n = ::read(self->wakeups_.native_handle(), &count, sizeof count);
    self->watching_wakeups_ = false;
    self->look();
  });
}

void copy_stream::watch_clock() {
  if (std::exchange(watching_clock_, true)) return;
  second_look_.expires_after(second_look_after);
  second_look_.async_wait([weak = weak_from_this()](std::error_code error) {
    auto const self = weak.lock();
    if (!self) return;
    self->watching_clock_ = false;
    if (error) return self->watch_again();
    self->look();
  });
}

void copy_stream::look() {
  memory::progress now;
  {
    std::scoped_lock lock(mutex_);
    now = queue_->poll();
  }
  if (now.error) failed_ = true;
  bool const rested = std::exchange(rested_, false);
  // The owner may queue more, so take one at a time.
  while (!waiting_.empty() && (now.error || waiting_.front().ticket <= now.completed)) {
    waiter first = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    show_first();
    if (first.what.began == std::chrono::steady_clock::time_point())
      first.what.began = std::max(first.queued, last_end_);
    first.what.ended = last_end_ = last_news_ = std::chrono::steady_clock::now();
    first.what.overslept = rested;
    done_(first.what, first.ticket > now.completed ? now.error : std::error_code());
  }
  if (waiting_.empty()) {
    if (finishing_) stop_watching();
    return;
  }
  if (resting_) return;
  if (poll_for_.count() != 0 && std::chrono::steady_clock::now() - last_news_ < poll_for_) return ask_again();
  if (poll_for_.count() != 0) {
    std::scoped_lock lock(mutex_);
    queue_->notify();
  }
  watch_wakeups();
  watch_clock();
}

bool copy_stream::shut(std::chrono::steady_clock::time_point end) noexcept {
  {
    std::scoped_lock lock(mutex_);
    shut_ = true;
  }
  return drain(end);
}

bool copy_stream::drain(std::chrono::steady_clock::time_point end) noexcept {
  std::scoped_lock lock(mutex_);
  auto const left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
  return queue_->drain(std::max(left, std::chrono::milliseconds(0)));
}

void copy_stream::finish() {
  finishing_ = true;
  if (waiting_.empty()) stop_watching();
}

void copy_stream::forget() noexcept {
  waiting_.clear();
  show_first();
  stop_watching();
}

void copy_stream::stop_watching() noexcept {
  std::error_code ignored;
  wakeups_.cancel(ignored);
  second_look_.cancel();
  expected_.cancel();
  resting_ = false;
}

/// Copies run one after the other: the first that was not seen to finish is what runs.
void copy_stream::show_first() noexcept {
  shown_.end();
  if (waiting_.empty()) return;
  auto const& first = waiting_.front().what;
  if (first.shown) shown_.begin(*first.shown, first.bucket);
}

/// After a watch was cancelled: something may have been queued since.
void copy_stream::watch_again() {
  if (waiting_.empty()) return;
  watch_wakeups();
  watch_clock();
}

} // namespace ropeway::session
