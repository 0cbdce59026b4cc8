// The trainer's side of the benchmark: one or more senders of the same tensors, taking turns. Part of
// ropeway; Apache-2.0.
#pragma once
#include <array>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bench.hpp"
#include "processes.hpp"

namespace ropeway::bench {

/// One receiver's part in a version, as the two clocks (which are one) tell it.
struct receiver_times {
  std::vector<double> load; ///< from the announcement until it is committed
  std::uint64_t held_bytes = 0;
  std::uint64_t read_bytes = 0;
};

/// Of each repeat, by stage.
struct stage_record {
  std::array<std::vector<double>, all_stages.size()> seconds;
  void add(stage_times const& times);
};

/// A sender with its receivers, and how its sends went.
struct lane {
  std::string name;
  plan of; ///< with this lane's route and receivers
  std::vector<process> receivers;

  std::vector<double> send, source_free, sender_cpu, receivers_cpu; ///< one number a repeat
  /// Of the receiver that committed last: the call until it is announced, until the receiver knows, until the
  /// last copies are seen (if the library tells), until it has committed, until the sender has reported.
  std::vector<double> announce, notice, copy, commit, report;
  std::vector<receiver_times> each;
  stage_record sender_stages, receiver_stages; ///< as the library tells; of the first receiver
  route taken = route::host;
  std::string why;     ///< it was taken
  receiver_words last; ///< of the first receiver
};

struct schedule {
  /// Before version `number` is sent: new data.
  std::function<void(std::uint64_t number)> before;
  /// After all lanes have sent it.
  std::function<void(std::uint64_t number, bool counts)> after;
  /// Ends early when every first receiver has said that it is enough.
  bool until_enough = false;
};

/// Sends `warm_up + repeats` versions of `held` by each lane in turn, and closes all. Throws if a receiver
/// does not commit one, or gets it by another route than was asked for.
void send_all(plan const& of, std::span<lane> lanes, model_memory const& held, schedule const& when);

} // namespace ropeway::bench
