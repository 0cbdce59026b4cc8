// When directors that share a device start their processes. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

namespace ropeway::matrix {

/// A driver that makes a context for a new process keeps all others waiting, for longer than the limits of a
/// cell. So directors play their cells at the same time, and start processes at the same time, but never one
/// beside the other. Lies in memory that their processes share. A director that dies in its turn holds up the
/// others for `longest`, once: from then on nobody waits for anybody.
class intermission {
 public:
  struct ends_turn {
    void operator()(std::atomic<std::uint32_t>* of) const { --*of; }
  };
  /// Lasts as long as this.
  using turn = std::unique_ptr<std::atomic<std::uint32_t>, ends_turn>;
  /// Waits until nobody starts processes, or is about to.
  turn play();
  /// Waits until nobody plays, and keeps who has not begun from it.
  turn start();
  /// Whether somebody starts processes or is about to: who needs some soon joins.
  bool is_on() const { return starting_ != 0 || waiting_ != 0; }

 private:
  template <class Others>
  turn enter(std::atomic<std::uint32_t>& mine, Others const& others);
  std::atomic<std::uint32_t> playing_ = 0, starting_ = 0, waiting_ = 0;
  std::atomic<bool> broken_ = false;
};

} // namespace ropeway::matrix
