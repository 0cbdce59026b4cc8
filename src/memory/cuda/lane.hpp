// The stream of a queue and what is put on it. One thread at a time. Part of ropeway; Apache-2.0.
#pragma once
#include <span>
#include <vector>

#include "memory/cuda/completion.hpp"
#include "memory/cuda/handles.hpp"
#include "memory/cuda/lists.hpp"
#include "memory/cuda/places.hpp"

namespace ropeway::memory::cuda {

/// Sorts the copies of a list by how they go best, and launches them.
class lane {
 public:
  /// In a scope of the owner, as everything here.
  explicit lane(std::shared_ptr<gpu> owner);

  /// Sorts a list. What can't go to the stream as it is (memory that the device does not reach) is left in
  /// `staged()`; true if there is any. Throws, with nothing done, if an operation makes no sense.
  bool sort(std::span<copy_op const> ops);
  std::vector<copy_op>& staged() noexcept { return staged_; }
  /// Puts what was sorted, without what is staged, on the stream.
  void launch();

  void wait(CUevent when);
  /// Tells `to` that `ticket` is done when everything so far is.
  void mark(completion& to, std::uint64_t ticket);
  /// Tells it when what was recorded is.
  void tell(completion& to, event const& recorded, std::uint64_t ticket);
  /// Blocks until everything so far is done.
  void finish();
  void record(event const& on);
  /// CUDA_SUCCESS, CUDA_ERROR_NOT_READY, or what went wrong on the device.
  CUresult query() const noexcept { return owner_->call().cuStreamQuery(work_.get()); }
  /// The same of the notices about marks.
  CUresult query_notices() const noexcept { return owner_->call().cuStreamQuery(notices_.get()); }

 private:
  struct engine_copy {
    std::uint64_t from, to, bytes;
  };
  void sort_one(copy_op const& op);
  void add_rows(box area);
  std::shared_ptr<gpu> owner_;
  device here_;
  stream work_;
  // Callbacks hold up the stream they are on, so they have one of their own.
  stream notices_;
  event marked_, finished_;
  places places_;
  copy_lists lists_;
  std::vector<engine_copy> engine_;
  std::vector<copy_op> staged_;
  bool unfinished_ = false;
};

} // namespace ropeway::memory::cuda
