// What peers say. Everything that the protocol does not allow here and now drops the peer.
#include "protocol/codec.hpp"
#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

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
  participant* part = taking_part(id);
  if (part && running->id == number && part->at >= stage::deciding) return part;
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

void sender_machine::impl::on(peer_id id, peer& p, accept const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("accept for update ", m.update, ", which it has accepted already"));
  part->accepted = true;
}

void sender_machine::impl::on(peer_id id, peer& p, refuse const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("refuse for update ", m.update, ", which it has accepted already"));
  conclude(*part, outcome::refused, m.code, m.text);
}

void sender_machine::impl::on(peer_id id, peer& p, not_now const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::deciding || part->accepted)
    return violated(id, words("not_now for update ", m.update, ", which it has accepted already"));
  conclude(*part, outcome::skipped, static_cast<std::uint16_t>(errc::peer_refused),
           words("not now, again in ", m.retry_ms, " ms: ", m.text));
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

void sender_machine::impl::on(peer_id id, peer& p, all_copied const& m) {
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::loading || part->released != running->buckets())
    return violated(id, words("all_copied for update ", m.update, " after it released ", part->released,
                              " of ", running->buckets(), " buckets"));
  part->at = stage::all_copied;
  commit_if_ready(*part);
}

void sender_machine::impl::on(peer_id id, peer& p, committed const& m) {
  if (p.owes == debt::commit_answer && p.owes_for == m.update) {
    p.owes = debt::none;
    p.version_held = p.owes_version;
    p.holds_version = true;
    return;
  }
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::committing)
    return violated(id, words("committed for update ", m.update, ", which it was not told to commit"));
  conclude(*part, outcome::committed, 0, {});
}

void sender_machine::impl::on(peer_id id, peer& p, failed const& m) {
  if (p.owes == debt::commit_answer && p.owes_for == m.update) {
    p.owes = debt::none;
    p.last_error = one_line(m.text);
    return;
  }
  participant* part = current(id, p, m.update, m);
  if (!part) return;
  if (part->at != stage::committing)
    return violated(id, words("failed for update ", m.update, ", which it was not told to commit"));
  conclude(*part, outcome::failed, m.code, m.text);
}

void sender_machine::impl::on(peer_id id, peer& p, abort_update const& m) {
  // It may have said so before our commit came to it: then it ignores the commit.
  if (p.owes != debt::commit_answer || p.owes_for != m.update) {
    participant* part = current(id, p, m.update, m);
    if (!part) return;
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
  for (auto& [number, ring] : rings) ring.ledger.release_all(id);
}

void sender_machine::impl::on(peer_id id, peer&, alive const& m) {
  heard_idly = true;
  if (m.update >= next_update) violated(id, words("alive for update ", m.update, ", which does not exist"));
}

void sender_machine::impl::on(peer_id id, peer&, goodbye const& m) {
  std::string const text = "it said goodbye: " + one_line(m.text);
  actions.emplace_back(send_action::drop{id, errc::ok, text});
  forget(id, errc::peer_gone, text);
}

template <class Other>
void sender_machine::impl::on(peer_id id, peer&, Other const& m) {
  violated(id, words(name_of(m), ", which a receiver never says to a greeted sender"));
}

} // namespace ropeway::protocol
