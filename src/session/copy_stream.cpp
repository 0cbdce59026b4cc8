#include "session/copy_stream.hpp"

#include <asio/post.hpp>
#include <cerrno>
#include <unistd.h>
#include <utility>

#include "ropeway/error.hpp"

namespace ropeway::session {
namespace {

constexpr auto second_look_after = std::chrono::milliseconds(50);

int duplicate(int fd) {
  int const copy = ::dup(fd);
  if (copy < 0)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no descriptor left to watch copies");
  return copy;
}

} // namespace

copy_stream::copy_stream(strand const& on, std::unique_ptr<memory::queue> queue, callback done,
                         std::chrono::microseconds poll_for)
    : strand_(on)
    , queue_(std::move(queue))
    , done_(std::move(done))
    , wakeups_(on, duplicate(queue_->event_fd()))
    , second_look_(on)
    , poll_for_(poll_for) {}

void copy_stream::start_after(ready_after const& when) {
  std::scoped_lock lock(mutex_);
  queue_->start_after(when);
}

void copy_stream::copy(std::span<memory::copy_op const> ops) {
  std::scoped_lock lock(mutex_);
  if (shut_) throw transfer_error(errc::not_open, "the session is closed");
  queue_->copy(ops);
}

void copy_stream::then(copied what) {
  std::uint64_t ticket;
  {
    std::scoped_lock lock(mutex_);
    ticket = poll_for_.count() != 0 ? queue_->mark_quietly() : queue_->mark();
  }
  waiting_.push_back({ticket, std::move(what)});
  last_news_ = std::chrono::steady_clock::now();
  if (poll_for_.count() != 0) return ask_again();
  watch_wakeups();
  watch_clock();
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
    if (!self || error) return;
    self->watching_clock_ = false;
    self->look();
  });
}

void copy_stream::look() {
  memory::progress now;
  {
    std::scoped_lock lock(mutex_);
    now = queue_->poll();
  }
  // The owner may queue more, so take one at a time.
  while (!waiting_.empty() && (now.error || waiting_.front().ticket <= now.completed)) {
    waiter first = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    last_news_ = std::chrono::steady_clock::now();
    done_(first.what, first.ticket > now.completed ? now.error : std::error_code());
  }
  if (waiting_.empty()) return;
  if (poll_for_.count() != 0 && std::chrono::steady_clock::now() - last_news_ < poll_for_) return ask_again();
  if (poll_for_.count() != 0) {
    std::scoped_lock lock(mutex_);
    queue_->notify();
  }
  watch_wakeups();
  watch_clock();
}

bool copy_stream::shut() noexcept {
  std::scoped_lock lock(mutex_);
  shut_ = true;
  return queue_->drain(std::chrono::duration_cast<std::chrono::milliseconds>(memory::queue::drain_limit));
}

void copy_stream::forget() noexcept {
  std::error_code ignored;
  wakeups_.cancel(ignored);
  second_look_.cancel();
  waiting_.clear();
}

} // namespace ropeway::session
