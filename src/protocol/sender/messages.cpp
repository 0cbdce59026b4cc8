// What peers say. Everything that the protocol does not allow here and now drops the peer.
#include <algorithm>

#include "protocol/codec.hpp"
#include "protocol/sender/state.hpp"

namespace ropeway::protocol {
namespace {

/// Of who says not now, again at once: no shorter than what is granted for a message that moves nothing, for
/// those of its group are asked as often, and may not have got to answering.
constexpr std::chrono::milliseconds shortest_pause{100};

} // namespace

void sender_machine::impl::received(peer_id id, message const& what) {
  peer* p = find(id);
  if (!p) return; // it was dropped while the message was under way
  p->heard = now;
  if (p->greeted) {
    heard_idly = false;
    std::visit([&](auto const& m) { on(id, *p, m); }, what);
    p = find(id);
    if (!p) return;
    if (!heard_idly)
      p->idle = {};
    else if (!p->idle.spend(now, settings.silence))
      violated(id, words(name_of(what), " and no end: ", max_idle_messages,
                         " messages in a row that move nothing; alive is needed every ",
                         std::chrono::duration_cast<std::chrono::milliseconds>(settings.silence / 3).count(),
                         " ms"));
  } else if (auto const* question = std::get_if<watch>(&what)) {
    answer(id, *question);
  } else if (p->watches) {
    if (!std::holds_alternative<goodbye>(what))
      return violated(id, words(name_of(what), ", which one that only watches never says"));
    on(id, *p, std::get<goodbye>(what));
  } else if (auto const* first = std::get_if<hello>(&what)) {
    greet(id, *first);
  } else {
    violated(id, words("its first message was ", name_of(what), ", not hello"));
  }
}

sender_machine::impl::participant* sender_machine::impl::current(peer_id id, peer const& p,
                                                                 std::uint64_t number, message const& what) {
  if (p.owes == debt::aborted && p.owes_for == number) {
    heard_idly = true;
    return nullptr;
  }
  participant* part = taking_part(id, number);
  if (part && part->at >= stage::deciding) return part;
  violated(id, words(name_of(what), " for update ", number, ", in which it does not take part"));
  return nullptr;
}

void sender_machine::impl::on(peer_id id, peer& p, ring_mapped const& m) {
  auto const at = p.rings.find(m.ring);
  if (at == p.rings.end() || at->second.what != offered_ring::answer::awaited)
    return violated(id, words("ring_mapped for ring ", m.ring, ", which it was not asked to map"));
  at->second.what = offered_ring::answer::mapped;
}

void sender_machine::impl::on(peer_id id, peer& p, ring_refused const& m) {
  auto const at = p.rings.find(m.ring);
  if (at == p.rings.end() || at->second.what != offered_ring::answer::awaited)
    return violated(id, words("ring_refused for ring ", m.ring, ", which it was not asked to map"));
  at->second = {offered_ring::answer::refused, m.code, one_line(m.text)};
}

void sender_machine::impl::on(peer_id id, peer& p, need_manifest const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted || part->asked_manifest)
    return violated(id, words("need_manifest for update ", m.update, " twice or after its accept"));
  part->asked_manifest = true;
  say(id, manifest_follows{m.update, 0});
}

void sender_machine::impl::on(peer_id id, peer& p, need_placement const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || !part->may_map || part->accepted || part->asked_placement)
    return violated(id, words("need_placement for update ", m.update,
                              " twice, after its accept, or without a placement"));
  part->asked_placement = true;
  say(id, placement_follows{m.update, 0});
}

void sender_machine::impl::on(peer_id id, peer& p, need_segment const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || !part->may_map || part->accepted)
    return violated(id, words("need_segment for update ", m.update,
                              ", which it has accepted already or "
                              "which has no placement"));
  auto const& all = running->facts.segments;
  auto const found = std::find_if(all.begin(), all.end(), [&](auto const& s) { return s.id == m.segment; });
  if (found == all.end() || m.first_part >= found->parts)
    return violated(id, words("need_segment for part ", m.first_part, " of segment ", m.segment,
                              ", which update ", m.update, " does not have"));
  p.segments.insert(m.segment);
  std::uint32_t const count = std::min(segment_batch, found->parts - m.first_part);
  // It may ask again, but not without end; and mapping is work as long as it goes on, and no longer.
  auto& asked = part->asked_parts[m.segment];
  heard_idly = m.first_part < asked;
  if (!heard_idly) {
    asked = m.first_part + count;
    part->since = now;
  }
  actions.emplace_back(send_action::send_parts{id, m.update, m.segment, m.first_part, count});
}

