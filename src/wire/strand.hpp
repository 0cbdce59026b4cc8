// What a session runs on: one strand, and the timers and descriptors of that strand. Part of ropeway;
// Apache-2.0.
#pragma once
#include <asio/basic_waitable_timer.hpp>
#include <asio/execution.hpp>
#include <asio/posix/basic_stream_descriptor.hpp>
#include <asio/strand.hpp>
#include <chrono>
#include <concepts>
#include <utility>

#include "ropeway/asio.hpp"

namespace ropeway::wire {

/// The embedder's executor, as a strand likes it. A strand asks for every handler whether it may run at once,
/// and an any_io_executor puts its answer on the heap.
class strand_base {
  using blocking = asio::execution::blocking_t;
  using work = asio::execution::outstanding_work_t;
  using relationship = asio::execution::relationship_t;

 public:
  // A template, so that copying does not ask whether a strand_base can become an any_io_executor: the answer
  // needs to know whether it can be copied.
  template <std::same_as<any_io_executor> Executor>
  explicit strand_base(Executor on) noexcept : on_(std::move(on)) {}

  asio::execution_context& query(asio::execution::context_t) const noexcept {
    return asio::query(on_, asio::execution::context);
  }
  blocking query(blocking) const noexcept {
    return never_ ? blocking(blocking::never) : blocking(blocking::possibly);
  }
  strand_base require(blocking::never_t how) const { return {asio::require(on_, how), true}; }
  strand_base require(blocking::possibly_t how) const { return {asio::prefer(on_, how), false}; }
  strand_base require(work::tracked_t how) const { return {asio::prefer(on_, how), never_}; }
  strand_base require(work::untracked_t how) const { return {asio::prefer(on_, how), never_}; }
  strand_base require(relationship::fork_t how) const { return {asio::prefer(on_, how), never_}; }
  strand_base require(relationship::continuation_t how) const { return {asio::prefer(on_, how), never_}; }

  template <class Function>
  void execute(Function&& function) const {
    on_.execute(std::forward<Function>(function));
  }
  friend bool operator==(strand_base const& a, strand_base const& b) noexcept { return a.on_ == b.on_; }
  friend bool operator!=(strand_base const& a, strand_base const& b) noexcept { return !(a == b); }

 private:
  strand_base(any_io_executor on, bool never) noexcept : on_(std::move(on)), never_(never) {}

  any_io_executor on_;
  bool never_ = false;
};

using strand = asio::strand<strand_base>;

inline strand make_strand(any_io_executor on) { return strand(strand_base(std::move(on))); }

// Of the strand's own type: wrapped into an any_io_executor, a strand is on the heap, and copied there with
// every wait. A steady update would pay that for each bucket.
using timer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                         asio::wait_traits<std::chrono::steady_clock>, strand>;
using descriptor = asio::posix::basic_stream_descriptor<strand>;

} // namespace ropeway::wire
