// A whole job as a value: the real machines, what is in the sockets, what the drivers have under way and what
// the slots hold. Copying it costs little: what is the same is shared. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bounds.hpp"
#include "protocol/codec.hpp"
#include "protocol/receiver_machine.hpp"
#include "protocol/sender_machine.hpp"

namespace ropeway::explorer {

using namespace protocol;

inline constexpr std::size_t max_receivers = 4, max_updates = 9, max_slots = 3, rings = 2;

/// A promise of the protocol was broken.
struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// Words are made only when they are needed.
inline void check(bool good, char const* promise) {
  if (!good) throw broken(promise);
}
inline void check(bool good, char const* promise, message const& what) {
  if (!good) throw broken(promise + (": " + print(what)));
}

/// Copied when it is changed while another state has it as well.
template <class T>
class shared {
 public:
  explicit shared(T value) : held_(std::make_shared<T>(std::move(value))) {}
  T const& operator*() const { return *held_; }
  T const* operator->() const { return held_.get(); }
  T& change() {
    if (held_.use_count() > 1) held_ = std::make_shared<T>(*held_);
    return *held_;
  }

 private:
  std::shared_ptr<T> held_;
};

/// A machine that is copied with what is around it.
template <class Machine>
struct copied : Machine {
  explicit copied(Machine machine) : Machine(std::move(machine)) {}
  copied(copied const& other) : Machine(other.clone()) {}
  copied& operator=(copied const&) = delete;
};

/// What a slot holds, by who wrote it.
struct slot_content {
  std::uint64_t seq = 0;
  std::uint8_t update = 0, bucket = 0;
  bool writing = false;
  bool unmapped_only = false; ///< not for who reads all of it
};

struct sender_side {
  explicit sender_side(sender_machine m) : machine(std::move(m)) {}
  copied<sender_machine> machine;
  // The driver's work.
  std::vector<std::uint32_t> making; ///< rings
  std::vector<send_action::pack> packs;
  std::vector<send_action::relay> relays;
  bool drain = false;
  bool awaiting = false; ///< the tensors of the running update
  bool digesting = false;
  bool delivering = false; ///< what is held is about to be
  bool withdrawn = false;  ///< nobody has wanted it for a moment since that was asked for
  std::array<std::vector<send_action::send_parts>, max_receivers> exporting;
  std::array<std::array<slot_content, max_slots>, rings> memory{};
  // What has been seen of the running update.
  std::uint8_t update = 0, packed = 0;
  bool running = false, source_free = false, source_ready = false, drain_asked = false;
  bool digested = false;
  std::uint8_t table = 0, table_of = 0; ///< of digests: its number, and the buckets of the update it is for
  bool given_up = false;                ///< by a fault of the sender's
  std::uint8_t present = 0;             ///< receivers that were greeted when it began, a bit each
  std::uint8_t lost = 0;                ///< of these, who said no, failed, left, was dropped or told to abort
  std::uint8_t to_commit = 0;           ///< who was told to commit
  std::uint8_t to_read = 0;             ///< who was told to read the tensors
  std::uint8_t themselves = 0;          ///< who was told to commit by itself then
  std::uint8_t mapping = 0;             ///< who has accepted as one that maps
  std::uint8_t accepted = 0;
};

/// A driver that copies a bucket out of a slot.
struct reading {
  std::uint64_t seq = 0;
  std::uint8_t update = 0, bucket = 0, ring = 0, slot = 0;
  bool spoiled = false; ///< not what was published, or no longer
};

/// How far a receiver's driver is with the segment of an update's placement.
enum class mapping_of_segment : std::uint8_t { none, asking, importing, failed };

/// What was seen about one update at one receiver.
struct history {
  bool all_copied = false, aborted = false, committed = false;
  bool judged = false; ///< the sender has said what became of it
  outcome verdict = outcome::skipped;
};

struct receiver_side {
  explicit receiver_side(receiver_machine m) : machine(std::move(m)) {}
  copied<receiver_machine> machine;
  bool alive = true, stopped = false;
  bool sender_closed = false;   ///< the sender has closed the connection, or has seen it close
  bool cut = false;             ///< the sender has ended it, and hears what was said before
  bool receiver_closed = false; ///< the receiver has
  bool told = false;            ///< it has seen the sender's end of it close
  std::uint8_t layouts = 0;     ///< that it knows, a bit each
  // The driver's work.
  std::vector<std::uint32_t> mapping; ///< rings
  bool looking_up = false, reading_manifest = false, deciding = false, committing = false, draining = false;
  bool by_hand = false, placing = false;
  std::vector<reading> reads;
  bool looking_up_placement = false, reading_placement = false;
  mapping_of_segment segment = mapping_of_segment::none;
  bool reads_source = false, source_spoiled = false; ///< the tensors have changed since, or may have
  bool comparing = false, compared = false;          ///< digests
  bool looking = false;                              ///< whether the update was given up
  std::uint8_t table = 0;
  std::vector<std::uint64_t> to_unmap;
  // Where the sender's memory lies, as it knows it: of the layout with so many buckets, and what is mapped.
  std::uint8_t placement = 0, placement_of = 0, mapped_segment = 0;
  std::uint8_t announced = 0; ///< the placement of the newest update; 0: none, or it does not map
  bool mapped = false;        ///< it accepted the newest update as one that maps
  bool has_source = false;    ///< and has read the tensors as they were
  std::uint8_t update = 0;    ///< the newest that was announced
  std::uint8_t good = 0;      ///< buckets of it that were loaded as they were packed, a bit each
  std::array<history, max_updates + 1> seen{};
  // What went wrong here: for good, or only with one update.
  bool harmed = false;
  std::uint8_t harmed_update = 0;
  bool declined = false;  ///< what is held
  bool lost_held = false; ///< something went wrong with a delivery of it
};

using socket = std::vector<message>; ///< one direction of a connection; the first is the oldest

/// What can happen next. What the sides owe comes first, then what someone decides, then what goes wrong.
enum class kind : std::uint8_t {
  // the sender's machine and driver
  sender_hears,
  sender_sees_end,
  ring_made,
  packed,
  relayed,
  pack_forgotten, ///< it had not started when the update was given up
  relay_forgotten,
  source_readied,
  digested,
  held_delivered,
  parts_sent, ///< who: to whom
  sender_drained,
  sender_ticks,
  // a receiver's
  receiver_hears,
  receiver_sees_end,
  ring_mapped,
  looked_up,
  manifest_read,
  placement_looked_up,
  placement_read,
  segment_asked,
  segment_mapped,
  accepted, ///< arg 1: by hand, 2: mapped, 3: it can't map
  loaded,   ///< arg: which reading
  source_read,
  heard_all, ///< that was said until it looked
  compared,
  unmapped,
  placed,
  committed,
  receiver_drained,
  receiver_ticks,
  // decided by someone, or by time
  begin,
  hold,
  hold_ends,
  gives_way, ///< a delivery of what is held, to a send that may never come
  retire,    ///< the tensors lie elsewhere from now on
  join,
  receiver_continues,
  sender_continues,
  time_passes,
  fault, ///< arg: which
};
struct step {
  kind what = kind::begin;
  std::uint8_t who = 0, arg = 0;
  std::uint8_t more = 0; ///< of a fault: which reading, ring, or how long
};
/// Whether it is work: done sooner or later by who is awake, without anybody's decision.
inline bool is_work(kind k) { return k < kind::begin; }

class world {
 public:
  explicit world(bounds const& of);

