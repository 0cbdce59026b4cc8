// Weights sent once around, for real: this process to another one on the same machine. Part of ropeway;
// Apache-2.0.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ropeway/report.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::cli {

struct trial {
  device from, to;
  std::uint64_t bytes = std::uint64_t(64) << 20;
  std::uint64_t bucket_bytes = std::uint64_t(64) << 20;
  std::uint32_t slots = 2;
  route_choice route = route_choice::automatic;
  bool shared = false;                    ///< weights on the host lie where receivers can map them
  std::string program = "/proc/self/exe"; ///< that is started as `receive`
  std::uint32_t repeats = 1;              ///< after one that makes and maps what is made once
  /// Told of every send that is done: how many by now, that first one included.
  std::function<void(std::uint64_t done)> sent = [](std::uint64_t) {};
};

struct trial_result {
  route way = route::host;
  std::string why;                ///< the route was taken, where there is something to say
  std::vector<nanoseconds> times; ///< of `send_weights`, one a repeat
  std::string error;              ///< in one line, if it did not work; the rest means nothing then
  bool worked() const noexcept { return error.empty(); }
  nanoseconds median() const;
};

/// Starts this program once more, as `ropeway receive`, and sends it made-up tensors. Blocks; takes what the
/// transfers take, and a minute at most to find out that they don't come about; when the other process ends
/// before, its last line on standard error is the reason. Throws nothing but std::bad_alloc.
trial_result try_out(trial const& what);

} // namespace ropeway::cli
