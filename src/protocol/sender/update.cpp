// Who takes part in an update, and what becomes of them.
#include <algorithm>
#include <utility>

#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

sender_machine::impl::update::update() = default;

std::uint64_t sender_machine::impl::begin_update(update_facts facts) {
  if (running)
    throw transfer_error(errc::busy, words("update ", running->id, " is still running; wait for its end"));
  if (facts.bucket_bytes.size() >= UINT32_MAX)
    throw transfer_error(errc::overflow, "an update of more than 4294967294 buckets; use larger buckets");
  if (facts.placement != 0 && facts.needed.size() != facts.bucket_bytes.size())
    throw transfer_error(errc::invalid_argument, "a placement goes with a list of needed buckets");
  update& u = running.emplace();
  u.id = next_update++;
  u.facts = std::move(facts);
  u.began = now;
  u.needed = static_cast<std::uint32_t>(std::count(u.facts.needed.begin(), u.facts.needed.end(), true));
  u.source_asked = u.source_ready = u.facts.source_ready;
  if (held) held->asked = false;
  for (auto& [id, who] : peers) {
    if (!who.greeted || (u.facts.held && !(held && can_be_given_held(who)))) continue;
    who.was_given_held = who.was_given_held || u.facts.held;
    participant& p = u.participants.emplace_back();
    p.group = who.group;
    p.since = now;
    p.result.peer = id;
    p.result.name = who.name;
    // Without buckets there is no ring, and the receiver tells of none either.
    p.result.ring = u.buckets() != 0 && who.device && !u.facts.through_host ? u.facts.ring : host_ring;
    p.may_map = u.facts.placement != 0;
    p.result.route_reason = u.facts.note;
  }
  skip_incomplete_groups();
  return u.id;
}

void sender_machine::impl::skip_incomplete_groups() {
  for (auto& p : running->participants) {
    if (p.group.empty()) continue;
    auto const connected = members(p.group);
    auto const group_size = peers.at(p.result.peer).group_size;
    if (connected < group_size)
      settle_outcome(
          p, outcome::skipped, static_cast<std::uint16_t>(errc::group_incomplete),
          words(connected, " of ", group_size, " members of group ", one_line(p.group), " are connected"));
  }
}

void sender_machine::impl::advance(participant& p) {
  if (p.at > stage::deciding) return;
  peer& who = peers.at(p.result.peer);
  if (p.at == stage::owing) {
    if (who.owes != debt::none) return;
    p.at = stage::preparing;
    p.since = now;
  }
  // Who may map needs no ring until it has said that it does not.
  if (p.may_map && p.at == stage::preparing) say_begin(p);
  if (p.may_map && !p.accepted) return;
  bool mapped = expected(p) == 0; // nothing to read there, nothing to map
  while (!mapped) {
    auto const number = p.result.ring;
    auto const offered = who.rings.find(number);
    if (offered == who.rings.end()) {
      if (!need_ring(number)) return;
      ring offer;
      offer.id = number;
      offer.on_device = number == host_ring ? 0 : 1;
      offer.slot_bytes = settings.bucket_bytes;
      offer.slots = settings.slots;
      who.rings[number];
      say(p.result.peer, offer);
      p.since = now;
      break;
    }
    auto const& [answer, code, text] = offered->second;
    if (answer != offered_ring::answer::refused) {
      mapped = answer == offered_ring::answer::mapped;
      break;
    }
    if (number == host_ring)
      return stop(p, outcome::refused, static_cast<errc>(code),
                  "it can't map the sender's host ring: " + text);
    add_route_reason(p, words("through host memory, because it can't map ring ", number, ": ", text));
    p.result.ring = host_ring;
  }
  if (p.at == stage::preparing) say_begin(p);
  if (!p.accepted || !mapped) return;
  auto const& facts = running->facts;
  if (expected(p) != 0 && facts.ring != host_ring && !facts.through_host && !who.device)
    add_route_reason(p, "through host memory, because it names no device");
  p.at = stage::loading;
  p.result.took_part = now;
}

