// The receiver's machine before a sender that says anything at any time, and a driver that keeps its side of
// receiver_machine.hpp. A model beside it holds what must not happen: no byte beyond a ring, no commit of
// what was not loaded.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "choices.hpp"
#include "protocol/codec.hpp"
#include "protocol/receiver_machine.hpp"

namespace ropeway::fuzz {
namespace {

using namespace ropeway::protocol;
using namespace std::chrono_literals;

bool one_line(std::string const& text) { return text.find_first_of("\r\n") == std::string::npos; }

class game {
 public:
  explicit game(input bytes) : from_(bytes), how_(from_.byte()), machine_(settings(how_)) {}

  void play() {
    if (from_.below(64) != 63) machine_.connected(now_);
    settle();
    switch (from_.below(16)) {
    case 15: break;
    case 14: machine_.received(other_greeting(), now_); break;
    default: machine_.received(greeting(), now_);
    }
    settle();
    for (unsigned i = 0; i < 300 && !from_.empty(); ++i) {
      event();
      settle();
    }
    wind_down();
  }

 private:
  static constexpr std::uint64_t bucket_bytes = 4096;
  /// The largest bucket that is allowed.
  static std::uint64_t most(unsigned how) { return std::uint64_t{1} << (how & 4 ? 63 : 20); }
  static bool maps(unsigned how) { return (how & 8) != 0; }
  struct slot {
    std::uint64_t seq;
    std::uint32_t ring, number;
  };

  static receiver_settings settings(unsigned how) {
    receiver_settings s;
    s.greeting.name = how & 1 ? std::string(400, 'n') : "r\n1";
    if (how & 2) s.greeting.devices.resize(1);
    s.max_slots = 4;
    s.max_bucket_bytes = most(how);
    s.max_manifest_bytes = 5000;
    s.maps = maps(how);
    return s;
  }
  static welcome greeting() {
    welcome w;
    w.version = version_max;
    w.bucket_bytes = bucket_bytes;
    w.silence_ms = 9000;
    return w;
  }

  /// A welcome that a receiver may have to refuse.
  welcome other_greeting() {
    auto w = greeting();
    switch (from_.below(4)) {
    case 0: w.version = static_cast<std::uint16_t>(from_.byte()); break;
    case 1: w.bucket_bytes = from_.number(); break;
    case 2: w.silence_ms = 0; break;
    default: w.silence_ms = static_cast<std::uint32_t>(from_.number());
    }
    return w;
  }

  // ---- events ----

  void event() {
    switch (from_.below(28)) {
    case 0: return pass(std::chrono::milliseconds(from_.byte() * 90));
    case 1: return pass(std::chrono::milliseconds(from_.byte()));
    case 2:
    case 3: return ring_done();
    case 4:
    case 5:
    case 6: return answer();
    case 7:
    case 8: return bucket_done();
    case 9: return commit_answered();
    case 10: return drain_done();
    case 11:
      if (from_.below(4) == 0) machine_.give_up(errc::loader_failed, "loader\nthrew", now_);
      return;
    case 12:
      switch (from_.below(16)) {
      case 0: return machine_.close("good\nbye", now_);
      case 1: return machine_.gone(errc::peer_gone, "the\nend", now_);
      case 2:
      case 3: return change_hands();
      default: return in_place();
      }
    case 13: return machine_.received(foreign(), now_);
    case 24:
      if (comparing_) return compared();
      return source_read();
    case 25: return unmapped();
    default: return machine_.received(plausible(), now_);
    }
  }

  /// The machine lives on elsewhere.
  void change_hands() {
    receiver_machine other = machine_.clone();
    receiver_machine next(std::move(other));
    promise(next.deadline() == machine_.deadline() && next.updating() == machine_.updating() &&
                next.greeted() == machine_.greeted() && next.over() == machine_.over(),
            "a clone is in the same state");
    machine_ = std::move(next);
  }

  void pass(duration d) {
    now_ += d;
    machine_.tick(now_);
    auto const next = machine_.deadline();
    promise(!next || *next > now_, "what was due is done");
  }

  void ring_done() {
    if (mapping_.empty()) return;
    auto const number = *mapping_.begin();
    mapping_.erase(number);
    if (from_.below(8) == 7) return machine_.ring_refused(number, errc::bad_region, "not\nmapped", now_);
    mapped_.insert(number);
    machine_.ring_mapped(number, now_);
  }

