// Keeps a disk busy: cuts reads into parts, keeps as many in flight as allowed, puts the bytes in place.
// Part of ropeway; Apache-2.0.
#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "checkpoint/engine.hpp"
#include "checkpoint/input_file.hpp"
#include "checkpoint/part.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway {

/// What `checkpoint_reader` and `async_checkpoint_reader` share; see there for what the functions promise.
class read_core {
 public:
  using ticket = checkpoint_reader::ticket;
  using finished = checkpoint_reader::finished;

  read_core(checkpoint from, read_options const& options);
  ~read_core();
  read_core(read_core const&) = delete;
  read_core& operator=(read_core const&) = delete;

  /// Throws `errc::invalid_argument` for what the tensor does not have.
  void check(std::size_t tensor, std::uint64_t offset, std::uint64_t bytes) const;
  ticket start(std::size_t tensor, std::uint64_t offset, std::span<std::byte> into);
  /// Takes what has ended, and starts more. With `block` it waits until something has ended.
  void progress(bool block);
  /// A read that has ended and was not reported yet, by age of its end.
  std::optional<finished> next_finished();
  /// Reports this read if it has ended. Throws for a ticket that is not pending.
  std::optional<finished> take(ticket id);
  /// Starts nothing more of that read; it ends when what is in flight has ended.
  void drop(ticket id);
  /// Drops everything, waits for what is in flight, forgets the rest.
  void cancel();

  std::size_t pending() const noexcept { return reads_.size(); }
  int event_fd() { return engine_->event_fd(); }
  io_backend backend() const noexcept { return engine_->backend(); }
  bool direct() const noexcept;
  std::size_t max_in_flight_seen() const noexcept { return engine_->max_in_flight_seen(); }

 private:
  struct read {
    ticket id = 0;
    std::size_t tensor = 0;
    std::uint64_t next = 0, end = 0; // file offsets that no part covers yet
    std::byte* to = nullptr;         // where the byte at `next` belongs
    std::uint32_t in_flight = 0;
    std::optional<transfer_error> error;
    bool has_ended() const noexcept { return next == end && in_flight == 0; }
  };
  struct slot {
    read* owner = nullptr; // stays put: the map does not move its nodes
    part what;
    std::byte* to = nullptr;
    std::uint32_t done = 0; // bytes that have arrived
    bool retried = false;
  };

  void fill();
  void issue(std::uint32_t number);
  void complete(io_outcome const& outcome);
  void end_part(std::uint32_t number);
  static void stop(read& which) noexcept { which.next = which.end; }
  std::byte* bounce_of(std::uint32_t number) const noexcept { return bounce_ + number * bounce_size; }
  transfer_error failure(read const& which, std::uint64_t at, int number) const;
  stored_tensor const& tensor_of(read const& which) const;

  checkpoint from_;
  std::vector<direct_file> direct_; // beside the files; alignment 0: through the page cache
  std::unordered_map<ticket, read> reads_;
  std::deque<ticket> waiting_; // reads that have parts to start, oldest first; may name reads that are gone
  std::deque<ticket> ended_;   // likewise
  std::vector<slot> slots_;
  std::unique_ptr<std::byte[]>
      memory_;                  // one bounce buffer a slot; its pages cost nothing until they are used
  std::byte* bounce_ = nullptr; // the first of them
  std::vector<std::uint32_t> free_;
  std::vector<io_outcome> outcomes_;
  ticket last_ = 0;
  std::unique_ptr<io_engine> engine_;
};

} // namespace ropeway
