// What a process holds of its devices, counted at the driver. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <string>

#include "memory/memory.hpp"

namespace ropeway::matrix {

/// Of all devices together. A device says only how much of it is free, and other processes use it as well.
struct device_holdings {
  long allocations = 0; ///< device memory, made here or by a peer
  long ranges = 0;      ///< addresses reserved, each for a mapping
  long opened = 0;      ///< a peer's allocations that are mapped whole
  long host = 0;        ///< host memory that is pinned
  long streams = 0, events = 0, modules = 0;

  static device_holdings now();
  /// Mappings, of which a receiver has none more than before once it keeps nothing of a sender's.
  long mapped() const noexcept { return ranges + opened; }
  /// A queue keeps the events of as many marks as it has had under way at a time: a few more are as much.
  bool as_much_as(device_holdings const& before) const noexcept;
  std::string words() const;
};

/// The backends of this system, with a driver that counts for `device_holdings`; one for a process.
std::shared_ptr<memory::backends> counted_devices();

} // namespace ropeway::matrix
