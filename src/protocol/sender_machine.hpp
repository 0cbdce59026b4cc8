// The sender's half of the protocol as a plain class: events in, actions out. No I/O, no clock, no device, no
// Asio: cancellation and time are inputs. One machine serves all sessions of a sender. Part of ropeway;
// Apache-2.0.
//
// The rules that it keeps (docs/protocol.md tells them in order):
//  - A slot is packed only while free: no receiver may still read it, no relay from it is running.
//  - Every bucket is packed once. It is published to a receiver only after it was packed, and on the host
//  ring only
//    after it was relayed there.
//  - Who takes part is settled before the first bucket is published: everyone who was greeted when the update
//  began
//    has accepted (and mapped its ring), refused, said not now, died, or run out of time. Packing may start
//    earlier.
//  - A receiver gets `commit` when it has said all_copied; a member of a group only when all members have; if
//  one
//    member of a group fails, is missing or refuses, every member gets abort_update (errc::group_incomplete).
//  - A receiver that maps the sender's own tensors is told read_mapped when it has accepted, its group has
//  decided, and the tensors are ready; or right after `begin`, for when it accepts, if the tensors are ready
//  by then, it is in no group, it did not take the ring last time, and nothing of the update needs a bucket.
//  From then until all_copied, `aborted`, its word that it does not take part so, or its end the source is
//  not free, and the update not over. It is published only the buckets that hold what is not mapped.
//  - With digests a receiver is told digests_ready when it has accepted and the sender's were computed; only
//  then may it say all_copied, with the digest that it found, and the source is not free before.
//  - While a version is held, whoever lacks it is given it as soon as no update runs: by an update of its
//  own, in which nobody else takes part. Who lacks it holds nothing of this sender, or what was sent before
//  the hold began, or has failed an update since. In a group nobody is given it alone unless all others have
//  just this version, and nobody at all if one of them has a newer one. Who refuses or fails it is not asked
//  again; who says not now, or nothing, is after a while. Those who were brought it and leave are counted:
//  when more than `held_turnover` have done so in a short time, deliveries are paced, for everybody.
//  - After an abort a receiver's slots stay taken until it says `aborted`, `released` or dies; it is left out
//  of (and
//    holds up) later updates until then. A peer that is due and silent for longer than `silence` is dropped.
//  - Anything that the protocol does not allow drops the peer (errc::protocol_error), and never harms another
//  one.
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
#include "ropeway/report.hpp"

namespace ropeway::protocol {

using peer_id = std::uint32_t;
using time_point = std::chrono::steady_clock::time_point;
using duration = std::chrono::steady_clock::duration;

struct sender_settings {
  bytes16 instance{};
  std::uint64_t bucket_bytes = 0;
  std::uint32_t slots = 2;
  std::uint32_t max_peers = 63; ///< receivers beyond are turned away
  /// Connections that have not said hello. One more takes the place of the oldest of them, so that silent
  /// ones keep nobody out.
  std::uint32_t max_handshakes = 64;
  duration handshake = std::chrono::seconds(5);
  duration decide = std::chrono::seconds(10); ///< begin until accept, refuse or not_now; and mapping a ring
  duration silence = std::chrono::seconds(10);
  duration commit = std::chrono::seconds(60);
  /// So many may leave after they were brought a version that is held, and come back, without a pause; one of
  /// them is forgotten every `held_pause`. For more, deliveries begin no sooner after the last than that
  /// took, but a tenth of `held_pause` at least, and all of it at most. No fewer than `max_peers`: all of
  /// them may start again together.
  std::uint32_t held_turnover = 64;
  duration held_pause = std::chrono::seconds(10);
};

/// Rings are numbered by where their memory lies, for all sessions of a sender: 0 is the ring in host memory,
/// 1 + n the one on the driver's CUDA device n. An update is packed into one ring, `update_facts::ring`; a
/// receiver that can't map a CUDA ring takes the update from the host ring, to which each bucket is then
/// relayed.
inline constexpr std::uint32_t host_ring = 0;

/// Peer ids from here on are the machine's own.
inline constexpr peer_id first_reserved_peer = 0xffff'fff0;

/// What an update is, as far as the protocol cares.
struct update_facts {
  std::uint64_t version = 0;
  bytes16 layout{};
  std::uint64_t total_bytes = 0;
  std::uint32_t tensors = 0;
  std::vector<std::uint64_t> bucket_bytes; ///< used bytes of each bucket; may be empty (no tensors)
  std::uint32_t ring = host_ring; ///< the ring that buckets are packed into: 0 host, 1 + n CUDA device n
  bytes16 device{};               ///< UUID of the ring's CUDA device; zero for the host
  bool through_host = false;      ///< everybody takes it from the host ring