  /// The driver's or the embedder's answer to the question that is open.
  void answer() {
    auto const asked = std::exchange(question_, question::none);
    auto const how = from_.byte();
    switch (asked) {
    case question::none: return;
    case question::known:
      if (how % 4 == 0) return machine_.manifest_unknown(now_);
      [[fallthrough]];
    case question::manifest: {
      if (how == 255) return machine_.manifest_bad(errc::protocol_error, "a bad\nmanifest", now_);
      // A manifest that was checked has the counts of begin; here it may also be another.
      std::vector<std::uint64_t> sizes(std::min<std::uint32_t>(current_.buckets, 50), 1 + how);
      if (how == 254) sizes.assign(sizes.size(), bucket_bytes + 1);
      if (how == 253) sizes.push_back(1);
      sizes_ = sizes;
      return machine_.manifest_known(std::move(sizes), now_);
    }
    case question::known_placement:
      if (how % 4 == 0) return machine_.placement_unknown(now_);
      [[fallthrough]];
    case question::placement:
      if (how == 255 && asked == question::placement)
        return machine_.placement_bad(errc::protocol_error, "a bad\nplacement", now_);
      needed_.clear();
      for (unsigned b = 0; b < how / 64u + 2; ++b) needed_.push_back((how / 4 >> b & 1) != 0);
      placed_known_ = true;
      return machine_.placement_known(needed_, now_);
    case question::offer:
      if (how < 200 && placed_known_ && how % 8 == 5) return ask_for_segment(how);
      if (how < 200 && how % 4 == 2) { // one that does not know where asks in vain
        receiver_machine::acceptance as;
        as.mapped = how % 8 == 6;
        if (!as.mapped) {
          as.code = errc::not_reachable;
          as.text = "not\nhere";
        }
        accepted_ = true;
        mapped_source_ = as.mapped && placed_known_;
        needed_.resize(current_.buckets <= 50 ? current_.buckets : 0, true);
        skip();
        return machine_.accept_update(now_, std::move(as));
      }
      if (how < 200) {
        by_hand_ = how % 4 == 3;
        accepted_ = true;
        return machine_.accept_update(now_, by_hand_);
      }
      if (how < 220) return machine_.refuse_update(errc::destination_mismatch, "does not\nfit", now_);
      return machine_.not_now_update(std::chrono::milliseconds(how == 221 ? -5 : 100), "busy\n", now_);
    }
  }

  /// Wants a part of the sender's memory mapped; the offer stays open.
  void ask_for_segment(unsigned how) {
    question_ = question::offer;
    asked_ = segment_part{};
    asked_.update = update_;
    asked_.segment = 1 + how / 8 % 3;
    asked_.part = how / 64;
    std::uint32_t const parts = how / 32 % 2 == 0 ? asked_.part + 2 : 40;
    parts_end_ = placed_known_ ? asked_.part + std::min(segment_batch, parts - asked_.part) : 0;
    machine_.need_segment(asked_.segment, asked_.part, parts, now_);
  }

  void source_read() {
    if (!reads_source_ || draining_) return;
    reads_source_ = false;
    has_source_ = true;
    machine_.mapped_read(now_);
  }

  void compared() {
    if (!comparing_ || draining_) return;
    comparing_ = false;
    if (from_.below(8) == 7) return machine_.give_up(errc::digest_mismatch, "it\ndiffers", now_);
    compared_ = true;
    machine_.digests_agree({7}, now_);
  }

  void unmapped() {
    if (to_unmap_.empty()) return;
    machine_.unmapped(std::exchange(to_unmap_, {}), now_);
  }

  void bucket_done() {
    if (loading_.empty()) return;
    auto const at = loading_.begin() + from_.byte() % static_cast<std::ptrdiff_t>(loading_.size());
    auto const seq = at->seq;
    reading_.erase({at->ring, at->number});
    loading_.erase(at);
    loaded_.insert(seq);
    ++loads_;
    machine_.loaded(seq, now_);
  }

  void in_place() {
    if (!by_hand_ || !accepted_ || draining_) return;
    machine_.in_place(now_);
    placed_ = true;
  }

  void commit_answered() {
    if (!std::exchange(commit_asked_, false)) return;
    if (from_.below(4) == 0) return machine_.commit_failed(errc::loader_failed, "commit\nthrew", now_);
    committed_ = current_.update;
    machine_.commit_done(now_);
  }

