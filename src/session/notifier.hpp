// Lets one coroutine wait until another part of the strand has news. Part of ropeway; Apache-2.0.
#pragma once
#include "wire/strand.hpp"

namespace ropeway::session {

/// Not asio::experimental::channel: that one is broken in Asio 1.22. Wait in a loop that checks the
/// condition; a cancelled wait throws asio::error::operation_aborted.
class notifier {
 public:
  explicit notifier(wire::strand const& on) : timer_(on) {
    timer_.expires_at(wire::timer::time_point::max());
  }

  awaitable<void> wait() {
    auto const seen = count_;
    auto [error] = co_await timer_.async_wait(compat::as_result);
    // A timer says operation_aborted for a notification and for a cancellation alike.
    if (count_ == seen)
      throw std::system_error(error ? error : make_error_code(asio::error::operation_aborted));
  }
  void notify() {
    ++count_;
    timer_.cancel();
  }

 private:
  wire::timer timer_;
  std::uint64_t count_ = 0;
};

} // namespace ropeway::session
