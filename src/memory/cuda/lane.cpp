// Part of ropeway; Apache-2.0.
#include "memory/cuda/lane.hpp"

#include <algorithm>

#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

// Beside a link. Of 132, 24 to 32 leave NVLink of an H200 99 % of what it has alone, and are 2.9 to 3.8 times
// as fast as it is (benchmarks/results/beside-link-2xh200.txt).
constexpr std::uint32_t one_multiprocessor_in = 5;

constexpr bool copies_runs(copy_lists::kernel which) {
  return which == copy_lists::kernel::small_pieces || which == copy_lists::kernel::large_pieces;
}

} // namespace

lane::lane(std::shared_ptr<gpu> owner)
    : owner_(std::move(owner))
    , work_(owner_)
    , notices_(owner_)
    , marked_(owner_)
    , finished_(owner_, true)
    , sorted_(owner_) {}

void lane::launch(copy_lists::kernel which, std::uint32_t blocks, void const* list) {
  void* parameters[] = {const_cast<void*>(list)};
  driver const& d = owner_->call();
  unfinished_ = true;
  d.check(d.cuLaunchKernel(owner_->kernel(which), blocks, 1, 1, ropeway_threads, 1, 1, 0, work_.get(),
                           parameters, nullptr),
          "a copy kernel can't be started");
}

void lane::launch(std::span<engine_copy const> copies) {
  driver const& d = owner_->call();
  for (std::size_t i = 0; i < copies.size();) {
    // Long ones were cut so that a pace can take them in parts; without a pause between them they are one.
    engine_copy whole = copies[i++];
    for (; i < copies.size() && copies[i - 1].goes_on; ++i) whole.bytes += copies[i].bytes;
    unfinished_ = true;
    d.check(d.cuMemcpyAsync(whole.to, whole.from, whole.bytes, work_.get()), "a copy can't be started");
  }
}

void lane::launch() {
  copy_lists::launch next{};
  while (sorted_.lists().next(next)) {
    std::uint32_t blocks = next.blocks;
    if (how_ == effort::beside_link && copies_runs(next.which))
      blocks = std::min(blocks, std::max(1u, owner_->multiprocessors() / one_multiprocessor_in));
    launch(next.which, blocks, next.parameters);
  }
  launch(sorted_.engine());
}

void lane::launch(prepared::part const& some) {
  if (some.blocks > 0) launch(some.kernel, some.blocks, &some.list);
  launch(some.engine);
}

void lane::launch(device_digests const& list, digest_run const& what) {
  unfinished_ = true;
  list.launch(what, work_.get());
}

void lane::wait(CUevent when) {
  driver const& d = owner_->call();
  CUresult const result = d.cuStreamWaitEvent(work_.get(), when, 0);
  bool const no_event = result == CUDA_ERROR_INVALID_HANDLE || result == CUDA_ERROR_INVALID_VALUE;
  d.check(result, "a copy can't wait for the event it was given",
          no_event ? errc::invalid_argument : errc::device_failed);
  unfinished_ = true;
}

void lane::record(event const& on) {
  driver const& d = owner_->call();
  d.check(d.cuEventRecord(on.get(), work_.get()), "a copy can't be followed");
}

void lane::mark(completion& to, std::uint64_t ticket) {
  record(marked_);
  tell(to, marked_, ticket);
}

void lane::tell(completion& to, event const& recorded, std::uint64_t ticket) {
  driver const& d = owner_->call();
  d.check(d.cuStreamWaitEvent(notices_.get(), recorded.get(), 0), "a copy can't be followed");
  d.check(to.enqueue(d, notices_.get(), ticket), "a copy can't be followed");
}

void lane::finish() {
  if (!unfinished_) return;
  driver const& d = owner_->call();
  record(finished_);
  d.check(d.cuEventSynchronize(finished_.get()), "a copy failed");
  unfinished_ = false;
}

} // namespace ropeway::memory::cuda