  void drain_done() {
    if (!std::exchange(draining_, false)) return;
    loading_.clear();
    reading_.clear();
    reads_source_ = comparing_ = false;
    machine_.drained(now_);
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
    return which < 240 ? update_ : which < 250 ? update_ + 1 : from_.number();
  }

  protocol::message about_memory() {
    auto const how = from_.byte();
    switch (how % 4) {
    case 0: return placement_follows{some_update(), how < 240 ? 100 : from_.number()};
    case 1: {
      protocol::read_mapped order{some_update()};
      order.commits_itself = how >= 250 ? 2 : how / 4 % 4 == 3;
      return order;
    }
    case 2: {
      if (how >= 128) return about_digests(how);
      unmap back;
      for (unsigned n = how / 4 % 4; n > 0; --n) back.segments.push_back(n);
      return back;
    }
    default: {
      auto part = asked_;
      part.kind = how / 4 % 4;
      part.bytes = how;
      if (how >= 200) part.code = 43;
      if (how >= 220) part.part += 1;
      if (how >= 240) part.segment += 1;
      if (how >= 250) part.update = some_update();
      return part;
    }
    }
  }

  protocol::message about_digests(unsigned how) {
    if (how % 8 < 4) return digests_ready{some_update()};
    digest_table next{table_ + 1, 160};
    if (how % 32 == 12) next.bytes = from_.number();
    if (how % 32 == 20) next.id = from_.number();
    return next;
  }

  /// Over buckets that a receiver which maps is not published.
  void skip() {
    while (mapped_source_ && next_bucket_ < needed_.size() && !needed_[next_bucket_]) ++next_bucket_;
  }
  std::uint32_t expected() const {
    if (!mapped_source_) return current_.buckets;
    return static_cast<std::uint32_t>(std::count(needed_.begin(), needed_.end(), true));
  }

  protocol::message plausible() {
    switch (from_.below(20)) {
    case 16:
    case 17:
    case 18:
    case 19: return about_memory();
    case 0: {
      ring r;
      r.id = from_.below(4);
      auto const how = from_.byte();
      r.on_device = how == 1 ? 2 : r.id != 0;
      if (r.on_device == 1 || how == 2) r.origin[2] = 1;
      r.slot_bytes = bucket_bytes + how % 3 * 512u;
      r.slots = 1 + how / 4 % 4;
      if (how == 255) r.slot_bytes = from_.number();
      if (how == 254) r.slots = static_cast<std::uint32_t>(from_.number());
      return r;
    }
    case 1:
    case 2:
    case 3: {
      begin b;
      b.update = from_.below(8) == 7 ? from_.number() : update_ + 1;
      auto const how = from_.byte();
      b.buckets = how < 250 ? how % 5 : static_cast<std::uint32_t>(from_.number());
      b.version = how;
      b.placement = how / 5 % 3;
      b.digests = how % 16 < 4 ? table_ : how == 241 ? table_ + 1 : 0;
      return b;
    }
    case 4: return manifest_follows{some_update(), from_.flip() ? 100 : from_.number()};
    case 5:
    case 6:
    case 7:
    case 8:
    case 9: {
      published p;
      p.update = some_update();
      auto const how = from_.byte();
      p.seq = how < 240 ? ++seq_ : from_.number();
      p.bucket = next_bucket_;
      p.ring = how % 4;
      p.slot = how / 4 % 4;
      p.bytes = p.bucket < sizes_.size() ? sizes_[p.bucket] : 1;
      switch (how / 16) { // and one thing in it that is wrong
      case 10: p.bytes += 1 + from_.byte(); break;
      case 11: p.bucket = static_cast<std::uint32_t>(from_.number()); break;
      case 12: p.slot = static_cast<std::uint32_t>(from_.number()); break;
      case 13: p.ring = static_cast<std::uint32_t>(from_.number()); break;
      default: break;
      }
      return p;
    }
    case 10:
    case 11: return protocol::commit{some_update(), "not\nmapped"};
    case 12: return abort_update{some_update(), static_cast<std::uint16_t>(from_.below(3)), "not\nnow"};
    case 13: return alive{some_update()};
    case 14:
      switch (from_.below(8)) {
      case 0: return goodbye{static_cast<std::uint16_t>(from_.number()), "good\nbye"};
      case 1: return turned_away{static_cast<std::uint16_t>(from_.below(3)), "too\nmany"};
      case 2: return other_greeting();
      case 3: { // more rings than anybody has
        for (std::uint32_t id = 10; id < 80; ++id) machine_.received(ring{id, 0, {}, bucket_bytes, 1}, now_);
        return alive{0};
      }
      case 4: // words that move nothing, and no time between them
        for (int i = 0; i <= max_idle_messages; ++i) machine_.received(alive{update_}, now_);
        promise(machine_.over() || !hello_said_, "who says nothing without end is left");
        return alive{update_};
      default: return alive{update_};
      }
    default: return accept{update_};
    }
  }

