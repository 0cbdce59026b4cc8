// Two destination sets, of which one is live: who reads which, and when they change places.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "memory/copy.hpp"
#include "ropeway/shadow.hpp"
#include "session/destination_set.hpp"

namespace ropeway::detail {

/// Leases are taken and ended on any thread; a load runs on its receiver's strand, one at a time.
class shadow_set {
 public:
  /// Throws `errc::invalid_argument` unless both name the same places.
  shadow_set(std::shared_ptr<destination_set> first, std::shared_ptr<destination_set> second,
             shadow_form form);

  // Readers.
  struct lease {
    std::size_t set;
    std::uint64_t version;
  };
  std::optional<lease> take_lease();
  void end_lease(std::size_t set) noexcept;
  weights_status status() const;
  std::optional<std::uint64_t> version() const;

  // The load.
  /// Claims the set that is not live, which takes the next version; null if a load has it already.
  std::shared_ptr<destination_set> start_load();
  /// Whether nobody reads what a load is about to write. If somebody does, `then` is called when the last
  /// lease has ended, on its thread; once, unless forget_waiting() comes first.
  bool free_to_load(std::function<void()> then);
  /// The same for the copy at the commit; from here on nobody is given a lease until the load ends.
  bool free_to_commit(std::function<void()> then);
  void forget_waiting();
  /// The first byte is about to be written. Appends the copies that bring what `part` does not cover from the
  /// live set, so that what goes live is whole.
  void writing(destination_plan const& part, arrival const& of, std::vector<memory::copy_op>& out);
  bool copies_at_commit() const noexcept { return form_ == shadow_form::copy_at_commit; }
  /// The first byte of the live set is about to be written: the copies from the second set into the first.
  void copying(destination_plan const& part, arrival const& of, std::vector<memory::copy_op>& out);
  /// All of it was seen to be in place, and goes live.
  void committed(destination_plan const& part);
  void end_load();

 private:
  std::size_t target() const noexcept; // locked
  bool free(std::size_t set, std::function<void()> then);

  std::array<std::shared_ptr<destination_set>, 2> const sets_;
  shadow_form const form_;

  mutable std::mutex mutex_;
  std::optional<std::size_t> live_;
  std::size_t loading_ = 0; ///< the set that the running load writes
  std::array<std::size_t, 2> leases_{};
  bool closed_ = false; ///< a commit copies into the live set
  std::size_t awaited_ = 0;
  std::function<void()> when_free_;
};

} // namespace ropeway::detail
