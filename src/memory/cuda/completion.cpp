// Part of ropeway; Apache-2.0.
#include "memory/cuda/completion.hpp"

#include <sys/eventfd.h>

#include <cerrno>
#include <system_error>

namespace ropeway::memory::cuda {

completion* completion::make() {
  unique_fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) throw std::system_error(errno, std::generic_category(), "no eventfd for a copy queue");
  return new completion(std::move(event));
}

void completion::release() noexcept {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

CUresult completion::enqueue(driver const& table, CUstream on, std::uint64_t ticket) {
  std::lock_guard lock(mutex_); // also keeps two callers' tickets in the stream's order
  tickets_.push_back(ticket);
  references_.fetch_add(1, std::memory_order_relaxed);
  CUresult const result = table.cuStreamAddCallback(on, &completion::reached, this, 0);
  if (result != CUDA_SUCCESS) {
    tickets_.pop_back();
    references_.fetch_sub(1, std::memory_order_relaxed); // the caller holds another
  }
  return result;
}

void completion::ring() noexcept {
  std::uint64_t const one = 1;
  // Fails only if the counter is full, and then the descriptor is readable anyway.
  [[maybe_unused]] ssize_t const written = ::write(event_.get(), &one, sizeof one);
}

void completion::reached(CUstream, CUresult status, void* self) {
  auto* that = static_cast<completion*>(self);
  if (status == CUDA_SUCCESS) {
    std::lock_guard lock(that->mutex_);
    that->done_.store(that->tickets_.front(), std::memory_order_release);
    that->tickets_.erase(that->tickets_.begin());
  } else {
    int none = CUDA_SUCCESS;
    that->status_.compare_exchange_strong(none, static_cast<int>(status), std::memory_order_acq_rel);
  }
  that->ring();
  that->release();
}

} // namespace ropeway::memory::cuda
