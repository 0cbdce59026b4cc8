// What came of an update, on either side. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/digest.hpp"
#include "ropeway/error.hpp"
#include "ropeway/stage.hpp"

namespace ropeway {

/// How an update ended for one receiver.
enum class outcome : std::uint8_t {
  committed,   ///< the receiver holds the version
  refused,     ///< it said no, in its own words; its destinations are as they were
  skipped,     ///< it said not now, did not answer in time, or its group was incomplete
  failed,      ///< it took part and gave up, in its own words; in-place destinations may be torn
  dropped,     ///< it died, fell silent or broke the protocol
  unconfirmed, ///< it was to commit and its answer never came; its next hello settles it
};
/// The enumerator's own spelling: "committed".
ROPEWAY_API std::string_view name(outcome what) noexcept;

/// How the bytes reached a receiver.
enum class route : std::uint8_t {
  mapped, ///< it read the sender's own tensors; what could not be mapped came through the ring
  staged, ///< through a ring in device memory
  host,   ///< through a ring in shared host memory; so it is called, too, if there was no byte to carry
};
/// The enumerator's own spelling: "staged".
ROPEWAY_API std::string_view name(route way) noexcept;

/// Which ways an update may take. A sender and a receiver each have a choice; what both allow is used.
enum class route_choice : std::uint8_t {
  automatic, ///< the fastest that works: mapped, else staged, else host
  mapped,    ///< the receiver reads the sender's own tensors, or the update is refused with the reason
  staged,    ///< through a ring in the memory of the sender's tensors: device memory, where it can be mapped
  host,      ///< through a ring in shared host memory
};
/// The enumerator's own spelling: "staged".
ROPEWAY_API std::string_view name(route_choice way) noexcept;
/// The reverse of `name`; nothing if the word is unknown.
ROPEWAY_API std::optional<route_choice> parse_route_choice(std::string_view word) noexcept;

/// One receiver's part of a `send_report`.
struct receiver_report {
  std::string name;                ///< as it called itself, with its process number
  outcome what = outcome::skipped; ///< for programs: what this receiver holds now follows from it
  std::error_code error;           ///< why it is not `committed`
  std::string text;                ///< the same in words, the receiver's own where it said any; else empty
  route way = route::host;         ///< how its bytes went, or would have gone
  std::string route_reason;        ///< why that way and no faster one, in words; empty if none is faster
  /// Bytes that it copied, as in its own `load_report`: of a shard its own. 0 if it never had all of them.
  std::uint64_t copied = 0;
  nanoseconds after{}; ///< from the call until this was known
  stage_times stages;  ///< what that time went into: announce, load, wait, commit
};

/// What `send_weights` and `sending::done` give. Filled whether or not the operation failed.
struct ROPEWAY_API send_report {
  std::uint64_t version = 0; ///< as the caller numbered it
  std::uint64_t bytes = 0;   ///< of all tensors, counted once
  std::uint32_t tensors = 0; ///< how many the update has, those of no bytes included
  std::uint32_t buckets = 0; ///< how many slots' worth they fill; 0 if there are no bytes
  /// From the call, of which looking at the tensors is a part, until every outcome was known.
  nanoseconds total{};
  nanoseconds source_free{}; ///< from the call until the tensors' memory was no longer read; 0 if never
  stage_times stages;        ///< of this side
  /// Of all tensors as they are delivered, with their names, types and shapes; nothing without digests.
  std::optional<digest128> digest;
  std::vector<receiver_report> receivers; ///< one for each that was connected when the send began

  /// How many receivers ended so.
  std::size_t count(outcome what) const noexcept;
};

/// What the throwing form of a send throws: the words, and the report so far.
class ROPEWAY_API send_failed : public transfer_error {
 public:
  /// Of an error and what was known by then.
  send_failed(transfer_error const& error, send_report report)
      : transfer_error(error), report_(std::move(report)) {}
  /// What came of each receiver all the same; valid as long as this exception lives.
  send_report const& report() const noexcept { return report_; }

 private:
  send_report report_;
};

/// What loading an update gives.
struct load_report {
  std::uint64_t version = 0; ///< which is held now
  std::uint64_t bytes = 0;   ///< of all tensors of the update
  std::uint32_t tensors = 0; ///< how many the update has, with or without a destination here
  std::uint32_t buckets = 0; ///< how many came through the ring
  std::uint64_t copied = 0;  ///< bytes written to destinations, or in buckets that were taken by hand
  nanoseconds total{};       ///< from the acceptance until the commit
  stage_times stages;        ///< of this side; `announce`, `decide` and `map` come before `total` begins
  route way = route::host;   ///< how the bytes came
  std::string route_reason;  ///< the same words as in the sender's report: why no faster way
  /// The sender's, with which all that was taken here agrees; nothing without digests.
  std::optional<digest128> digest;
};

} // namespace ropeway
