// What the driver says, and time.
#include "protocol/receiver_machine.hpp"

#include <algorithm>
#include <utility>

#include "protocol/codec.hpp"
#include "protocol/receiver/state.hpp"

namespace ropeway::protocol {

void receiver_machine::impl::say(message what) {
  said = now;
  actions.emplace_back(receive_action::say{std::move(what)});
}

void receiver_machine::impl::go(stage next) {
  at = next;
  waiting_since = now;
}

bool receiver_machine::impl::let_go(std::uint64_t seq) {
  return std::erase_if(held, [&](auto const& h) { return h.seq == seq; }) != 0;
}

void receiver_machine::impl::stop(errc code, std::string const& text, bool by_peer, last_word word) {
  go(stage::draining);
  at_drained = word;
  held.clear();
  actions.emplace_back(receive_action::abort{current.update, code, text, by_peer});
}

void receiver_machine::impl::give_up(errc code, std::string const& text) {
  if (life != session::open || !running() || at == stage::draining) return;
  std::string const line = one_line(text);
  if (at == stage::committing) { // it can't be taken back, only fail
    failed_code = static_cast<std::uint16_t>(code);
    failed_text = line;
    return stop(code, line, false, last_word::failed);
  }
  gave_up = true;
  say(abort_update{current.update, static_cast<std::uint16_t>(code), line});
  stop(code, line, false, last_word::aborted);
}

void receiver_machine::impl::finish_update() {
  if (std::exchange(crossed, false) && life == session::open) {
    said_aborted = true;
    say(aborted{current.update});
  }
  go(stage::idle);
  at_drained = last_word::none;
  held.clear();
  if (closing && life == session::open) end_with_goodbye(errc::ok, closing_text);
}

void receiver_machine::impl::check_all_copied() {
  if (!in_place || loaded_buckets != expected_buckets || (mapped && !read)) return;
  if (current.digests != 0 && !compared) {
    if (!digests_ready || std::exchange(comparing, true)) return;
    actions.emplace_back(receive_action::check_digests{current.update});
    return;
  }
  say(all_copied{current.update, digest});
  go(stage::all_copied);
  // In this order: a sender that does not find our word before the end of the connection was first to end it,
  // and we find that.
  looking = commits_itself;
  if (looking) actions.emplace_back(receive_action::look{current.update});
}

void receiver_machine::impl::make_offer() {
  go(stage::offered);
  actions.emplace_back(receive_action::offer{current});
}

void receiver_machine::impl::turn_down() {
  may_be_told = current.placement != 0 && !told_to_read;
  finish_update();
}

void receiver_machine::impl::skip_buckets() {
  while (mapped && next_bucket < current.buckets && !needed_buckets[next_bucket]) ++next_bucket;
}

void receiver_machine::impl::end(errc code, std::string const& text) {
  if (life == session::over) return;
  if (running() && at != stage::draining)
    stop(code == errc::ok ? errc::peer_gone : code, text, false, last_word::none);
  life = session::over;
  actions.emplace_back(receive_action::closed{code, text});
}

void receiver_machine::impl::end_with_goodbye(errc code, std::string const& text) {
  if (life == session::over) return;
  say(goodbye{static_cast<std::uint16_t>(code), text});
  end(code, text);
}

duration receiver_machine::impl::silence_limit() const {
  // The sender speaks as often as its own limit asks for.
  return std::max<duration>(settings.silence, std::chrono::milliseconds(terms.silence_ms));
}

duration receiver_machine::impl::alive_interval() const {
  return std::max(std::chrono::milliseconds(terms.silence_ms / 3), std::chrono::milliseconds(1));
}

bool receiver_machine::impl::waits_for_sender() const noexcept {
  return at == stage::asking || at == stage::asking_placement ||
         (at == stage::offered && next_part != end_part) || at == stage::loading || at == stage::all_copied;
}

std::optional<time_point> receiver_machine::impl::due() const {
  if (life == session::handshake) return born + settings.handshake;
  if (life != session::open || !running()) return std::nullopt;
  auto first = said + alive_interval();
  if (waits_for_sender()) first = std::min(first, std::max(heard, waiting_since) + silence_limit());
  return first;
}

receiver_machine::receiver_machine(receiver_settings settings)
    : impl_(std::make_unique<impl>(std::move(settings))) {
  hello& hi = impl_->settings.greeting;
  hi.magic = hello_magic;
  if (hi.newest == 0) {
    hi.oldest = version_min;
    hi.newest = version_max;
  }
  if (hi.schema == 0) hi.schema = schema_hash();
}
receiver_machine::receiver_machine(std::unique_ptr<impl> state) : impl_(std::move(state)) {}
receiver_machine::~receiver_machine() = default;
receiver_machine::receiver_machine(receiver_machine&&) noexcept = default;
receiver_machine& receiver_machine::operator=(receiver_machine&&) noexcept = default;
receiver_machine receiver_machine::clone() const { return receiver_machine(std::make_unique<impl>(*impl_)); }

namespace {
/// Time never goes back.
void move_clock(time_point& clock, time_point now) { clock = std::max(clock, now); }
} // namespace

void receiver_machine::connected(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.life != impl::session::unborn) return;
  m.life = impl::session::handshake;
  m.born = m.heard = m.now;
  hello hi = m.settings.greeting;
  hi.name = one_line(hi.name, max_name);
  m.say(std::move(hi));
}

