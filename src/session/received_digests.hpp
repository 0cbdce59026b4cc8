// What a receiver digests of one layout, and compares with what the sender says. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plan/digests.hpp"
#include "session/destination_set.hpp"
#include "session/digester.hpp"

namespace ropeway::session {

/// Of one set of destinations, or of what is taken by hand. Used by one load at a time.
class received_digests {
 public:
  /// What it is made for. `into` is null by hand; `mapped` is null where nothing is mapped.
  struct purpose {
    std::shared_ptr<plan::manifest const> manifest;
    plan::scatter const* into = nullptr; ///< copied
    std::shared_ptr<detail::mapped_copies const> mapped;
    std::shared_ptr<plan::placement const> placement;
    /// The sender's tensors that are mapped, by index; the others are empty.
    std::vector<std::optional<tensor_view>> tensors;
    device where; ///< slots lie in the memory of this device, or the host's
  };
  /// Slow, may wait for devices: off the loop. `table_bytes`: of the sender's table, which must fit. Throws
  /// transfer_error.
  received_digests(memory::backends& memory, purpose of, std::uint64_t table_bytes);

  plan::manifest const* manifest() const noexcept { return manifest_.get(); }
  /// Whether it serves a load with this mapping (null: with none).
  bool is_for(std::shared_ptr<detail::mapped_copies const> const& mapped) const noexcept;
  /// What of buckets in this memory must be digested; null for nothing.
  digest_list const* of_slots(device where) const noexcept;
  bool needs_bucket(std::uint32_t bucket) const noexcept {
    return bucket < needed_.size() && needed_[bucket];
  }
  /// The runs that are left when everything is in place. `any_slot`: some bucket was digested before.
  std::span<digester::run_of const> last_runs(std::optional<device> slots) noexcept;
  /// Of the image, in destinations.
  std::uint64_t bytes() const noexcept;
  std::uint64_t table_bytes() const noexcept;

  /// Compares what the runs have found with the table: nothing if all agrees, else where the first difference
  /// is, and the name of its tensor.
  struct difference {
    std::string tensor, words;
  };
  std::optional<difference> compare(std::span<std::byte const> table);
  /// Of the whole update, as compare() read it.
  digest128 whole() const noexcept { return whole_; }

 private:
  std::shared_ptr<plan::manifest const> manifest_;
  plan::chunk_table chunks_;
  std::optional<plan::scatter> into_;
  plan::digest_checks checks_;
  bool maps_ = false;
  std::weak_ptr<detail::mapped_copies const> mapped_;
  device where_;
  std::vector<bool> needed_;
  std::unique_ptr<digest_list> places_, source_, host_slots_, device_slots_; // null for nothing
  std::array<digester::run_of, 3> runs_{};
  std::vector<digest128> found_, said_; // kept, so that a steady update allocates nothing
  digest128 whole_;
};

} // namespace ropeway::session
