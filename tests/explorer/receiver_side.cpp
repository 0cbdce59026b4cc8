// A receiver's driver, and what must hold when its machine decides something.
#include <algorithm>

#include "state.hpp"

namespace ropeway::explorer {

void world::step_of_receiver(step const& s) {
  std::size_t const i = s.who;
  auto& side = receivers_[i].change();
  auto& machine = side.machine;
  switch (s.what) {
  case kind::ring_mapped:
    side.mapping.erase(side.mapping.begin());
    machine.ring_mapped(s.arg, clock());
    break;
  case kind::looked_up: look_up(i); break;
  case kind::manifest_read:
    side.reading_manifest = false;
    side.layouts |= static_cast<std::uint8_t>(1u << buckets_of(side.update));
    machine.manifest_known(sizes_of(side.update), clock());
    break;
  case kind::placement_looked_up: look_up_placement(i); break;
  case kind::placement_read:
    side.reading_placement = false;
    side.placement = side.announced;
    side.placement_of = buckets_of(side.update);
    machine.placement_known(needed_of(side.update), clock());
    break;
  case kind::segment_asked:
    side.segment = mapping_of_segment::asking;
    machine.need_segment(side.announced, 0, of_->parts, clock());
    break;
  case kind::segment_mapped:
    side.segment = mapping_of_segment::none;
    side.mapped_segment = side.announced;
    break;
  case kind::accepted: accept(i, s.arg); break;
  case kind::source_read:
    side.reads_source = false;
    side.has_source = !side.source_spoiled;
    machine.mapped_read(clock());
    break;
  case kind::heard_all: hear_all(i); break;
  case kind::compared:
    side.comparing = false;
    side.compared = digests_stand(side);
    if (side.compared)
      machine.digests_agree(digest_of(side.update), clock());
    else
      machine.give_up(errc::digest_mismatch, "digests differ", clock());
    break;
  case kind::unmapped: {
    auto const all = std::exchange(side.to_unmap, {});
    if (std::count(all.begin(), all.end(), side.mapped_segment) != 0) side.mapped_segment = 0;
    machine.unmapped(all, clock());
    break;
  }
  case kind::loaded: finish_reading(i, s.arg); break;
  case kind::placed:
    side.placing = false;
    machine.in_place(clock());
    break;
  case kind::committed: commit(i); break;
  case kind::receiver_drained:
    side.draining = false;
    side.reads.clear();
    side.reads_source = false;
    machine.drained(clock());
    break;
  case kind::receiver_ticks: machine.tick(clock()); break;
  default: break;
  }
  follow(i);
}

void world::look_up(std::size_t i) {
  auto& side = receivers_[i].change();
  side.looking_up = false;
  if ((side.layouts >> buckets_of(side.update) & 1) != 0)
    side.machine.manifest_known(sizes_of(side.update), clock());
  else
    side.machine.manifest_unknown(clock());
}

void world::look_up_placement(std::size_t i) {
  auto& side = receivers_[i].change();
  side.looking_up_placement = false;
  if (side.placement == side.announced && side.placement_of == buckets_of(side.update))
    side.machine.placement_known(needed_of(side.update), clock());
  else
    side.machine.placement_unknown(clock());
}

void world::accept(std::size_t i, std::uint8_t how) {
  auto& side = receivers_[i].change();
  side.deciding = false;
  side.segment = mapping_of_segment::none;
  side.by_hand = side.placing = how == 1;
  side.mapped = how == 2;
  receiver_machine::acceptance answer;
  answer.by_hand = side.by_hand;
  answer.mapped = side.mapped;
  if (how == 3) {
    answer.code = errc::not_reachable;
    answer.text = "it can't be mapped";
  }
  side.machine.accept_update(clock(), answer);
}

/// What the driver does for an update that is over.
void world::forget_work(receiver_side& side) const {
  side.looking_up = side.reading_manifest = side.deciding = side.committing = side.placing = false;
  side.comparing = side.looking = false;
  side.looking_up_placement = side.reading_placement = false;
  side.segment = mapping_of_segment::none;
}

bool world::has_all(receiver_side const& side) const {
  auto const all = (1u << buckets_of(side.update)) - 1;
  if (!side.mapped) return side.good == all;
  return side.has_source && side.good == (all & needed_bits(side.update));
}

void world::finish_reading(std::size_t i, std::size_t which) {
  auto& side = receivers_[i].change();
  reading const done = side.reads.at(which);
  side.reads.erase(side.reads.begin() + static_cast<std::ptrdiff_t>(which));
  if (!done.spoiled) side.good |= static_cast<std::uint8_t>(1u << done.bucket);
  side.machine.loaded(done.seq, clock());
}

void world::commit(std::size_t i) {
  auto& side = receivers_[i].change();
  side.committing = false;
  auto& seen = side.seen[side.update];
  check(!seen.judged || seen.verdict == outcome::unconfirmed,
        "who was reported as anything but committed or unconfirmed never commits");
  seen.committed = true;
  side.machine.commit_done(clock());
}

void world::follow(std::size_t i) {
  for (auto actions = receivers_[i].change().machine.take(); !actions.empty();
       actions = receivers_[i].change().machine.take())
    for (auto& one : actions) std::visit([this, i](auto& a) { act(i, a); }, one);
}

void world::act(std::size_t i, receive_action::say& a) {
  auto& side = receivers_[i].change();
  if (auto const* m = std::get_if<all_copied>(&a.what)) {
    check(!side.seen.at(m->update).all_copied, "all_copied is said once");
    check(has_all(side) || side.sender_closed,
          "all_copied is said when every bucket was loaded as it was packed, or the tensors were read");
    check(!of_->digests || side.compared, "all_copied is said when digests were compared");
    side.seen[m->update].all_copied = true;
  } else if (auto const* n = std::get_if<aborted>(&a.what)) {
    check(!side.seen.at(n->update).aborted, "aborted is said once");
    side.seen[n->update].aborted = true;
    check(side.reads.empty() && !side.reads_source, "aborted is said when no copy runs");
  } else if (auto const* r = std::get_if<released>(&a.what)) {
    check(std::none_of(side.reads.begin(), side.reads.end(), [&](auto const& k) { return k.seq == r->seq; }),
          "released is said when the bucket is no longer read");
  }
  if (log) log->push_back("    r" + std::to_string(i + 1) + " -> sender " + protocol::print(a.what));
  if (!side.receiver_closed && !side.sender_closed && !side.cut)
    to_sender_[i].change().push_back(std::move(a.what));
}

void world::act(std::size_t, receive_action::greeted&) {}

void world::act(std::size_t i, receive_action::map_ring& a) {
  receivers_[i].change().mapping.push_back(a.what.id);
}

void world::act(std::size_t i, receive_action::read_manifest&) {
  receivers_[i].change().reading_manifest = true;
}

void world::act(std::size_t i, receive_action::look_up_manifest& a) {
  auto& side = receivers_[i].change();
  check(side.reads.empty() && !side.reads_source && !side.draining && !side.committing,
        "an update begins after the last one's work");
  side.update = static_cast<std::uint8_t>(a.what.update);
  side.good = 0;
  side.mapped = side.has_source = side.source_spoiled = side.compared = false;
  side.announced = of_->receivers[i].maps ? static_cast<std::uint8_t>(a.what.placement) : 0;
  side.looking_up = true;
  if (of_->prompt) look_up(i);
}

void world::act(std::size_t i, receive_action::look_up_placement& a) {
  auto& side = receivers_[i].change();
  check(a.what.update == side.update && side.announced != 0, "who maps looks for what was announced");
  side.looking_up_placement = true;
  if (of_->prompt) look_up_placement(i);
}

void world::act(std::size_t i, receive_action::read_placement&) {
  receivers_[i].change().reading_placement = true;
}

void world::act(std::size_t i, receive_action::take_part& a) {
  auto& side = receivers_[i].change();
  check(side.deciding && side.segment == mapping_of_segment::asking && a.what.segment == side.announced,
        "parts come to who asked for them");
  if (a.what.code != 0)
    side.segment = mapping_of_segment::failed;
  else if (a.last)
    side.segment = mapping_of_segment::importing;
}

void world::act(std::size_t i, receive_action::read_mapped& a) {
  auto& side = receivers_[i].change();
  check(a.update == side.update && side.mapped && !side.draining && !side.reads_source && !side.has_source,
        "who maps is told to read once, and not after an abort");
  bool const good = sender_->update == a.update && sender_->source_ready && !sender_->source_free;
  check(good || side.sender_closed, "the tensors are ready and stay as they are while they are read");
  check(side.mapped_segment == side.announced, "what is read is mapped");
  side.reads_source = true;
  side.source_spoiled = !good;
}

bool world::digests_stand(receiver_side const& side) const {
  return sender_->update == side.update && sender_->digested && sender_->table == side.table;
}

void world::act(std::size_t i, receive_action::take_digest_table& a) {
  receivers_[i].change().table = static_cast<std::uint8_t>(a.id);
}

void world::act(std::size_t i, receive_action::check_digests& a) {
  auto& side = receivers_[i].change();
  check(a.update == side.update && !side.draining && !side.comparing && !side.compared,
        "digests are compared once, and not after an abort");
  check(has_all(side) || side.sender_closed, "digests are compared when everything is in place");
  // An update that the sender has given up, which is not yet known here, has lost its digests.
  bool const lost = sender_->update != a.update || (sender_->lost >> i & 1) != 0;
  check(digests_stand(side) || lost || side.sender_closed,
        "digests are compared when the sender's are there");
  side.comparing = true;
}

void world::act(std::size_t i, receive_action::unmap& a) {
  auto& side = receivers_[i].change();
  check(!side.reads_source || side.sender_closed, "nothing is wanted back while it is read");
  side.to_unmap.insert(side.to_unmap.end(), a.segments.begin(), a.segments.end());
}

void world::act(std::size_t i, receive_action::offer& a) {
  auto& side = receivers_[i].change();
  check(a.what.update == side.update, "what is offered was announced");
  side.deciding = true;
}

void world::act(std::size_t i, receive_action::bucket& a) {
  auto& side = receivers_[i].change();
  check(!side.draining, "no bucket comes after an abort");
  auto const& content = sender_->memory.at(a.ring).at(a.slot);
  bool const good =
      content.seq == a.seq && content.update == a.update && content.bucket == a.bucket && !content.writing;
  check(good || side.sender_closed, "a published slot holds its bucket");
  check(!content.unmapped_only || side.mapped || side.sender_closed,
        "who does not map is published whole buckets");
  check(!side.mapped || (needed_bits(a.update) >> a.bucket & 1) != 0,
        "who maps is published only what it needs");
  reading r;
  r.seq = a.seq;
  r.update = static_cast<std::uint8_t>(a.update);
  r.bucket = static_cast<std::uint8_t>(a.bucket);
  r.ring = static_cast<std::uint8_t>(a.ring);
  r.slot = static_cast<std::uint8_t>(a.slot);
  r.spoiled = !good;
  side.reads.push_back(r);
}

void world::act(std::size_t i, receive_action::look& a) {
  auto& side = receivers_[i].change();
  check(a.update == side.update && !side.draining && side.seen[side.update].all_copied,
        "who commits by itself looks when it has said all_copied");
  side.looking = true;
}

/// All that was sent is there to be heard, and so is the end of the connection.
void world::hear_all(std::size_t i) {
  auto& side = receivers_[i].change();
  side.looking = false;
  for (auto const& m : std::exchange(to_receiver_[i].change(), {})) side.machine.received(m, clock());
  if ((side.sender_closed || side.cut) && !std::exchange(side.told, true))
    side.machine.gone(errc::peer_gone, "the sender has gone", clock());
  side.machine.nothing_heard(clock());
}

void world::act(std::size_t i, receive_action::commit& a) {
  auto& side = receivers_[i].change();
  check(a.update == side.update && has_all(side),
        "nothing is committed before every bucket was loaded as it was packed, or the tensors were read");
  side.committing = true;
  if (of_->prompt && !of_->may(fault::commit_fails)) commit(i);
}

void world::act(std::size_t i, receive_action::abort& a) {
  auto& side = receivers_[i].change();
  check(a.update == side.update, "what is aborted was announced");
  check(!side.draining, "one abort an update");
  check(!side.seen.at(a.update).committed, "what was committed is not aborted");
  forget_work(side);
  side.draining = true;
}

void world::act(std::size_t i, receive_action::closed& a) {
  auto& side = receivers_[i].change();
  check(a.code != errc::protocol_error, "nobody honest is said to break the protocol",
        turned_away{static_cast<std::uint16_t>(a.code), a.text});
  check(!side.receiver_closed, "closed once");
  bool const too_late = a.code == errc::peer_silent || a.code == errc::handshake_timeout;
  check(!too_late || !steady_ || side.harmed, "nobody gives up a sender that is awake");
  if (log) log->push_back("    r" + std::to_string(i + 1) + " ends its session: " + a.text);
  side.receiver_closed = true;
  side.mapping.clear();
  forget_work(side);
  side.draining = false;
  side.to_unmap.clear();
  if (side.sender_closed) {
    side.reads.clear();
    side.reads_source = false;
  }
  to_receiver_[i].change().clear();
}

} // namespace ropeway::explorer
