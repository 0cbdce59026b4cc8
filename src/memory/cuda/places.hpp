// Where the ends of a copy lie, as one device sees them. Part of ropeway; Apache-2.0.
#pragma once
#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

enum class place : std::uint8_t {
  local,    ///< this device's memory
  peer,     ///< another device's, which kernels of this one reach
  far,      ///< another device's, which only the driver reaches
  pinned,   ///< host memory that the device reaches
  pageable, ///< host memory that it does not
};

constexpr bool reachable(place where) noexcept { return where != place::far && where != place::pageable; }

/// One end of a copy. `shift` added to a host address gives the device's (0 nearly everywhere).
struct end {
  place where = place::local;
  std::uint64_t shift = 0;
  bool writable = true;
};

/// Looks ends up. Remembers the last range of pinned memory, so that the many pieces of a ring cost one
/// look-up; `forget` before each list, since the caller may free and register memory in between.
class places {
 public:
  explicit places(gpu const& owner) : owner_(owner) {}
  void forget() noexcept { known_ = {}; }
  end find(device where, address_range const& range);

 private:
  end find_host(address_range const& range);
  struct known_range {
    std::uintptr_t low = 0, high = 0;
    end what;
  };
  gpu const& owner_;
  known_range known_;
};

} // namespace ropeway::memory::cuda
