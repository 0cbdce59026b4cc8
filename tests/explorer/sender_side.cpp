// The sender's driver, its memory, and what must hold when the machine decides something.
#include <algorithm>
#include <bit>

#include "machines.hpp"
#include "state.hpp"

namespace ropeway::explorer {
namespace {

std::uint8_t bit(std::size_t i) { return static_cast<std::uint8_t>(1u << i); }

} // namespace

void world::step_of_sender(step const& s) {
  auto& side = sender_.change();
  auto& machine = side.machine;
  switch (s.what) {
  case kind::ring_made:
    std::erase(side.making, s.arg);
    machine.ring_ready(s.arg, clock());
    break;
  case kind::packed: {
    auto const done = side.packs.front();
    side.packs.erase(side.packs.begin());
    side.memory[of_->device_ring][done.slot].writing = false;
    ++side.packed;
    machine.packed(done.seq, clock());
    break;
  }
  case kind::relayed: {
    auto const done = side.relays.front();
    side.relays.erase(side.relays.begin());
    auto const& from = side.memory[1][done.from];
    check(from.seq == done.seq && !from.writing, "no slot is filled again while a relay reads it");
    side.memory[host_ring][done.to].writing = false;
    machine.relayed(done.seq, clock());
    break;
  }
  case kind::pack_forgotten:
    side.memory[of_->device_ring][side.packs.back().slot].writing = false;
    side.packs.pop_back();
    break;
  case kind::relay_forgotten:
    side.memory[host_ring][side.relays.back().to].writing = false;
    side.relays.pop_back();
    break;
  case kind::source_readied:
    side.awaiting = false;
    side.source_ready = true;
    machine.source_ready(clock());
    break;
  case kind::digested:
    side.digesting = false;
    side.digested = true;
    machine.digested(digest_of(side.update), clock());
    break;
  case kind::held_delivered:
    side.delivering = side.withdrawn = false;
    if (machine.wants_held()) begin_update(true);
    return;
  case kind::parts_sent: return send_parts(s.who, false);
  case kind::sender_drained:
    side.drain = false;
    machine.drained(clock());
    break;
  case kind::sender_ticks: machine.tick(clock()); break;
  default: break;
  }
  follow_sender();
}

void world::begin_update(bool held) {
  auto& side = sender_.change();
  side.delivering = side.withdrawn = false; // a driver that is about to deliver sees that it comes too late
  update_facts facts;
  ++begun_;
  check(begun_ < max_updates, "what is held is not delivered without end");
  if (held) deliveries_ = static_cast<std::uint16_t>(deliveries_ | 1u << begun_);
  facts.held = held;
  facts.waited_for = !held;
  facts.version = 100u + (held ? held_ : begun_);
  facts.layout[0] = buckets_of(begun_);
  facts.bucket_bytes = sizes_of(begun_);
  facts.tensors = facts.layout[0];
  facts.ring = of_->device_ring ? 1 : host_ring;
  side.present = 0;
  for (auto const& p : side.machine.peers()) side.present |= bit(p.peer - 1);
  side.update = begun_;
  side.running = true;
  side.source_free = side.source_ready = side.drain_asked = side.given_up = side.digested = false;
  side.packed = side.lost = side.to_commit = side.to_read = side.mapping = side.accepted = 0;
  side.themselves = 0;
  if (is_placed(begun_)) {
    facts.placement = segment_;
    facts.segments = {{segment_, of_->parts}};
    facts.needed = needed_of(begun_);
    facts.only_mapped = of_->only_mapped;
    facts.source_ready = side.source_ready = of_->ready;
  }
  if (of_->digests) {
    if (side.table_of != buckets_of(begun_) + 1) ++side.table; // other layouts have other tables
    side.table_of = static_cast<std::uint8_t>(buckets_of(begun_) + 1);
    facts.digests = side.table;
  }
  check(side.machine.begin_update(std::move(facts), clock()) == begun_, "updates are numbered in order");
  if (held) {
    side.present = 0;
    check(side.machine.updating(), "what is held is delivered to somebody");
    for (auto const& p : whole_state::of(side.machine).running->participants)
      side.present |= bit(p.result.peer - 1);
    for (auto const& [id, p] : whole_state::of(side.machine).peers)
      for (std::size_t i = 0; i < joined_; ++i)
        if (p.greeted && i != id - 1 && same_group(i, id - 1) && (side.present & bit(i)) != 0)
          check((side.present & bit(id - 1)) != 0 || has_held(id - 1),
                "a member of a group is given what is held alone only if the others have it");
  }
  follow_sender();
}

std::vector<std::uint64_t> world::sizes_of(std::uint64_t update) const {
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t b = 0; b < buckets_of(update); ++b) sizes.push_back(10 * buckets_of(update) + b);
  return sizes;
}

