// What sender and receiver say to each other: one struct a message, described for the codec.
// docs/protocol.md tells the story; this file is the truth. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <boost/describe.hpp>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace ropeway::protocol {

using bytes16 = std::array<std::uint8_t, 16>;

/// The range of protocol versions that this build speaks.
inline constexpr std::uint16_t version_min = 1;
inline constexpr std::uint16_t version_max = 1;
/// Texts in messages are cut to this many bytes by who sends and refused above it by who receives.
inline constexpr std::size_t max_text = 32 * 1024;
inline constexpr std::size_t max_name = 255;
inline constexpr std::size_t max_devices = 64;
/// Messages that move nothing (`alive`, and what crossed an abort) may come so many at once. Far more than
/// the queue of a socket holds, so that a loop which was blocked for long takes no honest peer for a flood.
inline constexpr int max_idle_messages = 4096;
/// Parts of a segment that are sent for one need_segment: so many descriptors lie here at a time.
inline constexpr std::uint32_t segment_batch = 32;
/// Segments of a placement, and of one unmap message.
inline constexpr std::size_t max_segments = 65'536;
inline constexpr std::size_t max_unmap = 4096;
/// Of one digest, in a table of them.
inline constexpr std::uint64_t digest_bytes = 16;
/// Watchers that a sender has at a time.
inline constexpr std::size_t max_watchers = 16;

// ---- receiver to sender ----

/// First words of a receiver. Its encoding is frozen for all protocol versions: fields are only ever appended
/// behind `name`, and a reader skips what it does not know.
struct hello {
  using appended_to = void; // it speaks to builds of any age, which may know more fields than we do
  std::uint64_t magic = 0;  ///< hello_magic
  std::uint16_t oldest = 0, newest = 0; ///< protocol versions that the receiver speaks
  std::uint64_t schema = 0;             ///< schema_hash() of the receiver's build
  bytes16 last_sender{};                ///< sender instance of the version held; zero for none
  std::uint64_t last_update = 0;        ///< update id of the version held; settles an unconfirmed commit
  std::uint64_t version_held = 0;
  std::uint32_t group_size = 0; ///< 0: in no group
  std::string group;            ///< empty: in no group
  std::string name;             ///< how the receiver wants to be called in reports
  /// CUDA devices whose memory it may be able to map: first the one that it copies on; empty: host only
  std::vector<bytes16> devices;
};
inline constexpr std::uint64_t hello_magic = 0x3179617765706f72; // "ropeway1"

/// First words, and every question, of who takes no part and only wants to know how the sender and its
/// receivers are. Answered by a seen_receiver for each receiver and then a seen_sender. Encoded as it is
/// in all protocol versions, like hello.
struct watch {
  using appended_to = void;
  std::uint64_t magic = 0; ///< hello_magic
  std::uint16_t oldest = 0, newest = 0;
  std::uint64_t schema = 0;
};

struct ring_mapped {
  std::uint32_t ring = 0;
};
struct ring_refused {
  std::uint32_t ring = 0;
  std::uint16_t code = 0;
  std::string text;
};
struct need_manifest {
  std::uint64_t update = 0;
};
/// Asks for the placement that `begin` named.
struct need_placement {
  std::uint64_t update = 0;
};
/// Asks for what maps a segment of the placement: up to segment_batch of its parts, from this one on.
struct need_segment {
  std::uint64_t update = 0;
  std::uint64_t segment = 0;
  std::uint32_t first_part = 0;
};
struct accept {
  accept() = default;
  /// One that reads the ring.
  explicit accept(std::uint64_t of) : update(of) {}
  std::uint64_t update = 0;
  std::uint8_t mapped =
      0; ///< 1: it reads the sender's own tensors, as far as the placement says where they lie
  std::uint16_t code = 0; ///< why it is 0 although there is a placement; 0 if that is this side's choice
  std::string text;
};
/// Segments of a sender's memory that are mapped no more.
struct unmapped {
  std::vector<std::uint64_t> segments;
};
struct refuse {
  std::uint64_t update = 0;
  std::uint16_t code = 0;
  std::string text;
};
struct not_now {
  std::uint64_t update = 0;
  std::uint32_t retry_ms = 0;
  std::string text;
};
/// The slot's content is no longer needed; seen complete, never merely queued.
struct released {
  std::uint64_t update = 0;
  std::uint64_t seq = 0;
};
/// Everything is in place; and, in an update with digests, was compared with them.
struct all_copied {
  std::uint64_t update = 0;
  bytes16 digest{};         ///< of the update, as the receiver found it; zero without digests
  std::uint64_t copied = 0; ///< bytes that it wrote to its destinations, or took in buckets by hand
};
struct committed {
  std::uint64_t update = 0;
};
struct failed {
  std::uint64_t update = 0;
  std::uint16_t code = 0;
  std::string text;
};

