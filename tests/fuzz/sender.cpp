// The sender's machine among peers that say anything at any time, and a driver that keeps its side of
// sender_machine.hpp. A model beside it holds what must not happen; in the end every update comes to its end.
// Inputs that begin with 255 are for the ledger of slots alone.
#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "choices.hpp"
#include "plan/slot_ledger.hpp"
#include "protocol/codec.hpp"
#include "protocol/sender_machine.hpp"

namespace ropeway::fuzz {
namespace {

using namespace ropeway::protocol;
using namespace std::chrono_literals;

bool one_line(std::string const& text) { return text.find_first_of("\r\n") == std::string::npos; }

/// What a receiver says that it has copied.
std::uint64_t copied_by(peer_id id, std::uint64_t update) { return update * 1000 + id + 1; }

class game {
 public:
  explicit game(choices const& from) : from_(from), slots_(1 + from_.below(3)), machine_(settings()) {}

  void play() {
    for (unsigned i = 0; i < 300 && !from_.empty(); ++i) {
      event();
      settle();
    }
    wind_down();
  }

 private:
  struct hold {
    std::uint64_t seq;
    std::uint32_t ring, slot;
  };
  struct peer {
    bool greeted = false, owes = false; ///< an `aborted`
    bytes16 device{};                   ///< that it copies on; zero for none
    bool watches = false;               ///< it has asked, and was answered: no receiver
    std::uint32_t seen = 0;             ///< receivers that it was told of, in this answer
    std::string group;
    std::uint32_t group_size = 0;
    std::set<std::uint32_t> offered, mapped_rings, answered;
    std::vector<hold> holds;                                ///< published and not given back
    std::uint64_t last_seq = 0, update = 0, unanswered = 0; ///< the update whose commit it has not answered
    std::uint32_t published = 0, released = 0;              ///< buckets of the update
    std::uint64_t table = 0;                                ///< of digests, that it was given
    bool has_digests = false;
    bool was_given_held = false;
    bool begun = false, accepted = false, decided = false, all_copied = false, commit = false,
         stopped = false;
    bool committed = false;
    bool mapped = false, told = false, reads = false; ///< the tensors: accepted so, was told to, may do so
    bool itself = false;                              ///< and commits when it has, without another word
    bool gave_up = false;                             ///< it has said so: it does not commit
    std::uint32_t next_bucket = 0;                    ///< none before it is still to be published
    std::set<std::uint64_t> asked, unmapping;         ///< segments
    time_point commit_at{}, owes_at{}; ///< since when it has not answered the commit, has not said `aborted`
  };
  struct slot_content {
    std::uint64_t seq = 0;
    bool writing = false;
  };
  struct copy {
    bool relay = false;
    std::uint64_t seq = 0;
    std::uint32_t from = 0, to = 0;
  };

  sender_settings settings() {
    sender_settings s;
    s.instance[3] = 9;
    s.bucket_bytes = 1 << 16;
    s.slots = slots_;
    auto const how = from_.byte();
    s.max_peers = 1 + how % 5;
    if (how & 0x40) s.max_handshakes = 2;
    if (how & 0x80) s.commit = 5s; // sooner than silence
    commit_limit_ = s.commit;
    turnover_ = s.held_turnover = how >> 2 & 3;
    return s;
  }

  // ---- events ----

  void event() {
    switch (from_.below(28)) {
    case 0:
    case 1: return join();
    case 2: return leave();
    case 3: return begin_update();
    case 4: return ring_made(true);
    case 5: return ring_made(false);
    case 6: return copied(true);
    case 7: return drain_done();
    case 8: return pass(std::chrono::milliseconds(from_.byte() * 90));
    case 9: return pass(std::chrono::milliseconds(from_.byte()));
    case 10:
      if (from_.below(4) == 0) machine_.give_up(errc::source_failed, "source\nthrew", now_);
      return;
    case 11:
      if (from_.below(16) == 0) {
        closed_ = true;
        machine_.close("good\nbye", now_);
      }
      return;
    case 12: return hear(foreign());
    case 13: return change_hands();
    case 14:
    case 15:
    case 16: return hear(plausible());
    case 17:
    case 18:
    case 19: return work();
    case 20: return source_ready();
    case 21: return exported();
    case 22: return retire();
    case 23: return hold_something();
    default: return oblige();
    }
  }

  /// The machine lives on elsewhere; what is an error of its driver changes nothing.
  void change_hands() {
    sender_machine other = machine_.clone();
    sender_machine next(std::move(other));
    promise(next.deadline() == machine_.deadline() && next.updating() == machine_.updating(),
            "a clone is in the same state");
    machine_ = std::move(next);
    if (!machine_.updating()) return;
    try {
      (void)machine_.begin_update({}, now_);
      promise(false, "one update at a time");
    } catch (transfer_error const& e) {
      promise(e.code() == make_error_code(errc::busy), "a second one is refused");
    }
    if (!source_asked_) machine_.source_ready(now_);
    machine_.packed(next_id_ + (std::uint64_t{1} << 40), now_);
    machine_.relayed(next_id_ + (std::uint64_t{1} << 40), now_);
    machine_.ring_ready(77, now_);
    machine_.ring_failed(77, errc::out_of_memory, "none", now_);
  }

  /// The driver does one thing that it was asked for.
  void work() {
    if (!rings_wanted_.empty()) return ring_made(true);
    if (!copies_.empty()) return copied();
    if (!exports_.empty()) return exported();
    if (source_asked_ && !source_ready_) return source_ready();
    if (digest_asked_ && !digested_) return digested();
    drain_done();
  }

  /// The tensors of the running update are ready.
  void source_ready() {
    if (!source_asked_ || std::exchange(source_ready_, true)) return;
    machine_.source_ready(now_);
  }

  bytes16 digest_of(bool right) const {
    bytes16 what{};
    if (facts_.digests != 0) what[0] = static_cast<std::uint8_t>(update_ + (right ? 1 : 2));
    return what;
  }
  void digested() {
    if (!digest_asked_ || std::exchange(digested_, true)) return;
    machine_.digested(digest_of(true), now_);
  }