void sender_machine::impl::add_route_reason(participant& p, std::string const& text) {
  auto& reason = p.result.route_reason;
  if (!reason.empty()) reason += "; ";
  reason += text;
}

void sender_machine::impl::say_begin(participant& p) {
  // An update without digests between two with them takes no table away.
  auto& table = peers.at(p.result.peer).digest_table;
  if (auto const needed = running->facts.digests; needed != 0 && needed != table) {
    table = needed;
    say(p.result.peer, digest_table{table, 0});
  }
  begin b;
  b.update = running->id;
  b.version = running->facts.version;
  b.layout = running->facts.layout;
  b.total_bytes = running->facts.total_bytes;
  b.tensors = running->facts.tensors;
  b.buckets = running->buckets();
  b.placement = running->facts.placement;
  b.digests = running->facts.digests;
  say(p.result.peer, b);
  p.at = stage::deciding;
  p.since = now;
  if (can_read_at_once(p)) say_read(p);
}

sender_machine::impl::participant* sender_machine::impl::taking_part(peer_id id) {
  if (!running) return nullptr;
  for (auto& p : running->participants)
    if (p.result.peer == id) return p.at == stage::over ? nullptr : &p;
  return nullptr;
}

sender_machine::impl::participant* sender_machine::impl::taking_part(peer_id id, std::uint64_t number) {
  return running && running->id == number ? taking_part(id) : nullptr;
}

void sender_machine::impl::settle_outcome(participant& p, outcome what, std::uint16_t code,
                                          std::string const& text) {
  bool const wrote = p.published != 0 || (p.was_told && p.accepted);
  p.at = stage::over;
  p.result.what = what;
  p.result.code = code;
  p.result.text = one_line(text);
  // Without a word it would be taken for a success.
  if (what != outcome::committed && p.result.text.empty())
    p.result.text = code == 0 ? "it gave no reason" : make_error_code(static_cast<errc>(code)).message();
  p.result.route_reason = one_line(p.result.route_reason);
  p.result.decided = now;
  peer* who = find(p.result.peer);
  if (!who) return;
  if (what == outcome::committed) {
    who->version_held = running->facts.version;
    who->holds_version = true;
    who->update_held = running->id;
    who->spoiled = false;
    who->last_error.clear();
    who->last_bytes = p.result.copied;
    who->last_took = now - running->began;
    who->digest = running->digest;
  } else {
    who->last_error = p.result.text;
    who->spoiled = who->spoiled || wrote;
  }
}

void sender_machine::impl::conclude(participant& p, outcome what, std::uint16_t code,
                                    std::string const& text) {
  settle_outcome(p, what, code, text);
  if (peer* const who = find(p.result.peer); who && running->facts.held) put_off_held(*who, what);
  if (!p.group.empty() && what != outcome::committed)
    fail_group(p.group, words("group ", one_line(p.group), " can't commit without ", p.result.name, ": ",
                              p.result.text));
}

void sender_machine::impl::fail_group(std::string const& group, std::string const& text) {
  if (running->group_committing[group]) return; // what was told can't be taken back
  for (auto& p : running->participants) {
    if (p.group != group || p.at == stage::over) continue;
    tell_abort(p, errc::group_incomplete, text);
    settle_outcome(p, outcome::skipped, static_cast<std::uint16_t>(errc::group_incomplete), text);
  }
}

void sender_machine::impl::tell_abort(participant& p, errc code, std::string const& text) {
  if (p.at < stage::deciding || p.at > stage::all_copied)
    return; // it does not know of the update, or has heard
  say(p.result.peer, abort_update{running->id, static_cast<std::uint16_t>(code), one_line(text)});
  peer& who = peers.at(p.result.peer);
  who.owes = debt::aborted;
  who.may_begin = p.was_told && !p.accepted;
  who.owes_for = running->id;
  who.owes_since = now;
}