void sender_machine::impl::on(peer_id id, peer& p, unmapped const& m) {
  for (auto const segment : m.segments)
    if (p.unmapping.erase(segment) == 0)
      return violated(id, words("unmapped for segment ", segment, ", which it was not told to unmap"));
  if (m.segments.empty()) violated(id, words("unmapped for no segment"));
}

void sender_machine::impl::on(peer_id id, peer& p, accept const& m) {
  // It has crossed our abort, and begun to write.
  if (p.owes == debt::aborted && p.owes_for == m.update && p.may_begin && m.mapped == 1) p.spoiled = true;
  if (participant* const revoked = revoking(id, m.update); revoked && !revoked->accepted) {
    revoked->accepted = true;
    revoked->result.mapped = m.mapped == 1;
  }
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("accept for update ", m.update, ", which it has accepted already"));
  if (m.mapped > 1 || (m.mapped == 1 && !part->may_map))
    return violated(id, words("accept for update ", m.update, " as mapped, which it can't be"));
  part->accepted = true;
  if (!part->may_map) return;
  part->result.mapped = m.mapped == 1;
  p.maps_not = m.mapped == 0;
  if (m.mapped == 1) return;
  does_not_read(*part);
  add_route_reason(*part, m.code == 0
                              ? "it takes the update through the ring by its own choice"
                              : "through the ring, because it can't map the tensors: " + one_line(m.text));
  if (running->facts.only_mapped)
    stop(*part, outcome::refused, m.code == 0 ? errc::not_reachable : static_cast<errc>(m.code),
         "the sender allows the mapped route only: " + part->result.route_reason);
}

void sender_machine::impl::on(peer_id id, peer& p, refuse const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("refuse for update ", m.update, ", which it has accepted already"));
  does_not_read(*part);
  conclude(*part, outcome::refused, m.code, m.text);
  // Also what is held, if that was just sent: one answer is enough.
  if (held && held->version == running->facts.version) put_off_held(p, outcome::refused);
}

void sender_machine::impl::on(peer_id id, peer& p, not_now const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("not_now for update ", m.update, ", which it has accepted already"));
  does_not_read(*part);
  conclude(*part, outcome::skipped, static_cast<std::uint16_t>(errc::peer_refused),
           words("not now, again in ", m.retry_ms, " ms: ", m.text));
  if (held) p.not_before = now + std::max(std::chrono::milliseconds(m.retry_ms), shortest_pause);
}

void sender_machine::impl::on(peer_id id, peer& p, released const& m) {
  if (p.owes == debt::aborted && p.owes_for == m.update) {
    heard_idly = true;
    for (auto& [number, ring] : rings)
      if (auto const slot = ring.ledger.find(m.seq)) ring.ledger.release(*slot, id);
    return;
  }
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  auto const ring = rings.find(part->result.ring);
  if (part->at == stage::loading && ring != rings.end())
    if (auto const slot = ring->second.ledger.find(m.seq); slot && ring->second.ledger.release(*slot, id)) {
      ++part->released;
      return;
    }
  violated(id, words("released for update ", m.update, " seq ", m.seq, ", which it does not hold"));
}

sender_machine::impl::participant* sender_machine::impl::revoking(peer_id id, std::uint64_t number) {
  participant* const part = taking_part(id, number);
  return part && part->at == stage::revoking ? part : nullptr;
}

sender_machine::impl::participant* sender_machine::impl::committing(peer_id id, std::uint64_t number) {
  participant* const part = taking_part(id, number);
  if (!part) return nullptr;
  // Who had said all_copied when it was told to abort may have looked before that.
  bool const revoked = part->at == stage::revoking && part->result.all_copied;
  return part->at == stage::committing || revoked ? part : nullptr;
}