  /// The trainer holds a version, or no more, and the driver does what came of it.
  void hold_something() {
    switch (from_.below(8)) {
    case 0:
    case 1: return machine_.hold(from_.byte(), now_);
    case 2: return machine_.end_hold(now_);
    case 3:
      machine_.held_failed(now_);
      return promise(!machine_.wants_held(), "what could not begin is tried again later");
    case 4:
      if (facts_.held) machine_.give_up(errc::peer_aborted, "a\nsend", now_);
      return;
    default:
      if (deliver_asked_) begin_update(true);
    }
  }

  /// What somebody asked for was exported; it may no longer be wanted.
  void exported() {
    if (exports_.empty()) return;
    auto const order = exports_.front();
    exports_.pop_front();
    auto const to = peers_.find(order.to);
    bool const wanted = machine_.wants_parts(order.to, order.update);
    promise(!wanted || (to != peers_.end() && to->second.begun && !to->second.accepted &&
                        !to->second.stopped && order.update == update_ && !finished_),
            "parts are for who decides about the update");
  }

  /// The memory of all that was placed so far is gone; or of what a running update does not use.
  void retire() {
    std::vector<std::uint64_t> ids{1};
    if (!machine_.updating())
      for (; first_segment_ < next_segment_; ++first_segment_) ids.push_back(first_segment_);
    machine_.retire_segments(ids, now_);
  }

  /// One of the peers does what it is asked for, or nearly.
  void oblige() {
    if (peers_.empty()) return join();
    auto const id = any_peer();
    peer const& p = peers_.at(id);
    auto const how = from_.byte();
    bool const badly = how % 16 == 15;
    if (p.watches) return say_to_machine(id, question(how % 16 != 0));
    if (!p.greeted) return say_to_machine(id, good_hello(id, how));
    for (auto const ring : p.offered) {
      if (p.answered.count(ring) != 0) continue;
      if (how % 8 == 7) return say_to_machine(id, ring_refused{ring, 43, "not\nhere"});
      return say_to_machine(id, ring_mapped{ring});
    }
    if (p.itself && p.unanswered != 0 && how % 8 < 5) // whether or not an abort has crossed it
      return badly ? say_to_machine(id, failed{p.unanswered, 32, "can\nnot"})
                   : say_to_machine(id, committed{p.unanswered});
    if (p.owes && p.stopped && p.itself && p.reads && how % 8 == 5)
      return p.accepted ? say_to_machine(id, all_copied{p.update, {}, copied_by(id, p.update)})
                        : say_to_machine(id, answer(p.update, true, 0));
    if (p.owes && !badly) return say_to_machine(id, aborted{p.update});
    if (!p.holds.empty()) {
      auto const& one = p.holds[how / 16 % p.holds.size()];
      return say_to_machine(id, released{p.update, one.seq});
    }
    if (p.unanswered != 0) {
      if (how % 8 == 6) return say_to_machine(id, alive{p.unanswered});
      if (badly) return say_to_machine(id, failed{p.unanswered, 32, "can\nnot"});
      return say_to_machine(id, committed{p.unanswered});
    }
    if (!p.unmapping.empty() && how % 4 != 3) {
      unmapped all;
      if (how % 4 == 0)
        all.segments.push_back(*p.unmapping.begin());
      else
        all.segments.assign(p.unmapping.begin(), p.unmapping.end());
      return say_to_machine(id, all);
    }
    if (!p.begun || p.stopped) return say_to_machine(id, alive{update_});
    if (!p.decided && facts_.placement != 0 && how % 8 < 6) {
      auto const& segments = facts_.segments;
      auto const& one = segments[how / 8 % segments.size()];
      switch (how % 8) {
      case 0: return say_to_machine(id, need_placement{p.update});
      case 1: return say_to_machine(id, need_segment{p.update, one.id, how / 32 % one.parts});
      case 2: return say_to_machine(id, need_segment{p.update, one.id, how / 64 % 2 * segment_batch});
      case 3: return say_to_machine(id, answer(p.update, false, how / 8 % 2 == 0 ? 43 : 0));
      default: return say_to_machine(id, answer(p.update, true, 0));
      }
    }
    if (!p.decided) {
      if (how % 8 == 6) return say_to_machine(id, need_manifest{p.update});
      if (badly) return say_to_machine(id, refuse{p.update, 8, "no"});
      return say_to_machine(id, accept{p.update});
    }
    if (badly) return say_to_machine(id, abort_update{p.update, 1, "no\nmore"});
    if (p.accepted && p.released == expected(p) && !p.all_copied && (!p.mapped || p.told) &&
        (facts_.digests == 0 || p.has_digests))
      return say_to_machine(id, all_copied{p.update, digest_of(how % 32 != 30), copied_by(id, p.update)});
    say_to_machine(id, alive{p.update});
  }

  static accept answer(std::uint64_t update, bool mapped, std::uint16_t code) {
    accept a(update);
    a.mapped = mapped;
    a.code = code;
    if (code != 0) a.text = "not\nhere";
    return a;
  }

  /// Buckets that it is to be published.
  std::uint32_t expected(peer const& p) const {
    if (!p.mapped) return static_cast<std::uint32_t>(facts_.bucket_bytes.size());
    return static_cast<std::uint32_t>(std::count(facts_.needed.begin(), facts_.needed.end(), true));
  }

  hello good_hello(peer_id id, unsigned how) {
    hello hi;
    hi.magic = hello_magic;
    hi.oldest = version_min;
    hi.newest = static_cast<std::uint16_t>(version_max + how / 16 % 2);
    hi.schema = schema_hash();
    hi.name = "r";
    if (how % 8 == 5 || how % 8 == 6) {
      hi.group = peers_.at(id).group = "g";
      hi.group_size = peers_.at(id).group_size = 2;
    }
    if (how / 8 % 2 == 0) {
      hi.devices.resize(1);
      hi.devices[0][0] = static_cast<std::uint8_t>(1 + how / 64 % 2);
      peers_.at(id).device = hi.devices[0];
    }
    if (how / 32 % 2 == 0) hi.last_sender[3] = 9, hi.last_update = how;
    return hi;
  }

