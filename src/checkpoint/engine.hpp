// Many reads at once: the seam between io_uring and threads that call pread. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ropeway/checkpoint.hpp"

namespace ropeway {

struct io_request {
  int fd = -1;
  std::uint64_t offset = 0;
  std::byte* into = nullptr;
  std::uint32_t bytes = 0;
  bool direct = false; ///< the descriptor goes past the page cache
};

/// How one read ended: bytes read (0 at the end of the file), or minus an errno.
struct io_outcome {
  std::uint32_t slot = 0;
  std::int32_t result = 0;
};

/// Used by one thread. Whoever owns it has taken all outcomes before it is destroyed.
class io_engine {
 public:
  virtual ~io_engine() = default;
  virtual io_backend backend() const noexcept = 0;
  /// Takes a request; `slot`, below the depth and not in use, comes back with the outcome.
  virtual void queue(std::uint32_t slot, io_request const& request) = 0;
  /// Hands what was queued to the system.
  virtual void submit() = 0;
  /// Takes outcomes, as many as there are or fit. With `block` it waits for the first; something must be
  /// queued.
  virtual std::size_t take(std::span<io_outcome> into, bool block) = 0;
  /// Readable after outcomes arrived, until `take` is called.
  virtual int event_fd() = 0;
  virtual std::size_t max_in_flight_seen() const noexcept = 0;
};

/// Throws `transfer_error` with the system's error where io_uring is refused or not in this build.
std::unique_ptr<io_engine> make_uring_engine(std::uint32_t depth);
std::unique_ptr<io_engine> make_pread_engine(std::uint32_t depth);
/// By the options; `automatic` falls back to pread whatever the reason.
std::unique_ptr<io_engine> make_engine(read_options const& options);

} // namespace ropeway
