// What a server holds and what its session does, for health checks and answers. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// What memory that takes weights holds.
enum class holding : std::uint8_t {
  nothing,   ///< no version was ever committed
  committed, ///< one whole version
  loading,   ///< an update is being written into it: bytes of two versions, or of none
  torn,      ///< an update was not finished; not to be served until a load of all that is torn commits
};
/// The enumerator's own spelling: "torn".
ROPEWAY_API std::string_view name(holding what) noexcept;

/// A snapshot, consistent in itself.
struct weights_status {
  holding what = holding::nothing; ///< first of all: whether there is one version to read
  /// Committed last. While `what` is `loading` or `torn`, its bytes are partly overwritten.
  std::optional<std::uint64_t> version;
  /// What is being written now, or was when it failed (`torn`).
  std::optional<std::uint64_t> arriving;
  /// When `what` began.
  std::chrono::system_clock::time_point since{};
  /// Who sent `arriving`, or else `version`: "process 123 of user 1000 at /run/job/weights.sock".
  std::string from;

  /// Whether the memory may be read as one version.
  bool whole() const noexcept { return what == holding::committed; }
};

/// Where a receiver's session is.
enum class session_phase : std::uint8_t {
  closed,     ///< no session: never connected, or it has ended
  connecting, ///< from `connect` until the sender's welcome
  idle,       ///< connected; no update runs
  offered,    ///< an update waits for the embedder's answer
  loading,    ///< accepted; buckets arrive
  committing, ///< the sender has ordered the commit
};
/// The enumerator's own spelling: "idle".
ROPEWAY_API std::string_view name(session_phase phase) noexcept;

/// A snapshot, consistent in itself.
struct receiver_status {
  session_phase phase = session_phase::closed;   ///< what it is doing now
  std::optional<std::uint64_t> version;          ///< committed last, in any session
  std::optional<std::uint64_t> arriving;         ///< of the update that runs
  std::chrono::system_clock::time_point since{}; ///< when `phase` began
  std::string sender; ///< whom the session is, or last was, with; empty before the first
  std::string error;  ///< why the last session ended, in words; empty while there is one, and before
};

} // namespace ropeway
