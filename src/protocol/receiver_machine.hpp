// The receiver's half of the protocol as a plain class: events in, actions out. No I/O, no clock, no device,
// no Asio. One machine is one session. Part of ropeway; Apache-2.0.
//
//   idle -> announced -> (needs the manifest) -> (needs the placement) -> offered -> loading -> all copied ->
//   committing -> idle
//
// The rules that it keeps:
//  - Nothing from the peer is believed: update ids, bucket order (0, 1, 2, ... without gap), seq (growing),
//  ring and
//    slot numbers, a slot published again before its release, bytes against the manifest, commit before
//    all_copied, begin while an update runs: each is errc::protocol_error, ends the session and tells the
//    driver once.
//  - `released` is said for a bucket exactly once, when the driver has said loaded(seq); all_copied when all
//  buckets
//    of the manifest were loaded (and, where the embedder takes buckets itself, it has said that all is in
//    place).
//  - A receiver that maps the sender's tensors asks for the placement, and before it accepts for segments
//  that
//    it has not mapped; it reads when it has accepted and was told to (once; perhaps with the announcement),
//    and all_copied comes after that, too.
//  - Of an update with digests, all_copied is said when what is in place was compared with the sender's.
//  - Where it was told to commit by itself, it says all_copied, then has the driver hear all that the sender
//    has said until then, and commits if that gives the update not up and does not end. The sender may change
//    its tensors only after it has said so, or ended the connection: so what was read before is whole. And
//    who looks at the connection's end and finds no all_copied before it knows that there will be no commit.
//  - An abort from either side ends the update: the driver drains its copies, then `aborted` is said.
//  - While the embedder or the copies work on an update, `alive` is said often enough for the sender's
//  silence limit.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "protocol/messages.hpp"
#include "ropeway/error.hpp"

namespace ropeway::protocol {

using time_point = std::chrono::steady_clock::time_point;
using duration = std::chrono::steady_clock::duration;

struct receiver_settings {
  hello greeting; ///< what to say first; magic, versions and schema are filled in if 0
  duration handshake = std::chrono::seconds(5);
  duration silence =
      std::chrono::seconds(10); ///< while an update runs: the longest the sender may say nothing
  std::uint64_t max_bucket_bytes = std::uint64_t(1) << 40;
  std::uint64_t max_manifest_bytes = std::uint64_t(1) << 30;
  std::uint32_t max_slots = 64;
  bool maps = false; ///< it may read the sender's own tensors
};

/// What the driver must do, in this order.
namespace receive_action {
/// Send `what`; in `all_copied` the driver fills in how many bytes it copied.
struct say {
  message what;
};
/// The handshake is done.
struct greeted {
  bytes16 sender{};
  std::uint64_t bucket_bytes = 0;
};
/// Map this ring (its fd came with the message); answer ring_mapped or ring_refused.
struct map_ring {
  ring what;
};
/// Read, check and keep the manifest (its fd came with the message); it must have the layout and the counts
/// of `what`; answer manifest_known or manifest_bad.
struct read_manifest {
  begin what;
  std::uint64_t bytes = 0;
};
/// Look whether the manifest of this layout is known; answer manifest_known or manifest_unknown.
struct look_up_manifest {
  begin what;
};
/// Look whether this placement of the sender is known; answer placement_known or placement_unknown.
struct look_up_placement {
  begin what;
};
/// Read, check and keep the placement (its fd came with the message); answer placement_known or
/// placement_bad.
struct read_placement {
  begin what;
  std::uint64_t bytes = 0;
};
/// Map this part of the segment that was asked for (its fd came with the message, if it has one). `last`: of
/// those that were asked for; then ask for more, or answer the offer.
struct take_part {
  segment_part what;
  bool last = false;
};
/// Read the mapped tensors; answer mapped_read when that was seen complete. After accept_update, perhaps at
/// once.
struct read_mapped {
  std::uint64_t update = 0;
};
/// Map these no more; say unmapped() when that is done.
struct unmap {
  std::vector<std::uint64_t> segments;
};
/// From now on digests come in this memory (its fd came with the message), of which the update that follows
/// says more: keep it, in place of any before.
struct take_digest_table {
  std::uint64_t id = 0, bytes = 0;
};
/// Everything is in place, and the table holds the sender's digests: compare; answer digests_agree, or give
/// the update up.
struct check_digests {
  std::uint64_t update = 0;
};
/// An update stands before the embedder's door: answer accept_update, refuse_update or not_now_update.
struct offer {
  begin what;
};
/// A bucket's bytes are in this slot: load it; answer loaded(seq) when they are no longer needed.
struct bucket {
  std::uint64_t update = 0, seq = 0;
  std::uint32_t bucket = 0, ring = 0, slot = 0;
  std::uint64_t bytes = 0;
};
/// all_copied was said, which must have come to the sender's end of the connection by now, unless it has
/// ended. Hear what the sender has said until now; then say nothing_heard, even if something was heard.
struct look {
  std::uint64_t update = 0;
};
/// All copies were seen complete, and both sides agree to it: make the version whole; answer commit_done or
/// commit_failed.
struct commit {
  std::uint64_t update = 0;
  std::string route_reason; ///< in the sender's words
};
/// The update is over without a commit: tell the embedder, stop copying, answer drained() when no copy runs
/// any more. `by_peer`: the sender said so; else this side did, or the session ended.
struct abort {
  std::uint64_t update = 0;
  errc code = errc::ok;
  std::string text;
  bool by_peer = false;
};
/// The session is over; close the connection. ok: the sender said goodbye. Sent once, last.
struct closed {
  errc code = errc::ok;
  std::string text;
};
} // namespace receive_action
using receiver_action =
    std::variant<receive_action::say, receive_action::greeted, receive_action::map_ring,
                 receive_action::read_manifest, receive_action::look_up_manifest,
                 receive_action::look_up_placement, receive_action::read_placement, receive_action::take_part,
                 receive_action::read_mapped, receive_action::unmap, receive_action::take_digest_table,
                 receive_action::check_digests, receive_action::offer, receive_action::bucket,
                 receive_action::look, receive_action::commit, receive_action::abort, receive_action::closed>;

class receiver_machine {
 public:
  explicit receiver_machine(receiver_settings settings);
  ~receiver_machine();
  receiver_machine(receiver_machine&&) noexcept;
  receiver_machine& operator=(receiver_machine&&) noexcept;
  /// Another machine that goes on from the same state: for tests that try every order of events.
  receiver_machine clone() const;

