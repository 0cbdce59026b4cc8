// The listening end: owns the socket's file from bind to close. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "ropeway/asio.hpp"
#include "wire/address.hpp"
#include "wire/connection.hpp"

namespace ropeway::wire {

/// Listens at a path from construction to `close` or destruction. Used from one strand; one `accept` at a
/// time.
///
/// Starting and ending happen under a lock on PATH.lock, which exists only meanwhile. Whether the path is in
/// use is decided by asking: a socket that a living process listens on is in use; one that nobody listens on,
/// or whose listener was killed (also if children that it forked keep it open), is stale and replaced.
class listener {
 public:
  /// Errors: `errc::bad_path`, `errc::not_permitted` (see `prepare_directory`), `errc::address_in_use`.
  listener(strand on, std::string path, trust whom = {});
  listener(listener&&) noexcept = default;
  listener& operator=(listener&& other) noexcept;
  ~listener();

  /// Waits for the next peer of a trusted user; others are closed and counted. When the process has no
  /// descriptor or memory left, or may watch no more of them, it waits and tries again: a shortage passes.
  /// How many connections there may be is the caller's rule. Cancellation: all types; nothing was accepted.
  /// Errors: `errc::not_open` after `close`, `errc::busy`.
  awaitable<connection> accept();

  /// Stops listening and removes the socket's file, if it is still the one that was made here. An `accept`
  /// that runs ends with `operation_aborted`.
  void close() noexcept;
  /// The same half of it that others see, from any thread: nobody can connect any more, and the path is free.
  /// An `accept` that runs ends with an error. `close` is still to be called.
  void retire() noexcept;
  std::string const& path() const noexcept;
  /// How many peers were closed because their user is not trusted.
  std::uint64_t refused() const noexcept;

 private:
  struct state;
  static awaitable<connection> accept_on(std::shared_ptr<state> self);
  std::shared_ptr<state> state_;
};

} // namespace ropeway::wire