std::vector<bool> world::needed_of(std::uint64_t update) const {
  std::vector<bool> needed;
  for (unsigned b = 0; b < buckets_of(update); ++b) needed.push_back((of_->needed >> b & 1) != 0);
  return needed;
}

std::uint8_t world::needed_bits(std::uint64_t update) const {
  return static_cast<std::uint8_t>(of_->needed & ((1u << buckets_of(update)) - 1));
}

void world::send_parts(std::size_t i, bool last_fails) {
  auto& side = sender_.change();
  auto const order = side.exporting[i].front();
  side.exporting[i].erase(side.exporting[i].begin());
  if (!side.machine.wants_parts(order.to, order.update)) return;
  for (std::uint32_t k = 0; k < order.count; ++k) {
    segment_part part;
    part.update = order.update;
    part.segment = order.segment;
    part.part = order.first + k;
    part.kind = 1;
    part.bytes = 10;
    if (last_fails && k + 1 == order.count) part.code = static_cast<std::uint16_t>(errc::not_reachable);
    if (log) log->push_back("    sender -> r" + std::to_string(i + 1) + " " + protocol::print(part));
    auto const& to = receivers_[i];
    if (to->alive && !to->receiver_closed && !to->cut) to_receiver_[i].change().push_back(part);
  }
}

void world::act(send_action::deliver_held&) {
  auto& side = sender_.change();
  check(held_ != 0 && !hold_over_ && (!side.delivering || side.withdrawn),
        "what is held is asked for once at a time");
  side.delivering = true;
  side.withdrawn = false;
}

/// That it holds just this version, as far as it knows.
bool world::has_held(std::size_t i) const {
  for (std::size_t update = begun_; update > 0; --update)
    if (receivers_[i]->seen[update].committed) return update == held_ || is_delivery(update);
  return false;
}

void world::check_all_have_held() const {
  auto const& m = whole_state::of(sender_->machine);
  if (held_ == 0 || hold_over_ || !steady_ || m.closed) return;
  for (auto const& [id, p] : m.peers)
    if (p.not_before && *p.not_before != time_point::max()) return; // it will be asked again
  auto const counts = [&](std::size_t i) {
    auto const& r = *receivers_[i];
    return i < joined_ && receiver_works(i) && !r.sender_closed && !r.harmed && !r.declined && !r.lost_held;
  };
  auto const has_newer = [&](std::size_t i) {
    for (std::size_t update = held_ + 1u; update <= begun_; ++update)
      if (receivers_[i]->seen[update].committed && !is_delivery(update)) return true;
    return false;
  };
  for (std::size_t i = 0; i < joined_; ++i) {
    bool can = counts(i);
    for (std::size_t j = 0; j < receivers_.size(); ++j)
      if (i != j && same_group(i, j)) can = can && counts(j) && !has_newer(j);
    check(!can || has_held(i) || has_newer(i), "in the end everybody has what is held, or something newer");
  }
}

void world::act(send_action::await_source&) {
  auto& side = sender_.change();
  check(side.running && !side.awaiting && !side.source_ready && side.mapping != 0,
        "the tensors are waited for once, for who maps");
  side.awaiting = true;
}

void world::act(send_action::digest_source&) {
  auto& side = sender_.change();
  check(side.running && of_->digests && !side.digesting && !side.digested && !side.source_free &&
            !side.drain_asked && side.accepted != 0,
        "digests are computed once, for who takes part");
  side.digesting = true;
}

void world::act(send_action::send_parts& a) {
  auto& side = sender_.change();
  check(side.running && a.update == side.update && a.segment == segment_ && a.count > 0 &&
            a.first + a.count <= of_->parts,
        "parts are of the running update's placement");
  side.exporting.at(a.to - 1).push_back(a);
}

void world::spoil_source(char const* promise) {
  for (auto& r : receivers_) {
    if (!r->reads_source) continue;
    // Who was dropped may still be copying; what it reads must never be committed.
    check(r->sender_closed, promise);
    r.change().source_spoiled = true;
  }
}

void world::follow_sender() {
  auto& machine = sender_.change().machine;
  for (auto actions = machine.take(); !actions.empty(); actions = machine.take())
    for (auto& one : actions) std::visit([this](auto& a) { act(a); }, one);
  if (of_->holds && sender_->delivering && !sender_->withdrawn && !sender_->machine.wants_held())
    sender_.change().withdrawn = true;
}

