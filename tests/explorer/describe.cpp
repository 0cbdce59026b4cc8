// States as bytes: equal when nothing that follows can tell them apart. Left out is what nobody reads any
// more (names, words, reasons, times of limits that don't run, the seq of a free slot), and made relative is
// what only counts as a distance: times to now, seqs to the next one. Receivers of one kind are
// interchangeable: what belongs to one, the sender's view of it included, is put together, and these parts
// are sorted.
#include <algorithm>

#include "machines.hpp"
#include "state.hpp"

namespace ropeway::explorer {

class writer {
 public:
  writer(std::vector<std::uint8_t>& into, std::uint64_t next_seq, int now, time_point start)
      : into_(into), next_seq_(next_seq), now_(start + std::chrono::seconds(now)) {}

  void put(auto value) { into_.push_back(static_cast<std::uint8_t>(value)); }
  void seq(std::uint64_t s) { put(next_seq_ - s); }
  /// Not cut off at the limit: when several have passed, their order counts.
  void age(time_point t) { put(std::chrono::duration_cast<std::chrono::seconds>(now_ - t).count()); }
  void until(time_point t) { put(std::chrono::ceil<std::chrono::seconds>(t - now_).count()); }
  std::size_t size() const { return into_.size(); }

 private:
  std::vector<std::uint8_t>& into_;
  std::uint64_t next_seq_;
  time_point now_;
};

namespace {

using machine_of_sender = whole_state::sender;
using machine_of_receiver = whole_state::receiver;

void put_all(auto const& numbers, writer& w) {
  w.put(numbers.size());
  for (auto const n : numbers) w.put(n);
}

void describe(message const& m, writer& w) {
  w.put(m.index());
  if (auto const* p = std::get_if<published>(&m)) {
    w.put(p->update);
    w.seq(p->seq);
    w.put(p->bucket);
    w.put(p->ring);
    w.put(p->slot);
  } else if (auto const* r = std::get_if<released>(&m)) {
    w.put(r->update);
    w.seq(r->seq);
  } else {
    std::visit(
        [&](auto const& one) {
          if constexpr (requires { one.update; }) w.put(one.update);
          if constexpr (requires { one.placement; }) w.put(one.placement);
          if constexpr (requires { one.digests; }) w.put(one.digests);
          if constexpr (requires { one.mapped; }) w.put(one.mapped);
          if constexpr (requires { one.segment; }) w.put(one.segment);
          if constexpr (requires { one.first_part; }) w.put(one.first_part);
          if constexpr (requires { one.part; }) w.put(one.part << 1 | (one.code != 0));
          if constexpr (requires { one.segments; }) put_all(one.segments, w);
          if constexpr (requires { one.ring; }) w.put(one.ring);
          if constexpr (requires { one.id; }) w.put(one.id);
        },
        m);
  }
}

void describe_socket(socket const& s, writer& w) {
  w.put(s.size());
  for (auto const& m : s) describe(m, w);
}

/// What the sender's machine knows about one receiver.
void describe_peer(machine_of_sender const& m, peer_id id, bool anything_held, writer& w) {
  for (std::uint32_t ring = 0; ring < rings; ++ring) {
    auto const at = m.rings.find(ring);
    std::uint8_t holds = 0;
    for (std::uint32_t s = 0; at != m.rings.end() && s < at->second.ledger.slots(); ++s)
      if (at->second.ledger.holds(s, id)) holds |= static_cast<std::uint8_t>(1u << s);
    w.put(holds);
  }
  machine_of_sender::participant const* part = nullptr;
  if (m.running)
    for (auto const& p : m.running->participants)
      if (p.result.peer == id) part = &p;
  using stage = machine_of_sender::stage;
  if (part) {
    w.put(part->at);
    w.put(part->result.ring);
    w.put(part->reads);
    if (part->at == stage::over) {
      w.put(part->result.what);
    } else {
      w.put(part->accepted | part->asked_manifest << 1 | part->asked_placement << 2 | part->may_map << 3 |
            part->was_told << 4 | part->result.mapped << 5 | part->has_digests << 6 |
            part->commits_itself << 7);
      if (part->at == stage::revoking)
        w.put(static_cast<int>(part->result.what) << 1 | part->result.all_copied.has_value());
      for (auto const& [segment, parts] : part->asked_parts) w.put(segment << 4 | parts);
      w.put(part->published);
      w.put(part->released);
      if (part->at == stage::owing || part->at == stage::deciding || part->at == stage::committing)
        w.age(part->since);
    }
  }
  auto const found = m.peers.find(id);
  w.put(found == m.peers.end() ? 0 : part ? 1 : 2);
  if (found == m.peers.end()) return;
  auto const& p = found->second;
  w.put(p.greeted);
  if (!p.greeted) return w.age(p.connected);
  for (auto const& [number, ring] : p.rings) w.put(number << 4 | static_cast<std::uint32_t>(ring.what));
  put_all(p.segments, w);
  put_all(p.unmapping, w);
  w.put(p.maps_not);
  w.put(p.digest_table);
  if (anything_held && m.held) {
    bool const has = p.holds_version && !p.spoiled;
    bool const never = p.not_before == time_point::max();
    w.put(has | (has && p.version_held == m.held->version) << 1 | (p.update_held >= m.held->since) << 2 |
          p.not_before.has_value() << 3 | never << 4);
    if (p.not_before && !never) w.until(*p.not_before);
  } else if (anything_held) {
    w.put(p.holds_version | p.spoiled << 1);
    w.put(p.update_held);
  }
  w.put(p.owes);
  if (p.owes != machine_of_sender::debt::none) {
    w.put(p.owes_for);
    w.put(p.may_begin);
    w.age(p.owes_since);
  }
  w.put(p.due_since.has_value());
  if (p.due_since) w.age(std::max(p.heard, *p.due_since));
  if (part && part->at >= stage::deciding && part->at != stage::over) w.age(p.said);
}

void describe_machine(machine_of_receiver const& m, writer& w) {
  using session = machine_of_receiver::session;
  using stage = machine_of_receiver::stage;
  w.put(m.life);
  if (m.life == session::handshake) return w.age(m.born);
  if (m.life != session::open) return;
  for (auto const& [number, ring] : m.rings) w.put(number << 4 | static_cast<std::uint32_t>(ring.at));
  w.put(m.at);
  w.put(m.last_update);
  w.put(m.table);
  w.put(m.gave_up | m.said_aborted << 1 | m.closing << 2);
  w.age(m.said);
  w.put(m.next_part != m.end_part);
  if (m.next_part != m.end_part) {
    w.put(m.asked_segment);
    w.put(m.next_part << 4 | m.end_part);
  }
  if (m.at == stage::idle) return w.put(m.may_be_told);
  w.put(m.commits_itself | m.crossed << 1 | m.looking << 2);
  if (m.at == stage::draining) return w.put(m.at_drained);
  if (m.waits_for_sender()) w.age(std::max(m.heard, m.waiting_since));
  w.put(m.next_bucket);
  w.put(m.loaded_buckets);
  w.put(m.current.placement);
  w.put(m.current.digests);
  w.put(m.placed | m.mapped << 1 | m.told_to_read << 2 | m.read << 3 | m.digests_ready << 4 |
        m.comparing << 5 | m.compared << 6);
  if (m.at == stage::loading) w.put(m.in_place);
  for (auto const& h : m.held) {
    w.seq(h.seq);
    w.put(h.ring << 4 | h.slot);
  }
}

} // namespace

void world::describe_sender(writer& w) const {
  auto const& side = *sender_;
  auto const& m = whole_state::of(side.machine);
  for (std::uint32_t ring = 0; ring < rings; ++ring) {
    auto const at = m.rings.find(ring);
    w.put(at == m.rings.end() ? 0 : at->second.ready ? 2 : 1);
    if (at == m.rings.end()) continue;
    auto ledger = at->second.ledger;
    for (std::uint32_t s = 0; s < of_->slots; ++s) {
      bool const taken = !ledger.is_free(s);
      w.put(taken | ledger.holds(s, own_hold) << 1 | ledger.holds(s, relay_hold) << 2);
      if (taken) w.seq(ledger.seq(s));
      auto const& content = side.memory[ring][s];
      if (!taken) continue;
      w.put(content.update << 4 | content.bucket << 1 | content.writing);
      w.put(content.unmapped_only);
      if (content.seq != 0) w.seq(content.seq);
    }
    // In which order the free ones will be filled.
    if (m.closed) continue;
    while (auto const next = ledger.start_filling(0)) w.put(*next);
  }
  w.put(m.next_update);
  w.put(m.closed | side.running << 1 | side.source_free << 2 | side.drain_asked << 3 | side.drain << 4 |
        side.given_up << 5);
  w.put(side.awaiting | side.source_ready << 1 | side.digesting << 2 | side.digested << 3);
  w.put(side.table << 4 | side.table_of);
  w.put(side.delivering | m.held.has_value() << 1 | (m.held && m.held->asked) << 2 | side.withdrawn << 3);
  if (m.held) w.put(m.held->since);
  if (of_->holds && !hold_over_) {
    auto const& s = m.settings;
    auto const rest = std::clamp<duration>(m.last_delivery_took, s.held_pause / 10, s.held_pause);
    w.until(std::max(m.left_with_held, clock()));
    w.until(std::max(m.last_delivery_over + rest, clock()));
  }
  for (auto const ring : side.making) w.put(ring);
  w.put(side.packs.size() << 4 | side.relays.size());
  for (auto const& p : side.packs) w.seq(p.seq);
  for (auto const& r : side.relays) w.seq(r.seq);
  if (!m.running) return;
  auto const& u = *m.running;
  w.put(u.next_bucket);
  w.put(u.packed);
  w.put(u.copies);
  // How long a delivery has taken says how long the rest is that may follow it.
  if (of_->holds && !hold_over_ && u.facts.held)
    w.age(std::max(u.began, clock() - std::chrono::ceil<std::chrono::seconds>(m.settings.held_pause)));
  w.put(u.digest_asked | u.digest.has_value() << 1);
  w.put(u.source_free | u.drain_said << 1 | u.drained << 2 | (u.code != errc::ok) << 3 | u.source_asked << 4 |
        u.source_ready << 5);
  for (auto const& [group, committing] : u.group_committing) w.put(committing);
  w.put(u.loads.size());
  for (auto const& l : u.loads) {
    w.seq(l.seq);
    w.put(l.bucket << 4 | l.slot);
    w.put(l.packed | l.published << 1 | static_cast<int>(l.relaying) << 2);
    if (l.relaying >= machine_of_sender::load::relay::running) w.put(l.host_slot);
  }
}

void world::describe_receiver(std::size_t i, writer& w) const {
  auto const& r = *receivers_[i];
  auto const& wish = of_->receivers[i];
  w.put(wish.grouped | wish.on_device << 1 | wish.late << 2 | wish.knows_layout << 3 | wish.maps << 4);
  w.put((i < joined_) | r.alive << 1 | r.stopped << 2 | r.sender_closed << 3 | r.receiver_closed << 4 |
        r.told << 5 | r.harmed << 6 | r.cut << 7);
  if (i >= joined_) return;
  if (of_->holds) {
    std::size_t last = begun_;
    while (last > 0 && !r.seen[last].committed) --last;
    w.put(last);
    w.put(r.lost_held | r.declined << 1);
  }
  auto const bit = 1u << i;
  auto const& side = *sender_;
  if (sender_alive_) {
    w.put(((side.present & bit) != 0) | ((side.lost & bit) != 0) << 1 | ((side.to_commit & bit) != 0) << 2 |
          (side.update != 0 && r.harmed_update == side.update) << 3 | ((side.to_read & bit) != 0) << 4 |
          ((side.mapping & bit) != 0) << 5 | ((side.accepted & bit) != 0) << 6);
    w.put(side.exporting[i].size());
    for (auto const& order : side.exporting[i]) {
      w.put(order.update << 4 | order.segment);
      w.put(order.first << 4 | order.count);
    }
    describe_peer(whole_state::of(side.machine), static_cast<peer_id>(i + 1), of_->holds && !hold_over_, w);
    if (!r.sender_closed) describe_socket(*to_sender_[i], w);
    if (side.update != 0) {
      auto const& seen = r.seen[side.update];
      w.put(seen.all_copied | seen.committed << 1 | ((side.themselves & bit) != 0) << 2);
    }
  }
  if (!r.alive) return;
  describe_machine(whole_state::of(r.machine), w);
  describe_socket(*to_receiver_[i], w);
  // Who was dropped and does not know it may still start to read. Nobody keeps slots for it.
  for (auto const& m : *to_receiver_[i])
    if (auto const* p = std::get_if<published>(&m); p && r.sender_closed)
      w.put(side.memory.at(p->ring).at(p->slot).seq == p->seq);
  w.put(r.reads.size());
  for (auto const& one : r.reads) {
    w.seq(one.seq);
    w.put(one.update << 4 | one.bucket << 1 | one.spoiled);
    w.put(one.ring << 4 | one.slot);
  }
  w.put(r.reads_source | r.source_spoiled << 1 | r.comparing << 2 | r.compared << 3 | r.looking << 4);
  w.put(r.table);
  if (r.receiver_closed) return;
  w.put(r.placement << 4 | r.placement_of);
  w.put(r.mapped_segment << 4 | r.announced);
  w.put(r.looking_up_placement | r.reading_placement << 1 | r.mapped << 2 | r.has_source << 3 |
        static_cast<int>(r.segment) << 4);
  put_all(r.to_unmap, w);
  w.put(r.layouts);
  w.put(r.looking_up | r.reading_manifest << 1 | r.deciding << 2 | r.committing << 3 | r.draining << 4 |
        r.by_hand << 5 | r.placing << 6);
  w.put(r.mapping.size());
  for (auto const ring : r.mapping) w.put(ring);
  w.put(r.update << 4 | r.good);
  for (std::size_t update = r.update; update <= begun_; ++update) {
    auto const& seen = r.seen[update];
    w.put(seen.all_copied | seen.aborted << 1 | seen.committed << 2 |
          (seen.judged && seen.verdict != outcome::unconfirmed) << 3);
  }
}

void world::describe(std::vector<std::uint8_t>& into) const {
  into.clear();
  writer w(into, whole_state::of(sender_->machine).next_seq, now_, clock() - std::chrono::seconds(now_));
  w.put(sender_alive_ | sender_stopped_ << 1 | steady_ << 2);
  w.put(begun_ << 4 | finished_);
  w.put(segment_);
  w.put(held_ | hold_over_ << 4 | gave_way_ << 5);
  w.put(deliveries_);
  w.put(deliveries_ >> 8);
  w.put(faults_left_);
  for (std::size_t f = 0; f < fault_kinds && faults_left_ > 0; ++f) w.put(std::min(left_[f], faults_left_));
  if (sender_alive_) describe_sender(w);
  std::vector<std::vector<std::uint8_t>> parts(receivers_.size());
  for (std::size_t i = 0; i < receivers_.size(); ++i) {
    writer part(parts[i], whole_state::of(sender_->machine).next_seq, now_,
                clock() - std::chrono::seconds(now_));
    describe_receiver(i, part);
  }
  if (of_->symmetric()) std::sort(parts.begin(), parts.end());
  for (auto const& part : parts) {
    w.put(part.size());
    into.insert(into.end(), part.begin(), part.end());
  }
}

} // namespace ropeway::explorer
