// What may go wrong, where, and what it does.
#include <algorithm>

#include "state.hpp"

namespace ropeway::explorer {

std::string_view name(fault what) {
  constexpr std::array<std::string_view, fault_kinds> names{
      "refuse",          "not_now",      "ring_refused", "ring_fails",     "import_fails",
      "export_fails",    "manifest_bad", "load_fails",   "commit_fails",   "receiver_cancels",
      "receiver_closes", "kill",         "stop",         "sender_cancels", "sender_closes",
      "sender_dies",     "sender_stops", "time_jumps"};
  return names.at(static_cast<std::size_t>(what));
}

void world::faults(std::vector<step>& into) const {
  for (std::size_t f = 0; f < fault_kinds; ++f) {
    if (left_[f] == 0) continue;
    auto const what = static_cast<fault>(f);
    for (std::size_t i = 0; i < joined_; ++i) fault_of(what, i, into);
    if (!sender_alive_) continue;
    step s;
    s.what = kind::fault;
    s.arg = static_cast<std::uint8_t>(f);
    bool possible = false;
    switch (what) {
    case fault::ring_fails: possible = sender_works() && !sender_->making.empty(); break;
    case fault::sender_cancels: possible = sender_works() && sender_->running; break;
    case fault::sender_closes:
    case fault::sender_stops: possible = sender_works(); break;
    case fault::sender_dies: possible = true; break;
    case fault::time_jumps:
      for (std::uint8_t const by : {std::uint8_t(2), std::uint8_t(4)}) {
        s.more = by;
        into.push_back(s);
      }
      break;
    default: break;
    }
    if (possible) into.push_back(s);
  }
}

void world::fault_of(fault what, std::size_t i, std::vector<step>& into) const {
  auto const& r = *receivers_[i];
  if (!r.alive || r.receiver_closed) return;
  bool const awake = !r.stopped;
  bool possible = false;
  switch (what) {
  case fault::refuse:
  case fault::not_now: possible = awake && r.deciding; break;
  case fault::ring_refused: possible = awake && !r.mapping.empty(); break;
  case fault::import_fails: possible = awake && r.deciding && r.announced != 0; break;
  case fault::export_fails: possible = sender_works() && !sender_->exporting[i].empty(); break;
  case fault::manifest_bad: possible = awake && (r.reading_manifest || r.reading_placement); break;
  case fault::load_fails:
    possible = awake && (!r.reads.empty() || r.reads_source || r.comparing) && !r.draining;
    break;
  case fault::commit_fails: possible = awake && r.committing; break;
  case fault::receiver_cancels: possible = awake && r.machine.updating() && !r.draining; break;
  case fault::receiver_closes:
  case fault::stop: possible = awake; break;
  case fault::kill: possible = true; break;
  default: break;
  }
  if (possible)
    into.push_back({kind::fault, static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(what), 0});
}

void world::go_wrong(step const& s) {
  std::size_t const i = s.who;
  --faults_left_;
  --left_.at(s.arg);
  note_harm(static_cast<fault>(s.arg), i);
  auto const words = [&] { return std::string(name(static_cast<fault>(s.arg))); };
  switch (static_cast<fault>(s.arg)) {
  case fault::ring_fails: {
    auto& side = sender_.change();
    auto const ring = side.making.front();
    side.making.erase(side.making.begin());
    side.machine.ring_failed(ring, errc::out_of_memory, words(), clock());
    return follow_sender();
  }
  case fault::export_fails: return send_parts(i, true);
  case fault::sender_cancels:
    sender_.change().machine.give_up(errc::source_failed, words(), clock());
    return follow_sender();
  case fault::sender_closes: sender_.change().machine.close(words(), clock()); return follow_sender();
  case fault::sender_stops: sender_stopped_ = true; return;
  case fault::sender_dies: return end_sender();
  case fault::time_jumps: now_ += s.more; return;
  case fault::stop: receivers_[i].change().stopped = true; return;
  case fault::kill: return kill(i);
  default: break;
  }
  auto& side = receivers_[i].change();
  auto& machine = side.machine;
  switch (static_cast<fault>(s.arg)) {
  case fault::refuse:
    forget_work(side);
    machine.refuse_update(errc::destination_mismatch, words(), clock());
    break;
  case fault::not_now:
    forget_work(side);
    machine.not_now_update(std::chrono::milliseconds(100), words(), clock());
    break;
  case fault::ring_refused: {
    auto const ring = side.mapping.front();
    side.mapping.erase(side.mapping.begin());
    machine.ring_refused(ring, errc::not_reachable, words(), clock());
    break;
  }
  case fault::import_fails: accept(i, 3); break;
  case fault::manifest_bad:
    if (std::exchange(side.reading_placement, false)) {
      machine.placement_bad(errc::out_of_memory, words(), clock());
      break;
    }
    side.reading_manifest = false;
    machine.manifest_bad(errc::out_of_memory, words(), clock());
    break;
  case fault::load_fails:
  case fault::receiver_cancels: machine.give_up(errc::loader_failed, words(), clock()); break;
  case fault::commit_fails:
    side.committing = false;
    machine.commit_failed(errc::loader_failed, words(), clock());
    break;
  case fault::receiver_closes: machine.close(words(), clock()); break;
  default: break;
  }
  follow(i);
}

/// So that nobody else has an excuse.
void world::note_harm(fault what, std::size_t i) {
  switch (what) {
  case fault::sender_cancels:
  case fault::ring_fails: sender_.change().given_up = true; return;
  case fault::sender_closes:
  case fault::sender_dies:
  case fault::sender_stops:
  case fault::time_jumps: steady_ = false; return;
  case fault::stop:
  case fault::kill:
  case fault::receiver_closes:
  case fault::ring_refused:
  case fault::manifest_bad: receivers_[i].change().harmed = true; return;
  case fault::import_fails: // it takes the ring
  case fault::export_fails:
    if (of_->only_mapped) harm_update(i);
    return;
  default: harm_update(i); return;
  }
}

void world::harm_update(std::size_t i) {
  auto& side = receivers_[i].change();
  side.harmed_update = side.update;
  side.lost_held = side.lost_held || is_delivery(side.update);
}

/// What it has said still arrives; what it was told is lost.
void world::kill(std::size_t i) {
  auto& side = receivers_[i].change();
  side.alive = false;
  side.reads.clear();
  side.reads_source = false;
  side.mapping.clear();
  to_receiver_[i].change().clear();
}

/// The same from the other side. Its memory stays as it is as long as somebody has it mapped.
void world::end_sender() {
  sender_alive_ = false;
  for (std::size_t i = 0; i < joined_; ++i) close_for_sender(i);
}

} // namespace ropeway::explorer
