// Buckets through slots: packed once, published to those who read the update's ring, relayed to the host ring
// for the others. A slot of the update's ring stays ours (own_hold) until its bucket was published, and the
// relay's until it was copied on; a slot of the host ring stays ours until that was published.
#include <algorithm>

#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

sender_machine::impl::ring_record* sender_machine::impl::need_ring(std::uint32_t ring) {
  auto const [at, fresh] = rings.try_emplace(ring, settings.slots);
  if (fresh) actions.emplace_back(send_action::make_ring{ring});
  return at->second.ready ? &at->second : nullptr;
}

void sender_machine::impl::ring_ready(std::uint32_t ring) {
  if (auto const at = rings.find(ring); at != rings.end()) at->second.ready = true;
}

void sender_machine::impl::ring_failed(std::uint32_t ring, errc code, std::string const& text) {
  auto const at = rings.find(ring);
  if (at == rings.end() || at->second.ready) return;
  rings.erase(at); // the next update asks again
  if (!running) return;
  bool const main = ring == running->facts.ring;
  if (main && running->facts.placement == 0) return give_up(code, text);
  for (auto& p : running->participants) {
    if (p.at == stage::over || (!main && (p.at > stage::deciding || p.result.ring != ring))) continue;
    // Who reads the sender's tensors, or may do so, needs no ring.
    bool const undecided = p.may_map && !p.accepted && !peers.at(p.result.peer).maps_not;
    if (undecided || (p.accepted && expected(p) == 0)) continue;
    stop(p, outcome::skipped, code, "the sender can't make the ring that it needs: " + text);
  }
}

sender_machine::impl::readers sender_machine::impl::who_wants(std::uint32_t bucket) const {
  update const& u = *running;
  if (u.facts.placement == 0) return readers::all;
  bool undecided = false, maps = false;
  for (auto const& p : u.participants) {
    if (p.at >= stage::revoking) continue;
    bool const decided = !p.may_map || p.accepted;
    if (decided && !p.result.mapped) return readers::all;
    if (!decided && peers.at(p.result.peer).maps_not) return readers::all; // as it did before
    (decided ? maps : undecided) = true;
  }
  if (undecided) return readers::unknown;
  return maps && u.facts.needed[bucket] ? readers::mapping : readers::none;
}

bool sender_machine::impl::everyone_decided() const {
  auto const& all = running->participants;
  return std::none_of(all.begin(), all.end(), [](auto const& p) { return p.at <= stage::deciding; });
}

bool sender_machine::impl::is_published(participant const& p, std::uint32_t bucket) const noexcept {
  return !p.result.mapped || running->facts.needed[bucket];
}

bool sender_machine::impl::anyone_reads(std::uint32_t ring, std::uint32_t bucket) const {
  auto const& all = running->participants;
  return std::any_of(all.begin(), all.end(), [&](auto const& p) {
    return p.at == stage::loading && p.result.ring == ring && is_published(p, bucket);
  });
}

bool sender_machine::impl::read_over_link() const {
  auto const& facts = running->facts;
  if (facts.ring == host_ring) return false;
  bool read = false;
  for (auto const& p : running->participants) {
    if (p.at >= stage::revoking) continue;
    if (peers.at(p.result.peer).device == facts.device) return false;
    read = read || (p.result.ring == facts.ring && p.released < p.published);
  }
  return read;
}

void sender_machine::impl::pump() {
  if (!running || running->drain_said || running->buckets() == 0) return;
  auto const& all = running->participants;
  if (std::all_of(all.begin(), all.end(), [](auto const& p) { return p.at == stage::over; })) return;
  skip_unwanted();
  bool const more =
      running->next_bucket < running->buckets() && who_wants(running->next_bucket) != readers::unknown;
  if (!more && running->loads.empty()) return; // no ring is made for nothing
  ring_record* main = need_ring(running->facts.ring);
  if (!main) return;
  publish_and_relay(*main);
  pack_ahead(*main);
}

void sender_machine::impl::skip_unwanted() {
  update& u = *running;
  while (u.next_bucket < u.buckets() && who_wants(u.next_bucket) == readers::none) {
    ++u.next_bucket;
    ++u.packed;
  }
}

