// Arriving and leaving.
#include <algorithm>

#include "protocol/codec.hpp"
#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

namespace {
std::string full_name(std::string const& name, std::string const& about) {
  std::string line = name.empty() ? std::string("receiver") : one_line(name, max_name);
  if (!about.empty()) line += " (" + about + ")";
  return line;
}
std::string too_many(std::uint32_t limit) {
  return words("the sender has its limit of ", limit, " receivers; try again later");
}
} // namespace

void sender_machine::impl::connected(peer_id id, std::string about) {
  if (id >= first_reserved_peer || peers.count(id) != 0) return;
  if (closed) {
    std::string const refusal = "the sender is closing";
    actions.emplace_back(
        send_action::say{id, turned_away{static_cast<std::uint16_t>(errc::not_open), refusal}});
    actions.emplace_back(send_action::drop{id, errc::not_open, refusal});
    return;
  }
  make_room_for_handshake();
  peer p;
  p.words = one_line(about, max_name);
  p.name = full_name({}, p.words);
  p.connected = p.heard = p.said = now;
  peers.emplace(id, std::move(p));
}

std::size_t sender_machine::impl::greeted() const {
  return static_cast<std::size_t>(
      std::count_if(peers.begin(), peers.end(), [](auto const& p) { return p.second.greeted; }));
}

std::size_t sender_machine::impl::watching() const {
  return static_cast<std::size_t>(
      std::count_if(peers.begin(), peers.end(), [](auto const& p) { return p.second.watches; }));
}

void sender_machine::impl::make_room_for_handshake() {
  if (peers.size() - greeted() - watching() < settings.max_handshakes) return;
  // Ids grow, so the first has waited longest.
  auto const oldest = std::find_if(peers.begin(), peers.end(),
                                   [](auto const& p) { return !p.second.greeted && !p.second.watches; });
  drop(oldest->first, errc::busy,
       words(settings.max_handshakes, " connections have not said hello, and others come; try again later"));
}

sender_machine::impl::peer* sender_machine::impl::find(peer_id id) {
  auto const at = peers.find(id);
  return at == peers.end() ? nullptr : &at->second;
}

std::size_t sender_machine::impl::members(std::string const& group) const {
  return static_cast<std::size_t>(std::count_if(peers.begin(), peers.end(), [&](auto const& p) {
    return p.second.greeted && p.second.group == group;
  }));
}

bool sender_machine::impl::speaks_as_we_do(peer_id id, std::string_view first, std::string_view who,
                                           std::uint64_t magic, std::uint16_t oldest, std::uint16_t newest,
                                           std::uint64_t schema) {
  std::uint16_t const chosen = std::min(newest, version_max);
  if (magic != hello_magic)
    turn_away(id, errc::protocol_error, words(first, " does not start with ropeway's magic number"));
  else if (oldest > newest || chosen < std::max(oldest, version_min))
    turn_away(id, errc::version_mismatch,
              words("the ", who, " speaks protocol versions ", oldest, " to ", newest, ", this sender ",
                    version_min, " to ", version_max, "; use builds with a version in common"));
  else if (schema != schema_hash())
    turn_away(id, errc::version_mismatch,
              words(who, " and sender both speak protocol version ", chosen,
                    " but were built from different messages; use the same build"));
  else
    return true;
  return false;
}

