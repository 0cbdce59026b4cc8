// Part of ropeway; Apache-2.0.
#include "memory/cuda/gates.hpp"

#include <string>

#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

/// The primary context of a device, as long as it is needed.
class primary {
 public:
  primary(driver const& table, int ordinal) : driver_(table) {
    std::string const missing = "there is no CUDA device " + std::to_string(ordinal) + " to wait for";
    driver_.check(driver_.cuDeviceGet(&device_, ordinal), missing.c_str(), errc::invalid_argument);
    driver_.check(driver_.cuDevicePrimaryCtxRetain(&context_, device_), missing.c_str());
  }
  ~primary() { (void)driver_.cuDevicePrimaryCtxRelease(device_); }
  primary(primary const&) = delete;
  primary& operator=(primary const&) = delete;
  CUcontext get() const noexcept { return context_; }

 private:
  driver const& driver_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

/// Streams that have no context of their own: the current one decides.
bool is_default(CUstream on) noexcept { return !on || on == CU_STREAM_LEGACY || on == CU_STREAM_PER_THREAD; }

void refuse_capture(driver const& d, CUstream on) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  CUresult const result = d.cuStreamIsCapturing(on, &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
    throw transfer_error(errc::invalid_argument,
                         "the default stream can't be waited for while another stream is being "
                         "captured; give the stream or event that the tensors depend on");
  d.check(result, "the stream to wait for is none", errc::invalid_argument);
  if (status != CU_STREAM_CAPTURE_STATUS_NONE)
    throw transfer_error(errc::invalid_argument,
                         "the stream to wait for is being captured in a graph; copies can't "
                         "wait for what does not run; end the capture first");
}

} // namespace

bool is_past(gpu const& owner, ready_after const& when) noexcept {
  if (when.type() == ready_after::kind::nothing) return true;
  if (!when.where().is_cuda()) return false;
  driver const& d = owner.call();
  try {
    if (when.type() == ready_after::kind::event) {
      scope const here(owner);
      return d.cuEventQuery(when.event()) == CUDA_SUCCESS;
    }
    CUcontext context = owner.context();
    if (!is_default(when.stream())) {
      if (d.cuStreamGetCtx(when.stream(), &context) != CUDA_SUCCESS) return false;
    } else if (when.where().ordinal() != owner.ordinal()) {
      return false;
    }
    scope const there(d, context, d.id_of(context));
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    return d.cuStreamIsCapturing(when.stream(), &status) == CUDA_SUCCESS &&
           status == CU_STREAM_CAPTURE_STATUS_NONE && d.cuStreamQuery(when.stream()) == CUDA_SUCCESS;
  } catch (transfer_error const&) { return false; } // a context that is gone
}

CUevent gates::behind(CUstream_st* on, device where) {
  driver const& d = owner_->call();
  if (!where.is_cuda())
    throw transfer_error(errc::invalid_argument, "a CUDA stream belongs to a CUDA device");
  std::unique_ptr<primary> other;
  CUcontext context = owner_->context();
  if (!is_default(on)) {
    d.check(d.cuStreamGetCtx(on, &context), "the stream to wait for is none", errc::invalid_argument);
  } else if (where.ordinal() != owner_->ordinal()) {
    other = std::make_unique<primary>(d, where.ordinal());
    context = other->get();
  }
  scope there(d, context, d.id_of(context));
  refuse_capture(d, on);
  CUevent const event = take(context);
  if (CUresult result = d.cuEventRecord(event, on); result != CUDA_SUCCESS) {
    give_back(event);
    d.fail(result, "the stream to wait for can't be followed", errc::device_failed);
  }
  return event;
}

CUevent gates::behind(CUevent_st* recorded) {
  driver const& d = owner_->call();
  if (!relay_) relay_ = std::make_unique<stream>(owner_);
  d.check(d.cuStreamWaitEvent(relay_->get(), recorded, 0), "the event to wait for is none",
          errc::invalid_argument);
  CUevent const event = take(owner_->context());
  if (CUresult result = d.cuEventRecord(event, relay_->get()); result != CUDA_SUCCESS) {
    give_back(event);
    d.fail(result, "the event to wait for can't be followed", errc::device_failed);
  }
  return event;
}

CUevent gates::take(CUcontext context) {
  driver const& d = owner_->call();
  unsigned long long const id = d.id_of(context);
  std::lock_guard lock(mutex_);
  for (entry& one : events_) {
    if (one.in_use || one.what.context_id() != id) continue;
    one.in_use = true;
    return one.what.get();
  }
  events_.push_back({event(owner_, context, id), true});
  return events_.back().what.get();
}

void gates::give_back(CUevent used) noexcept {
  std::lock_guard lock(mutex_);
  for (entry& one : events_)
    if (one.what.get() == used) one.in_use = false;
}

} // namespace ropeway::memory::cuda