  // ---- actions ----

  void settle() {
    machine_.take(actions_);
    for (auto& a : actions_) {
      promise(!closed_, "closed is the last");
      std::visit([this](auto& what) { act(what); }, a);
    }
    promise(machine_.over() == closed_, "it is over when closed was said");
    if (!std::exchange(looking_, false)) return;
    if (!closed_ && from_.below(4) == 3) {
      machine_.received(plausible(), now_);
      settle();
    }
    machine_.nothing_heard(now_);
    settle();
  }

  void act(receive_action::say& a) {
    encode(a.what, encoded_); // whatever is said can be sent
    std::visit([this](auto const& m) { said(m); }, a.what);
  }
  void said(hello const& hi) {
    promise(!std::exchange(hello_said_, true), "hello once");
    promise(hi.name.size() <= max_name && one_line(hi.name), "with a name that can be read");
  }
  void said(need_manifest const& m) {
    promise(m.update == update_ && !accepted_, "asks for what was announced");
  }
  void said(need_placement const& m) {
    promise(m.update == update_ && !accepted_ && maps(how_) && current_.placement != 0,
            "asks where the tensors lie, if it maps");
  }
  void said(need_segment const& m) {
    promise(m.update == update_ && !accepted_ && placed_known_, "asks for segments when it knows of them");
    promise(m.segment == asked_.segment && m.first_part == asked_.part, "and for what the driver wants");
  }
  void said(protocol::unmapped const& m) {
    promise(!m.segments.empty() && m.segments.size() <= max_unmap, "unmapped says what, and not too much");
  }
  void said(accept const& m) {
    promise(m.update == update_ && accepted_, "accepts what the embedder accepts");
    promise(m.mapped == (mapped_source_ ? 1 : 0) && one_line(m.text), "and as it does");
  }
  void said(refuse const& m) { over(m.update, m.text); }
  void said(not_now const& m) { over(m.update, m.text); }
  void said(released const& m) {
    promise(m.update == update_ && loaded_.erase(m.seq) == 1, "released once for each that was loaded");
    ++released_;
  }
  void said(all_copied const& m) {
    promise(m.update == update_ && accepted_ && !std::exchange(all_copied_, true), "all_copied once");
    promise(loads_ == expected() && released_ == loads_, "when all was loaded and released");
    promise(!mapped_source_ || has_source_, "and the tensors were read");
    promise(!by_hand_ || placed_, "and put in place");
    promise((current_.digests != 0) == compared_ && m.digest == (compared_ ? bytes16{7} : bytes16{}),
            "and compared, if there is what to compare with");
  }
  void said(committed const& m) {
    promise(m.update == update_ && committed_ == update_, "committed when it is");
    over(m.update, {});
  }
  void said(failed const& m) { over(m.update, m.text); }
  void said(abort_update const& m) { promise(m.update == update_ && one_line(m.text), "gives up what runs"); }
  void said(aborted const& m) {
    promise(m.update == update_ && !draining_, "aborted when no copy runs");
    promise(aborted_said_.insert(m.update).second, "aborted once");
  }
  void said(alive const& m) { promise(m.update == update_, "alive is about the update that runs"); }
  void said(goodbye const& m) { promise(one_line(m.text), "goodbye is one line"); }
  void said(ring_mapped const& m) { promise(mapped_.count(m.ring) == 1, "mapped when it is"); }
  void said(ring_refused const& m) {
    promise(mapped_.count(m.ring) == 0 && one_line(m.text), "refused when not");
  }
  template <class Other>
  void said(Other const&) {
    promise(false, "a receiver says only what a receiver says");
  }
  void over(std::uint64_t update, std::string const& text) {
    promise(update == update_ && !std::exchange(over_said_, true) && one_line(text), "one outcome an update");
  }