  /// What a sender must turn away.
  hello bad_hello(peer_id id, unsigned how) {
    auto hi = good_hello(id, 4);
    switch (how % 8) {
    case 0: hi.magic ^= how + 1; break;
    case 1: hi.oldest = version_max + 1, hi.newest = version_max + 5; break;
    case 2: hi.oldest = 2, hi.newest = 1; break;
    case 3: hi.schema ^= 1; break;
    case 4: hi.devices.resize(max_devices + 1); break;
    case 5: hi.group = "g"; break;
    case 6: hi.group_size = 2; break;
    default: hi.group = "g", hi.group_size = 3; // unless it is the first to say so
    }
    return hi;
  }

  void join() {
    auto const how = from_.byte();
    peer_id const id = how == 255 ? first_reserved_peer + 1 : next_id_++;
    if (id < first_reserved_peer) joining_ = id;
    machine_.connected(id, how % 2 == 0 ? "pid\n1" : "", now_);
    settle();
    joining_.reset();
    if (id >= first_reserved_peer || refused_ == id) return;
    peers_[id];
    if (how % 16 == 15) return say_to_machine(id, question(how != 255));
    if (how % 8 == 7) return; // says nothing yet, or a lie
    if (how % 8 != 4) return say_to_machine(id, good_hello(id, how));
    auto const hi = bad_hello(id, how / 8);
    // A group of three is no fault in itself.
    bool const may_come = how / 8 % 8 == 7 && std::none_of(peers_.begin(), peers_.end(), [](auto const& p) {
                            return p.second.greeted && p.second.group_size == 2;
                          });
    if (may_come) {
      peers_.at(id).group = hi.group;
      peers_.at(id).group_size = hi.group_size;
    }
    say_to_machine(id, hi);
    settle();
    promise(may_come || peers_.count(id) == 0, "who does not fit is turned away");
  }

  watch question(bool good) {
    watch what;
    what.magic = hello_magic;
    what.oldest = version_min;
    what.newest = version_max;
    what.schema = good ? schema_hash() : 1;
    return what;
  }

  void leave() {
    if (peers_.empty()) return;
    auto const id = any_peer();
    forget(id);
    machine_.gone(id, errc::peer_gone, "its\nconnection", now_);
  }

  /// False if it is not there.
  bool forget(peer_id id) {
    auto const at = peers_.find(id);
    if (at == peers_.end()) return false;
    if (at->second.was_given_held) left_.push_back(now_);
    peers_.erase(at);
    return true;
  }

  void begin_update(bool held = false) {
    if (machine_.updating() || closed_) return;
    facts_ = {};
    facts_.held = held;
    deliver_asked_ = false;
    auto const how = from_.byte();
    facts_.version = how;
    facts_.ring = how & 1;
    if (facts_.ring != host_ring) facts_.device[0] = static_cast<std::uint8_t>(1 + how / 64 % 2);
    facts_.bucket_bytes.resize(how / 2 % 8 == 7 ? 0 : how / 2 % 8 % 5);
    for (auto& bytes : facts_.bucket_bytes) bytes = 1 + how;
    if (how & 0x80) {
      auto const where = from_.byte();
      facts_.placement = first_segment_;
      facts_.only_mapped = where % 8 == 7;
      if (where % 4 == 2) facts_.note = "some are elsewhere";
      facts_.source_ready = (where & 1) != 0;
      facts_.waited_for = !held && (where & 4) == 0;
      next_segment_ = first_segment_ + 2;
      facts_.segments = {{first_segment_, 1}, {first_segment_ + 1, 40}};
      for (std::size_t b = 0; b < facts_.bucket_bytes.size(); ++b)
        facts_.needed.push_back((where / 8 >> b & 1) != 0);
      if (where == 255) refuse_odd_facts();
    }
    if (how & 0x10) facts_.digests = 1 + how / 32 % 2; // one of two tables
    if (facts_.digests < table_) facts_.digests = facts_.digests == 0 ? 0 : table_;
    table_ = std::max(table_, facts_.digests);
    present_.clear();
    for (auto& [id, p] : peers_) {
      bool const owes = p.owes;
      p.begun = p.accepted = p.decided = p.all_copied = p.commit = p.committed = p.stopped = false;
      p.mapped = p.told = p.reads = p.itself = p.gave_up = p.has_digests = false;
      p.published = p.released = p.next_bucket = 0;
      p.owes = owes;
      if (p.greeted) present_.insert(id);
    }
    promise(present_.size() == machine_.greeted() && machine_.peers().size() == present_.size(),
            "who was greeted is there");
    bucket_of_.clear();
    ready_seqs_.clear();
    unmapped_only_.clear();
    drain_said_ = source_free_ = false;
    source_asked_ = source_ready_ = facts_.source_ready;
    digest_asked_ = digested_ = false;
    streaming_ = false;
    next_packed_ = 0;
    finished_ = false;
    began_ = now_;
    update_ = machine_.begin_update(facts_, now_);
    promise(update_ > last_update_, "updates have numbers of their own");
    last_update_ = update_;
  }

  /// What is an error of the driver's is thrown at it, and nothing has begun.
  void refuse_odd_facts() {
    auto odd = facts_;
    odd.needed.push_back(true);
    try {
      (void)machine_.begin_update(odd, now_);
      promise(false, "a placement has its list of needed buckets");
    } catch (transfer_error const& e) {
      promise(e.code() == make_error_code(errc::invalid_argument) && !machine_.updating(),
              "or nothing has begun");
    }
  }

  void ring_made(bool good) {
    if (rings_wanted_.empty()) return;
    auto at = rings_wanted_.begin();
    if (rings_wanted_.size() > 1 && from_.flip()) ++at;
    auto const ring = *at;
    rings_wanted_.erase(at);
    if (good)
      machine_.ring_ready(ring, now_);
    else {
      rings_made_.erase(ring);
      machine_.ring_failed(ring, errc::out_of_memory, "no\nmemory", now_);
    }
  }

