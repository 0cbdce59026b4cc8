// What the sender's machine knows: its peers, its rings, the update that runs. The rules are in the .cpp
// files of this folder, one concern each. Part of ropeway; Apache-2.0.
#pragma once
#include <map>
#include <set>

#include "plan/slot_ledger.hpp"
#include "protocol/pace.hpp"
#include "protocol/sender_machine.hpp"
#include "protocol/text.hpp"

namespace ropeway::protocol {

/// Holds in a ring's ledger that are no receiver's: the sender's own (packed, not yet published) and a
/// relay's.
inline constexpr peer_id own_hold = first_reserved_peer, relay_hold = first_reserved_peer + 1;

struct sender_machine::impl {
  // ---- peers ----

  /// A ring is offered once a session; the answer is remembered.
  struct offered_ring {
    enum class answer : std::uint8_t { awaited, mapped, refused } what = answer::awaited;
    std::uint16_t code = 0;
    std::string text;
  };
  /// What a peer still has to say about an update that is over for the sender.
  enum class debt : std::uint8_t { none, aborted, commit_answer };
  struct peer {
    std::string words; ///< what the driver says about it
    std::string name;
    bool greeted = false;
    std::optional<bytes16> device; ///< that it copies on; nothing if it can map no device's memory
    bool watches = false;          ///< it is no receiver, and never greeted
    std::string group;
    std::uint32_t group_size = 0;
    std::uint64_t version_held = 0;
    bool holds_version = false;
    std::uint64_t update_held = 0; ///< the update that brought it
    bool spoiled = false;          ///< it has failed an update since, and may be torn
    /// The held version is not offered to it before; the end of time if it has refused or failed it.
    std::optional<time_point> not_before;
    bool was_given_held = false; ///< it has taken part in a delivery, whatever came of it
    std::string last_error;
    std::uint64_t last_bytes = 0; ///< that it copied of the last update which it committed
    duration last_took{};
    std::optional<bytes16> digest;  ///< of the version that it holds, as it found it
    std::uint64_t digest_table = 0; ///< that it was given last
    std::map<std::uint32_t, offered_ring> rings;
    std::set<std::uint64_t> segments;  ///< that it asked for, and may have mapped
    std::set<std::uint64_t> unmapping; ///< that it was told to unmap
    bool maps_not = false;             ///< it did not map when it last could
    debt owes = debt::none;
    /// Of an update that it owes `aborted` for: it was told to read it, should it accept.
    bool may_begin = false;
    std::uint64_t owes_for = 0, owes_version = 0; ///< of that update
    std::optional<bytes16> owes_digest;           ///< and its own
    time_point owes_since{};
    /// Its connection was ended from here, for this; nobody waits for it any more.
    std::optional<errc> cut;
    std::string cut_text;
    time_point connected{}, heard{}, said{};
    std::optional<time_point> due_since; ///< since when we wait for it
    pace idle;                           ///< of what it says that moves nothing
  };

  // ---- rings ----

  struct ring_record {
    explicit ring_record(std::uint32_t slots) : ledger(slots) {}
    bool ready = false; ///< the driver has made it
    plan::slot_ledger ledger;
  };

  // ---- the running update ----

  enum class stage : std::uint8_t {
    owing,      ///< it has not yet answered for an earlier update; nothing was said about this one
    preparing,  ///< its ring is being made; nothing was said about this update
    deciding,   ///< begin was said; accept or ring_mapped is missing
    loading,    ///< it takes part
    all_copied, ///< it waits for the other members of its group
    committing,
    revoking, ///< it was told to abort, but may have committed by itself: it says which; `result` is for if
              ///< not
    over,     ///< `result` is final
  };
  struct participant {
    stage at = stage::owing;
    std::string group;
    bool accepted = false, asked_manifest = false, asked_placement = false;
    bool may_map = false; ///< until it has accepted: it may read the sender's tensors
    bool reads = false;   ///< it was told to, and has not said that it is done or never began
    /// Of each segment that it asked for: the first part behind all that it asked for.
    std::map<std::uint64_t, std::uint32_t> asked_parts;
    bool was_told = false;                     ///< to read; when it accepts, if it has not
    bool commits_itself = false;               ///< when it has read; it was told so with that
    bool has_digests = false;                  ///< it was told that they are ready
    std::uint32_t published = 0, released = 0; ///< counts of buckets
    time_point since{};                        ///< when this stage's limit began to run
    peer_result result;
  };
  /// A bucket from the start of its packing until it was published wherever it must go.
  struct load {
    std::uint64_t seq = 0;
    std::uint32_t bucket = 0, slot = 0, host_slot = 0;
    bool packed = false, published = false;
    bool unmapped_only = false; ///< has only what is not mapped
    /// Towards the host ring, for receivers that read it while the update's own ring is another.
    enum class relay : std::uint8_t { none, wanted, running, done, published } relaying = relay::none;
    bool finished() const noexcept {
      return published && (relaying == relay::none || relaying == relay::published);
    }
  };
  struct update {
    update(); // clang 19 does not see the implicit one inside the class
    std::uint64_t id = 0;
    update_facts facts;
    time_point began{};
    std::vector<participant> participants;
    std::map<std::string, bool> group_committing;
    std::vector<load> loads;                   ///< in seq order; no more than there are slots
    std::uint32_t next_bucket = 0, packed = 0; ///< packed: or needed by nobody
    std::uint32_t needed = 0;                  ///< buckets that a receiver which maps needs
    bool source_asked = false, source_ready = false;
    bool digest_asked = false;
    std::optional<bytes16> digest;
    std::uint32_t copies = 0; ///< packs and relays that the driver was asked for and has not answered
    bool source_free = false, drain_said = false, drained = false;
    errc code = errc::ok;
    std::string text;
    std::uint32_t buckets() const noexcept { return static_cast<std::uint32_t>(facts.bucket_bytes.size()); }
  };

