// What a digest is: 128 bits that change when any bit of what they stand for does. Part of ropeway;
// Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// Which digests an update carries.
enum class digest_choice : std::uint8_t {
  none,    ///< none: nothing is computed, and nothing compared
  tensors, ///< of all tensors, in chunks of 1 MiB: computed on both sides, compared before a commit
};

/// Of a tensor, of a part of one, or of all tensors of an update. Finds faults, not forgeries: whoever means
/// to can make other bytes of the same digest.
struct digest128 {
  std::array<std::uint64_t, 2> lanes{}; ///< both 0 for nothing

  /// Digests of the parts of a tensor add up, in any order, to that of the whole.
  digest128& operator+=(digest128 const& part) noexcept {
    lanes[0] += part.lanes[0];
    lanes[1] += part.lanes[1];
    return *this;
  }
  /// Whether all bits are the same.
  friend bool operator==(digest128 const&, digest128 const&) = default;
};
/// 32 hexadecimal digits.
ROPEWAY_API std::string to_string(digest128 const& what);

} // namespace ropeway
