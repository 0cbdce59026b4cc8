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
};

/// Sorts copies by how they go best. Keeps its memory from list to list.
class sorting {
 public:
  explicit sorting(std::shared_ptr<gpu> owner);

  /// In a scope of the owner. What can't go to a stream as it is (memory that the device does not reach) is
  /// left in `staged()`; true if there is any. Throws if an operation makes no sense.
  bool sort(std::span<copy_op const> ops);
  copy_lists& lists() noexcept { return lists_; }
  std::vector<engine_copy>& engine() noexcept { return engine_; }
  std::vector<copy_op>& staged() noexcept { return staged_; }

 private:
  void sort_one(copy_op const& op);
  void add_rows(box area);
  std::shared_ptr<gpu> owner_;
  device here_;
  places places_;
  copy_lists lists_;
  std::vector<engine_copy> engine_;
  std::vector<copy_op> staged_;
};

} // namespace ropeway::memory::cuda