  explicit impl(sender_settings s) : settings(std::move(s)) {}

  sender_settings settings;
  std::map<peer_id, peer> peers;
  std::map<std::uint32_t, ring_record> rings;
  std::optional<update> running;
  struct known_digest {
    std::uint64_t version = 0;
    bytes16 what{};
  };
  std::optional<known_digest> last_digest; ///< of the last update that had any
  struct held_version {
    std::uint64_t version = 0;
    std::uint64_t since = 0; ///< this update and later ones brought something newer
    bool asked = false;      ///< the driver is about to deliver it
  };
  std::optional<held_version> held;
  // Of all promises: a new one is no reason to begin again.
  time_point left_with_held{}; ///< when all who left after a delivery are forgotten
  time_point last_delivery_over{};
  duration last_delivery_took{};
  std::uint64_t next_update = 1, next_seq = 1;
  time_point now{};
  bool closed = false;
  std::vector<sender_action> actions;

  // ---- peers.cpp: arriving and leaving ----
  void connected(peer_id id, std::string about);
  void greet(peer_id id, hello const& what);
  /// Else the peer was turned away. `first` is its message, `who` what it is.
  bool speaks_as_we_do(peer_id id, std::string_view first, std::string_view who, std::uint64_t magic,
                       std::uint16_t oldest, std::uint16_t newest, std::uint64_t schema);
  void turn_away(peer_id id, errc code, std::string const& text);
  /// Says goodbye, closes the connection and forgets the peer.
  void drop(peer_id id, errc code, std::string const& text);
  /// The same for one that is too slow, when all that it has said was heard.
  void give_up_on(peer_id id, errc code, std::string const& text);
  /// The peer broke the protocol.
  void violated(peer_id id, std::string const& text);
  /// Takes the peer out of everything; what it took part in goes on without it. `heard_all`: all that it has
  /// said was heard before.
  void forget(peer_id id, errc code, std::string const& text, bool heard_all);
  void close(std::string const& text);
  peer* find(peer_id id);
  std::size_t greeted() const;
  void make_room_for_handshake();
  std::size_t watching() const;
  std::size_t members(std::string const& group) const;

  // ---- messages.cpp: what peers say ----
  void received(peer_id id, message const& what);
  bool heard_idly = false; ///< the message that is being handled moves nothing
  /// The participant that a message about update `number` is from. Nothing if the message is to be ignored
  /// because it crossed our abort, or if it dropped the peer.
  participant* current(peer_id id, peer const& p, std::uint64_t number, message const& what);
  void on(peer_id id, peer& p, ring_mapped const& m);
  void on(peer_id id, peer& p, ring_refused const& m);
  void on(peer_id id, peer& p, need_manifest const& m);
  void on(peer_id id, peer& p, need_placement const& m);
  void on(peer_id id, peer& p, need_segment const& m);
  void on(peer_id id, peer& p, unmapped const& m);
  void on(peer_id id, peer& p, accept const& m);
  void on(peer_id id, peer& p, refuse const& m);
  void on(peer_id id, peer& p, not_now const& m);
  void on(peer_id id, peer& p, released const& m);
  void on(peer_id id, peer& p, all_copied const& m);
  /// It reads no more.
  void copied(participant& p, all_copied const& m);
  /// The participant of update `number` that commits, or may be about to; or nothing.
  participant* committing(peer_id id, std::uint64_t number);
  participant* revoking(peer_id id, std::uint64_t number);
  void on(peer_id id, peer& p, committed const& m);
  void on(peer_id id, peer& p, failed const& m);
  void on(peer_id id, peer& p, abort_update const& m);
  void on(peer_id id, peer& p, aborted const& m);
  void on(peer_id id, peer& p, alive const& m);
  void on(peer_id id, peer& p, goodbye const& m);
  template <class Other>
  void on(peer_id id, peer&, Other const& m);

