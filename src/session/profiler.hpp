// Stretches that a profiler shows while they last: NVTX ranges in the domain "ropeway". Part of ropeway;
// Apache-2.0.
//
// A build without the CUDA Toolkit, which NVTX's headers come with, has none; with it they cost next to
// nothing until a profiler is attached, which brings the library that they then call.
#pragma once
#include <cstdint>
#include <optional>
#include <utility>

#include "ropeway/stage.hpp"
#include "session/failpoint.hpp"

namespace ropeway::session {

/// What a range is called: "send pack", "receive load".
struct profiler_name {
  side whose = side::sender;
  update_stage what = update_stage::announce;
};

/// One range, begun and ended on any threads, one call at a time. Ends with its object.
class profiler_range {
 public:
  profiler_range() = default;
  profiler_range(profiler_range&& other) noexcept : id_(std::exchange(other.id_, 0)) {}
  profiler_range& operator=(profiler_range&& other) noexcept {
    if (this != &other) {
      end();
      id_ = std::exchange(other.id_, 0);
    }
    return *this;
  }
  ~profiler_range() { end(); }

  /// Ends the one before. A bucket's number is the payload.
  void begin(profiler_name called, std::optional<std::uint32_t> bucket = {}) noexcept;
  /// A whole update, "send" or "receive", with its version as the payload.
  void begin_update(side whose, std::uint64_t version) noexcept;
  void end() noexcept {
    if (id_ != 0) end_range(std::exchange(id_, 0));
  }

 private:
  static void end_range(std::uint64_t id) noexcept;
  std::uint64_t id_ = 0;
};

} // namespace ropeway::session