  /// Packs end in their order, and relays in theirs.
  void copied(bool in_turns = false) {
    if (copies_.empty()) return;
    auto at = copies_.begin();
    if (in_turns) {
      at = std::find_if(at, copies_.end(), [&](copy const& c) { return c.relay != copies_.front().relay; });
      if (at == copies_.end()) at = copies_.begin();
    }
    auto const done = *at;
    copies_.erase(at);
    if (done.relay) {
      promise(content(facts_.ring, done.from).seq == done.seq,
              "a slot is not filled again while it is relayed");
      content(host_ring, done.to).writing = false;
      machine_.relayed(done.seq, now_);
    } else {
      content(facts_.ring, done.to).writing = false;
      ready_seqs_.insert(done.seq);
      machine_.packed(done.seq, now_);
    }
  }

  void drain_done() {
    if (!drain_wanted_) return;
    drain_wanted_ = false;
    copies_.clear();
    for (auto& [ring, slots] : memory_)
      for (auto& s : slots) s.writing = false;
    machine_.drained(now_);
  }

  void pass(duration d) {
    now_ += d;
    machine_.tick(now_);
    auto const next = machine_.deadline();
    promise(!next || *next > now_, "what was due is done");
    settle();
    for (auto const& [id, p] : peers_) {
      promise(p.unanswered == 0 || now_ < p.commit_at + commit_limit_, "an answer to commit has its limit");
      promise(!p.owes || now_ < p.owes_at + commit_limit_, "and so has an end after an abort");
    }
  }

  peer_id any_peer() {
    auto at = peers_.begin();
    std::advance(at, from_.byte() % peers_.size());
    return at->first;
  }

  void hear(protocol::message const& m) {
    if (peers_.empty() && from_.below(8) != 0) return;
    // Also from those who have left: their messages were under way.
    if (peers_.empty()) return machine_.received(1 + from_.below(8), m, now_);
    say_to_machine(any_peer(), m);
  }

  protocol::message foreign() {
    std::string wrong;
    auto const size = from_.byte() % 64u;
    auto const bytes = from_.take(size);
    if (auto m = decode(std::as_bytes(bytes), wrong)) return std::move(*m);
    return alive{from_.number()};
  }

  std::uint64_t some_update() {
    auto const which = from_.byte();
    return which < 220 ? update_ : which < 240 ? update_ - 1 : which < 250 ? update_ + 1 : from_.number();
  }
  std::string words() { return from_.flip() ? "no\nroom" : ""; }

  protocol::message plausible() {
    auto const kind = from_.below(16);
    switch (kind) {
    case 0: return ring_mapped{from_.below(8) == 7 ? 5 : from_.below(2)};
    case 1: return ring_refused{from_.below(2), 43, words()};
    case 2: return need_manifest{some_update()};
    case 3: return accept{some_update()};
    case 4: return refuse{some_update(), 8, words()};
    case 5: return not_now{some_update(), 5, words()};
    case 6:
    case 7: { // the oldest bucket that somebody holds, or any
      std::uint64_t seq = from_.number();
      if (seq % 4 != 3)
        for (auto const& [id, p] : peers_)
          if (!p.holds.empty()) seq = p.holds.front().seq;
      return released{some_update(), seq};
    }
    case 8: {
      all_copied all;
      all.update = some_update();
      all.digest = digest_of(from_.flip());
      all.copied = copied_by(0, all.update); // whoever says so
      return all;
    }
    case 9:
      if (from_.flip()) return committed{some_update()};
      return failed{some_update(), 32, words()};
    case 10: return abort_update{some_update(), 1, words()};
    case 11: return answer(some_update(), from_.flip(), from_.flip() ? 43 : 0);
    case 12: return need_placement{some_update()};
    case 13: return need_segment{some_update(), first_segment_ + from_.below(3), from_.below(48)};
    case 14: {
      unmapped all;
      for (unsigned n = from_.below(4); n > 0; --n) all.segments.push_back(1 + from_.below(8));
      return all;
    }
    default:
      switch (from_.below(4)) {
      case 0: return goodbye{0, words()};
      case 1: return alive{some_update()};
      case 2: return question(from_.flip());
      default: return aborted{some_update()};
      }
    }
  }

  /// What the model takes from a message; the machine may take it as a breach and drop the peer.
  void say_to_machine(peer_id id, protocol::message const& m) {
    peer& p = peers_.at(id);
    if (auto const* r = std::get_if<ring_mapped>(&m)) {
      if (p.offered.count(r->ring) && p.answered.insert(r->ring).second) p.mapped_rings.insert(r->ring);
    } else if (auto const* not_mapped = std::get_if<ring_refused>(&m)) {
      p.answered.insert(not_mapped->ring);
    } else if (auto const* a = std::get_if<accept>(&m)) {
      if (a->update == update_ && p.begun && !p.decided && !p.stopped) {
        p.accepted = p.decided = true;
        p.mapped = a->mapped == 1;
        if (!p.mapped) does_not_read(p);
        skip(p);
      } else if (a->update == update_ && p.stopped && p.itself && !p.accepted) { // it has crossed our abort
        p.accepted = true;
        p.mapped = a->mapped == 1;
      }
    } else if (auto const* want = std::get_if<need_segment>(&m)) {
      if (p.begun && want->update == update_ && !p.decided && !p.owes) p.asked.insert(want->segment);
    } else if (auto const* done = std::get_if<unmapped>(&m)) {
      for (auto const segment : done->segments) p.unmapping.erase(segment);
    } else if (auto const* no = std::get_if<refuse>(&m)) {
      if (no->update == update_) turned_down(p);
    } else if (auto const* later = std::get_if<not_now>(&m)) {
      if (later->update == update_) turned_down(p);
    } else if (auto const* back = std::get_if<released>(&m)) {
      auto const had = std::erase_if(p.holds, [&](hold const& h) { return h.seq == back->seq; });
      if (had != 0 && back->update == update_) ++p.released;
    } else if (auto const* all = std::get_if<all_copied>(&m)) {
      if (all->update == update_ && all->digest == digest_of(true)) p.all_copied = true;
      if (all->update == update_ && p.itself) {
        bool const may = p.reads && p.accepted && p.mapped && !p.gave_up && (!p.owes || p.stopped);
        if (may && all->digest == bytes16{}) {
          p.reads = false;
          p.commit = !p.stopped; // else it may have looked before our abort
          p.unanswered = update_;
          p.commit_at = now_;
        }
      } else if (all->update == update_ && !p.owes && !p.stopped) {
        p.reads = false;
      }
    } else if (auto const* c = std::get_if<committed>(&m)) {
      bool const crossed = p.itself && p.stopped && p.owes && p.all_copied && p.unanswered == update_;
      if (c->update == update_ && ((p.commit && !p.owes) || crossed))
        p.committed = true; // who has given up has not
      p.unanswered = 0;
    } else if (std::holds_alternative<failed>(m)) {
      p.unanswered = 0;
    } else if (auto const* ab = std::get_if<abort_update>(&m)) {
      if (ab->update == p.update) {
        bool const owed = std::exchange(p.owes, true);
        if (!owed) p.owes_at = now_;
        if (ab->update == update_) { // and not one that it still owes for, while the next has begun
          p.decided = p.gave_up = true;
          if (!owed && !p.accepted) does_not_read(p);
        }
      }
      p.unanswered = 0;
    } else if (auto const* over = std::get_if<aborted>(&m)) {
      if (over->update == p.update) {
        p.owes = p.reads = false;
        if (p.itself) p.unanswered = 0;
        p.holds.clear();
      }
    }
    machine_.received(id, m, now_);
  }

