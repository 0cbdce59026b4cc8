// Digests as the event loop sees them: lists of what is digested, by device, and streams that compute them
// beside those that copy. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "protocol/messages.hpp"
#include "session/copy_stream.hpp"

namespace ropeway::session {

/// As it is said in messages: hex() of these is to_string() of the digest.
protocol::bytes16 bytes_of(digest128 const& what) noexcept;
digest128 digest_of(protocol::bytes16 const& bytes) noexcept;

/// What is digested together, into one row of sums, on one device or several. Prepared once, off the loop;
/// used by one run at a time.
class digest_list {
 public:
  /// May wait for devices. Throws transfer_error.
  digest_list(memory::backends& memory, std::vector<memory::digest_op> ops, std::uint32_t sums);
  struct part {
    device where;
    std::shared_ptr<memory::prepared_digests> list;
  };
  std::span<part const> parts() const noexcept { return parts_; }
  bool empty() const noexcept { return parts_.empty(); }
  /// Of the image.
  std::uint64_t bytes() const noexcept;
  /// Adds what the last run that fetched has brought.
  void add_to(std::span<digest128> sums) const noexcept;

 private:
  std::vector<part> parts_;
};

/// Used on a session's strand, but for shut() and drain(). Allocates nothing for a list of one device that it
/// has seen.
class digester : public std::enable_shared_from_this<digester> {
 public:
  digester(strand const& on, std::shared_ptr<memory::backends> memory, copy_stream::callback done)
      : strand_(on), memory_(std::move(memory)), done_(std::move(done)) {}

  /// Queues runs of these lists (null ones are left out), device memory after `when`, and reports `what` when
  /// all were seen to finish, with an error if a device failed. `what` keeps alive what they read, and them.
  /// Throws as copy_stream; then nothing is reported.
  struct run_of {
    digest_list const* list;
    memory::digest_run how;
  };
  void run(std::span<run_of const> runs, ready_after const& when, copied what);
  /// Devices that have failed once may work again.
  void replace_failed();
  /// As copy_stream, for all of them.
  /// @{
  bool shut(std::chrono::steady_clock::time_point end) noexcept;
  bool drain(std::chrono::steady_clock::time_point end) noexcept;
  /// @}
  void finish();
  void forget() noexcept;

 private:
  copy_stream& stream_of(device where);
  /// A run on several devices.
  struct joint {
    std::size_t left = 0;
    copied what;
    std::error_code error;
  };
  void part_done(copied& what, std::error_code error);

  strand strand_;
  std::shared_ptr<memory::backends> memory_;
  copy_stream::callback done_;
  struct entry {
    device where;
    std::shared_ptr<copy_stream> stream;
  };
  std::mutex mutex_; // shut() comes from the destructor's thread
  std::vector<entry> streams_;
  bool shut_ = false;
};

} // namespace ropeway::session
