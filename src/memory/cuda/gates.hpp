// Turns the caller's streams and events into events that a queue can wait for. Part of ropeway; Apache-2.0.
#pragma once
#include <mutex>
#include <vector>

#include "memory/cuda/handles.hpp"
#include "ropeway/cuda.hpp"

namespace ropeway::memory::cuda {

/// Whether the caller's stream or event has come so far already. False, too, where asking could end a
/// capture.
bool is_past(gpu const& owner, ready_after const& when) noexcept;

/// Events are kept for each context and used again.
class gates {
 public:
  explicit gates(std::shared_ptr<gpu> owner) : owner_(std::move(owner)) {}

  /// An event behind everything that is on the caller's stream now. Throws
  /// `transfer_error(errc::invalid_argument)` for a stream that is being captured: the capture goes on
  /// unharmed.
  CUevent behind(CUstream_st* on, device where);
  /// An event behind a recorded event of the caller, who may then record that again.
  CUevent behind(CUevent_st* recorded);
  /// When the wait for it has been put on a stream. May come from another thread.
  void give_back(CUevent used) noexcept;

 private:
  struct entry {
    event what;
    bool in_use;
  };
  CUevent take(CUcontext context);
  std::shared_ptr<gpu> owner_;
  std::unique_ptr<stream> relay_; // where foreign events are followed by our own
  std::mutex mutex_;
  std::vector<entry> events_;
};

} // namespace ropeway::memory::cuda