  /// Of one that was told to read before it had accepted.
  static void does_not_read(peer& p) { p.told = p.reads = p.itself = false; }
  void turned_down(peer& p) {
    if (p.begun && !p.accepted && !p.stopped && !p.owes) does_not_read(p);
    p.decided = true;
  }

  /// Over buckets that a receiver which maps is not published.
  void skip(peer& p) {
    while (p.mapped && p.next_bucket < facts_.needed.size() && !facts_.needed[p.next_bucket]) ++p.next_bucket;
  }

  // ---- actions ----

  slot_content& content(std::uint32_t ring, std::uint32_t slot) {
    auto& slots = memory_[ring];
    slots.resize(slots_);
    promise(slot < slots_, "slots are within the ring");
    return slots[slot];
  }

  void fill(std::uint32_t ring, std::uint32_t slot, std::uint64_t seq) {
    promise(rings_made_.count(ring) == 1 && rings_wanted_.count(ring) == 0,
            "only a ring that is there is filled");
    auto& now = content(ring, slot);
    promise(!now.writing, "one filling of a slot at a time");
    for (auto const& [id, p] : peers_)
      for (auto const& h : p.holds)
        promise(h.ring != ring || h.slot != slot, "no slot is filled again while a receiver reads it");
    for (auto const& c : copies_)
      promise(!c.relay || ring != facts_.ring || c.from != slot,
              "no slot is filled again while it is relayed");
    now = {seq, true};
  }

  void settle() {
    machine_.take(actions_);
    for (auto& a : actions_) std::visit([this](auto& what) { act(what); }, a);
    promise(machine_.updating() != finished_, "an update runs until it is finished");
    promise(!machine_.wants_held() || deliver_asked_, "what is wanted was asked for");
    promise(machine_.unmapping() ==
                static_cast<std::size_t>(std::count_if(
                    peers_.begin(), peers_.end(), [](auto const& p) { return !p.second.unmapping.empty(); })),
            "who has not unmapped yet is counted");
    if (cut_.empty()) return;
    auto const id = *cut_.begin();
    cut_.erase(id);
    if (peers_.count(id) == 0) return settle(); // it has broken the protocol, or said goodbye
    if (from_.below(4) == 3) {                  // it had said more
      say_to_machine(id, alive{update_});
      settle();
    }
    if (forget(id)) machine_.gone(id, errc::peer_gone, "its\nconnection", now_);
    settle();
  }

