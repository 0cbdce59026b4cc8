// A load like that of a server that decodes: step after step, each of which reads a model's worth of memory.
// Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "bench.hpp"

namespace ropeway::bench {

class serving {
 public:
  class load; ///< what a step is
  /// On the receiver's device, or on a thread for the host.
  serving(plan const& of, device where);
  ~serving();
  /// Runs that many steps, with nothing beside them.
  void alone(std::uint64_t steps);
  /// Serves until `end`, on a thread of its own.
  void begin();
  void end();
  /// An update begins and ends to be loaded: the steps between are those beside it.
  void load_began() { loads_ += 1; }
  void load_ended() { loads_ += 1; }
  /// Whether so many steps were beside an update, or none will be any more (`end` says why).
  bool enough(std::uint64_t steps) const { return seen_ >= steps || broken_; }
  step_times alone_times() const { return times_of(alone_); }
  step_times beside_times() const { return times_of(beside_); }

 private:
  double step();
  std::unique_ptr<load> load_;
  std::vector<double> alone_, beside_;
  std::atomic<std::uint64_t> loads_{0}, seen_{0};
  std::atomic<bool> stop_{false}, broken_{false};
  std::exception_ptr failed_;
  std::thread thread_;
};

} // namespace ropeway::bench
