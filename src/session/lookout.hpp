// Keeps the event loop turning for a moment in which a message is about to come. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/post.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "wire/strand.hpp"

namespace ropeway::session {

using wire::strand;

/// A loop that sleeps wakes some 40 us after a message has come (docs/performance.md), which an update of a
/// few milliseconds pays at each of its turns. Whoever knows that an answer is due lets the loop turn
/// instead, for so long at most. Used on one strand; owned through a shared_ptr.
class lookout : public std::enable_shared_from_this<lookout> {
 public:
  using clock = std::chrono::steady_clock;

  explicit lookout(strand const& on) : strand_(on), later_(on) {}
  /// From now on.
  void keep(clock::duration so_long) {
    until_ = clock::now() + so_long;
    turn();
  }
  /// The same, from `when` on; nothing until then.
  void keep_from(clock::duration when, clock::duration so_long) {
    until_ = {};
    later_.expires_after(when);
    later_.async_wait([weak = weak_from_this(), so_long](std::error_code error) {
      auto const self = weak.lock();
      if (self && !error) self->keep(so_long);
    });
  }
  /// What was awaited has come.
  void rest() {
    until_ = {};
    later_.cancel();
  }

 private:
  void turn() {
    if (turning_ || clock::now() >= until_) return;
    turning_ = true;
    asio::post(strand_, [weak = weak_from_this()] {
      auto const self = weak.lock();
      if (!self) return;
      self->turning_ = false;
      self->turn();
    });
  }
  strand strand_;
  wire::timer later_;
  clock::time_point until_{};
  bool turning_ = false;
};

/// How long to look out for an answer of a peer that uses a GPU; and from which size of an update on, so that
/// an adapter of a few megabytes, which gains little, does not pay for it with as much again of a processor.
inline constexpr std::chrono::microseconds answer_time{250};
inline constexpr std::uint64_t worth_looking_out{std::uint64_t(64) << 20};

} // namespace ropeway::session
