// When directors that share a device start their processes. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <cstdint>

namespace ropeway::matrix {

/// A driver that makes a context for a new process keeps all others waiting, for longer than the limits of a
/// cell. So directors play their cells at the same time, and start processes at the same time, but never one
/// beside the other. Lies in memory that their processes share. A director that ends without a word while it
/// plays or starts holds up the others for `longest` and no longer.
class intermission {
 public:
  static intermission* make();

  /// Waits until nobody starts processes, or is about to.
  void begin_play();
  void end_play() { --playing_; }
  /// Waits until nobody plays, and keeps who has not begun from it.
  void begin_starting();
  void end_starting() { --starting_; }
  /// Whether somebody starts processes or is about to: who needs some soon joins.
  bool is_on() const { return starting_ != 0 || waiting_ != 0; }

 private:
  std::atomic<std::uint32_t> playing_ = 0, starting_ = 0, waiting_ = 0;
};

} // namespace ropeway::matrix
