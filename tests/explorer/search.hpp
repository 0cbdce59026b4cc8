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

struct limits {
  std::uint64_t megabytes = 2048; ///< using more counts as a failure
  bool verify = false;            ///< check also that states which are taken for one have the same successors
};

/// Stops at the first broken promise.
outcome_of_search explore(bounds const& of, limits const& within);

} // namespace ropeway::explorer
