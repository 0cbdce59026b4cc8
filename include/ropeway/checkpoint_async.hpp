// Reading checkpoints from a coroutine. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ropeway/checkpoint.hpp"
#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// `checkpoint_reader` for an event loop: the thread never waits for the disk. All calls, and the executor,
/// must be serialised (one thread, or one strand). Several coroutines may read at the same time.
class ROPEWAY_API async_checkpoint_reader {
 public:
  /// Reads complete on `executor`, whose loop must run while they do. Throws as `checkpoint_reader` does.
  async_checkpoint_reader(asio::any_io_executor executor, checkpoint from, read_options const& options = {});
  /// Reads that run go on, with the new one. The other may then only be destroyed.
  async_checkpoint_reader(async_checkpoint_reader&&) noexcept = default;
  async_checkpoint_reader(async_checkpoint_reader const&) = delete;
  async_checkpoint_reader& operator=(async_checkpoint_reader const&) = delete;
  /// Waits for what is in flight; reads that have not completed end with operation_aborted.
  ~async_checkpoint_reader();

  /// Reads `into.size()` bytes of tensor number `tensor` from its byte `offset` on. Completes, cancelled or
  /// not, only when nothing touches `into` any more. Cancellation: every type; parts that have not started
  /// are dropped, those in flight are waited for. Errors: as `checkpoint_reader::wait`;
  /// `asio::error::operation_aborted`.
  asio::awaitable<void> read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> into);

  /// The one that reads: never `automatic`.
  io_backend backend() const noexcept;
  /// As `checkpoint_reader::max_in_flight_seen`.
  std::size_t max_in_flight_seen() const noexcept;

 private:
  struct state;
  std::shared_ptr<state> state_;
};

} // namespace ropeway