  void act(send_action::say& a) {
    encode(a.what, encoded_); // whatever is said can be sent
    if (joining_ == a.to && !peers_.count(a.to)) {
      promise(std::holds_alternative<turned_away>(a.what), "who is too many is turned away");
      return;
    }
    auto const at = peers_.find(a.to);
    promise(at != peers_.end(), "nothing is said to who is not there");
    std::visit([&](auto const& m) { said(at->second, m); }, a.what);
  }
  void said(peer& p, welcome const&) {
    promise(!std::exchange(p.greeted, true), "welcome once");
    if (p.group.empty()) return;
    std::uint32_t members = 0;
    for (auto const& [id, other] : peers_) {
      if (!other.greeted || other.group != p.group) continue;
      promise(other.group_size == p.group_size, "members agree how many they are");
      ++members;
    }
    promise(members <= p.group_size, "a group is not larger than it says");
  }
  void said(peer& p, turned_away const&) { promise(!p.greeted, "who was greeted is not turned away"); }
  void said(peer& p, ring const& r) {
    promise(p.greeted && p.offered.insert(r.id).second, "a ring is offered once");
    promise(rings_made_.count(r.id) == 1 && rings_wanted_.count(r.id) == 0,
            "only a ring that is there is offered");
    promise(r.slots == slots_ && r.slot_bytes == 1 << 16, "a ring is what it is");
  }
  void said(peer& p, begin const& b) {
    promise(p.greeted && b.update == update_ && !p.begun, "begin once, to who was greeted");
    promise(!p.owes, "no begin before the last update has ended");
    promise(!streaming_, "who takes part is settled before the first bucket");
    promise(b.buckets == facts_.bucket_bytes.size() && b.placement == facts_.placement,
            "begin says how many buckets there are, and where the tensors lie");
    promise(b.digests == facts_.digests && (b.digests == 0 || b.digests == p.table),
            "and in which table its digests come, which was given");
    p.begun = true;
    p.was_given_held = p.was_given_held || facts_.held;
    p.update = b.update;
  }
  void said(peer& p, digest_table const& t) {
    promise(p.greeted && !p.begun && t.id > p.table && t.id == facts_.digests,
            "a table is given before the update that needs it, each once");
    p.table = t.id;
  }
  void said(peer& p, digests_ready const& m) {
    promise(m.update == update_ && p.accepted && !p.stopped && !p.owes && !p.has_digests && digested_,
            "digests_ready once, to who has accepted, when they were computed");
    p.has_digests = true;
  }
  void said(peer& p, manifest_follows const& m) {
    promise(p.begun && m.update == update_ && !p.decided, "a manifest for who asked, before its decision");
  }
  void said(peer& p, placement_follows const& m) {
    promise(p.begun && m.update == update_ && !p.decided && facts_.placement != 0,
            "a placement for who asked, before its decision");
  }
  void said(peer& p, read_mapped const& m) {
    promise(m.update == update_ && p.begun && !p.stopped && !p.owes && !p.told, "read_mapped once");
    bool const at_once = !p.accepted;
    bool const needs_buckets =
        std::find(facts_.needed.begin(), facts_.needed.end(), true) != facts_.needed.end();
    promise(at_once ? !p.decided && p.group.empty() && !needs_buckets : p.mapped,
            "to who has accepted so, or with the announcement to who waits for nothing else");
    promise(source_ready_ && !source_free_ && !drain_said_, "while the tensors are ready");
    if (!p.group.empty())
      for (auto const& [id, other] : peers_)
        promise(other.group != p.group || present_.count(id) == 0 || (facts_.held && !other.begun) ||
                    (other.accepted && !other.owes),
                "to a group when all its members take part");
    promise(m.commits_itself <= 1, "with or without a commit to follow");
    promise(m.commits_itself == 0 ||
                (facts_.waited_for && p.group.empty() && !needs_buckets && facts_.digests == 0),
            "without, to who has nothing to wait for, where the tensors stay as they are until the end");
    p.told = p.reads = true;
    p.itself = m.commits_itself == 1;
  }
  void said(peer& p, unmap const& m) {
    promise(!m.segments.empty() && m.segments.size() <= max_unmap, "unmap names some, and not too many");
    for (auto const segment : m.segments) {
      promise(p.asked.erase(segment) == 1 && p.unmapping.insert(segment).second,
              "what was asked for is wanted back once");
      promise(finished_ || segment < facts_.placement || facts_.placement == 0, "and not while it is used");
    }
  }
  void said(peer& p, published const& b) {
    streaming_ = true;
    promise(b.update == update_ && p.accepted && !p.stopped && !p.owes, "buckets are for who accepted");
    promise(p.mapped_rings.count(b.ring) == 1, "and mapped the ring");
    promise(b.bucket == p.next_bucket++,
            "buckets come in order, each once, and to who maps only what it needs");
    skip(p);
    ++p.published;
    promise(p.mapped || unmapped_only_.count(b.seq) == 0, "who does not map gets whole buckets");
    promise(b.seq > p.last_seq, "seq grows");
    p.last_seq = b.seq;
    promise(bucket_of_.count(b.seq) == 1 && bucket_of_[b.seq] == b.bucket, "a filling is of one bucket");
    promise(b.bytes == facts_.bucket_bytes.at(b.bucket), "with its size");
    promise(ready_seqs_.count(b.seq) == 1, "a bucket is published when it was packed");
    auto const& slot = content(b.ring, b.slot);
    promise(slot.seq == b.seq && !slot.writing, "a published slot holds its bucket");
    p.holds.push_back({b.seq, b.ring, b.slot});
    for (auto const& [id, other] : peers_)
      promise(!other.begun || other.decided || other.stopped, "nothing is published before all have decided");
  }
  void said(peer& p, commit const& c) {
    promise(one_line(c.text), "why its bytes came so is one line");
    promise(c.update == update_ && !p.commit && !p.stopped && !p.itself, "commit once, if at all");
    promise(facts_.digests == 0 || (p.has_digests && digested_), "commit only after digests were compared");
    promise(p.all_copied && p.accepted && p.released == expected(p) && p.holds.empty(),
            "commit only after all buckets were released and all_copied was said");
    promise(!p.mapped || (p.told && !p.reads), "and the tensors were read");
    promise(!facts_.only_mapped || p.mapped, "on the mapped route, where no other is allowed");
    if (!p.group.empty())
      for (auto const& [id, other] : peers_)
        promise(other.group != p.group || !other.begun || other.all_copied,
                "commit to a group when all its members have all");
    p.commit = true;
    p.unanswered = update_;
    p.commit_at = now_;
  }
  void said(peer& p, abort_update const& a) {
    promise(a.update == update_ && p.begun && !p.commit && !p.stopped,
            "an abort is for an update that it knows");
    p.owes = p.stopped = true;
    p.owes_at = now_;
  }
  void said(peer& p, alive const& a) { promise(p.begun && a.update == update_, "alive is about the update"); }
  void said(peer&, goodbye const&) {}
  void said(peer& p, seen_receiver const& r) {
    promise(!p.greeted, "a receiver is not told of the others");
    promise(r.bytes_released <= facts_.total_bytes && (r.holds_version || r.version == 0),
            "what is told of a receiver can be so");
    ++p.seen;
  }
  void said(peer& p, seen_sender const& s) {
    promise(!p.greeted, "a receiver is not told how the sender is");
    p.watches = true;
    auto const greeted = static_cast<std::size_t>(
        std::count_if(peers_.begin(), peers_.end(), [](auto const& one) { return one.second.greeted; }));
    promise(s.receivers == greeted && std::exchange(p.seen, 0u) == s.receivers, "everybody is told of, once");
    promise((s.updating != 0) == machine_.updating(), "and whether an update runs");
  }
  template <class Other>
  void said(peer&, Other const&) {
    promise(false, "a sender says only what a sender says");
  }