// ---- sender to receiver ----

struct welcome {
  std::uint16_t version = 0;      ///< the protocol version chosen
  bytes16 sender{};               ///< this sender instance
  std::uint64_t bucket_bytes = 0; ///< the sender's bucket size rules
  std::uint32_t silence_ms = 0;   ///< the sender drops a peer that is silent for so long while it is due
};
struct turned_away {
  std::uint16_t code = 0;
  std::string text;
};
/// A ring of slots, with its memory as one fd beside the message.
struct ring {
  std::uint32_t id = 0;       ///< number within the session
  std::uint8_t on_device = 0; ///< 0: host memory, 1: CUDA memory
  bytes16 origin{};           ///< the CUDA device's UUID; zero for the host
  std::uint64_t slot_bytes = 0;
  std::uint32_t slots = 0;
};
struct begin {
  std::uint64_t update = 0;  ///< never reused by a sender instance
  std::uint64_t version = 0; ///< the embedder's label
  bytes16 layout{};
  std::uint64_t total_bytes = 0;
  std::uint32_t tensors = 0;
  std::uint32_t buckets = 0;
  std::uint64_t placement = 0; ///< number of the placement, for receivers that map; 0 for none
  std::uint64_t digests = 0;   ///< number of the table that will hold this update's digests; 0 for none
};
/// Memory that holds the digests of one update after the other: a sealed memfd of exactly `bytes` beside the
/// message, 16 bytes for each chunk of each tensor. Said once a session, before the first update whose begin
/// names it; the one before it is needed no more.
struct digest_table {
  std::uint64_t id = 0; ///< grows
  std::uint64_t bytes = 0;
};
/// The table that begin named holds this update's digests, until all_copied or aborted.
struct digests_ready {
  std::uint64_t update = 0;
};
/// The placement, as one sealed memfd of exactly `bytes` beside the message.
struct placement_follows {
  std::uint64_t update = 0;
  std::uint64_t bytes = 0;
};
/// What maps one allocation of a segment; its descriptor comes beside the message where the kind has one.
struct segment_part {
  std::uint64_t update = 0;
  std::uint64_t segment = 0;
  std::uint32_t part = 0;
  std::uint8_t kind = 0;   ///< a memory::part_kind
  std::uint64_t bytes = 0; ///< of this allocation
  std::array<std::uint8_t, 64> legacy{};
  std::uint16_t code = 0; ///< not 0: it can't be exported after all
  std::string text;
};
/// The tensors are ready, and stay as they are until all_copied or aborted: read those that are mapped, now
/// or, if this comes before the decision, with accept.
struct read_mapped {
  std::uint64_t update = 0;
  /// 1: no `commit` follows. A receiver that has read everything says all_copied, looks whether the sender
  /// has given the update up, and if it has not, commits.
  std::uint8_t commits_itself = 0;
};
/// The sender's memory of these segments is gone, or wanted back: map them no longer.
struct unmap {
  std::vector<std::uint64_t> segments;
};
/// The manifest, as one sealed memfd of exactly `bytes` beside the message.
struct manifest_follows {
  std::uint64_t update = 0;
  std::uint64_t bytes = 0;
};
struct published {
  std::uint64_t update = 0;
  std::uint64_t seq = 0; ///< 64 bits, never restarts in a session
  std::uint32_t bucket = 0;
  std::uint32_t ring = 0, slot = 0;
  std::uint64_t bytes = 0;
};
struct commit {
  std::uint64_t update = 0;
  std::string text = {}; ///< why the bytes came the way they did and no faster; empty if none is faster
};
/// One receiver, in the answer to a watch.
struct seen_receiver {
  std::string name;
  std::uint8_t doing = 0; ///< a receiver_activity
  std::uint8_t holds_version = 0;
  std::uint64_t version = 0;        ///< that it holds
  std::uint64_t bytes_released = 0; ///< of the running update, as far as buckets tell
  std::uint64_t last_bytes = 0;     ///< that it copied of the last update which it committed
  std::uint64_t last_ns = 0;        ///< and from its begin until then
  std::string last_error;      ///< of the last update that it did not commit; empty after one that it did
  std::uint8_t has_digest = 0; ///< it has compared the version that it holds with the sender's digests
  bytes16 digest{};            ///< and found this
};
/// The sender itself: the end of the answer.
struct seen_sender {
  std::uint32_t receivers = 0; ///< how many seen_receiver came before
  bytes16 sender{};
  std::uint8_t updating = 0;
  std::uint64_t version = 0; ///< of the running update; the rest is of it, too
  std::uint64_t total_bytes = 0;
  std::uint32_t tensors = 0, buckets = 0, packed = 0;
  std::uint64_t running_ns = 0;
  std::uint8_t has_digest = 0;      ///< an update with digests was sent
  std::uint64_t digest_version = 0; ///< the last such
  bytes16 digest{};                 ///< of all its tensors
};