void sender_machine::impl::pack_ahead(ring_record& main) {
  update& u = *running;
  for (; u.next_bucket < u.buckets(); skip_unwanted()) {
    auto const by = who_wants(u.next_bucket);
    if (by == readers::unknown) return;
    auto const slot = main.ledger.start_filling(next_seq);
    if (!slot) return;
    main.ledger.hold(*slot, own_hold);
    load& l = u.loads.emplace_back();
    l.seq = next_seq++;
    l.bucket = u.next_bucket++;
    l.slot = *slot;
    l.unmapped_only = by == readers::mapping;
    ++u.copies;
    actions.emplace_back(send_action::pack{l.seq, l.bucket, l.slot, l.unmapped_only, read_over_link()});
  }
}

void sender_machine::impl::publish_and_relay(ring_record& main) {
  update& u = *running;
  if (!everyone_decided()) return;
  bool const relays = u.facts.ring != host_ring;
  bool may_relay = true, may_publish_relayed = true; // both in bucket order
  for (auto& l : u.loads) {
    if (!l.packed) break;
    if (!l.published) {
      publish(l, u.facts.ring, l.slot);
      l.published = true;
      if (relays && anyone_reads(host_ring, l.bucket)) {
        l.relaying = load::relay::wanted;
        main.ledger.hold(l.slot, relay_hold);
      }
      main.ledger.release(l.slot, own_hold);
    }
    if (l.relaying == load::relay::wanted && may_relay) may_relay = start_relay(l, main);
    if (l.relaying == load::relay::done && may_publish_relayed) {
      publish(l, host_ring, l.host_slot);
      rings.at(host_ring).ledger.release(l.host_slot, own_hold);
      l.relaying = load::relay::published;
    }
    may_publish_relayed = may_publish_relayed && l.finished();
  }
  std::erase_if(u.loads, [](load const& l) { return l.finished(); });
}

bool sender_machine::impl::start_relay(load& l, ring_record& main) {
  if (!anyone_reads(host_ring, l.bucket)) { // they have gone since
    main.ledger.release(l.slot, relay_hold);
    l.relaying = load::relay::none;
    return true;
  }
  auto& host = rings.at(host_ring).ledger; // someone has mapped it
  auto const slot = host.start_filling(l.seq);
  if (!slot) return false;
  host.hold(*slot, own_hold);
  l.host_slot = *slot;
  l.relaying = load::relay::running;
  ++running->copies;
  actions.emplace_back(
      send_action::relay{l.seq, l.bucket, l.slot, l.host_slot, running->facts.bucket_bytes[l.bucket]});
  return true;
}

void sender_machine::impl::publish(load const& l, std::uint32_t ring, std::uint32_t slot) {
  auto& ledger = rings.at(ring).ledger;
  for (auto& p : running->participants) {
    if (p.at != stage::loading || p.result.ring != ring || !is_published(p, l.bucket)) continue;
    ledger.hold(slot, p.result.peer);
    ++p.published;
    protocol::published m;
    m.update = running->id;
    m.seq = l.seq;
    m.bucket = l.bucket;
    m.ring = ring;
    m.slot = slot;
    m.bytes = running->facts.bucket_bytes[l.bucket];
    say(p.result.peer, m);
  }
}

void sender_machine::impl::packed(std::uint64_t seq) {
  if (!running) return;
  update& u = *running;
  for (auto& l : u.loads) {
    if (l.seq != seq || l.packed) continue;
    l.packed = true;
    --u.copies;
    rings.at(u.facts.ring).ledger.filled(l.slot);
    ++u.packed;
    free_source();
    return;
  }
}

void sender_machine::impl::relayed(std::uint64_t seq) {
  if (!running) return;
  for (auto& l : running->loads) {
    if (l.seq != seq || l.relaying != load::relay::running) continue;
    l.relaying = load::relay::done;
    --running->copies;
    rings.at(host_ring).ledger.filled(l.host_slot);
    rings.at(running->facts.ring).ledger.release(l.slot, relay_hold);
    return;
  }
}

void sender_machine::impl::abandon_loads() {
  for (auto const& l : running->loads) {
    auto& main = rings.at(running->facts.ring).ledger;
    main.release(l.slot, own_hold);
    main.release(l.slot, relay_hold);
    if (!l.packed) main.give_back(l.slot);
    if (l.relaying != load::relay::running && l.relaying != load::relay::done) continue;
    auto& host = rings.at(host_ring).ledger;
    host.release(l.host_slot, own_hold);
    if (l.relaying == load::relay::running) host.give_back(l.host_slot);
  }
  running->loads.clear();
}

} // namespace ropeway::protocol
