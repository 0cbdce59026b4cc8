// What an update spends its time with: in reports, traces and metrics. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// What reports measure in, by the steady clock, which is the same in all processes of a host.
using nanoseconds = std::chrono::nanoseconds;

/// What one side does, or waits for. A sender's update goes through those marked S, a receiver's through
/// those marked R. In a `receiver_report`, which tells of one receiver as the sender saw it, `announce`,
/// `load`, `wait` and `commit` follow each other and add up to `receiver_report::after`.
enum class update_stage : std::uint8_t {
  announce, ///< S: from the call until bytes may move. R: from the announcement until it was offered
  decide,   ///< R: from the offer until the embedder gave destinations, and readers' leases allowed writing
  map,      ///< R: mapping the sender's memory and preparing the copies, when they are new
  source,   ///< S: a tensor source or slot writer made the next tensor or filled the next bucket
  pack,     ///< S: copying a bucket into the ring, and waiting for the caller's stream before the first
  relay,    ///< S: copying a bucket on from device memory to the host ring
  publish,  ///< S: buckets were packed, and waited for receivers that had not decided
  wait, ///< S: nothing was packed, because every slot was taken. R: nothing was copied for want of a bucket.
        ///< Of one receiver: for the other members of its group
  load, ///< R: copying to the destinations; for buckets taken by hand, their time in the embedder's hands
  digest, ///< computing digests. S: of the tensors; what a source or writer makes, bucket by bucket. R: of
          ///< what is in place, and comparing
  commit, ///< R: from all bytes copied until committed. Of one receiver: from the order until its answer
};
/// All of them, in the order of an update.
inline constexpr std::array all_stages{update_stage::announce, update_stage::decide, update_stage::map,
                                       update_stage::source,   update_stage::pack,   update_stage::relay,
                                       update_stage::publish,  update_stage::wait,   update_stage::load,
                                       update_stage::digest,   update_stage::commit};
/// The enumerator's own spelling: "announce".
ROPEWAY_API std::string_view name(update_stage what) noexcept;

/// How long an update spent in each stage. Stages overlap (while one bucket is packed another is loaded), so
/// they need not add up to the total.
class stage_times {
 public:
  /// 0 for a stage that did not occur. @{
  nanoseconds operator[](update_stage what) const noexcept { return times_[static_cast<std::size_t>(what)]; }
  nanoseconds& operator[](update_stage what) noexcept { return times_[static_cast<std::size_t>(what)]; }
  /// @}

 private:
  std::array<nanoseconds, all_stages.size()> times_{};
};

/// One stretch of a stage, told when it is over.
struct stage_span {
  update_stage what = update_stage::announce;  ///< which stage
  std::uint64_t version = 0;                   ///< of which update
  std::optional<std::uint32_t> bucket;         ///< of which bucket, if it is one's
  std::uint64_t bytes = 0;                     ///< how many were moved; 0 if that is not what it did
  std::string_view receiver;                   ///< Sender: which one it tells of; empty: of this side
  std::chrono::steady_clock::time_point began; ///< as this side's event loop saw it
  std::chrono::steady_clock::time_point ended; ///< likewise
};

} // namespace ropeway