  /// Everything that can happen now.
  void possible(std::vector<step>& into) const;
  /// Does it; throws what was broken.
  void take(step const& s);
  /// Whether nothing is left to do, checked against what must hold then. `steps`: what is possible.
  bool at_rest(std::vector<step> const& steps) const;
  std::string print(step const& s) const;
  /// The same for states that can't be told apart by what may follow.
  void describe(std::vector<std::uint8_t>& into) const;

  std::vector<std::string>* log = nullptr; ///< what is said is written here

 private:
  time_point clock() const;
  bool sender_works() const { return sender_alive_ && !sender_stopped_; }
  bool receiver_works(std::size_t i) const;
  bool awake_deadline(int& seconds) const;
  int seconds(time_point t) const;

  void warm_up();
  void work(std::vector<step>& into) const;
  void work_of_sender(std::vector<step>& into) const;
  void work_of(std::size_t i, std::vector<step>& into) const;
  void decisions(std::vector<step>& into) const;
  void faults(std::vector<step>& into) const;
  void fault_of(fault what, std::size_t i, std::vector<step>& into) const;

  void begin_update(bool held = false);
  bool may_begin() const;
  bool is_delivery(std::uint64_t update) const { return (deliveries_ >> update & 1) != 0; }
  bool has_held(std::size_t i) const;
  void check_all_have_held() const;
  void join(std::size_t i);
  void hear(step const& s);
  void step_of_sender(step const& s);
  void step_of_receiver(step const& s);
  void go_wrong(step const& s);
  void note_harm(fault what, std::size_t i);
  void harm_update(std::size_t i);
  void kill(std::size_t i);
  void end_sender();

