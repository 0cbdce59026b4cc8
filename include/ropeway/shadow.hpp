// Two sets of destinations for one model: one is served, whole, while the next version arrives in the other.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "ropeway/destinations.hpp"
#include "ropeway/detail/visibility.hpp"
#include "ropeway/status.hpp"

namespace ropeway {

namespace detail {
class shadow_set;
}

/// How the new version takes the place of the old.
enum class shadow_form : std::uint8_t {
  /// The sets change places: readers find the weights at other addresses. Costs nothing at the commit.
  swap,
  /// Updates arrive in the second set and are copied into the first at the commit, for readers that have
  /// addresses in them (CUDA graphs, compiled kernels). Costs one copy of the model in the first set's
  /// memory, during which nobody may read: `lease` gives nothing, and the copy waits for the leases that
  /// there are. It comes after the sender's order, so that when it fails (`errc::leased`, a failed device)
  /// other members of the receiver's group may hold the version already.
  copy_at_commit,
};

/// The right to read the set that was live when it was given: it stays as it is until the lease ends.
/// Move-only; ends with its destruction. Any thread. It must not outlive the memory of the set.
class ROPEWAY_API weights_lease {
 public:
  weights_lease() = default;                                ///< holds nothing
  weights_lease(weights_lease&&) noexcept;                  ///< the other holds nothing then
  weights_lease& operator=(weights_lease&& other) noexcept; ///< ends what was held here
  ~weights_lease() { end(); }

  /// Whether there is anything to read.
  explicit operator bool() const noexcept { return of_ != nullptr; }
  /// Which set it is for: 0 for the first, 1 for the second.
  std::size_t set() const noexcept { return set_; }
  /// The version that the set holds, whole.
  std::uint64_t version() const noexcept { return version_; }
  /// Ends it before its destruction; nothing of the set may be read any more. Nothing happens the second
  /// time.
  void end() noexcept;

 private:
  friend class shadow_destinations;
  std::shared_ptr<detail::shadow_set> of_;
  std::size_t set_ = 0;
  std::uint64_t version_ = 0;
};

/// Destinations, twice. Load with `update::load_into`; read under a `lease`.
///
/// A version goes live when it is committed, and is whole then: what an update does not cover (see
/// `destinations::allow_unsent`) is copied from the live set first. An update that fails leaves the live set
/// alone, unless the last copy of `copy_at_commit` fails, which leaves it torn. A set that readers still hold
/// is not written: a load waits for their leases (`receiver_options::lease_limit`), and fails with
/// `errc::leased` after that, having told the sender "not now".
///
/// Thread-safety: all members may be called from any thread. Movable. Memory: that of both sets must live as
/// long as loads and leases do.
class ROPEWAY_API shadow_destinations {
 public:
  /// Both must name the same places (tensors, boxes, types, shapes, in the same order, with the same rules)
  /// in memory of their own; `errc::invalid_argument` is thrown if they don't. What they hold so far counts
  /// as nothing.
  shadow_destinations(destinations first, destinations second, shadow_form form = shadow_form::swap);
  shadow_destinations(
      shadow_destinations&&) noexcept; ///< the other may then only be assigned to and destroyed
  shadow_destinations&
  operator=(shadow_destinations&&) noexcept; ///< leases keep what they need of the old ones
  ~shadow_destinations();

  /// The live set, to read from. Holds nothing before the first commit, and while a commit copies.
  weights_lease lease() const;
  /// The live set's version, what is arriving, since when and from whom.
  weights_status status() const;
  /// The live set's version; nothing before the first commit.
  std::optional<std::uint64_t> version() const noexcept;

 private:
  friend class update;
  std::shared_ptr<detail::shadow_set> set_;
};

} // namespace ropeway