void receiver_machine::received(message const& what, time_point now) {
  move_clock(impl_->now, now);
  impl_->received(what);
}

void receiver_machine::gone(errc code, std::string text, time_point now) {
  move_clock(impl_->now, now);
  impl_->end(code, one_line(text));
}

void receiver_machine::ring_mapped(std::uint32_t ring, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  auto const known = m.rings.find(ring);
  if (m.life != impl::session::open || known == m.rings.end() ||
      known->second.at != impl::known_ring::state::mapping)
    return;
  known->second.at = impl::known_ring::state::mapped;
  m.say(protocol::ring_mapped{ring});
}

void receiver_machine::ring_refused(std::uint32_t ring, errc code, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  auto const known = m.rings.find(ring);
  if (m.life != impl::session::open || known == m.rings.end() ||
      known->second.at != impl::known_ring::state::mapping)
    return;
  known->second.at = impl::known_ring::state::refused;
  m.say(protocol::ring_refused{ring, static_cast<std::uint16_t>(code), one_line(text)});
}

void receiver_machine::manifest_known(std::vector<std::uint64_t> bucket_bytes, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::looking_up && m.at != impl::stage::reading) return;
  if (bucket_bytes.size() != m.current.buckets)
    return m.violated(words("update ", m.current.update, " announces ", m.current.buckets,
                            " buckets, its manifest has ", bucket_bytes.size()));
  for (auto const bytes : bucket_bytes)
    if (bytes > m.terms.bucket_bytes)
      return m.violated(words("update ", m.current.update, " has a bucket of ", bytes, " bytes, allowed are ",
                              m.terms.bucket_bytes));
  m.bucket_bytes = std::move(bucket_bytes);
  if (m.current.placement == 0 || !m.settings.maps) return m.make_offer();
  m.go(impl::stage::looking_up_placement);
  m.actions.emplace_back(receive_action::look_up_placement{m.current});
}

void receiver_machine::placement_known(std::vector<bool> needed_buckets, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::looking_up_placement && m.at != impl::stage::reading_placement) return;
  m.needed_buckets = std::move(needed_buckets);
  m.needed_buckets.resize(m.current.buckets, true);
  m.placed = true;
  m.make_offer();
}

void receiver_machine::placement_unknown(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::looking_up_placement) return;
  m.go(impl::stage::asking_placement);
  m.say(need_placement{m.current.update});
}

void receiver_machine::placement_bad(errc code, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::reading_placement) return;
  m.end_with_goodbye(code, one_line(text));
}

void receiver_machine::need_segment(std::uint64_t segment, std::uint32_t first_part, std::uint32_t parts,
                                    time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::offered || !m.placed || first_part >= parts) return;
  m.asked_segment = segment;
  m.next_part = first_part;
  m.end_part = first_part + std::min(segment_batch, parts - first_part);
  m.waiting_since = m.now;
  m.say(protocol::need_segment{m.current.update, segment, first_part});
}

void receiver_machine::unmapped(std::vector<std::uint64_t> segments, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.life != impl::session::open) return;
  for (std::size_t i = 0; i < segments.size(); i += max_unmap) {
    protocol::unmapped some;
    auto const first = segments.begin() + static_cast<std::ptrdiff_t>(i);
    auto const count = std::min(max_unmap, segments.size() - i);
    some.segments.assign(first, first + static_cast<std::ptrdiff_t>(count));
    m.say(std::move(some));
  }
}

void receiver_machine::mapped_read(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::loading || !m.told_to_read) return;
  m.read = true;
  m.check_all_copied();
}

void receiver_machine::nothing_heard(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::all_copied || !std::exchange(m.looking, false)) return;
  m.go(impl::stage::committing);
  m.actions.emplace_back(receive_action::commit{m.current.update, {}});
}

void receiver_machine::digests_agree(bytes16 const& whole, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::loading || !m.comparing || m.compared) return;
  m.compared = true;
  m.digest = whole;
  m.check_all_copied();
}