  // ---- watching.cpp: who only wants to know ----
  void answer(peer_id id, watch const& what);
  seen_receiver look_at(peer_id id, peer const& p) const;

  // ---- held.cpp: a version for who comes late ----
  void hold(std::uint64_t version);
  void end_hold();
  void held_failed();
  bool lacks_held(peer const& p) const;
  /// Whether it, and its group as far as that has to, would take part in a delivery that began now.
  bool can_be_given_held(peer const& p) const;
  bool wants_held() const;
  void ask_for_held();
  /// Until then no delivery begins: too many have left after one.
  time_point held_rests_until() const;
  void has_left(peer const& p);
  /// Who did not take it is not asked again, or not at once.
  void put_off_held(peer& p, outcome what);

  // ---- update.cpp: who takes part, and what becomes of them ----
  std::uint64_t begin_update(update_facts facts);
  void skip_incomplete_groups();
  /// Does what can be done now towards the participant's start.
  void advance(participant& p);
  static void add_route_reason(participant& p, std::string const& text);
  void say_begin(participant& p);
  participant* taking_part(peer_id id);
  /// The same, if the running update is this one.
  participant* taking_part(peer_id id, std::uint64_t number);
  /// The outcome is known; the rest of its group hears of it.
  void conclude(participant& p, outcome what, std::uint16_t code, std::string const& text);
  /// Like conclude, for a participant that must be told.
  void stop(participant& p, outcome what, errc code, std::string const& text);
  void settle_outcome(participant& p, outcome what, std::uint16_t code, std::string const& text);
  void tell_abort(participant& p, errc code, std::string const& text);
  void fail_group(std::string const& group, std::string const& text);
  /// Buckets that the participant is published.
  std::uint32_t expected(participant const& p) const noexcept;
  bool group_decided(std::string const& group) const;
  void tell_to_read();
  /// Whether it may be told together with the update.
  bool can_read_at_once(participant const& p) const;
  void say_read(participant& p);
  /// It was told to read before it accepted, and will not.
  static void does_not_read(participant& p);
  /// Whether nothing but its reading stands between it and the commit.
  bool can_commit_itself(participant const& p) const;
  /// It commits by itself, and has not said all_copied; or it was told to abort then, and has not answered.
  static bool may_have_committed(participant const& p) noexcept;
  /// Of who was told to abort: this is its outcome unless it says that it has committed. False if it can't
  /// have.
  bool revoke(participant& p, outcome what, std::uint16_t code, std::string const& text);
  /// It has aborted.
  void revoked(participant& p);
  void tell_digests();
  void digested(bytes16 const& whole);
  /// Nobody reads the trainer's tensors any more, nor will.
  bool source_is_free() const;
  void free_source();
  void stopped_reading(peer_id id);
  void retire_segments(std::vector<std::uint64_t> const& ids);
  void commit_if_ready(participant& p);
  void say_commit(participant& p);
  void give_up(errc code, std::string const& text);
  void check_finished();

  // ---- stream.cpp: buckets through slots ----
  /// The ring, asked of the driver if it is not there; nothing until it is ready.
  ring_record* need_ring(std::uint32_t ring);
  void pump();
  void skip_unwanted();
  void pack_ahead(ring_record& main);
  void publish_and_relay(ring_record& main);
  bool start_relay(load& l, ring_record& main);
  void publish(load const& l, std::uint32_t ring, std::uint32_t slot);
  void packed(std::uint64_t seq);
  void relayed(std::uint64_t seq);
  void ring_ready(std::uint32_t ring);
  void ring_failed(std::uint32_t ring, errc code, std::string const& text);
  void abandon_loads();
  /// Whether somebody reads this bucket, as far as that is known.
  enum class readers : std::uint8_t { none, mapping, all, unknown };
  readers who_wants(std::uint32_t bucket) const;
  bool everyone_decided() const;
  bool is_published(participant const& p, std::uint32_t bucket) const noexcept;
  bool anyone_reads(std::uint32_t ring, std::uint32_t bucket) const;
  /// Whether receivers read slots of the update's ring just now, and all who take part copy on other devices.
  bool read_over_link() const;

  // ---- deadlines.cpp ----
  struct timer {
    time_point at;
    enum class kind : std::uint8_t {
      handshake,
      watch,
      silence,
      decide,
      commit,
      debt,
      alive,
      held,
      rest
    } what;
    peer_id peer;
  };
  std::optional<timer> earliest();
  void fire(timer const& t);
  bool is_due(peer_id id, peer const& p);

  void say(peer_id to, message what);
  /// What follows from the event that was just handled.
  void settle();
};

} // namespace ropeway::protocol