  std::string note; ///< why not everything can be mapped; of the route reasons in the results

  /// For receivers that map the sender's memory; all empty without a placement.
  std::uint64_t placement = 0; ///< its number
  bool only_mapped = false;    ///< who can't map is refused
  struct segment {
    std::uint64_t id = 0;
    std::uint32_t parts = 0;
  };
  std::vector<segment> segments;
  std::vector<bool> needed;  ///< by bucket: receivers that map need it, too
  bool source_ready = false; ///< the tensors are ready to be read: no await_source comes

  std::uint64_t digests = 0; ///< number of the table that takes the digests; 0 for none

  bool held = false; ///< the version that is held: for those who lack it
  /// Whoever may change the tensors waits until the update is over. Only then may a receiver commit by
  /// itself.
  bool waited_for = false;
};

struct peer_result {
  peer_id peer = 0;
  std::string name;
  outcome what = outcome::skipped;
  std::uint16_t code = 0;         ///< an errc
  std::string text;               ///< why it did not commit
  std::uint32_t ring = host_ring; ///< the ring that its bytes took
  bool mapped = false;            ///< it read the sender's tensors; the ring gave what is not mapped
  std::string route_reason;       ///< why not a faster way; empty if there is none
  std::uint64_t copied = 0;       ///< bytes, as it said in all_copied
  /// When it took part, had copied everything, was told to commit; nothing for what it never did.
  std::optional<time_point> took_part, all_copied, told_to_commit;
  time_point decided{}; ///< when this was known
};

/// What the driver must do, in this order. `seq` names one filling of a slot.
namespace send_action {
/// Send `what` to `to`; attach the ring's memory if it is a `ring`, the manifest if it is `manifest_follows`
/// the table if it is
/// `digest_table` (the driver fills in slot_bytes, origin and bytes). What is said right before a `drop` is
/// best effort: try once.
struct say {
  peer_id to = 0;
  message what;
};
/// Make this ring, once; answer ring_ready or ring_failed. Never asked twice for one ring of one machine
/// unless it failed.
struct make_ring {
  std::uint32_t ring = 0;
};
/// Fill slot `slot` of the update's ring with bucket `bucket`; answer packed(seq) when seen complete. In seq
/// order.
struct pack {
  std::uint64_t seq = 0;
  std::uint32_t bucket = 0, slot = 0;
  bool unmapped_only = false; ///< everybody who reads it maps: only tensors that are nowhere are wanted
  bool beside_link = false;   ///< receivers read the ring meanwhile, and all copy on other devices
};
/// Wait until the tensors are ready to be read, as far as the driver knows; answer source_ready. At most
/// once an update.
struct await_source {};
/// Send segment_part messages for these parts of a segment, in order, as long as wants_parts() says so.
struct send_parts {
  peer_id to = 0;
  std::uint64_t update = 0, segment = 0;
  std::uint32_t first = 0, count = 0;
};
/// Compute the digests of the tensors and put them into the table; answer digested. At most once an update.
/// Counts as a copy: what was begun is waited for before drained().
struct digest_source {};
/// Copy slot `from` of the update's ring to host slot `to`; answer relayed(seq) when seen complete.
struct relay {
  std::uint64_t seq = 0;
  std::uint32_t bucket = 0, from = 0, to = 0;
  std::uint64_t bytes = 0;
};
/// End the connection for the peer, at once, and hear what it had said before; then say gone(). It may have
/// decided to commit by itself just now, which would be said there; from here on it can't.
struct cut {
  peer_id peer = 0;
  std::string text;
};
/// Close the connection; the machine has forgotten the peer already. Do not answer with gone().
struct drop {
  peer_id peer = 0;
  errc code = errc::ok;
  std::string text;
};
/// The source is no longer read (the last bucket is packed, or the update was given up and drained): the
/// trainer may change its weights. Exactly once an update, before `finished`.
struct source_free {};
/// The update was given up: stop packing (pending pack/relay actions that were not started may be forgotten),
/// wait for the copies that were, then call drained(). Sent at most once an update, before `finished`.
struct drain {};
/// Somebody lacks the version that is held, and no update runs: begin one for it (`update_facts::held`), or
/// say held_failed(). Not at once: whoever comes until then takes part.
struct deliver_held {};
/// The update is over. `code` is ok, or the sender-side reason; `results` has everybody who was connected at
/// begin; with a held version those who lacked it.
struct finished {
  errc code = errc::ok;
  std::string text;
  std::vector<peer_result> results;
};
} // namespace send_action
using sender_action =
    std::variant<send_action::say, send_action::make_ring, send_action::pack, send_action::relay,
                 send_action::await_source, send_action::send_parts, send_action::digest_source,
                 send_action::cut, send_action::drop, send_action::source_free, send_action::drain,
                 send_action::deliver_held, send_action::finished>;

class sender_machine {
 public:
  explicit sender_machine(sender_settings settings);
  ~sender_machine();
  sender_machine(sender_machine&&) noexcept;
  sender_machine& operator=(sender_machine&&) noexcept;
  /// Another machine that goes on from the same state: for tests that try every order of events.
  sender_machine clone() const;