void receiver_machine::manifest_unknown(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::looking_up) return;
  m.go(impl::stage::asking);
  m.say(need_manifest{m.current.update});
}

void receiver_machine::manifest_bad(errc code, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::reading && m.at != impl::stage::looking_up) return;
  m.end_with_goodbye(code, one_line(text));
}

void receiver_machine::accept_update(time_point now, acceptance how) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::offered) return;
  m.idle = {};
  m.mapped = how.mapped && m.placed;
  m.commits_itself = m.commits_itself && m.mapped;
  if (m.mapped) {
    auto const& needed = m.needed_buckets;
    m.expected_buckets = static_cast<std::uint32_t>(std::count(needed.begin(), needed.end(), true));
    m.skip_buckets();
  }
  accept answer;
  answer.update = m.current.update;
  answer.mapped = m.mapped;
  answer.code = static_cast<std::uint16_t>(how.code);
  answer.text = one_line(how.text);
  m.say(std::move(answer));
  m.go(impl::stage::loading);
  m.in_place = !how.by_hand;
  if (m.mapped && m.told_to_read) m.actions.emplace_back(receive_action::read_mapped{m.current.update});
  m.check_all_copied();
}

void receiver_machine::in_place(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::loading) return;
  m.in_place = true;
  m.check_all_copied();
}

void receiver_machine::refuse_update(errc code, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::offered) return;
  m.idle = {};
  m.say(refuse{m.current.update, static_cast<std::uint16_t>(code), one_line(text)});
  m.turn_down();
}

void receiver_machine::not_now_update(std::chrono::milliseconds retry, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::offered) return;
  auto const ms = std::clamp<std::int64_t>(retry.count(), 0, UINT32_MAX);
  m.idle = {};
  m.say(not_now{m.current.update, static_cast<std::uint32_t>(ms), one_line(text)});
  m.turn_down();
}

void receiver_machine::loaded(std::uint64_t seq, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::loading || !m.let_go(seq)) return;
  m.say(released{m.current.update, seq});
  ++m.loaded_buckets;
  m.check_all_copied();
}

void receiver_machine::commit_done(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::committing) return;
  m.say(committed{m.current.update});
  m.finish_update();
}

void receiver_machine::commit_failed(errc code, std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::committing) return;
  m.say(failed{m.current.update, static_cast<std::uint16_t>(code), one_line(text)});
  m.finish_update();
}

void receiver_machine::give_up(errc code, std::string text, time_point now) {
  move_clock(impl_->now, now);
  impl_->give_up(code, text);
}

void receiver_machine::drained(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.at != impl::stage::draining) return;
  if (m.life == impl::session::open) {
    if (m.at_drained == impl::last_word::aborted) {
      m.said_aborted = true;
      m.say(aborted{m.current.update});
    }
    if (m.at_drained == impl::last_word::failed)
      m.say(failed{m.current.update, m.failed_code, m.failed_text});
  }
  m.finish_update();
}

void receiver_machine::tick(time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  auto const at = m.due();
  if (!at || *at > m.now) return;
  if (m.life == impl::session::handshake)
    return m.end(errc::handshake_timeout,
                 words("the sender did not answer hello within ",
                       std::chrono::duration_cast<std::chrono::milliseconds>(m.settings.handshake).count(),
                       " ms"));
  if (m.waits_for_sender() && std::max(m.heard, m.waiting_since) + m.silence_limit() <= m.now)
    return m.end_with_goodbye(
        errc::peer_silent,
        words("the sender was silent for ",
              std::chrono::duration_cast<std::chrono::milliseconds>(m.silence_limit()).count(),
              " ms in update ", m.current.update));
  m.say(alive{m.current.update});
}

void receiver_machine::close(std::string text, time_point now) {
  impl& m = *impl_;
  move_clock(m.now, now);
  if (m.life == impl::session::over || m.closing) return;
  m.closing = true;
  m.closing_text = one_line(text);
  m.give_up(errc::not_open, m.closing_text);
  if (!m.running() || m.life != impl::session::open) m.end_with_goodbye(errc::ok, m.closing_text);
}

void receiver_machine::take(std::vector<receiver_action>& into) {
  into.clear();
  into.swap(impl_->actions);
}
std::optional<time_point> receiver_machine::deadline() const { return impl_->due(); }
bool receiver_machine::greeted() const { return impl_->life == impl::session::open; }
bool receiver_machine::updating() const { return impl_->running(); }
bool receiver_machine::over() const { return impl_->life == impl::session::over; }

} // namespace ropeway::protocol
