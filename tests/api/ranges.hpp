// What the injected library of ranges.cpp has recorded, for ranges_test.cpp. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ropeway::testing {

/// An NVTX range.
struct recorded_range {
  std::string domain, name;
  std::optional<std::uint64_t> payload;
  std::uint64_t began = 0;            ///< counts beginnings and ends of all ranges
  std::optional<std::uint64_t> ended; ///< likewise
};

/// All of this process, in the order in which they began. Empty if nobody has asked for a domain yet.
__attribute__((visibility("default"))) std::vector<recorded_range> recorded_ranges();
/// Forgets those that have ended.
__attribute__((visibility("default"))) void forget_ended_ranges();

} // namespace ropeway::testing
