// Owners of streams and events. They outlive errors: what a broken context can't destroy is gone anyway.
// Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

/// A stream that waits for nobody by itself. Its priority is the lowest: copies give way to a serving model's
/// kernels that run on streams of higher priority, and measured alone they are no slower.
class stream {
 public:
  explicit stream(std::shared_ptr<gpu> owner) : owner_(std::move(owner)) {
    driver const& d = owner_->call();
    // 0 is the lowest there is; higher ones are negative.
    d.check(d.cuStreamCreateWithPriority(&handle_, CU_STREAM_NON_BLOCKING, 0), "no CUDA stream can be made");
  }
  ~stream() {
    scope here(*owner_, std::nothrow);
    if (here.entered()) (void)owner_->call().cuStreamDestroy(handle_);
  }
  stream(stream const&) = delete;
  stream& operator=(stream const&) = delete;
  CUstream get() const noexcept { return handle_; }

 private:
  std::shared_ptr<gpu> owner_;
  CUstream handle_ = nullptr;
};

/// An event without timing, in whatever context is current when it is made. `blocking`: who synchronizes,
/// sleeps.
class event {
 public:
  event(std::shared_ptr<gpu> owner, CUcontext context, unsigned long long context_id, bool blocking = false)
      : owner_(std::move(owner)), context_(context), context_id_(context_id) {
    unsigned const sleeping = CU_EVENT_BLOCKING_SYNC,
                   flags = CU_EVENT_DISABLE_TIMING | (blocking ? sleeping : 0u);
    driver const& d = owner_->call();
    d.check(d.cuEventCreate(&handle_, flags), "no CUDA event can be made");
  }
  explicit event(std::shared_ptr<gpu> owner, bool blocking = false)
      : event(owner, owner->context(), owner->context_id(), blocking) {}
  event(event&& other) noexcept
      : owner_(std::move(other.owner_))
      , context_(other.context_)
      , context_id_(other.context_id_)
      , handle_(std::exchange(other.handle_, nullptr)) {}
  event& operator=(event&& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(context_, other.context_);
    std::swap(context_id_, other.context_id_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~event() {
    if (!handle_) return;
    driver const& d = owner_->call();
    if (d.id_of(context_) == context_id_) (void)d.cuEventDestroy(handle_);
  }
  CUevent get() const noexcept { return handle_; }
  unsigned long long context_id() const noexcept { return context_id_; }

 private:
  std::shared_ptr<gpu> owner_;
  CUcontext context_;
  unsigned long long context_id_;
  CUevent handle_ = nullptr;
};

} // namespace ropeway::memory::cuda
