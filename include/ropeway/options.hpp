// Knobs, with their defaults. Classes with named setters, so that they are safe to write inside a co_await
// expression (g++ 12 breaks on aggregates there). Part of ropeway; Apache-2.0.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ropeway/digest.hpp"
#include "ropeway/observer.hpp"
#include "ropeway/report.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

/// What limits are given in.
using std::chrono::milliseconds;

#define ROPEWAY_KNOB(type, knob, initial)                                                                    \
 public:                                                                                                     \
  type const& knob() const noexcept { return knob##_; }                                                      \
  auto& knob(type value) {                                                                                   \
    knob##_ = std::move(value);                                                                              \
    return *this;                                                                                            \
  }                                                                                                          \
                                                                                                             \
 private:                                                                                                    \
  type knob##_ = initial;                                                                                    \
                                                                                                             \
 public:

/// How much of a device and its memory a live update may take from whoever uses them meanwhile, on the
/// receiver's side of the mapped route. Without a limit it takes all there is.
class copy_pace {
  /// Thread blocks of the copy kernel that run at a time; 0 for no limit. Measured with serving beside it in
  /// docs/performance.md. Means nothing in host memory.
  ROPEWAY_KNOB(std::uint32_t, most_blocks, 0)
  /// On average, over a millisecond or so; 0 for no limit.
  ROPEWAY_KNOB(std::uint64_t, bytes_per_second, 0)

 public:
  /// Whether neither limit is set.
  bool unlimited() const noexcept { return most_blocks_ == 0 && bytes_per_second_ == 0; }
};

/// How a sender works. Durations of silence count from the last word of the peer; 0 is not "for ever"
/// anywhere.
///
/// Each member below is a pair of functions, with the default that is shown: `slots()` gives the value, and
/// `slots(3)` sets it and returns the options, so that several can be set in one expression. Values are
/// checked by the constructor of `sender` (`errc::invalid_argument`). A plain value, copied by the sender.
class sender_options {
  /// Bytes of a slot of the staging ring, 256 to 1 TiB, rounded up to 256. More is faster (facts in
  /// docs/performance.md) and costs memory.
  ROPEWAY_KNOB(std::uint64_t, bucket_bytes, std::uint64_t(64) << 20)
  /// Slots of the ring, 1 to 64: 2 packs one bucket while the other is loaded; 1 is lock-step.
  ROPEWAY_KNOB(std::uint32_t, slots, 2)
  /// A send with fewer committed receivers than this fails with `errc::too_few_receivers`.
  ROPEWAY_KNOB(std::uint32_t, min_receivers, 1)
  /// Receivers beyond this are turned away; 1 to 1000.
  ROPEWAY_KNOB(std::uint32_t, max_receivers, 63)
  /// Connections that have not said who they are, beside the receivers. One more takes the place of the
  /// oldest of them: silent ones keep nobody out. A connection takes three descriptors.
  ROPEWAY_KNOB(std::uint32_t, max_handshakes, 64)
  /// From a connection until the receiver has said who it is.
  ROPEWAY_KNOB(milliseconds, handshake_limit, std::chrono::seconds(5))
  /// From the announcement of an update until a receiver has accepted it; later it is skipped. The send ends
  /// when it has answered that, or after `silence_limit` without a word, if it was told that it may read.
  ROPEWAY_KNOB(milliseconds, decide_limit, std::chrono::seconds(10))
  /// The longest that a receiver which has something to do may say nothing; then it is dropped.
  ROPEWAY_KNOB(milliseconds, silence_limit, std::chrono::seconds(10))
  /// From the order to commit until the receiver has done it.
  ROPEWAY_KNOB(milliseconds, commit_limit, std::chrono::seconds(60))
  /// The longest that a tensor source may take for one tensor, or a slot writer for one bucket. It is
  /// cancelled then, and waited for.
  ROPEWAY_KNOB(milliseconds, source_limit, std::chrono::minutes(10))
  /// How long `close` waits for a running send to end: its copies, and receivers that have something to say.
  ROPEWAY_KNOB(milliseconds, close_limit, std::chrono::seconds(10))
  /// Which way updates may go. `mapped` refuses tensors that can't be mapped (`errc::not_reachable`) and
  /// receivers that can't map them; tensors that are made on the fly have no such route.
  ROPEWAY_KNOB(route_choice, use_route, route_choice::automatic)
  /// Whether updates carry digests, computed where the tensors lie. Each receiver then compares what it has
  /// in place before it commits; a difference fails the update there (`errc::digest_mismatch`). Both sides
  /// read all bytes once more (cost in docs/performance.md).
  ROPEWAY_KNOB(digest_choice, digests, digest_choice::none)
  /// Users, beside our own, whose processes may connect. Makes the socket group-accessible (0660) and accepts
  /// a directory that is group-traversable (0750).
  ROPEWAY_KNOB(std::vector<uid_t>, allowed_users, {})
  /// Accepts a socket directory that others may write to. They can then replace the socket: for tests only.
  ROPEWAY_KNOB(bool, allow_shared_directory, false)
  /// Told about progress, on the sender's strand. Must not block; must outlive the sender. May be null.
  ROPEWAY_KNOB(observer*, watched_by, nullptr)
};

/// How a receiver works. Members are pairs of functions, as in `sender_options`. A plain value, copied by the
/// receiver.
class receiver_options {
  /// How this receiver is called in the sender's reports.
  ROPEWAY_KNOB(std::string, name, "receiver")
  /// Where updates will be loaded: the device whose memory maps the sender's ring and runs the copies.
  ROPEWAY_KNOB(device, where, device::host())
  /// The name of the group whose members must all hold the same version (tensor-parallel ranks); empty for
  /// none.
  ROPEWAY_KNOB(std::string, group, {})
  /// How many members that group has; 0 for none. The same in all of them.
  ROPEWAY_KNOB(std::uint32_t, group_size, 0)
  /// How long `connect` waits for a sender to listen at the path.
  ROPEWAY_KNOB(milliseconds, connect_limit, std::chrono::seconds(10))
  /// From the connection until the sender has welcomed us.
  ROPEWAY_KNOB(milliseconds, handshake_limit, std::chrono::seconds(5))
  /// The longest that the sender may say nothing while an update runs; at least the sender's own silence
  /// limit, of which a third is how often it speaks. A trainer that blocks its loop for so long loses us.
  ROPEWAY_KNOB(milliseconds, silence_limit, std::chrono::seconds(10))
  /// How long a load into `shadow_destinations` waits for readers to end their leases on a set that it must
  /// write. Less than the sender's `decide_limit`, which runs meanwhile.
  ROPEWAY_KNOB(milliseconds, lease_limit, std::chrono::seconds(5))
  /// How long `close` waits for a running load to end: its copies, and buckets that were not released.
  ROPEWAY_KNOB(milliseconds, close_limit, std::chrono::seconds(10))
  /// Which way updates may come. With `mapped`, an update that can't come so is refused; one that the
  /// embedder takes bucket by bucket never can.
  ROPEWAY_KNOB(route_choice, use_route, route_choice::automatic)
  /// What is mapped of the sender's own memory is let go of when no update has used it for so long, and
  /// mapped anew by the next one, which takes the time that the first one took (`update_stage::map` in its
  /// report). Until then it stays in use, also if the trainer frees it without `sender::release_memory`.
  /// `milliseconds::max()` keeps it until the session ends or the sender wants it back.
  ROPEWAY_KNOB(milliseconds, idle_mapping_limit, std::chrono::minutes(10))
  /// Refuses updates that carry no digests (`errc::digest_missing`). Those that do are always compared.
  ROPEWAY_KNOB(bool, demand_digests, false)
  /// How fast mapped updates are copied.
  ROPEWAY_KNOB(copy_pace, pace, {})
  /// The largest list of tensors that is read: names, shapes and where they lie, some 100 bytes each. Reading
  /// it takes a few times as much memory for a moment.
  ROPEWAY_KNOB(std::uint64_t, max_manifest_bytes, std::uint64_t(1) << 30)
  /// Users, beside our own, whose sender is trusted.
  ROPEWAY_KNOB(std::vector<uid_t>, allowed_users, {})
  /// Accepts a socket in a directory that others may write to, or that a stranger owns. They can then lead us
  /// to another sender of a trusted user: for tests only.
  ROPEWAY_KNOB(bool, allow_shared_directory, false)
  /// Told about progress, on the receiver's strand. Must not block; must outlive the receiver. May be null.
  ROPEWAY_KNOB(observer*, watched_by, nullptr)
};

#undef ROPEWAY_KNOB

} // namespace ropeway
