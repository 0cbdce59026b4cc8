// Checkpoints on disk: safetensors files, single or sharded, and reading them. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/error.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

/// A tensor in a checkpoint, and where its bytes lie.
struct stored_tensor {
  tensor_info info;         ///< name, dtype and shape, as the file's header has them
  std::uint64_t bytes = 0;  ///< its size; 0 is fine
  std::uint64_t offset = 0; ///< of its first byte, from the start of the file
  std::uint32_t file = 0;   ///< index into `checkpoint::files()`
};

/// The free text beside the tensors (`__metadata__`).
using checkpoint_metadata = std::map<std::string, std::string>;

/// An opened checkpoint: everything but the bytes, checked by the rules of the format. A cheap handle: copies
/// share the open files. Const functions may be called from any thread.
class ROPEWAY_API checkpoint {
 public:
  /// `path` is a .safetensors file, a .safetensors.index.json, or a directory that holds `model.safetensors`,
  /// else `model.safetensors.index.json`, else exactly one file of either kind. Tensors of a shard that the
  /// index does not list are left out; a listed name found in a second shard is an error. Throws
  /// `transfer_error`: `errc::bad_checkpoint` (which file, what is wrong, where), `errc::unsupported`, or the
  /// system's error.
  static checkpoint open(std::filesystem::path const& path);

  /// In the order in which their bytes lie, file by file.
  std::span<stored_tensor const> tensors() const& noexcept;
  std::span<stored_tensor const> tensors() const&& = delete; ///< would dangle: name the checkpoint
  /// The index into `tensors()`, or nothing.
  std::optional<std::size_t> find(std::string_view name) const;
  /// The bytes of all tensors.
  std::uint64_t total_bytes() const noexcept;
  /// The bytes of the largest.
  std::uint64_t largest_tensor() const noexcept;
  /// Of a sharded checkpoint: that of all shards; the first shard wins.
  checkpoint_metadata const& metadata() const& noexcept;
  checkpoint_metadata const& metadata() const&& = delete; ///< would dangle: name the checkpoint
  /// The safetensors files, in the order in which `stored_tensor::file` counts them.
  std::span<std::filesystem::path const> files() const& noexcept;
  std::span<std::filesystem::path const> files() const&& = delete; ///< would dangle: name the checkpoint
  /// How many tensors the shards hold that the index does not list.
  std::size_t unlisted() const noexcept;

  /// \cond
  struct state;
  state const& internals() const noexcept { return *state_; }
  /// \endcond

 private:
  explicit checkpoint(std::shared_ptr<state const> s) : state_(std::move(s)) {}
  std::shared_ptr<state const> state_;
};

/// How bytes come from the disk. `automatic` is io_uring where the build has it and the kernel allows it,
/// else pread.
enum class io_backend : std::uint8_t {
  automatic, ///< the better one of those that work here
  io_uring,  ///< one ring, no thread
  pread,     ///< plain reads on a few threads
};
/// The enumerator's own spelling: "io_uring".
ROPEWAY_API std::string_view to_string(io_backend backend) noexcept;

/// How a reader reads. A plain value; setters return the options.
class ROPEWAY_API read_options {
 public:
  /// `io_uring` throws where it is not available, instead of falling back.
  read_options& backend(io_backend which) noexcept;
  /// How many requests are in flight at once, 1 to 64.
  read_options& queue_depth(std::uint32_t requests) noexcept;
  /// Whether to go past the page cache where the file system can (O_DIRECT); the default is yes.
  read_options& direct(bool yes) noexcept;

  io_backend backend() const noexcept { return backend_; }            ///< `automatic` unless set
  std::uint32_t queue_depth() const noexcept { return queue_depth_; } ///< 16 unless set
  bool direct() const noexcept { return direct_; }                    ///< true unless set

 private:
  io_backend backend_ = io_backend::automatic;
  std::uint32_t queue_depth_ = 16;
  bool direct_ = true;
};

class read_core;

/// Reads tensors, or parts of them, into memory that the caller gives (host memory), several requests in
/// flight. Needs at most `queue_depth` × 256 KiB of its own, for what the disk can't put in place by itself.
/// Not thread-safe. `checkpoint_async.hpp` has the awaitable form, `checkpoint_writer.hpp` the way out.
class ROPEWAY_API checkpoint_reader {
 public:
  /// Names one started read; never 0, rising.
  using ticket = std::uint64_t;
  /// How one read ended.
  struct finished {
    ticket id = 0;                       ///< which one
    std::optional<transfer_error> error; ///< nothing if every byte is in its place
  };

  /// Starts the backend. Throws `errc::invalid_argument` for a queue depth that there is not, and the
  /// system's error if `options` insist on an io_uring that is not here, or threads ran out.
  explicit checkpoint_reader(checkpoint from, read_options const& options = {});
  checkpoint_reader(checkpoint_reader&&) noexcept; ///< the other may then only be assigned to and destroyed
  checkpoint_reader&
  operator=(checkpoint_reader&&) noexcept; ///< ends what this one was, as the destructor does
  /// Waits for what is in flight; the rest is dropped.
  ~checkpoint_reader();

  /// Starts to read `into.size()` bytes of tensor number `tensor` from its byte `offset` on. Does not block;
  /// reads beyond the queue depth start as earlier ones end. `into` must live until the read is reported.
  /// Throws `errc::invalid_argument` for a range that the tensor does not have.
  ticket start(std::size_t tensor, std::uint64_t offset, std::span<std::byte> into);
  /// Blocks until that read has ended; throws its error. Each read is reported once: here, in `wait_all` or
  /// in `poll`.
  void wait(ticket id);
  /// Blocks until all reads have ended; throws the first error.
  void wait_all();
  /// A read that has ended and was not reported yet, or nothing. Does not block.
  std::optional<finished> poll();
  /// `start` and `wait` in one.
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> into) {
    wait(start(tensor, offset, into));
  }
  /// Drops what has not started and waits for what is in flight; nothing is reported any more.
  void cancel();
  /// The same for one read.
  void cancel(ticket id);

  /// Reads that are started and not reported.
  std::size_t pending() const noexcept;
  /// Readable whenever `poll` may have news; `poll` consumes it. For an event loop; owned by the reader.
  int event_fd();
  /// The one that reads: never `automatic`.
  io_backend backend() const noexcept;
  /// Whether any file is read past the page cache.
  bool direct() const noexcept;
  /// The most requests that the system was seen to work on at one moment.
  std::size_t max_in_flight_seen() const noexcept;

 private:
  std::unique_ptr<read_core> core_;
};

/// Reads each tensor of `into`, by name, into its memory. Throws `errc::destination_mismatch` before any byte
/// moves if one is missing or differs in dtype or shape, `errc::unsupported` for strided or device memory.
ROPEWAY_API void read_into(checkpoint const& from, std::span<mutable_tensor_view const> into,
                           read_options const& options = {});

} // namespace ropeway