  // Events. Each appends actions, to be taken with take(). `now` never goes back.
  void connected(peer_id peer, std::string words_about_it, time_point now); ///< e.g. "pid 4711"
  void received(peer_id peer, message const& what, time_point now);
  void gone(peer_id peer, errc code, std::string text, time_point now); ///< EOF, reset, decode error, ...
  /// Starts an update; not while one runs. Returns its id. Peers that are greeted now take part; with a held
  /// version those who lack it.
  std::uint64_t begin_update(update_facts facts, time_point now);
  /// Says alive to every receiver, if no update runs: one is about to begin, and who sleeps can wake while
  /// the driver finds out what it is.
  void rouse(time_point now);
  void ring_ready(std::uint32_t ring, time_point now);
  void ring_failed(std::uint32_t ring, errc code, std::string text, time_point now);
  void packed(std::uint64_t seq, time_point now);
  void relayed(std::uint64_t seq, time_point now);
  void source_ready(time_point now);
  /// The table holds the digests of the running update, which come to this.
  void digested(bytes16 const& whole, time_point now);
  /// These segments' memory is gone, or wanted back; not of a running update's placement. Everybody who asked
  /// for them is told.
  void retire_segments(std::vector<std::uint64_t> const& ids, time_point now);
  /// This version can be delivered at any time from now on, until end_hold(); the one before no more.
  void hold(std::uint64_t version, time_point now);
  /// Nothing is held any more. An update that delivers it goes on, unless it is given up.
  void end_hold(time_point now);
  /// What deliver_held asked for can't begin: it is asked for again after a while.
  void held_failed(time_point now);
  /// The sender's own side failed or was cancelled (errc::source_failed, device_failed, or any code): abort
  /// it. With errc::peer_aborted that is no failure: a held version is delivered again when it can be.
  void give_up(errc code, std::string text, time_point now);
  void drained(time_point now);
  void tick(time_point now); ///< call when deadline() has come; harmless at any time
  /// Says goodbye to everybody; a running update is given up first.
  void close(std::string text, time_point now);

  /// Puts the actions that events have produced since the last call in place of what is in `into`, whose
  /// memory takes the next ones.
  void take(std::vector<sender_action>& into);
  std::vector<sender_action> take() {
    std::vector<sender_action> all;
    take(all);
    return all;
  }
  /// When tick() must be called next; nothing if nobody is waited for.
  std::optional<time_point> deadline() const;

  /// Whether the peer still decides about this update. Parts are made beside the machine; who has decided or
  /// was told to abort must not be sent what it asked for before, or it comes when the next update has begun.
  bool wants_parts(peer_id peer, std::uint64_t update) const;
  /// Receivers that have not yet confirmed that they unmapped what was retired.
  std::size_t unmapping() const;
  bool updating() const;
  /// Whether somebody would take part in an update of the held version that began now.
  bool wants_held() const;
  std::size_t greeted() const; ///< peers that finished their handshake and are still there
  struct peer_state {
    peer_id peer;
    std::string name; ///< "name (pid 4711)"
    std::uint64_t version_held;
    bool holds_version; ///< whether version_held came from this sender instance
    std::string last_error;
  };
  std::vector<peer_state> peers() const;

 private:
  friend struct whole_state; // tests/explorer compares states
  struct impl;
  explicit sender_machine(std::unique_ptr<impl> state);
  std::unique_ptr<impl> impl_;
};

} // namespace ropeway::protocol