void sender_machine::impl::greet(peer_id id, hello const& what) {
  peer& p = peers.at(id);
  p.name = full_name(what.name, p.words);
  if (!speaks_as_we_do(id, "hello", "receiver", what.magic, what.oldest, what.newest, what.schema)) return;
  if (greeted() >= settings.max_peers) return turn_away(id, errc::busy, too_many(settings.max_peers));
  if (what.devices.size() > max_devices)
    return turn_away(id, errc::invalid_argument,
                     words("hello names ", what.devices.size(), " devices, more than ", max_devices));
  if (what.group.empty() != (what.group_size == 0))
    return turn_away(id, errc::invalid_argument,
                     words("a group needs both a name and a size; hello says \"",
                           one_line(what.group, max_name), "\" and ", what.group_size));
  if (!what.group.empty()) {
    for (auto const& [other_id, other] : peers)
      if (other.greeted && other.group == what.group && other.group_size != what.group_size)
        return turn_away(id, errc::invalid_argument,
                         words("hello says that group ", one_line(what.group, max_name), " has ",
                               what.group_size, " members, ", other.name, " says ", other.group_size));
    if (members(what.group) >= what.group_size)
      return turn_away(id, errc::busy,
                       words("all ", what.group_size, " members of group ", one_line(what.group, max_name),
                             " are connected already"));
  }
  p.greeted = true;
  if (!what.devices.empty()) p.device = what.devices.front();
  p.group = what.group;
  p.group_size = what.group_size;
  p.version_held = what.version_held;
  p.holds_version = what.last_sender == settings.instance && what.last_update != 0;
  p.update_held = what.last_update;
  welcome answer;
  answer.version = std::min(what.newest, version_max);
  answer.sender = settings.instance;
  answer.bucket_bytes = settings.bucket_bytes;
  auto const ms = std::chrono::duration_cast<std::chrono::milliseconds>(settings.silence).count();
  answer.silence_ms = static_cast<std::uint32_t>(std::clamp<std::int64_t>(ms, 1, UINT32_MAX));
  say(id, answer);
}

void sender_machine::impl::turn_away(peer_id id, errc code, std::string const& text) {
  say(id, turned_away{static_cast<std::uint16_t>(code), text});
  actions.emplace_back(send_action::drop{id, code, text});
  forget(id, code, text, false);
}

void sender_machine::impl::drop(peer_id id, errc code, std::string const& text) {
  peer* p = find(id);
  if (!p) return;
  if (!p->greeted && !p->watches) return turn_away(id, code, text);
  say(id, goodbye{static_cast<std::uint16_t>(code), text});
  actions.emplace_back(send_action::drop{id, code, text});
  // Of who breaks the protocol nothing is known anyway.
  forget(id, code, text, code == errc::protocol_error);
}

void sender_machine::impl::give_up_on(peer_id id, errc code, std::string const& text) {
  participant const* const part = taking_part(id);
  if (!part || !may_have_committed(*part)) return drop(id, code, text);
  peer& p = peers.at(id);
  p.cut_text = text;
  say(id, goodbye{static_cast<std::uint16_t>(code), text});
  actions.emplace_back(send_action::cut{id, text});
  p.cut = code;
}

void sender_machine::impl::violated(peer_id id, std::string const& text) {
  drop(id, errc::protocol_error, text);
}

void sender_machine::impl::forget(peer_id id, errc code, std::string const& text, bool heard_all) {
  for (auto& [number, ring] : rings) ring.ledger.release_all(id);
  participant* p = taking_part(id);
  // Who commits by itself says all_copied before that: if all was heard, it did not.
  bool const unheard = p && may_have_committed(*p) && (!heard_all || p->result.all_copied);
  bool const committed = unheard || (p && p->at == stage::committing);
  stopped_reading(id);
  if (auto const* const leaving = find(id)) has_left(*leaving);
  peers.erase(id);
  if (!p) return;
  if (committed)
    conclude(*p, outcome::unconfirmed, static_cast<std::uint16_t>(errc::unconfirmed),
             "it was to commit and left without an answer: " + text);
  else if (p->at == stage::revoking)
    revoked(*p);
  else
    conclude(*p, outcome::dropped, static_cast<std::uint16_t>(code), text);
}

void sender_machine::impl::close(std::string const& text) {
  if (closed) return;
  closed = true;
  std::string const line = one_line(text);
  give_up(errc::not_open, line);
  while (!peers.empty()) {
    auto const& [id, p] = *peers.begin();
    drop(id, p.greeted || p.watches ? errc::ok : errc::not_open, line);
  }
}

} // namespace ropeway::protocol