bool world::should_commit(std::size_t i) const {
  auto const& side = *sender_;
  if (!steady_ || side.given_up) return false;
  for (std::size_t j = 0; j < receivers_.size(); ++j) {
    if (!same_group(i, j)) continue;
    auto const& r = *receivers_[j];
    if ((side.present & bit(j)) == 0 || r.harmed || r.harmed_update == side.update) return false;
  }
  return true;
}

bool world::same_group(std::size_t i, std::size_t j) const {
  return i == j || (of_->receivers[i].grouped && of_->receivers[j].grouped);
}

void world::check_commit(std::size_t i, std::uint64_t update) const {
  auto const& side = *sender_;
  check(side.running && update == side.update, "only the running update is committed");
  check((side.to_commit & bit(i)) == 0, "commit is said once");
  for (std::size_t j = 0; j < receivers_.size(); ++j) {
    if ((side.present & bit(j)) == 0 || !same_group(i, j)) continue;
    check(receivers_[j]->seen[update].all_copied,
          i == j ? "commit is said after all_copied"
                 : "commit is said to a group after all its members have said all_copied");
    check((side.lost & bit(j)) == 0, i == j ? "commit is not said to who has failed"
                                            : "commit is not said to a group that has lost a member");
  }
}

void world::act(send_action::say& a) {
  std::size_t const i = a.to - 1;
  auto const& to = receivers_.at(i);
  check(!to->sender_closed, "nothing is said to who was dropped", a.what);
  if (auto const* c = std::get_if<protocol::commit>(&a.what)) {
    check_commit(i, c->update);
    check((sender_->themselves & bit(i)) == 0, "commit is not said to who commits by itself");
    sender_.change().to_commit |= bit(i);
  }
  if (auto const* order = std::get_if<protocol::read_mapped>(&a.what)) {
    auto& side = sender_.change();
    if (order->commits_itself != 0) {
      check(needed_bits(side.update) == 0 && !of_->receivers[i].grouped && !of_->digests,
            "who commits by itself has nothing to wait for but its reading");
      side.themselves |= bit(i);
    }
    check((side.to_read & bit(i)) == 0, "read_mapped is said once");
    bool const at_once = (side.accepted & bit(i)) == 0;
    if (at_once)
      check(needed_bits(side.update) == 0 && !of_->receivers[i].grouped,
            "read_mapped is said with the announcement to who waits for nothing else");
    else
      check((side.mapping & bit(i)) != 0, "else to who has accepted as one that maps");
    check(side.source_ready && !side.source_free && !side.drain_asked,
          "read_mapped is said when the tensors are ready, and before they are free");
    for (std::size_t j = 0; j < receivers_.size(); ++j)
      check((side.present & bit(j)) == 0 || !same_group(i, j) || (i == j && at_once) ||
                ((side.accepted & bit(j)) != 0 && (side.lost & bit(j)) == 0),
            "read_mapped is said to a group when all its members take part");
    side.to_read |= bit(i);
  }
  if (std::holds_alternative<digests_ready>(a.what))
    check(sender_->digested && (sender_->accepted & bit(i)) != 0,
          "digests_ready is said when they were computed, to who has accepted");
  if (std::holds_alternative<abort_update>(a.what)) lose(i);
  if (auto* m = std::get_if<digest_table>(&a.what)) m->bytes = 16u * sender_->table_of;
  if (auto* m = std::get_if<manifest_follows>(&a.what)) m->bytes = 100; // as a driver does
  if (auto* m = std::get_if<placement_follows>(&a.what)) m->bytes = 100;
  if (log) log->push_back("    sender -> r" + std::to_string(i + 1) + " " + protocol::print(a.what));
  if (to->alive && !to->receiver_closed && !to->cut) to_receiver_[i].change().push_back(std::move(a.what));
}

void world::act(send_action::make_ring& a) {
  auto& making = sender_.change().making;
  check(a.ring < rings && std::count(making.begin(), making.end(), a.ring) == 0,
        "a ring is asked for once at a time");
  making.push_back(a.ring);
}

void world::act(send_action::pack& a) {
  auto& side = sender_.change();
  check(side.running, "nothing is packed for an update that is over");
  check(!side.drain_asked, "nothing is packed after drain");
  check(!side.source_free, "nothing is packed after source_free");
  slot_content what;
  what.seq = a.seq;
  what.update = side.update;
  what.bucket = static_cast<std::uint8_t>(a.bucket);
  what.unmapped_only = a.unmapped_only;
  write(of_->device_ring, a.slot, what);
  side.packs.push_back(a);
}