  void act(receive_action::greeted& a) {
    promise(hello_said_ && !std::exchange(greeted_, true), "greeted once");
    promise(a.bucket_bytes > 0 && a.bucket_bytes <= most(how_), "with buckets of a size that is allowed");
    bucket_limit_ = a.bucket_bytes;
  }
  void act(receive_action::map_ring& a) {
    promise(greeted_ && a.what.slots > 0 && a.what.slots <= 4, "a ring has slots, and not too many");
    promise(a.what.slot_bytes >= bucket_limit_ && a.what.slot_bytes <= most(how_), "as large as buckets");
    promise(rings_.emplace(a.what.id, a.what).second && rings_.size() <= 65, "rings are finite, each once");
    mapping_.insert(a.what.id);
  }
  void act(receive_action::look_up_manifest& a) {
    promise(greeted_ && !draining_ && a.what.update > update_, "one update at a time, with growing numbers");
    current_ = a.what;
    update_ = a.what.update;
    accepted_ = all_copied_ = placed_ = over_said_ = commit_asked_ = by_hand_ = abort_told_ = false;
    placed_known_ = mapped_source_ = told_to_read_ = reads_source_ = has_source_ = false;
    comparing_ = compared_ = looked_ = false;
    parts_end_ = 0;
    needed_.clear();
    loads_ = released_ = next_bucket_ = 0;
    loaded_.clear();
    loading_.clear();
    reading_.clear();
    sizes_.clear();
    question_ = question::known;
  }
  void act(receive_action::read_manifest& a) {
    promise(a.what.update == update_ && a.bytes > 0 && a.bytes <= 5000, "a manifest is not too large");
    question_ = question::manifest;
  }
  void act(receive_action::look_up_placement& a) {
    promise(maps(how_) && a.what.update == update_ && a.what.placement != 0,
            "who maps looks up what there is");
    question_ = question::known_placement;
  }
  void act(receive_action::read_placement& a) {
    promise(a.what.update == update_ && a.bytes > 0 && a.bytes <= 5000, "a placement is not too large");
    question_ = question::placement;
  }
  void act(receive_action::take_part& a) {
    promise(!accepted_ && a.what.update == update_ && a.what.segment == asked_.segment &&
                a.what.part == asked_.part && asked_.part < parts_end_,
            "parts come in order, and those that were asked for");
    ++asked_.part;
    promise(a.last == (asked_.part == parts_end_ || a.what.code != 0), "up to the last");
    if (a.last) parts_end_ = 0;
  }
  void act(receive_action::read_mapped& a) {
    promise(a.update == update_ && accepted_ && mapped_source_ && !draining_ &&
                !std::exchange(told_to_read_, true),
            "the tensors are read once, by who has accepted so");
    reads_source_ = true;
  }
  void act(receive_action::take_digest_table& a) {
    promise(greeted_ && a.id > table_ && a.bytes > 0 && a.bytes <= 5000 && a.bytes % 16 == 0,
            "tables have growing numbers, and sizes that are allowed");
    table_ = a.id;
  }
  void act(receive_action::check_digests& a) {
    promise(a.update == update_ && current_.digests == table_ && table_ != 0 && !draining_ && accepted_,
            "what is compared has a table");
    promise(loads_ == expected() && (!mapped_source_ || has_source_) && (!by_hand_ || placed_),
            "when everything is in place");
    promise(!compared_ && !std::exchange(comparing_, true), "once");
  }
  void act(receive_action::unmap& a) {
    promise(!a.segments.empty(), "unmap names some");
    to_unmap_.insert(to_unmap_.end(), a.segments.begin(), a.segments.end());
  }
  void act(receive_action::offer& a) {
    promise(a.what.update == update_ && sizes_.size() == current_.buckets, "an offer has its manifest");
    for (auto const bytes : sizes_) promise(bytes <= bucket_limit_, "buckets are as small as promised");
    question_ = question::offer;
  }
  void act(receive_action::bucket& a) {
    promise(a.update == update_ && accepted_ && !draining_ && !all_copied_,
            "buckets come when they are wanted");
    promise(a.bucket == next_bucket_++ && a.seq > last_seq_, "in order");
    skip();
    last_seq_ = a.seq;
    promise(mapped_.count(a.ring) == 1, "in a ring that is mapped");
    auto const& where = rings_.at(a.ring);
    promise(a.slot < where.slots && a.bytes <= where.slot_bytes && a.bytes == sizes_.at(a.bucket),
            "within its memory");
    promise(reading_.insert({a.ring, a.slot}).second, "not where another is still read");
    loading_.push_back({a.seq, a.ring, a.slot});
  }
  void act(receive_action::look& a) {
    promise(a.update == update_ && all_copied_ && mapped_source_ && !draining_ && current_.digests == 0,
            "who commits by itself looks when it has said all_copied");
    promise(!std::exchange(looked_, true), "once");
    looking_ = true;
  }
  void act(receive_action::commit& a) {
    promise(a.update == update_ && all_copied_ && loads_ == expected(), "commit when all was loaded");
    promise(!draining_ && !over_said_, "and nothing was given up");
    promise(a.route_reason == (looked_ ? "" : "not mapped"), "with the sender's words on one line");
    commit_asked_ = true;
  }
  void act(receive_action::abort& a) {
    promise(a.update == update_ && !std::exchange(abort_told_, true) && one_line(a.text),
            "one abort an update");
    draining_ = true;
    question_ = question::none;
    commit_asked_ = false;
  }
  void act(receive_action::closed& a) {
    promise(one_line(a.text), "closed is one line");
    closed_ = true;
    question_ = question::none;
  }

