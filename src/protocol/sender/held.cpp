// A version that is held: who lacks it, and when it is brought to them.
#include <algorithm>

#include "protocol/sender/state.hpp"

namespace ropeway::protocol {
namespace {

constexpr time_point never = time_point::max();

} // namespace

void sender_machine::impl::hold(std::uint64_t version) {
  // What runs now was begun by somebody who has not yet said what comes of it: it counts as newer.
  held = {version, running && !running->facts.held ? running->id : next_update, false};
  for (auto& [id, p] : peers) p.not_before.reset();
}

void sender_machine::impl::end_hold() {
  held.reset();
  for (auto& [id, p] : peers) p.not_before.reset();
}

void sender_machine::impl::held_failed() {
  if (!held) return;
  held->asked = false;
  for (auto& [id, p] : peers)
    if (p.greeted && lacks_held(p) && !p.not_before) put_off_held(p, outcome::skipped);
}

bool sender_machine::impl::lacks_held(peer const& p) const {
  if (!p.holds_version || p.spoiled) return true;
  return p.version_held != held->version && p.update_held < held->since;
}

bool sender_machine::impl::can_be_given_held(peer const& p) const {
  auto const ready = [&](peer const& one) {
    return lacks_held(one) && one.owes == debt::none && !one.not_before;
  };
  if (!p.greeted || !ready(p)) return false;
  if (p.group.empty()) return true;
  if (members(p.group) < p.group_size) return false;
  // Members must not come to hold different versions: those who lack this one take it together, and the
  // others must have just this one.
  return std::all_of(peers.begin(), peers.end(), [&](auto const& one) {
    peer const& member = one.second;
    if (!member.greeted || member.group != p.group) return true;
    return lacks_held(member) ? ready(member)
                              : member.version_held == held->version && member.owes == debt::none;
  });
}

// Who stays is brought a version once, so it is those who leave and come back that could have it brought
// without end. They are counted together, for another name or process costs them nothing, and so many are
// free that a whole fleet which starts again is served as it comes. Beyond that there is a rest after each
// delivery, about as long as that took, and the next one goes to all who wait by then: an honest newcomer
// waits for no more than that, however many come back.

void sender_machine::impl::has_left(peer const& p) {
  if (!p.was_given_held) return;
  auto const pause = settings.held_pause;
  left_with_held =
      std::min(std::max(left_with_held, now) + pause, now + (settings.held_turnover + 1) * pause);
}

time_point sender_machine::impl::held_rests_until() const {
  auto const pause = settings.held_pause;
  auto const rest = std::clamp<duration>(last_delivery_took, pause / 10, pause);
  return std::min(left_with_held - settings.held_turnover * pause, last_delivery_over + rest);
}

bool sender_machine::impl::wants_held() const {
  if (!held || running || closed || now < held_rests_until()) return false;
  return std::any_of(peers.begin(), peers.end(), [&](auto const& p) { return can_be_given_held(p.second); });
}

void sender_machine::impl::ask_for_held() {
  if (!held || running) return;
  bool const wanted = wants_held();
  if (wanted && !held->asked) actions.emplace_back(send_action::deliver_held{});
  held->asked = wanted;
}

void sender_machine::impl::put_off_held(peer& p, outcome what) {
  if (what == outcome::committed) return;
  p.not_before = what == outcome::skipped ? now + settings.decide : never;
}

} // namespace ropeway::protocol