void sender_machine::impl::stop(participant& p, outcome what, errc code, std::string const& text) {
  tell_abort(p, code, text);
  auto const number = static_cast<std::uint16_t>(code);
  if (!revoke(p, what, number, text)) conclude(p, what, number, text);
}

bool sender_machine::impl::revoke(participant& p, outcome what, std::uint16_t code, std::string const& text) {
  if (!may_have_committed(p)) return false;
  p.at = stage::revoking;
  p.result.what = what;
  p.result.code = code;
  p.result.text = text;
  return true;
}

void sender_machine::impl::revoked(participant& p) {
  settle_outcome(p, p.result.what, p.result.code, std::string(p.result.text));
}

bool sender_machine::impl::may_have_committed(participant const& p) noexcept {
  return p.at == stage::revoking || (p.commits_itself && p.reads);
}

bool sender_machine::impl::can_commit_itself(participant const& p) const {
  // Which saves the turn from all_copied to commit. Members of a group must not commit before all can,
  // digests are compared on both sides, and what a receiver should know of its route comes with the commit.
  return running->facts.waited_for && p.group.empty() && running->facts.digests == 0 &&
         running->needed == 0 && p.result.route_reason.empty();
}

void sender_machine::impl::say_commit(participant& p) {
  if (!p.commits_itself) say(p.result.peer, protocol::commit{running->id, one_line(p.result.route_reason)});
  p.at = stage::committing;
  p.since = now;
  p.result.told_to_commit = now;
}

std::uint32_t sender_machine::impl::expected(participant const& p) const noexcept {
  return p.result.mapped ? running->needed : running->buckets();
}

bool sender_machine::impl::group_decided(std::string const& group) const {
  auto const& all = running->participants;
  return std::none_of(all.begin(), all.end(),
                      [&](auto const& m) { return m.group == group && m.at <= stage::deciding; });
}

void sender_machine::impl::tell_to_read() {
  update& u = *running;
  if (u.drain_said) return;
  for (auto& p : u.participants) {
    if (p.at != stage::loading || !p.result.mapped || p.was_told) continue;
    if (!u.source_asked) actions.emplace_back(send_action::await_source{});
    u.source_asked = true;
    if (!u.source_ready) return;
    if (!p.group.empty() && !group_decided(p.group)) continue;
    say_read(p);
  }
}

bool sender_machine::impl::can_read_at_once(participant const& p) const {
  // Which saves the turn from accept to read_mapped. Members of a group must not begin before all have
  // decided, who needs a bucket as well is waited for all the same, and who did not map last time will not.
  return running->source_ready && p.may_map && p.group.empty() && running->buckets() != 0 &&
         running->needed == 0 && !peers.at(p.result.peer).maps_not;
}

void sender_machine::impl::say_read(participant& p) {
  p.was_told = p.reads = true;
  p.commits_itself = can_commit_itself(p);
  say(p.result.peer, read_mapped{running->id, p.commits_itself});
}

void sender_machine::impl::does_not_read(participant& p) { p.was_told = p.reads = p.commits_itself = false; }

void sender_machine::impl::tell_digests() {
  update& u = *running;
  if (u.drain_said) return;
  for (auto& p : u.participants) {
    if (p.at != stage::loading || p.has_digests) continue;
    if (!u.digest_asked) {
      ++u.copies;
      actions.emplace_back(send_action::digest_source{});
    }
    u.digest_asked = true;
    if (!u.digest) return;
    p.has_digests = true;
    say(p.result.peer, digests_ready{u.id});
  }
}

void sender_machine::impl::digested(bytes16 const& whole) {
  if (!running || !running->digest_asked || running->digest) return;
  --running->copies;
  running->digest = whole;
  free_source();
}

bool sender_machine::impl::source_is_free() const {
  update const& u = *running;
  if (u.packed != u.buckets() || (u.facts.digests != 0 && !u.digest)) return false;
  return std::none_of(u.participants.begin(), u.participants.end(), [&](auto const& p) {
    // Who has not decided yet may still map; who was told to read and was aborted may still read.
    return p.reads || (p.at <= stage::deciding && p.may_map) || (p.at == stage::loading && p.result.mapped);
  });
}