  void act(send_action::make_ring& a) {
    promise(rings_made_.insert(a.ring).second, "a ring is made once");
    rings_wanted_.insert(a.ring);
  }
  void act(send_action::pack& a) {
    promise(!drain_said_ && !source_free_, "nothing is packed after drain or source_free");
    promise((facts_.placement != 0 ? a.bucket >= next_packed_ : a.bucket == next_packed_) &&
                bucket_of_.emplace(a.seq, a.bucket).second,
            "each is packed once");
    next_packed_ = a.bucket + 1;
    if (a.unmapped_only) unmapped_only_.insert(a.seq);
    promise(!a.unmapped_only || facts_.needed.at(a.bucket), "what nobody needs is not packed");
    promise(a.seq > last_packed_, "in the order of seq");
    promise(!a.beside_link || facts_.ring != host_ring, "no link reads the host ring");
    for (auto const& [id, p] : peers_)
      promise(!a.beside_link || !p.accepted || p.all_copied || p.stopped || p.gave_up ||
                  p.device != facts_.device,
              "who copies where the ring lies is not kept waiting");
    last_packed_ = a.seq;
    fill(facts_.ring, a.slot, a.seq);
    copies_.push_back({false, a.seq, 0, a.slot});
  }
  void act(send_action::relay& a) {
    promise(!drain_said_, "nothing is relayed after drain");
    auto const& source = content(facts_.ring, a.from);
    promise(source.seq == a.seq && !source.writing, "what is relayed was packed");
    promise(facts_.ring != host_ring && a.bytes == facts_.bucket_bytes.at(bucket_of_.at(a.seq)),
            "and no more");
    fill(host_ring, a.to, a.seq);
    copies_.push_back({true, a.seq, a.from, a.to});
  }
  void act(send_action::await_source&) {
    promise(facts_.placement != 0 && !std::exchange(source_asked_, true), "the tensors are waited for once");
  }
  void act(send_action::digest_source&) {
    promise(facts_.digests != 0 && !source_free_ && !drain_said_ && !std::exchange(digest_asked_, true),
            "digests are computed once");
  }
  void act(send_action::send_parts& a) {
    auto const& p = peers_.at(a.to);
    promise(p.begun && !p.decided && !p.stopped && a.update == update_, "parts are for who decides");
    bool found = false;
    for (auto const& one : facts_.segments)
      found = found || (one.id == a.segment && a.count > 0 && a.count <= segment_batch &&
                        a.first < one.parts && a.count <= one.parts - a.first);
    promise(found, "and of the update's placement, a batch at a time");
    exports_.push_back(a);
  }
  void act(send_action::cut& a) {
    auto const at = peers_.find(a.peer);
    promise(at != peers_.end() && at->second.itself && one_line(a.text),
            "who may commit by itself is cut off");
    cut_.insert(a.peer);
  }
  void act(send_action::drop& a) {
    promise(one_line(a.text), "a drop has one line");
    if (joining_ == a.peer && !peers_.count(a.peer)) {
      refused_ = a.peer;
      return;
    }
    if (a.peer == joining_) refused_ = a.peer;
    promise(forget(a.peer), "nobody is dropped twice");
  }
  void act(send_action::source_free&) {
    promise(!std::exchange(source_free_, true), "source_free once");
    for (auto const& c : copies_) promise(c.relay, "the source is free when no pack runs");
    promise(!digest_asked_ || digested_ || drain_said_, "and no digest is computed");
    nobody_reads();
  }
  void act(send_action::deliver_held&) {
    promise(!machine_.updating(), "nothing is asked for while an update runs");
    auto const lately = std::count_if(left_.begin(), left_.end(), [&](auto t) { return now_ - t < 10s; });
    promise(lately <= turnover_ || now_ >= rest_until_,
            "when many have left after a delivery, there is a rest before the next");
    deliver_asked_ = true;
  }
  void act(send_action::drain&) {
    promise(!std::exchange(drain_said_, true), "drain once");
    drain_wanted_ = true;
  }
  void act(send_action::finished& f) {
    promise(source_free_, "source_free before finished");
    promise(copies_.empty() && !drain_wanted_, "no copy runs when the update is finished");
    promise(one_line(f.text), "its reason is one line");
    nobody_reads();
    promise(facts_.held ? f.results.size() <= present_.size() : f.results.size() == present_.size(),
            "one result for each receiver that was there; or for some, of what is held");
    if (facts_.held) {
      rest_until_ = now_ + std::clamp<duration>(now_ - began_, 1s, 10s);
      for (auto const id : present_)
        promise(
            !peers_.count(id) || !peers_[id].begun ||
                std::any_of(f.results.begin(), f.results.end(), [&](auto const& r) { return r.peer == id; }),
            "for all that it was announced to");
    }
    for (auto const& r : f.results) {
      promise(present_.erase(r.peer) == 1 && one_line(r.text) && one_line(r.name) && one_line(r.route_reason),
              "results are about them");
      promise(r.copied == copied_by(0, update_) || r.copied == copied_by(r.peer, update_) ||
                  (r.copied == 0 && r.what != outcome::committed),
              "and have their own bytes");
      bool const is_there = peers_.count(r.peer) == 1;
      promise(!r.mapped || facts_.placement != 0, "nobody maps what is not placed");
      if (r.what == outcome::committed)
        promise(!is_there || peers_[r.peer].committed, "who is reported as committed has said so");
      else if (is_there)
        promise(!peers_[r.peer].committed || r.what == outcome::unconfirmed, "who committed is reported so");
      promise((r.what == outcome::committed) == r.text.empty(), "there is a reason where one is needed");
    }
    finished_ = true;
  }

  void nobody_reads() const {
    for (auto const& [id, p] : peers_)
      promise(!p.reads, "the tensors are free when nobody who is there reads them");
  }

