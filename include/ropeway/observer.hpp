// Hooks for progress bars, tracing and metrics. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <string_view>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// Derive and override what you want to hear. Called on the strand of the object that is watched, between its
/// own steps: return quickly, throw nothing, call nothing of that object.
class ROPEWAY_API observer {
 public:
  virtual ~observer() = default;
  /// A receiver finished its handshake. Heard by senders only.
  virtual void receiver_joined(std::string_view /*name*/) {}
  /// A receiver is gone, with the reason in one line. Heard by senders only.
  virtual void receiver_left(std::string_view /*name*/, std::string_view /*why*/) {}
  /// An update was announced.
  virtual void update_began(std::uint64_t /*version*/, std::uint64_t /*bytes*/, std::uint32_t /*buckets*/) {}
  /// Sender: a bucket is packed. Receiver: a bucket is loaded. `bytes` counts from the update's begin.
  virtual void bucket_moved(std::uint64_t /*version*/, std::uint32_t /*buckets*/, std::uint64_t /*bytes*/) {}
  /// The update is over, here.
  virtual void update_ended(std::uint64_t /*version*/, bool /*committed*/) {}
};

} // namespace ropeway