void world::act(send_action::relay& a) {
  auto& side = sender_.change();
  check(side.running && !side.drain_asked, "nothing is relayed after drain");
  auto const from = side.memory[1].at(a.from);
  check(from.seq == a.seq && from.update == side.update && !from.writing, "a relay copies a packed slot");
  write(host_ring, a.to, from);
  side.relays.push_back(a);
}

void world::write(std::uint32_t ring, std::uint32_t slot, slot_content what) {
  check(slot < of_->slots, "slots are within their ring");
  auto& content = sender_.change().memory.at(ring)[slot];
  check(!content.writing, "a slot is filled by one copy at a time");
  for (auto const& r : sender_->relays)
    check(ring != 1 || r.from != slot, "no slot is filled again while a relay reads it");
  for (auto& to : receivers_)
    for (std::size_t k = 0; k < to->reads.size(); ++k) {
      if (to->reads[k].ring != ring || to->reads[k].slot != slot) continue;
      // Who was dropped may still be copying; what it reads must never be committed.
      check(to->sender_closed, "no slot is filled again while a receiver reads it");
      to.change().reads[k].spoiled = true;
    }
  content = what;
  content.writing = true;
}

void world::act(send_action::cut& a) {
  std::size_t const i = a.peer - 1;
  check(!receivers_.at(i)->sender_closed && !receivers_[i]->cut, "nobody is cut off twice");
  check(!steady_ || receivers_[i]->harmed, "who is awake is not cut off for being slow");
  if (log) log->push_back("    sender cuts r" + std::to_string(i + 1) + " off: " + a.text);
  lose(i);
  receivers_[i].change().cut = true;
}

void world::act(send_action::drop& a) {
  check(a.code != errc::protocol_error, "nobody honest is said to break the protocol",
        turned_away{static_cast<std::uint16_t>(a.code), a.text});
  std::size_t const i = a.peer - 1;
  check(!receivers_.at(i)->sender_closed, "nobody is dropped twice");
  bool const too_late =
      a.code == errc::peer_silent || a.code == errc::commit_timeout || a.code == errc::handshake_timeout;
  check(!too_late || !steady_ || receivers_[i]->harmed, "who is awake is not dropped for being slow");
  if (log) log->push_back("    sender drops r" + std::to_string(i + 1) + ": " + a.text);
  lose(i);
  close_for_sender(i);
}

void world::close_for_sender(std::size_t i) {
  auto& to = receivers_[i].change();
  to.sender_closed = true;
  to_sender_[i].change().clear();
  sender_.change().exporting[i].clear();
  if (!to.receiver_closed) return;
  to.reads.clear();
  to.reads_source = false;
}

void world::act(send_action::source_free&) {
  auto& side = sender_.change();
  check(side.running && !side.source_free, "source_free once");
  side.source_free = true;
  check(side.packs.empty(), "the source is free when no pack runs");
  check(!side.digesting, "the source is free when no digest of it is computed");
  spoil_source("the source is free when nobody who is connected reads it");
}

void world::act(send_action::drain&) {
  auto& side = sender_.change();
  check(side.running && !side.drain_asked, "drain once");
  side.drain_asked = side.drain = true;
}

void world::act(send_action::finished& a) {
  auto& side = sender_.change();
  check(side.running, "an update finishes once");
  check(side.source_free, "source_free comes before finished");
  check(side.packs.empty() && side.relays.empty() && !side.drain, "no copy runs when the update is finished");
  spoil_source("the update is finished when nobody who is connected reads the source");
  side.running = side.awaiting = side.source_ready = false;
  ++finished_;
  check(a.results.size() == static_cast<std::size_t>(std::popcount(side.present)),
        "one result for each receiver that was there");
  std::uint8_t named = 0;
  for (auto const& r : a.results) {
    std::size_t const i = r.peer - 1;
    named |= bit(i);
    auto& seen = receivers_.at(i).change().seen[side.update];
    seen.judged = true;
    seen.verdict = r.what;
    if (log)
      log->push_back("    sender reports r" + std::to_string(i + 1) + " as " +
                     std::string(ropeway::name(r.what)));
    if (r.what == outcome::committed)
      check(seen.committed && r.mapped == ((side.mapping & bit(i)) != 0),
            "who is reported as committed is, as one that maps or not");
    else
      check(!seen.committed || r.what == outcome::unconfirmed,
            "who has committed is reported so, or as unconfirmed");
    check(!of_->only_mapped || !is_placed(side.update) || r.what != outcome::committed || r.mapped,
          "where only the mapped route is allowed nobody commits by another");
    if (should_commit(i))
      check(r.what == outcome::committed,
            "whoever nothing went wrong with commits, whatever happens to others");
  }
  check(named == side.present, "results are about those who were there");
  side.update = 0;
}

} // namespace ropeway::explorer
