// What the server's coroutines wait with, on one loop that one thread runs. A sample of ropeway; Apache-2.0.
#pragma once
#include <asio/ip/tcp.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <ropeway/asio.hpp>
#include <set>
#include <system_error>
#include <utility>

/// What coroutines on one loop wait for: something has changed, look again. One thread.
class bell {
 public:
  explicit bell(asio::any_io_executor loop) : loop_(std::move(loop)) {}
  void ring() {
    for (auto* const timer : waiting_) timer->cancel();
  }
  /// Until the next ring, or until then. What is waited for is looked at before, on the same thread, and
  /// after.
  ropeway::awaitable<void> wait(std::chrono::steady_clock::time_point until) {
    place here(*this, until);
    auto [ignored] = co_await here.timer.async_wait(ropeway::compat::as_result);
    (void)ignored;
  }

 private:
  struct place {
    place(bell& of, std::chrono::steady_clock::time_point until) : bell_(of), timer(of.loop_, until) {
      of.waiting_.insert(&timer);
    }
    ~place() { bell_.waiting_.erase(&timer); }
    place(place const&) = delete;
    place& operator=(place const&) = delete;
    bell& bell_;
    asio::steady_timer timer;
  };
  asio::any_io_executor loop_;
  std::set<asio::steady_timer*> waiting_;
};

/// Sets a flag for as long as it lives.
class while_true {
 public:
  explicit while_true(bool& flag) : flag_(flag) { flag_ = true; }
  ~while_true() { flag_ = false; }
  while_true(while_true const&) = delete;
  while_true& operator=(while_true const&) = delete;

 private:
  bool& flag_;
};

/// A client's socket and the time that what it does may take.
class connection : public std::enable_shared_from_this<connection> {
 public:
  connection(asio::ip::tcp::socket from, asio::ip::tcp::endpoint const& peer)
      : socket(std::move(from))
      , from_here(is_loopback(peer.address()))
      , limit_(this->socket.get_executor()) {}

  /// From now on: the operation that runs when the time is over is cancelled.
  void allow(std::chrono::milliseconds time) {
    over_ = false;
    limit_.expires_after(time);
    limit_.async_wait([weak = weak_from_this()](std::error_code error) {
      auto const self = weak.lock();
      if (error || !self || self->limit_.expiry() > std::chrono::steady_clock::now()) return;
      self->over_ = true;
      self->stop();
    });
  }
  void allow_all() { limit_.cancel(); }
  bool over() const { return over_; }
  void stop() {
    std::error_code ignored;
    socket.cancel(ignored);
  }

  asio::ip::tcp::socket socket;
  bool const from_here;
  bool between_requests = true;

 private:
  static bool is_loopback(asio::ip::address const& address) {
    if (address.is_v6() && address.to_v6().is_v4_mapped())
      return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).is_loopback();
    return address.is_loopback();
  }
  asio::steady_timer limit_;
  bool over_ = false;
};