  void wind_down() {
    machine_.end_hold(now_);
    settle();
    promise(!machine_.wants_held(), "nobody is given what is held no more");
    for (unsigned i = 0; machine_.updating(); ++i) {
      promise(i < 200, "every update comes to its end");
      auto const before = now_;
      while (!rings_wanted_.empty()) ring_made(true), settle();
      while (!copies_.empty()) copied(), settle();
      while (!exports_.empty()) exported(), settle();
      source_ready();
      digested();
      drain_done();
      settle();
      if (!machine_.updating()) break;
      if (!copies_.empty() || !rings_wanted_.empty() || drain_wanted_) continue;
      auto const next = machine_.deadline();
      promise(next.has_value(), "who waits for somebody has a deadline");
      now_ = std::max(now_, *next);
      machine_.tick(now_);
      settle();
      // Peers that say nothing are dropped; `alive` is said to them meanwhile.
      promise(now_ - before < 100s, "a deadline is near");
    }
    machine_.close("the end", now_);
    settle();
    promise(peers_.empty() && machine_.greeted() == 0, "nobody is left");
  }

  choices from_;
  std::vector<sender_action> actions_;
  std::vector<std::byte> encoded_;
  std::uint32_t slots_;
  duration commit_limit_{}; ///< of the machine's settings, as is how many may leave before there is a rest
  std::uint32_t turnover_ = 0;
  sender_machine machine_;
  time_point now_ = time_point{} + 1h;
  bool closed_ = false;
  peer_id next_id_ = 1;
  std::optional<peer_id> joining_, refused_;
  std::map<peer_id, peer> peers_;
  std::set<peer_id> present_;
  std::set<std::uint32_t> rings_made_, rings_wanted_;
  std::deque<copy> copies_;
  std::map<std::uint32_t, std::vector<slot_content>> memory_;
  update_facts facts_;
  std::uint64_t update_ = 0, last_update_ = 0, last_packed_ = 0;
  std::map<std::uint64_t, std::uint32_t> bucket_of_;
  std::set<std::uint64_t> ready_seqs_;
  bool drain_said_ = false, drain_wanted_ = false, source_free_ = false, streaming_ = false;
  bool finished_ = true;
  bool source_asked_ = false, source_ready_ = false;
  bool digest_asked_ = false, digested_ = false;
  bool deliver_asked_ = false;
  std::vector<time_point> left_; ///< when somebody left to whom what is held had been announced
  time_point began_{}, rest_until_{};
  std::uint64_t table_ = 0;
  std::uint32_t next_packed_ = 0;
  std::set<peer_id> cut_;                              ///< whose end is still to be heard
  std::set<std::uint64_t> unmapped_only_;              ///< fillings that only who maps can use
  std::uint64_t first_segment_ = 2, next_segment_ = 2; ///< where the tensors lie now
  std::deque<send_action::send_parts> exports_;
};

/// Any steps of a ledger, also those that are its driver's error, beside the plainest books.
void keep_books(choices& from) {
  struct book {
    bool taken = false, filled = false;
    std::uint64_t seq = 0;
    std::set<plan::reader_id> readers;
  };
  std::uint32_t const slots = 1 + from.below(4);
  plan::slot_ledger ledger(slots);
  std::vector<book> books(slots);
  std::vector<std::uint32_t> free; // longest first
  for (std::uint32_t i = 0; i < slots; ++i) free.push_back(i);
  std::uint64_t seq = 0;
  auto const freed = [&](std::uint32_t slot) {
    books[slot] = {};
    free.push_back(slot);
  };
  auto const attempt = [](bool allowed, auto step) {
    bool refused = false;
    try {
      step();
    } catch (std::logic_error const&) { refused = true; }
    promise(refused != allowed, "the steps that are in the picture are taken, and no others");
  };
  for (unsigned i = 0; i < 100 && !from.empty(); ++i) {
    auto const how = from.byte();
    std::uint32_t const slot = how / 8 % slots;
    plan::reader_id const reader = how / 64;
    auto& b = books[slot];
    switch (how % 8) {
    case 0:
    case 1: {
      auto const got = ledger.start_filling(++seq);
      promise(got.has_value() == !free.empty() && (!got || *got == free.front()),
              "the slot that has been free longest is filled");
      if (!got) break;
      free.erase(free.begin());
      books[*got] = {true, false, seq, {}};
      break;
    }
    case 2: {
      bool const allowed = b.taken && !b.filled;
      attempt(allowed, [&] { ledger.filled(slot); });
      if (allowed) b.filled = true;
      break;
    }
    case 3:
    case 4: {
      bool const allowed = b.taken && b.readers.count(reader) == 0;
      attempt(allowed, [&] { ledger.hold(slot, reader); });
      if (allowed) b.readers.insert(reader);
      break;
    }
    case 5: {
      bool const had = b.readers.erase(reader) == 1;
      promise(ledger.release(slot, reader) == had, "a hold ends once");
      if (had && b.filled && b.readers.empty()) freed(slot);
      break;
    }
    case 6: {
      std::uint32_t ended = 0;
      for (std::uint32_t s = 0; s < slots; ++s) {
        if (books[s].readers.erase(reader) == 0) continue;
        ++ended;
        if (books[s].filled && books[s].readers.empty()) freed(s);
      }
      promise(ledger.release_all(reader) == ended, "all holds of a reader end");
      break;
    }
    default: {
      bool const allowed = b.taken && b.readers.empty();
      attempt(allowed, [&] { ledger.give_back(slot); });
      if (allowed) freed(slot);
    }
    }
    promise(ledger.slots() == slots && ledger.taken() == slots - free.size(), "slots are counted");
    for (std::uint32_t s = 0; s < slots; ++s) {
      promise(ledger.is_free(s) != books[s].taken, "a slot is free or taken");
      if (!books[s].taken) continue;
      promise(ledger.seq(s) == books[s].seq && ledger.find(books[s].seq) == s, "a filling is found");
      promise(ledger.holds(s, reader) == (books[s].readers.count(reader) == 1), "holds are known");
    }
    promise(!ledger.find(seq + 1), "a filling that was never is not found");
  }
}

} // namespace

void sender(input bytes) {
  choices from(bytes);
  if (!bytes.empty() && bytes.front() == 255) {
    (void)from.byte();
    return keep_books(from);
  }
  game(from).play();
}

} // namespace ropeway::fuzz
