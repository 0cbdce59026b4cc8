// Who is waited for, and for how long. Every limit is a timer that can be asked for: deadline() is the
// earliest one, tick() fires those that have come.
#include <algorithm>

#include "protocol/sender/state.hpp"

namespace ropeway::protocol {
namespace {

std::int64_t in_ms(duration d) { return std::chrono::duration_cast<std::chrono::milliseconds>(d).count(); }

} // namespace

bool sender_machine::impl::is_due(peer_id id, peer const& p) {
  if (p.cut) return false;
  if (p.owes != debt::none) return true;
  participant const* part = taking_part(id);
  if (!part) return false;
  switch (part->at) {
  case stage::deciding: {
    if (part->may_map && !part->accepted) return true;
    auto const ring = p.rings.find(part->result.ring);
    // With its accept said, and its ring still being made here, it is our turn.
    return !part->accepted || (ring != p.rings.end() && ring->second.what == offered_ring::answer::awaited);
  }
  case stage::loading:
    if (part->result.mapped && part->was_told) return true;
    return part->released < part->published || (!part->result.mapped && part->released == running->buckets());
  case stage::committing: return true;
  default: return false;
  }
}

std::optional<sender_machine::impl::timer> sender_machine::impl::earliest() {
  std::optional<timer> first;
  auto const offer = [&](time_point at, timer::kind what, peer_id id) {
    if (!first || at < first->at) first = timer{at, what, id};
  };
  for (auto const& [id, p] : peers) {
    if (p.cut) continue;
    if (p.watches) {
      offer(p.heard + settings.silence, timer::kind::watch, id);
      continue;
    }
    if (!p.greeted) {
      offer(p.connected + settings.handshake, timer::kind::handshake, id);
      continue;
    }
    if (p.due_since) offer(std::max(p.heard, *p.due_since) + settings.silence, timer::kind::silence, id);
    if (p.owes != debt::none) offer(p.owes_since + settings.commit, timer::kind::debt, id);
    if (held && p.not_before && *p.not_before != time_point::max())
      offer(*p.not_before, timer::kind::held, id);
    if (held && !held->asked && !running && can_be_given_held(p))
      offer(held_rests_until(), timer::kind::rest, id);
    participant const* part = taking_part(id);
    if (!part) continue;
    if (part->at == stage::owing || (part->at == stage::deciding && p.due_since))
      offer(part->since + settings.decide, timer::kind::decide, id);
    if (part->at == stage::committing) offer(part->since + settings.commit, timer::kind::commit, id);
    if (part->at >= stage::deciding)
      offer(p.said + std::max<duration>(settings.silence / 3, std::chrono::milliseconds(1)),
            timer::kind::alive, id);
  }
  return first;
}

void sender_machine::impl::fire(timer const& t) {
  participant* part = taking_part(t.peer);
  peer& p = peers.at(t.peer);
  switch (t.what) {
  case timer::kind::handshake:
    return drop(t.peer, errc::handshake_timeout, words("no hello within ", in_ms(settings.handshake), " ms"));
  case timer::kind::watch:
    return drop(t.peer, errc::peer_silent,
                words("one that watches has asked nothing for ", in_ms(settings.silence), " ms"));
  case timer::kind::silence:
    return give_up_on(t.peer, errc::peer_silent,
                      words("silent for ", in_ms(settings.silence), " ms while it was waited for"));
  case timer::kind::decide:
    if (part->at == stage::owing)
      return conclude(
          *part, outcome::skipped, static_cast<std::uint16_t>(errc::busy),
          words("it has not finished with update ", p.owes_for, " within ", in_ms(settings.decide), " ms"));
    return stop(
        *part, outcome::skipped, errc::peer_silent,
        words("it did not decide about update ", running->id, " within ", in_ms(settings.decide), " ms"));
  case timer::kind::commit: {
    std::string const text = words("no answer to commit within ", in_ms(settings.commit), " ms");
    conclude(*part, outcome::unconfirmed, static_cast<std::uint16_t>(errc::commit_timeout), text);
    return drop(t.peer, errc::commit_timeout, text);
  }
  case timer::kind::debt:
    return give_up_on(
        t.peer, p.owes == debt::aborted ? errc::peer_silent : errc::commit_timeout,
        words("it has not finished with update ", p.owes_for, " within ", in_ms(settings.commit), " ms"));
  case timer::kind::held: return p.not_before.reset();
  case timer::kind::rest: return; // what is held is asked for, as after every event
  case timer::kind::alive: return say(t.peer, alive{running->id});
  }
}

} // namespace ropeway::protocol
