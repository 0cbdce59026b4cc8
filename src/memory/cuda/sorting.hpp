// Which way each copy of a list goes. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "memory/cuda/lists.hpp"
#include "memory/cuda/places.hpp"

namespace ropeway::memory::cuda {

/// One for the copy engine; addresses as the driver takes them.
struct engine_copy {
  std::uint64_t from, to, bytes;
  bool goes_on = false; ///< the next one is the rest of it
  /// Whether `next` goes on, on both sides, where this one ends.
  bool continued_by(engine_copy const& next) const noexcept {
    return next.from == from + bytes && next.to == to + bytes;
  }
};

/// In the order of their sources; those that continue each other become one. Pure.
void join(std::vector<engine_copy>& copies);

/// Sorts copies by how they go best. Keeps its memory from list to list.
class sorting {
 public:
  explicit sorting(std::shared_ptr<gpu> owner);

  /// In a scope of the owner. What can't go to a stream as it is (memory that the device does not reach) is
  /// left in `staged()`; true if there is any. Throws if an operation makes no sense.
  ///
  /// With `one_run_by_driver`, a list that is nothing but one run of bytes on this GPU is a plain copy, which
  /// the driver does some per cent faster than the kernel, but which can't be held to a few blocks.
  bool sort(std::span<copy_op const> ops, bool one_run_by_driver = false);
  copy_lists& lists() noexcept { return lists_; }
  std::vector<engine_copy>& engine() noexcept { return engine_; }
  std::vector<copy_op>& staged() noexcept { return staged_; }

 private:
  void sort_one(copy_op const& op);
  void sort_runs(bool one_by_driver);
  std::uint64_t left_of_allocation(std::uint64_t address) const noexcept;
  void add_rows(box area);
  std::shared_ptr<gpu> owner_;
  device here_;
  places places_;
  copy_lists lists_;
  std::vector<engine_copy> engine_;
  std::vector<engine_copy> here_runs_, link_runs_; // plain bytes on this GPU; from or to another one
  std::vector<copy_op> staged_;
};

} // namespace ropeway::memory::cuda