// ---- both ways ----

struct abort_update {
  std::uint64_t update = 0;
  std::uint16_t code = 0;
  std::string text;
};
/// Answer to abort_update (or, after an own abort, said by itself): this side's copies are drained; slots are
/// free.
struct aborted {
  std::uint64_t update = 0;
};
struct alive {
  std::uint64_t update = 0;
}; ///< still working on it
struct goodbye {
  std::uint16_t code = 0;
  std::string text;
};

BOOST_DESCRIBE_STRUCT(hello, (),
                      (magic, oldest, newest, schema, last_sender, last_update, version_held, group_size,
                       group, name, devices))
BOOST_DESCRIBE_STRUCT(ring_mapped, (), (ring))
BOOST_DESCRIBE_STRUCT(ring_refused, (), (ring, code, text))
BOOST_DESCRIBE_STRUCT(need_manifest, (), (update))
BOOST_DESCRIBE_STRUCT(need_placement, (), (update))
BOOST_DESCRIBE_STRUCT(need_segment, (), (update, segment, first_part))
BOOST_DESCRIBE_STRUCT(accept, (), (update, mapped, code, text))
BOOST_DESCRIBE_STRUCT(unmapped, (), (segments))
BOOST_DESCRIBE_STRUCT(refuse, (), (update, code, text))
BOOST_DESCRIBE_STRUCT(not_now, (), (update, retry_ms, text))
BOOST_DESCRIBE_STRUCT(released, (), (update, seq))
BOOST_DESCRIBE_STRUCT(all_copied, (), (update, digest, copied))
BOOST_DESCRIBE_STRUCT(committed, (), (update))
BOOST_DESCRIBE_STRUCT(failed, (), (update, code, text))
BOOST_DESCRIBE_STRUCT(welcome, (), (version, sender, bucket_bytes, silence_ms))
BOOST_DESCRIBE_STRUCT(turned_away, (), (code, text))
BOOST_DESCRIBE_STRUCT(ring, (), (id, on_device, origin, slot_bytes, slots))
BOOST_DESCRIBE_STRUCT(begin, (), (update, version, layout, total_bytes, tensors, buckets, placement, digests))
BOOST_DESCRIBE_STRUCT(digest_table, (), (id, bytes))
BOOST_DESCRIBE_STRUCT(digests_ready, (), (update))
BOOST_DESCRIBE_STRUCT(placement_follows, (), (update, bytes))
BOOST_DESCRIBE_STRUCT(segment_part, (), (update, segment, part, kind, bytes, legacy, code, text))
BOOST_DESCRIBE_STRUCT(read_mapped, (), (update, commits_itself))
BOOST_DESCRIBE_STRUCT(unmap, (), (segments))
BOOST_DESCRIBE_STRUCT(manifest_follows, (), (update, bytes))
BOOST_DESCRIBE_STRUCT(published, (), (update, seq, bucket, ring, slot, bytes))
BOOST_DESCRIBE_STRUCT(commit, (), (update, text))
BOOST_DESCRIBE_STRUCT(watch, (), (magic, oldest, newest, schema))
BOOST_DESCRIBE_STRUCT(seen_receiver, (),
                      (name, doing, holds_version, version, bytes_released, last_bytes, last_ns, last_error,
                       has_digest, digest))
BOOST_DESCRIBE_STRUCT(seen_sender, (),
                      (receivers, sender, updating, version, total_bytes, tensors, buckets, packed,
                       running_ns, has_digest, digest_version, digest))
BOOST_DESCRIBE_STRUCT(abort_update, (), (update, code, text))
BOOST_DESCRIBE_STRUCT(aborted, (), (update))
BOOST_DESCRIBE_STRUCT(alive, (), (update))
BOOST_DESCRIBE_STRUCT(goodbye, (), (code, text))

/// One message. The alternative's index is its tag on the wire: append only, `hello` stays first.
using message = std::variant<hello, welcome, turned_away, ring, ring_mapped, ring_refused, begin,
                             need_manifest, manifest_follows, accept, refuse, not_now, published, released,
                             all_copied, commit, committed, failed, abort_update, aborted, alive, goodbye,
                             need_placement, placement_follows, need_segment, segment_part, read_mapped,
                             unmap, unmapped, watch, seen_receiver, seen_sender, digest_table, digests_ready>;

} // namespace ropeway::protocol