void sender_machine::impl::copied(participant& p, all_copied const& m) {
  p.reads = false;
  p.result.all_copied = now;
  p.result.copied = m.copied;
}

void sender_machine::impl::on(peer_id id, peer& p, all_copied const& m) {
  // Our abort comes to it before it looks, or too late.
  if (participant* const revoked = revoking(id, m.update);
      revoked && revoked->accepted && revoked->result.mapped && !revoked->result.all_copied)
    return copied(*revoked, m);
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::loading || part->released != expected(*part) ||
      (part->result.mapped && !part->was_told))
    return violated(id, words("all_copied for update ", m.update, " after it released ", part->released,
                              " of ", expected(*part), " buckets",
                              part->result.mapped && !part->was_told ? ", before it was told to read" : ""));
  if (running->facts.digests != 0 && !part->has_digests)
    return violated(id,
                    words("all_copied for update ", m.update, " before it had the digests to compare with"));
  copied(*part, m);
  if (m.digest != running->digest.value_or(bytes16{}))
    return stop(*part, outcome::failed, errc::digest_mismatch,
                words("it compared another update: its digest is ", hex(m.digest), ", not ",
                      hex(running->digest.value_or(bytes16{}))));
  part->at = stage::all_copied;
  commit_if_ready(*part);
}

void sender_machine::impl::on(peer_id id, peer& p, committed const& m) {
  if (participant* const part = committing(id, m.update)) return conclude(*part, outcome::committed, 0, {});
  if (p.owes == debt::commit_answer && p.owes_for == m.update) {
    p.owes = debt::none;
    p.version_held = p.owes_version;
    p.holds_version = true;
    p.update_held = p.owes_for;
    p.spoiled = false;
    p.digest = p.owes_digest;
    return;
  }
  if (current(id, p, m.update, m))
    violated(id, words("committed for update ", m.update, ", which it was not told to commit"));
}

void sender_machine::impl::on(peer_id id, peer& p, failed const& m) {
  if (participant* const part = committing(id, m.update))
    return conclude(*part, outcome::failed, m.code, m.text);
  if (p.owes == debt::commit_answer && p.owes_for == m.update) {
    p.owes = debt::none;
    p.last_error = one_line(m.text);
    return;
  }
  if (current(id, p, m.update, m))
    violated(id, words("failed for update ", m.update, ", which it was not told to commit"));
}

void sender_machine::impl::on(peer_id id, peer& p, abort_update const& m) {
  // It has crossed our abort, which it still answers. It did not commit, nor will it.
  if (participant* const part = revoking(id, m.update)) return revoked(*part);
  // It may have said so before our commit came to it: then it ignores the commit.
  if (p.owes != debt::commit_answer || p.owes_for != m.update) {
    participant* part = current(id, p, m.update, m);
    if (!part) return;
    if (!part->accepted) does_not_read(*part);
    conclude(*part, outcome::failed, m.code, m.text);
  }
  p.owes = debt::aborted;
  p.owes_for = m.update;
  p.owes_since = now;
}

void sender_machine::impl::on(peer_id id, peer& p, aborted const& m) {
  if (p.owes != debt::aborted || p.owes_for != m.update)
    return violated(id, words("aborted for update ", m.update, ", which nobody has aborted"));
  p.owes = debt::none;
  p.may_begin = false;
  for (auto& [number, ring] : rings) ring.ledger.release_all(id);
  stopped_reading(id);
  if (participant* const part = revoking(id, m.update)) revoked(*part);
}

void sender_machine::impl::on(peer_id id, peer&, alive const& m) {
  heard_idly = true;
  if (m.update >= next_update) violated(id, words("alive for update ", m.update, ", which does not exist"));
}

void sender_machine::impl::on(peer_id id, peer&, goodbye const& m) {
  std::string const text = "it said goodbye: " + one_line(m.text);
  actions.emplace_back(send_action::drop{id, errc::ok, text});
  forget(id, errc::peer_gone, text, true);
}

template <class Other>
void sender_machine::impl::on(peer_id id, peer&, Other const& m) {
  violated(id, words(name_of(m), ", which a receiver never says to a greeted sender"));
}

} // namespace ropeway::protocol