  void follow_sender();
  void act(send_action::say& a);
  void act(send_action::make_ring& a);
  void act(send_action::pack& a);
  void act(send_action::relay& a);
  void act(send_action::await_source& a);
  void act(send_action::send_parts& a);
  void act(send_action::digest_source& a);
  void act(send_action::cut& a);
  void act(send_action::drop& a);
  void act(send_action::source_free& a);
  void act(send_action::drain& a);
  void act(send_action::deliver_held& a);
  void act(send_action::finished& a);
  void write(std::uint32_t ring, std::uint32_t slot, slot_content what);
  void close_for_sender(std::size_t i);
  void lose(std::size_t i) { sender_.change().lost |= static_cast<std::uint8_t>(1u << i); }
  void check_commit(std::size_t i, std::uint64_t update) const;
  bool should_commit(std::size_t i) const;
  bool same_group(std::size_t i, std::size_t j) const;

  void follow(std::size_t i);
  void act(std::size_t i, receive_action::say& a);
  void act(std::size_t i, receive_action::greeted& a);
  void act(std::size_t i, receive_action::map_ring& a);
  void act(std::size_t i, receive_action::read_manifest& a);
  void act(std::size_t i, receive_action::look_up_manifest& a);
  void act(std::size_t i, receive_action::look_up_placement& a);
  void act(std::size_t i, receive_action::read_placement& a);
  void act(std::size_t i, receive_action::take_part& a);
  void act(std::size_t i, receive_action::read_mapped& a);
  void act(std::size_t i, receive_action::unmap& a);
  void act(std::size_t i, receive_action::take_digest_table& a);
  void act(std::size_t i, receive_action::check_digests& a);
  void act(std::size_t i, receive_action::offer& a);
  void act(std::size_t i, receive_action::bucket& a);
  void act(std::size_t i, receive_action::look& a);
  void act(std::size_t i, receive_action::commit& a);
  void act(std::size_t i, receive_action::abort& a);
  void act(std::size_t i, receive_action::closed& a);
  bool digests_stand(receiver_side const& side) const;
  void look_up(std::size_t i);
  void look_up_placement(std::size_t i);
  void accept(std::size_t i, std::uint8_t how);
  void forget_work(receiver_side& side) const;
  /// Whether everything of the newest update was copied as it was sent.
  bool has_all(receiver_side const& side) const;
  std::vector<bool> needed_of(std::uint64_t update) const;
  std::uint8_t needed_bits(std::uint64_t update) const;
  bool is_placed(std::uint64_t update) const { return of_->parts != 0 && !(of_->ring_exists && update == 1); }
  void send_parts(std::size_t i, bool last_fails);
  /// The tensors may change from now on.
  void spoil_source(char const* promise);
  void finish_reading(std::size_t i, std::size_t which);
  void hear_all(std::size_t i);
  void commit(std::size_t i);
  std::uint8_t buckets_of(std::uint64_t update) const { return of_->buckets.at(of_->holds ? 0 : update - 1); }
  std::vector<std::uint64_t> sizes_of(std::uint64_t update) const;
  static bytes16 digest_of(std::uint64_t update) { return {static_cast<std::uint8_t>(update)}; }

  void describe_sender(class writer& w) const;
  void describe_receiver(std::size_t i, class writer& w) const;

  bounds const* of_;
  int now_ = 0; ///< seconds
  bool sender_alive_ = true, sender_stopped_ = false;
  bool steady_ = true; ///< nothing has happened that may make anybody give anybody up
  std::uint8_t begun_ = 0, finished_ = 0, joined_ = 0, faults_left_ = 0;
  std::uint8_t held_ = 0; ///< the update that brought what is held; 0: nothing was
  bool hold_over_ = false, gave_way_ = false;
  std::uint16_t deliveries_ = 0; ///< which updates are, a bit each
  std::uint8_t segment_ = 1;     ///< where the tensors lie; the placement has the same number
  std::array<std::uint8_t, fault_kinds> left_{};
  shared<sender_side> sender_;
  std::vector<shared<receiver_side>> receivers_;
  std::vector<shared<socket>> to_sender_, to_receiver_;
};

} // namespace ropeway::explorer
