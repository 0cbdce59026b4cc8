// Where a receiver wants an update's tensors to end up. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/status.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

namespace detail {
class destination_set;
}

/// A list of memory ranges, each for a tensor or a box of one, and what they hold now. Made once, used for
/// every update; names are resolved once a layout. Movable. `torn`, `torn_tensors`, `version` and `status`
/// may be asked from any thread; the rest may not, and it must not be changed while a load runs (its memory
/// must live until the load completes).
///
/// A load writes in place. When it fails after the first write, everything that it would have written is
/// *torn* until a later load commits it: check `torn()` before serving.
class ROPEWAY_API destinations {
 public:
  /// None yet: an update with any tensor does not fit them.
  destinations();
  destinations(destinations&&) noexcept;            ///< the other may then only be assigned to and destroyed
  destinations& operator=(destinations&&) noexcept; ///< forgets what was listed here
  ~destinations();

  /// The whole tensor with the view's name, which must have the view's dtype and shape.
  destinations& add(mutable_tensor_view const& into);
  /// The box of that tensor that starts at `start` and has the view's shape (a tensor-parallel shard, say).
  /// `start` has one number a dimension, in elements, else `errc::invalid_argument` is thrown.
  /// @{
  destinations& add_part(std::span<std::uint64_t const> start, mutable_tensor_view const& into);
  destinations& add_part(std::initializer_list<std::uint64_t> start, mutable_tensor_view const& into) {
    return add_part(std::span(start.begin(), start.size()), into);
  }
  /// @}

  /// The shard of `rank` of a tensor that is split evenly along `dimension` among `ranks` (tensor
  /// parallelism: dimension 0 for rows, 1 for columns of a matrix). The view has the shard's shape; a tensor
  /// of another shape than `ranks` of them make is a mismatch. Throws `errc::invalid_argument` for a
  /// dimension or a rank that there is not.
  destinations& add_shard(std::size_t dimension, std::uint32_t rank, std::uint32_t ranks,
                          mutable_tensor_view const& into);

  /// Normally an update must send every tensor named here and no other; else the load is refused before a
  /// byte moves. These lift one half each, for updates of a subset, and for servers that use only part of a
  /// model.
  destinations& allow_unsent(bool on = true);   ///< destinations whose tensor is not sent stay as they are
  destinations& allow_unplaced(bool on = true); ///< tensors that are sent and have no destination are ignored
  /// Lifts another: two destinations must not lie in the same memory. Then whole tensors in exactly the same
  /// memory (one dtype, shape and strides) are *tied*: whichever of the names are sent, the first of those
  /// that was listed is copied, and the others only have to fit. Who sends different bytes under tied names
  /// is not found out.
  destinations& allow_tied(bool on = true);

  /// How many were added.
  std::size_t size() const noexcept;
  /// Whether some destination holds parts of different versions, or of none.
  bool torn() const noexcept;
  /// The tensors of torn destinations.
  std::vector<std::string> torn_tensors() const;
  /// The version of the last load that committed; nothing before the first.
  std::optional<std::uint64_t> version() const noexcept;
  /// What they hold: which version, since when, from whom.
  weights_status status() const;

 private:
  friend class update;
  friend class shadow_destinations;
  std::shared_ptr<detail::destination_set> set_;
};

} // namespace ropeway