  /// The sender falls silent; the driver does what it owes.
  void wind_down() {
    for (unsigned i = 0; machine_.updating() || !machine_.over(); ++i) {
      promise(i < 400, "every update comes to its end");
      drain_done(), settle();
      while (!mapping_.empty()) ring_done(), settle();
      while (question_ != question::none) answer(), settle();
      while (!loading_.empty() && !draining_) bucket_done(), settle();
      source_read(), settle();
      unmapped(), settle();
      in_place(), settle();
      compared(), settle();
      commit_answered(), settle();
      if (draining_) continue;
      if (!machine_.updating()) {
        if (machine_.over()) break;
        machine_.close("the end", now_);
        settle();
        promise(machine_.over(), "an idle session closes at once");
        break;
      }
      auto const next = machine_.deadline();
      promise(next.has_value() || machine_.over(), "who waits for somebody has a deadline");
      if (!next) continue;
      now_ = std::max(now_ + 1s, *next); // a sender may ask to hear of us each millisecond
      machine_.tick(now_);
      settle();
    }
    machine_.received(alive{1}, now_);
    machine_.gone(errc::peer_gone, "again", now_);
    promise(machine_.take().empty() && !machine_.deadline(), "nothing comes after the end");
  }

  enum class question { none, known, manifest, known_placement, placement, offer };

  choices from_;
  unsigned how_; ///< it is set up
  receiver_machine machine_;
  std::vector<receiver_action> actions_;
  std::vector<std::byte> encoded_;
  time_point now_ = time_point{} + 1h;
  bool hello_said_ = false, greeted_ = false, closed_ = false;
  std::uint64_t bucket_limit_ = 0;
  std::map<std::uint32_t, ring> rings_;
  std::set<std::uint32_t> mapping_, mapped_;
  begin current_;
  std::uint64_t update_ = 0, seq_ = 0, last_seq_ = 0, committed_ = 0;
  std::vector<std::uint64_t> sizes_;
  question question_ = question::none;
  bool accepted_ = false, by_hand_ = false, placed_ = false, all_copied_ = false, over_said_ = false;
  bool commit_asked_ = false, draining_ = false, abort_told_ = false;
  std::uint32_t loads_ = 0, released_ = 0, next_bucket_ = 0;
  // The sender's own tensors: it knows where they are, it accepted to read them, and so on.
  bool placed_known_ = false, mapped_source_ = false, told_to_read_ = false, reads_source_ = false,
       has_source_ = false;
  bool comparing_ = false, compared_ = false; ///< digests
  bool looking_ = false, looked_ = false;     ///< whether it was told otherwise than to commit by itself
  std::uint64_t table_ = 0;
  std::vector<bool> needed_;
  segment_part asked_; ///< the next part that is to come
  std::uint32_t parts_end_ = 0;
  std::vector<std::uint64_t> to_unmap_;
  std::vector<slot> loading_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> reading_;
  std::set<std::uint64_t> loaded_, aborted_said_;
};

} // namespace

void receiver(input bytes) { game(bytes).play(); }

} // namespace ropeway::fuzz
