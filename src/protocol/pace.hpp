// How often a peer may say what moves nothing. What it says otherwise is bounded by the state of the
// protocol: each message has its one moment. Part of ropeway; Apache-2.0.
#pragma once
#include <algorithm>
#include <chrono>

#include "protocol/messages.hpp"

namespace ropeway::protocol {

/// Made anew whenever the protocol moves on.
class pace {
  using clock = std::chrono::steady_clock;

 public:
  /// One more such message at `now`, from a peer that is to say `alive` three times in `silence`. False if it
  /// is one too many: `max_idle_messages` at once, and twice as many as are needed in the long run.
  bool spend(clock::time_point now, clock::duration silence) noexcept {
    using namespace std::chrono_literals;
    auto const each = std::clamp<clock::duration>(silence / 6, 500us, 100ms);
    until_ = std::max(until_, now) + each;
    return until_ - now <= max_idle_messages * each;
  }

 private:
  clock::time_point until_{}; ///< when everything that was said is paid for
};

} // namespace ropeway::protocol
