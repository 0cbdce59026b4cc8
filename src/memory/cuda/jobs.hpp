// What a queue's worker has to do, in order. Part of ropeway; Apache-2.0.
#pragma once
#include <span>
#include <vector>

#include "memory/cuda/digests.hpp"
#include "memory/cuda/handles.hpp"
#include "memory/cuda/prepared.hpp"

namespace ropeway::memory::cuda {

/// A list that keeps the memory of its jobs, so that a queue which has seen its largest list allocates no
/// more.
class jobs {
 public:
  enum class kind : std::uint8_t { copy, repeat, digest, wait, mark };
  struct job {
    kind what = kind::mark;
    std::vector<copy_op> ops;
    effort how = effort::full;
    prepared::part some;                     ///< of a list that lives until this is done
    device_digests const* digests = nullptr; ///< lives as long, too
    digest_run run;
    CUevent event = nullptr;
    std::uint64_t ticket = 0;
  };

  job& add(kind what, std::span<copy_op const> ops = {}) {
    if (count_ == all_.size()) all_.emplace_back();
    job& next = all_[count_];
    next.what = what;
    next.ops.assign(ops.begin(), ops.end());
    ++count_;
    return next;
  }
  std::span<job> get() noexcept { return {all_.data(), count_}; }
  bool empty() const noexcept { return count_ == 0; }
  void clear() noexcept { count_ = 0; }
  friend void swap(jobs& a, jobs& b) noexcept {
    std::swap(a.all_, b.all_);
    std::swap(a.count_, b.count_);
  }

 private:
  std::vector<job> all_;
  std::size_t count_ = 0;
};

} // namespace ropeway::memory::cuda
