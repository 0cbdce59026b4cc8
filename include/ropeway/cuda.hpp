// CUDA streams and events, without any CUDA header. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/tensor.hpp"

// The driver's and the runtime's stream and event types are pointers to these.
struct CUstream_st;
struct CUevent_st;

namespace ropeway {

/// What a copy must wait for: nothing (the default: the memory is ready now), the work queued so far on a
/// CUDA stream, or a recorded CUDA event. A plain value; the stream or event must stay valid until the
/// operation that was given it has completed. `device` is the one that the stream or event belongs to.
class ready_after {
 public:
  /// Which of the three it is.
  enum class kind : std::uint8_t {
    nothing, ///< no wait
    stream,  ///< for a stream's work so far
    event,   ///< for a recorded event
  };
  constexpr ready_after() = default;                     ///< nothing to wait for; `after` makes the others
  constexpr kind type() const noexcept { return kind_; } ///< which member below counts
  constexpr CUstream_st* stream() const noexcept { return stream_; } ///< nullptr is the legacy default stream
  constexpr CUevent_st* event() const noexcept { return event_; }    ///< nullptr unless `type` is `event`
  constexpr device where() const noexcept { return where_; }         ///< whose stream or event it is

  friend constexpr ready_after after(CUstream_st* stream, device where) noexcept;
  friend constexpr ready_after after(CUevent_st* event, device where) noexcept;

 private:
  kind kind_ = kind::nothing;
  CUstream_st* stream_ = nullptr;
  CUevent_st* event_ = nullptr;
  device where_;
};

/// After everything that is on `stream` when the first bucket is copied, which includes all that is there
/// when the operation is started (nullptr: the legacy default stream). Queue nothing behind it that waits for
/// the operation, and do not capture it meanwhile; an event has neither problem.
constexpr ready_after after(CUstream_st* stream, device where = device::cuda(0)) noexcept {
  ready_after when;
  when.kind_ = ready_after::kind::stream;
  when.stream_ = stream;
  when.where_ = where;
  return when;
}
/// After `event`, which must have been recorded already: an event that never was counts as done.
constexpr ready_after after(CUevent_st* event, device where = device::cuda(0)) noexcept {
  ready_after when;
  when.kind_ = ready_after::kind::event;
  when.event_ = event;
  when.where_ = where;
  return when;
}

/// Whether `when` has come already, so that an operation need not be told to wait for it. False as well where
/// it can't be told: without the device, or while a capture goes on, which is left alone. Meant for a process
/// that has a sender or receiver; without one the device is started for the question. Thread-safe; leaves the
/// current device and context as they are.
ROPEWAY_API bool is_past(ready_after const& when) noexcept;

} // namespace ropeway