void sender_machine::impl::free_source() {
  if (running->source_free || !source_is_free()) return;
  actions.emplace_back(send_action::source_free{});
  running->source_free = true;
}

void sender_machine::impl::stopped_reading(peer_id id) {
  if (!running) return;
  for (auto& p : running->participants)
    if (p.result.peer == id) p.reads = false;
}

void sender_machine::impl::retire_segments(std::vector<std::uint64_t> const& ids) {
  for (auto& [id, p] : peers) {
    unmap order;
    auto const tell = [&, to = id] {
      if (!order.segments.empty()) say(to, std::exchange(order, {}));
    };
    for (auto const segment : ids) {
      if (p.segments.erase(segment) == 0) continue;
      p.unmapping.insert(segment);
      order.segments.push_back(segment);
      if (order.segments.size() == max_unmap) tell();
    }
    tell();
  }
}

void sender_machine::impl::commit_if_ready(participant& p) {
  if (p.group.empty()) return say_commit(p);
  auto& all = running->participants;
  if (std::any_of(all.begin(), all.end(),
                  [&](auto const& m) { return m.group == p.group && m.at != stage::all_copied; }))
    return;
  running->group_committing[p.group] = true;
  for (auto& m : all)
    if (m.group == p.group) say_commit(m);
}

void sender_machine::impl::give_up(errc code, std::string const& text) {
  if (!running) return;
  update& u = *running;
  if (u.code == errc::ok) {
    u.code = code;
    u.text = one_line(text);
  }
  std::string const why = "the sender gave the update up: " + u.text;
  for (auto& p : u.participants) {
    if (p.at >= stage::revoking) continue;
    if (p.at == stage::committing) {
      peer& who = peers.at(p.result.peer);
      who.owes = debt::commit_answer;
      who.owes_for = u.id;
      who.owes_version = u.facts.version;
      who.owes_digest = u.digest;
      who.owes_since = p.since;
      settle_outcome(p, outcome::unconfirmed, static_cast<std::uint16_t>(errc::unconfirmed),
                     "it was told to commit and had not answered when " + why);
    } else {
      tell_abort(p, code, u.text);
      if (revoke(p, outcome::skipped, static_cast<std::uint16_t>(code), why)) continue;
      settle_outcome(p, outcome::skipped, static_cast<std::uint16_t>(code), why);
      if (u.facts.held && code != errc::peer_aborted) put_off_held(peers.at(p.result.peer), outcome::skipped);
    }
  }
  if (!u.drain_said) actions.emplace_back(send_action::drain{});
  u.drain_said = true;
}

void sender_machine::impl::check_finished() {
  if (!running) return;
  update& u = *running;
  if (std::any_of(u.participants.begin(), u.participants.end(),
                  [](auto const& p) { return p.at != stage::over; }))
    return;
  if (u.copies > 0 && !u.drain_said) {
    actions.emplace_back(send_action::drain{});
    u.drain_said = true;
  }
  if (u.drain_said && !u.drained) return;
  // The trainer may change its tensors when this is over: not while somebody copies them.
  if (std::any_of(u.participants.begin(), u.participants.end(), [](auto const& p) { return p.reads; }))
    return;
  abandon_loads();
  if (!u.source_free) actions.emplace_back(send_action::source_free{});
  send_action::finished end;
  end.code = u.code;
  end.text = u.text;
  // Who watches compares it with what receivers hold: while an update runs that is what came before it.
  if (u.digest && std::any_of(u.participants.begin(), u.participants.end(),
                              [](auto const& p) { return p.result.what == outcome::committed; }))
    last_digest = {u.facts.version, *u.digest};
  for (auto& p : u.participants) end.results.push_back(std::move(p.result));
  if (u.facts.held) {
    last_delivery_over = now;
    last_delivery_took = now - u.began;
  }
  running.reset();
  actions.emplace_back(std::move(end));
}

} // namespace ropeway::protocol