  // Events.
  void connected(time_point now); ///< says hello
  void received(message const& what, time_point now);
  void gone(errc code, std::string text, time_point now);
  void ring_mapped(std::uint32_t ring, time_point now);
  void ring_refused(std::uint32_t ring, errc code, std::string text, time_point now);
  /// `bucket_bytes`: the used bytes of each bucket by the (checked) manifest.
  void manifest_known(std::vector<std::uint64_t> bucket_bytes, time_point now);
  void manifest_unknown(time_point now);
  void manifest_bad(errc code, std::string text,
                    time_point now); ///< drops the session (errc::protocol_error)
  /// `needed_buckets`: which buckets are published to a receiver that maps.
  void placement_known(std::vector<bool> needed_buckets, time_point now);
  void placement_unknown(time_point now);
  void placement_bad(errc code, std::string text, time_point now); ///< drops the session
  /// Asks for parts of a segment of the placement, of which it has `parts`; while the update is offered.
  void need_segment(std::uint64_t segment, std::uint32_t first_part, std::uint32_t parts, time_point now);
  void unmapped(std::vector<std::uint64_t> segments, time_point now);
  void mapped_read(time_point now);
  /// Of what has come until now, nothing is left to hear.
  void nothing_heard(time_point now);
  /// Everything was compared; the update's digest is this.
  void digests_agree(bytes16 const& whole, time_point now);
  /// How the update will be loaded.
  struct acceptance {
    bool by_hand = false; ///< all_copied waits for in_place(): the embedder takes the buckets itself
    bool mapped = false;  ///< only where placement_known was said
    errc code = errc::ok; ///< why not
    std::string text;
  };
  /// With `by_hand`, all_copied waits for in_place() too: an embedder that takes buckets says itself when it
  /// is done.
  void accept_update(time_point now, acceptance how);
  void accept_update(time_point now, bool by_hand = false) {
    acceptance how;
    how.by_hand = by_hand;
    accept_update(now, std::move(how));
  }
  void in_place(time_point now);
  void refuse_update(errc code, std::string text, time_point now);
  void not_now_update(std::chrono::milliseconds retry, std::string text, time_point now);
  void loaded(std::uint64_t seq, time_point now);
  void commit_done(time_point now);
  void commit_failed(errc code, std::string text, time_point now);
  /// The embedder gives the running update up (cancelled, its loader threw, its deadline passed).
  void give_up(errc code, std::string text, time_point now);
  void drained(time_point now);
  void tick(time_point now);
  void close(std::string text, time_point now); ///< gives a running update up, says goodbye

  /// As sender_machine::take.
  void take(std::vector<receiver_action>& into);
  std::vector<receiver_action> take() {
    std::vector<receiver_action> all;
    take(all);
    return all;
  }
  std::optional<time_point> deadline() const;

  bool greeted() const;
  bool updating() const; ///< from begin until committed, refused or aborted (and drained)
  bool over() const;

 private:
  friend struct whole_state; // tests/explorer compares states
  struct impl;
  explicit receiver_machine(std::unique_ptr<impl> state);
  std::unique_ptr<impl> impl_;
};

} // namespace ropeway::protocol
