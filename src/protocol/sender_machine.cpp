// The public face: every event moves the clock, is handled, and then what follows from it is done.
#include "protocol/sender_machine.hpp"

#include <algorithm>

#include "protocol/sender/state.hpp"

namespace ropeway::protocol {

void sender_machine::impl::say(peer_id to, message what) {
  peers.at(to).said = now;
  actions.emplace_back(send_action::say{to, std::move(what)});
}

void sender_machine::impl::settle() {
  if (running)
    for (auto& p : running->participants) advance(p);
  pump();
  if (running) {
    tell_to_read();
    if (running->facts.digests != 0) tell_digests();
    if (running->facts.placement != 0) free_source();
  }
  check_finished();
  ask_for_held();
  for (auto& [id, p] : peers) {
    if (!is_due(id, p))
      p.due_since.reset();
    else if (!p.due_since)
      p.due_since = now;
  }
}

sender_machine::sender_machine(sender_settings settings)
    : impl_(std::make_unique<impl>(std::move(settings))) {
  impl_->settings.slots = std::max(impl_->settings.slots, 1u);
}
sender_machine::sender_machine(std::unique_ptr<impl> state) : impl_(std::move(state)) {}
sender_machine::~sender_machine() = default;
sender_machine::sender_machine(sender_machine&&) noexcept = default;
sender_machine& sender_machine::operator=(sender_machine&&) noexcept = default;
sender_machine sender_machine::clone() const { return sender_machine(std::make_unique<impl>(*impl_)); }

namespace {
/// Time never goes back.
void move_clock(time_point& clock, time_point now) { clock = std::max(clock, now); }
} // namespace

void sender_machine::connected(peer_id peer, std::string words_about_it, time_point now) {
  move_clock(impl_->now, now);
  impl_->connected(peer, std::move(words_about_it));
  impl_->settle();
}

void sender_machine::received(peer_id peer, message const& what, time_point now) {
  move_clock(impl_->now, now);
  impl_->received(peer, what);
  impl_->settle();
}

void sender_machine::gone(peer_id peer, errc code, std::string text, time_point now) {
  move_clock(impl_->now, now);
  if (auto const* const p = impl_->find(peer); p && p->cut)
    impl_->forget(peer, *p->cut, std::string(p->cut_text), code == errc::peer_gone);
  else if (p)
    impl_->forget(peer, code, one_line(text), code == errc::peer_gone);
  impl_->settle();
}

std::uint64_t sender_machine::begin_update(update_facts facts, time_point now) {
  move_clock(impl_->now, now);
  auto const id = impl_->begin_update(std::move(facts));
  impl_->settle();
  return id;
}

void sender_machine::rouse(time_point now) {
  move_clock(impl_->now, now);
  if (impl_->running) return;
  for (auto const& [id, p] : impl_->peers)
    if (p.greeted) impl_->say(id, alive{impl_->next_update});
  impl_->settle();
}

void sender_machine::ring_ready(std::uint32_t ring, time_point now) {
  move_clock(impl_->now, now);
  impl_->ring_ready(ring);
  impl_->settle();
}

void sender_machine::ring_failed(std::uint32_t ring, errc code, std::string text, time_point now) {
  move_clock(impl_->now, now);
  impl_->ring_failed(ring, code, one_line(text));
  impl_->settle();
}

void sender_machine::packed(std::uint64_t seq, time_point now) {
  move_clock(impl_->now, now);
  impl_->packed(seq);
  impl_->settle();
}

void sender_machine::relayed(std::uint64_t seq, time_point now) {
  move_clock(impl_->now, now);
  impl_->relayed(seq);
  impl_->settle();
}

void sender_machine::source_ready(time_point now) {
  move_clock(impl_->now, now);
  if (impl_->running && impl_->running->source_asked) impl_->running->source_ready = true;
  impl_->settle();
}

void sender_machine::digested(bytes16 const& whole, time_point now) {
  move_clock(impl_->now, now);
  impl_->digested(whole);
  impl_->settle();
}

void sender_machine::retire_segments(std::vector<std::uint64_t> const& ids, time_point now) {
  move_clock(impl_->now, now);
  impl_->retire_segments(ids);
  impl_->settle();
}

bool sender_machine::wants_parts(peer_id peer, std::uint64_t update) const {
  auto const* const part = impl_->taking_part(peer);
  return part && impl_->running->id == update && part->at == impl::stage::deciding && !part->accepted;
}

std::size_t sender_machine::unmapping() const {
  auto const& all = impl_->peers;
  return static_cast<std::size_t>(
      std::count_if(all.begin(), all.end(), [](auto const& p) { return !p.second.unmapping.empty(); }));
}

void sender_machine::hold(std::uint64_t version, time_point now) {
  move_clock(impl_->now, now);
  impl_->hold(version);
  impl_->settle();
}

void sender_machine::end_hold(time_point now) {
  move_clock(impl_->now, now);
  impl_->end_hold();
  impl_->settle();
}

void sender_machine::held_failed(time_point now) {
  move_clock(impl_->now, now);
  impl_->held_failed();
  impl_->settle();
}

void sender_machine::give_up(errc code, std::string text, time_point now) {
  move_clock(impl_->now, now);
  impl_->give_up(code, text);
  impl_->settle();
}

void sender_machine::drained(time_point now) {
  move_clock(impl_->now, now);
  if (impl_->running && impl_->running->drain_said) impl_->running->drained = true;
  impl_->settle();
}

void sender_machine::tick(time_point now) {
  move_clock(impl_->now, now);
  for (auto t = impl_->earliest(); t && t->at <= impl_->now; t = impl_->earliest()) {
    impl_->fire(*t);
    impl_->settle();
  }
}

void sender_machine::close(std::string text, time_point now) {
  move_clock(impl_->now, now);
  impl_->close(text);
  impl_->settle();
}

void sender_machine::take(std::vector<sender_action>& into) {
  into.clear();
  into.swap(impl_->actions);
}

std::optional<time_point> sender_machine::deadline() const {
  auto const first = impl_->earliest();
  if (!first) return std::nullopt;
  return first->at;
}

bool sender_machine::updating() const { return impl_->running.has_value(); }

bool sender_machine::wants_held() const { return impl_->wants_held(); }

std::size_t sender_machine::greeted() const { return impl_->greeted(); }

std::vector<sender_machine::peer_state> sender_machine::peers() const {
  std::vector<peer_state> all;
  for (auto const& [id, p] : impl_->peers)
    if (p.greeted) all.push_back({id, p.name, p.version_held, p.holds_version, p.last_error});
  return all;
}

} // namespace ropeway::protocol
