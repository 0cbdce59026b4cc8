// Breadth first through every state that can be reached, each one once. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "bounds.hpp"

namespace ropeway::explorer {

struct outcome_of_search {
  std::uint64_t states = 0, transitions = 0, ends = 0;
  std::uint32_t depth = 0;
  double seconds = 0;
  std::string broken;             ///< what was found to be broken; empty: nothing
  std::vector<std::string> trace; ///< the shortest way there
  std::uint32_t trace_steps = 0;
};

/// Stops at the first broken promise, or when more memory than `most_megabytes` is in use, which counts as
/// one.
outcome_of_search explore(bounds const& of, std::uint64_t most_megabytes);

} // namespace ropeway::explorer
