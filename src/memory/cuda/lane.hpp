// The stream of a queue and what is put on it. One thread at a time. Part of ropeway; Apache-2.0.
#pragma once
#include <span>
#include <vector>

#include "memory/cuda/completion.hpp"
#include "memory/cuda/digests.hpp"
#include "memory/cuda/handles.hpp"
#include "memory/cuda/prepared.hpp"
#include "memory/cuda/sorting.hpp"

namespace ropeway::memory::cuda {

/// Launches lists of copies, and follows them.
class lane {
 public:
  /// In a scope of the owner, as everything here.
  explicit lane(std::shared_ptr<gpu> owner);

  /// Sorts a list. What can't go to the stream as it is is left in `staged()`; true if there is any. Throws,
  /// with nothing done, if an operation makes no sense.
  bool sort(std::span<copy_op const> ops, effort how = effort::full) {
    how_ = how;
    return sorted_.sort(ops, how == effort::full); // the driver's copy takes all of the device
  }
  std::vector<copy_op>& staged() noexcept { return sorted_.staged(); }
  /// Puts what was sorted, without what is staged, on the stream.
  void launch();
  /// The same of a prepared list.
  void launch(prepared::part const& some);

  void launch(device_digests const& list, digest_run const& what);

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
  void launch(copy_lists::kernel which, std::uint32_t blocks, void const* parameters);
  void launch(std::span<engine_copy const> copies);
  std::shared_ptr<gpu> owner_;
  stream work_;
  // Callbacks hold up the stream they are on, so they have one of their own.
  stream notices_;
  event marked_, finished_;
  sorting sorted_;
  effort how_ = effort::full; // of what was sorted last
  bool unfinished_ = false;
};

} // namespace ropeway::memory::cuda
