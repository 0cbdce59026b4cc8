// What the sender's and the receivers' processes have in common. Part of ropeway; Apache-2.0.
#pragma once
#include <fcntl.h>
#include <sys/prctl.h>

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include "channel.hpp"
#include "content.hpp"
#include "memory/memory.hpp"
#include "roles.hpp"
#include "ropeway/ropeway.hpp"
#include "support/attempt.hpp"
#include "support/sanitized.hpp"
#include "support/weights.hpp"

namespace ropeway::soak {

using testing::attempt;
using testing::try_to;

/// Three times as long where everything is slow.
inline std::chrono::milliseconds patient(std::chrono::milliseconds limit) {
  return testing::sanitized ? 3 * limit : limit;
}

/// The orders of the conductor.
class ear {
 public:
  explicit ear(any_io_executor executor)
      : readable_(std::move(executor), ::fcntl(control_fd, F_DUPFD_CLOEXEC, 0)) {}
  awaitable<order> next() {
    order heard;
    for (;;) {
      int const got = hear(control_fd, heard);
      if (got == 1) break;
      if (got == 0) throw std::runtime_error("the conductor is gone");
      co_await readable_.async_wait(asio::posix::stream_descriptor::wait_read, use_awaitable);
    }
    co_return heard;
  }

 private:
  asio::posix::stream_descriptor readable_;
};

inline void say_only(tell what, std::string_view text = {}) {
  answer said;
  said.what = what;
  said.text = text;
  say(control_fd, said);
}

/// Kills or stops this process at the moment that an order names.
class striker {
 public:
  explicit striker(any_io_executor executor) : timer_(std::move(executor)) {}

  void arm(order const& from) {
    disarm();
    switch (from.goes_wrong) {
    case fault::kill: signal_ = SIGKILL; break;
    case fault::nap:
    case fault::stall: signal_ = SIGSTOP; break;
    default: return;
    }
    when_ = from.when;
    bucket_ = from.bucket;
    after_ = std::chrono::microseconds(from.micros);
  }
  void disarm() {
    signal_ = 0;
    buckets_ = 0;
    timer_.cancel();
  }
  bool armed() const { return signal_ != 0; }
  bool armed_for(moment what) const { return armed() && when_ == what; }
  void announced() {
    if (armed_for(moment::announced)) strike();
    if (!armed_for(moment::timer)) return;
    timer_.expires_after(after_);
    timer_.async_wait([this](std::error_code error) {
      if (!error && armed_for(moment::timer)) strike();
    });
  }
  void bucket_moved() {
    if (armed_for(moment::bucket) && buckets_++ == bucket_) strike();
  }
  /// Now. A stop comes once: who is continued goes on.
  void strike() {
    if (int const signal = std::exchange(signal_, 0)) ::raise(signal);
  }

 private:
  asio::steady_timer timer_;
  int signal_ = 0;
  moment when_ = moment::announced;
  std::uint32_t bucket_ = 0, buckets_ = 0;
  std::chrono::microseconds after_{};
};

/// Strikes when a bucket was packed or loaded.
class moves final : public observer {
 public:
  explicit moves(striker& who) : who_(who) {}
  void bucket_moved(std::uint64_t, std::uint32_t, std::uint64_t) override { who_.bucket_moved(); }

 private:
  striker& who_;
};

/// Keeps how an operation ended, also where `||` lets another one win.
template <class T>
awaitable<void> keep_end(awaitable<T> work, attempt<T>& end) {
  end = co_await try_to(std::move(work));
}

/// Cancels the operation after a while: timer || operation.
template <class T>
awaitable<void> cancel_after(std::chrono::microseconds while_, awaitable<T> work, attempt<T>& end) {
  using namespace compat::awaitable_operators;
  auto const executor = co_await asio::this_coro::executor;
  asio::steady_timer timer(executor, while_);
  auto kept = keep_end(std::move(work), end);
  auto passed = timer.async_wait(use_awaitable);
  co_await (std::move(kept) || std::move(passed));
}

inline std::shared_ptr<testing::memory_kind> memory_of(device where) {
  if (!where.is_cuda()) return testing::host_memory();
  return testing::device_memory(memory::system_backends()->get(where));
}

inline answer sampled(device where) {
  give_back_free_memory();
  answer said;
  said.what = tell::sample;
  said.sample = sample_now(where.is_cuda() ? where.ordinal() : -1);
  return said;
}

inline void last_words(tell what, std::string_view text) {
  std::fprintf(stderr, "ropeway-soak, process %d: %.*s\n", static_cast<int>(::getpid()),
               static_cast<int>(text.size()), text.data());
  try {
    say_only(what, text);
  } catch (std::exception const&) {} // nobody listens any more
}

/// Runs a process's coroutines to their end. What they throw is the last thing that it says.
template <class Start>
int run_process(Start&& start) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() == 1) return 1;
  try {
    start();
    return 0;
  } catch (transfer_error const& error) {
    bool const none = error.code() == make_error_code(errc::no_device);
    last_words(none ? tell::no_device : tell::broken, error.what());
    return none ? skipped : 1;
  } catch (std::exception const& error) {
    last_words(tell::broken, error.what());
    return 1;
  }
}

} // namespace ropeway::soak
