// What can happen next, and doing it.
#include <algorithm>
#include <bit>

#include "machines.hpp"
#include "state.hpp"

namespace ropeway::explorer {
namespace {

using namespace std::chrono_literals;

// In seconds, all different. `alive` is due every second.
constexpr auto silence = 3s, decide = 2s, commit_limit = 4s, handshake = 2s;
constexpr auto held_pause = 10s; // a tenth of it is the shortest rest
constexpr time_point start = time_point{} + 1h;

sender_machine make_sender(bounds const& of) {
  sender_settings s;
  s.instance[0] = 7;
  s.bucket_bytes = 1000;
  s.slots = of.slots;
  s.max_peers = max_receivers;
  s.handshake = handshake;
  s.decide = decide;
  s.silence = silence;
  s.commit = commit_limit;
  s.held_turnover = of.turnover;
  s.held_pause = held_pause;
  return sender_machine(s);
}

receiver_machine make_receiver(bounds const& of, std::size_t i) {
  auto const& wish = of.receivers[i];
  receiver_settings s;
  s.greeting.name = "r" + std::to_string(i + 1);
  if (wish.grouped) {
    s.greeting.group = "tp";
    auto const members =
        std::count_if(of.receivers.begin(), of.receivers.end(), [](auto const& r) { return r.grouped; });
    s.greeting.group_size = of.group_size != 0 ? of.group_size : static_cast<std::uint32_t>(members);
  }
  if (wish.on_device) s.greeting.devices.resize(1);
  s.handshake = handshake;
  s.silence = silence;
  s.maps = wish.maps;
  return receiver_machine(s);
}

/// Whether with this message its receiver is lost to the update.
bool ends_part(message const& m, std::uint64_t update) {
  if (std::holds_alternative<goodbye>(m)) return true;
  if (auto const* a = std::get_if<refuse>(&m)) return a->update == update;
  if (auto const* a = std::get_if<not_now>(&m)) return a->update == update;
  if (auto const* a = std::get_if<abort_update>(&m)) return a->update == update;
  if (auto const* a = std::get_if<failed>(&m)) return a->update == update;
  return false;
}

step make(kind what, std::size_t who = 0, std::size_t arg = 0) {
  return {what, static_cast<std::uint8_t>(who), static_cast<std::uint8_t>(arg), 0};
}

} // namespace

time_point world::clock() const { return start + std::chrono::seconds(now_); }
int world::seconds(time_point t) const {
  return static_cast<int>(
      std::chrono::ceil<std::chrono::seconds>(t - start).count()); // "not now" is in between
}

world::world(bounds const& of) : of_(&of), faults_left_(of.at_most), sender_(sender_side(make_sender(of))) {
  for (fault const f : of.faults) left_[static_cast<std::size_t>(f)] = of.kind_most;
  for (std::size_t i = 0; i < of.receivers.size(); ++i) {
    receivers_.emplace_back(receiver_side(make_receiver(of, i)));
    to_sender_.emplace_back(socket());
    to_receiver_.emplace_back(socket());
    for (auto const buckets : of.buckets)
      if (of.receivers[i].knows_layout)
        receivers_[i].change().layouts |= static_cast<std::uint8_t>(1u << buckets);
  }
  for (std::size_t i = 0; i < of.receivers.size(); ++i) {
    if (of.receivers[i].late) continue;
    join(i);
    hear(make(kind::sender_hears, i));
    hear(make(kind::receiver_hears, i));
  }
  if (of.ring_exists) warm_up();
}

void world::warm_up() {
  begin_update();
  std::vector<step> steps;
  for (;;) {
    steps.clear();
    work(steps);
    if (steps.empty()) break;
    take(steps.front());
  }
  check(!sender_->running, "the first update goes through");
}

bool world::receiver_works(std::size_t i) const {
  auto const& r = *receivers_[i];
  return i < joined_ && r.alive && !r.stopped;
}

void world::work(std::vector<step>& into) const {
  if (sender_works()) work_of_sender(into);
  for (std::size_t i = 0; i < receivers_.size(); ++i)
    if (receiver_works(i)) work_of(i, into);
}

void world::possible(std::vector<step>& into) const {
  into.clear();
  work(into);
  decisions(into);
  if (faults_left_ > 0) faults(into);
}

void world::work_of_sender(std::vector<step>& into) const {
  auto const& side = *sender_;
  for (std::size_t i = 0; i < joined_; ++i) {
    auto const& r = *receivers_[i];
    if (r.sender_closed) continue;
    if (!to_sender_[i]->empty()) into.push_back(make(kind::sender_hears, i));
    if (!side.exporting[i].empty()) into.push_back(make(kind::parts_sent, i));
    // What was said before the end is heard before it, also where the connection was reset.
    if ((r.receiver_closed || !r.alive || r.cut) && to_sender_[i]->empty())
      into.push_back(make(kind::sender_sees_end, i));
  }
  for (auto const ring : side.making) into.push_back(make(kind::ring_made, 0, ring));
  if (!side.packs.empty()) into.push_back(make(kind::packed));
  if (!side.relays.empty()) into.push_back(make(kind::relayed));
  if (side.awaiting) into.push_back(make(kind::source_readied));
  if (side.digesting) into.push_back(make(kind::digested));
  if (side.delivering && !side.running) into.push_back(make(kind::held_delivered));
  if (side.drain) {
    if (!side.packs.empty()) into.push_back(make(kind::pack_forgotten));
    if (!side.relays.empty()) into.push_back(make(kind::relay_forgotten));
    if (side.packs.empty() && side.relays.empty() && !side.digesting)
      into.push_back(make(kind::sender_drained));
  }
  if (auto const at = side.machine.deadline(); at && *at <= clock()) into.push_back(make(kind::sender_ticks));
}

void world::work_of(std::size_t i, std::vector<step>& into) const {
  auto const& r = *receivers_[i];
  if (r.receiver_closed) return;
  if (!to_receiver_[i]->empty()) into.push_back(make(kind::receiver_hears, i));
  if ((r.sender_closed || r.cut) && !r.told) into.push_back(make(kind::receiver_sees_end, i));
  if (!r.mapping.empty()) into.push_back(make(kind::ring_mapped, i, r.mapping.front()));
  if (r.looking_up) into.push_back(make(kind::looked_up, i));
  if (r.reading_manifest) into.push_back(make(kind::manifest_read, i));
  if (r.looking_up_placement) into.push_back(make(kind::placement_looked_up, i));
  if (r.reading_placement) into.push_back(make(kind::placement_read, i));
  using enum mapping_of_segment;
  if (r.segment == importing) into.push_back(make(kind::segment_mapped, i));
  if (r.deciding && (r.announced == 0 || of_->by_hand))
    into.push_back(make(kind::accepted, i, of_->by_hand ? 1 : 0));
  else if (r.deciding && r.mapped_segment == r.announced)
    into.push_back(make(kind::accepted, i, 2));
  else if (r.deciding && r.segment == failed)
    into.push_back(make(kind::accepted, i, 3));
  else if (r.deciding && r.segment == none)
    into.push_back(make(kind::segment_asked, i));
  if (r.reads_source && !r.draining) into.push_back(make(kind::source_read, i));
  if (r.comparing) into.push_back(make(kind::compared, i));
  if (r.looking) into.push_back(make(kind::heard_all, i));
  // Not while it copies from there.
  if (!r.to_unmap.empty() && !r.reads_source) into.push_back(make(kind::unmapped, i));
  // Copies of one queue finish in order, an embedder gives buckets back as it likes. While an update winds
  // down nothing is told but the end.
  std::size_t const ends = r.by_hand ? r.reads.size() : std::min<std::size_t>(1, r.reads.size());
  for (std::size_t k = 0; k < ends && !r.draining; ++k) into.push_back(make(kind::loaded, i, k));
  if (r.placing && r.good == (1u << buckets_of(r.update)) - 1) into.push_back(make(kind::placed, i));
  if (r.committing) into.push_back(make(kind::committed, i));
  if (r.draining) into.push_back(make(kind::receiver_drained, i));
  if (auto const at = r.machine.deadline(); at && *at <= clock())
    into.push_back(make(kind::receiver_ticks, i));
}

bool world::awake_deadline(int& soonest) const {
  bool any = false;
  auto const offer = [&](std::optional<time_point> at) {
    if (!at) return;
    soonest = any ? std::min(soonest, seconds(*at)) : seconds(*at);
    any = true;
  };
  if (sender_works()) offer(sender_->machine.deadline());
  for (std::size_t i = 0; i < receivers_.size(); ++i)
    if (receiver_works(i) && !receivers_[i]->receiver_closed) offer(receivers_[i]->machine.deadline());
  return any;
}

bool world::may_begin() const {
  return std::size_t(begun_) < of_->buckets.size() + std::size_t(std::popcount(deliveries_)) &&
         !whole_state::of(sender_->machine).closed;
}

void world::decisions(std::vector<step>& into) const {
  bool const work = !into.empty();
  if (sender_works() && may_begin() && !sender_->running) into.push_back(make(kind::begin));
  if (sender_works() && of_->holds && !whole_state::of(sender_->machine).closed) {
    if (held_ == 0 && begun_ > 0) into.push_back(make(kind::hold));
    if (held_ != 0 && !hold_over_) into.push_back(make(kind::hold_ends));
    if (sender_->running && is_delivery(sender_->update) && !gave_way_) into.push_back(make(kind::gives_way));
  }
  if (sender_works() && segment_ <= of_->retires && !sender_->running &&
      !whole_state::of(sender_->machine).closed && begun_ > (of_->ring_exists ? 1 : 0))
    into.push_back(make(kind::retire));
  if (joined_ < receivers_.size() && sender_alive_) into.push_back(make(kind::join, joined_));
  for (std::size_t i = 0; i < joined_; ++i)
    if (receivers_[i]->alive && receivers_[i]->stopped) into.push_back(make(kind::receiver_continues, i));
  if (sender_alive_ && sender_stopped_) into.push_back(make(kind::sender_continues));
  int soonest = 0;
  if (!work && awake_deadline(soonest)) into.push_back(make(kind::time_passes));
}

void world::take(step const& s) {
  switch (s.what) {
  case kind::sender_hears:
  case kind::sender_sees_end:
  case kind::receiver_hears:
  case kind::receiver_sees_end: return hear(s);
  case kind::begin: return begin_update();
  case kind::hold:
    held_ = begun_;
    sender_.change().machine.hold(100u + held_, clock());
    return follow_sender();
  case kind::hold_ends:
    hold_over_ = true;
    sender_.change().machine.end_hold(clock());
    return follow_sender();
  case kind::gives_way:
    gave_way_ = true;
    sender_.change().given_up = true;
    sender_.change().machine.give_up(errc::peer_aborted, "a send", clock());
    return follow_sender();
  case kind::retire:
    sender_.change().machine.retire_segments({segment_}, clock());
    ++segment_;
    return follow_sender();
  case kind::join: return join(s.who);
  case kind::receiver_continues: receivers_[s.who].change().stopped = false; return;
  case kind::sender_continues: sender_stopped_ = false; return;
  case kind::time_passes: {
    int soonest = 0;
    if (awake_deadline(soonest)) now_ = std::max(now_, soonest);
    return;
  }
  case kind::fault: return go_wrong(s);
  default: break;
  }
  if (s.what < kind::receiver_hears) return step_of_sender(s);
  step_of_receiver(s);
}

void world::join(std::size_t i) {
  ++joined_;
  receivers_[i].change().machine.connected(clock());
  follow(i);
  sender_.change().machine.connected(static_cast<peer_id>(i + 1), "", clock());
  follow_sender();
}

void world::hear(step const& s) {
  std::size_t const i = s.who;
  auto const first = [](shared<socket>& from) {
    auto& all = from.change();
    message m = std::move(all.front());
    all.erase(all.begin());
    return m;
  };
  switch (s.what) {
  case kind::sender_hears: {
    message const m = first(to_sender_[i]);
    // What ends an update at one member must keep its group from committing.
    if (ends_part(m, sender_->update)) lose(i);
    if (auto const* no = std::get_if<refuse>(&m); no && held_ != 0)
      if (no->update == held_ || is_delivery(no->update)) receivers_[i].change().declined = true;
    if (auto const* a = std::get_if<protocol::accept>(&m); a && a->update == sender_->update) {
      auto const bit = static_cast<std::uint8_t>(1u << i);
      sender_.change().accepted |= bit;
      if (a->mapped != 0)
        sender_.change().mapping |= bit;
      else
        sender_.change().themselves &= static_cast<std::uint8_t>(~bit);
    }
    sender_.change().machine.received(static_cast<peer_id>(i + 1), m, clock());
    return follow_sender();
  }
  case kind::sender_sees_end:
    lose(i);
    close_for_sender(i);
    sender_.change().machine.gone(static_cast<peer_id>(i + 1), errc::peer_gone, "it has gone", clock());
    return follow_sender();
  case kind::receiver_hears: {
    message const m = first(to_receiver_[i]);
    receivers_[i].change().machine.received(m, clock());
    return follow(i);
  }
  default:
    receivers_[i].change().told = true;
    receivers_[i].change().machine.gone(errc::peer_gone, "the sender has gone", clock());
    return follow(i);
  }
}

bool world::at_rest(std::vector<step> const& steps) const {
  bool time = false;
  for (auto const& s : steps) {
    if (is_work(s.what)) return false;
    time = time || s.what == kind::time_passes;
  }
  bool sleeping = sender_stopped_;
  for (auto const& r : receivers_) sleeping = sleeping || (r->alive && r->stopped);
  if (time && sleeping) return false;
  // Whoever is awake waits for nothing; and as long as nobody sleeps, time is not needed to come this far.
  if (sender_works()) {
    auto const& side = *sender_;
    check(!side.machine.updating() && !side.running, "no deadlock: an update comes to its end");
    check(finished_ == begun_, "every update finishes once");
    check(side.packs.empty() && side.relays.empty() && side.making.empty() && !side.drain,
          "nothing is left to do for the sender");
    check(sleeping || side.machine.unmapping() == 0, "what is wanted back is unmapped by all who are there");
    check(!side.awaiting && !side.digesting, "after the end nobody waits for the tensors");
    if (!sleeping && !time) check_all_have_held();
    for (auto const& [number, ring] : whole_state::of(side.machine).rings)
      check(ring.ledger.taken() == 0, "after the end all slots are free");
  }
  for (std::size_t i = 0; i < receivers_.size(); ++i) {
    if (!receiver_works(i)) continue;
    auto const& r = *receivers_[i];
    check(r.machine.over() || !r.machine.updating(), "no deadlock: a receiver's update comes to its end");
    check(r.machine.over() || (r.reads.empty() && !r.reads_source), "after the end nothing is read");
    check(r.machine.over() || r.to_unmap.empty(), "after the end nothing is left to unmap");
    check(!r.sender_closed || r.receiver_closed, "who was dropped finds out");
  }
  return true;
}

} // namespace ropeway::explorer
