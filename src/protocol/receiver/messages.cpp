// What the sender says. Nothing of it is believed: what does not fit ends the session.
#include <algorithm>
#include <limits>
#include <utility>

#include "protocol/codec.hpp"
#include "protocol/receiver/state.hpp"

namespace ropeway::protocol {
namespace {

/// The peer's reason as an errc; `otherwise` if it gave none.
errc reason(std::uint16_t code, errc otherwise) { return code == 0 ? otherwise : static_cast<errc>(code); }

} // namespace

void receiver_machine::impl::received(message const& what) {
  if (life == session::unborn || life == session::over) return;
  heard = now;
  bool const first = std::holds_alternative<welcome>(what) || std::holds_alternative<turned_away>(what);
  if (life == session::handshake && !first && !std::holds_alternative<goodbye>(what))
    return violated(words("the sender's first message was ", name_of(what), ", not welcome"));
  if (life == session::open && first)
    return violated(words("the sender said ", name_of(what), " after its welcome"));
  std::visit([this](auto const& m) { on(m); }, what);
}

void receiver_machine::impl::heard_idly(message const& what) {
  std::chrono::milliseconds const silence(terms.silence_ms);
  if (idle.spend(now, silence)) return;
  violated(words("the sender said ", name_of(what), " and no end: ", max_idle_messages,
                 " messages in a row that move nothing; alive is needed every ", (silence / 3).count(),
                 " ms"));
}

bool receiver_machine::impl::is_current(std::uint64_t update, message const& what) {
  bool const newest = last_update != 0 && update == last_update;
  if (newest && running() && at != stage::draining) return true;
  if (newest && (at == stage::draining || gave_up)) {
    heard_idly(what);
    return false;
  }
  violated(words("the sender said ", name_of(what), " for update ", update, ", which is not running"));
  return false;
}

void receiver_machine::impl::on(welcome const& m) {
  auto const& hi = settings.greeting;
  if (m.version < hi.oldest || m.version > hi.newest)
    return violated(words("the sender chose protocol version ", m.version, ", not one of ", hi.oldest, " to ",
                          hi.newest));
  if (m.bucket_bytes == 0 || m.bucket_bytes > settings.max_bucket_bytes)
    return violated(words("the sender's buckets have ", m.bucket_bytes, " bytes, allowed are 1 to ",
                          settings.max_bucket_bytes));
  if (m.silence_ms == 0) return violated("the sender's welcome has a silence limit of 0 ms");
  terms = m;
  life = session::open;
  actions.emplace_back(receive_action::greeted{m.sender, m.bucket_bytes});
}

void receiver_machine::impl::on(turned_away const& m) {
  end(reason(m.code, errc::peer_refused), "the sender turned this receiver away: " + one_line(m.text));
}

void receiver_machine::impl::on(ring const& m) {
  if (rings.count(m.id) != 0) return violated(words("the sender offers ring ", m.id, " twice"));
  if (rings.size() >= max_rings) return violated(words("the sender offers more than ", max_rings, " rings"));
  if (m.slots == 0 || m.slots > settings.max_slots)
    return violated(words("ring ", m.id, " has ", m.slots, " slots, allowed are 1 to ", settings.max_slots));
  if (m.slot_bytes < terms.bucket_bytes || m.slot_bytes > settings.max_bucket_bytes)
    return violated(words("ring ", m.id, " has slots of ", m.slot_bytes, " bytes for buckets of ",
                          terms.bucket_bytes, ", allowed are up to ", settings.max_bucket_bytes));
  if (m.slot_bytes > std::numeric_limits<std::uint64_t>::max() / m.slots)
    return violated(words("ring ", m.id, " of ", m.slots, " slots of ", m.slot_bytes, " bytes is too large"));
  if (m.on_device > 1 || (m.on_device == 0 && m.origin != bytes16{}))
    return violated(words("ring ", m.id, " is neither host memory nor a device's"));
  rings[m.id].what = m;
  actions.emplace_back(receive_action::map_ring{m});
}

void receiver_machine::impl::on(begin const& m) {
  if (running())
    return violated(
        words("the sender said begin for update ", m.update, " while update ", current.update, " runs"));
  if (m.update <= last_update)
    return violated(words("the sender said begin for update ", m.update, " after update ", last_update));
  if (m.digests != 0 && m.digests != table)
    return violated(words("the sender said begin for update ", m.update, " with digests in table ", m.digests,
                          ", which it has not given; the last was ", table));
  heard_idly(m); // until somebody decides about it
  if (life != session::open) return;
  current = m;
  last_update = m.update;
  said_aborted = gave_up = may_be_told = false;
  bucket_bytes.clear();
  needed_buckets.clear();
  placed = mapped = told_to_read = read = false;
  commits_itself = looking = crossed = false;
  digests_ready = comparing = compared = false;
  digest = {};
  asked_segment = 0;
  next_part = end_part = 0;
  next_bucket = loaded_buckets = 0;
  expected_buckets = m.buckets;
  held.clear();
  go(stage::looking_up);
  actions.emplace_back(receive_action::look_up_manifest{m});
}

void receiver_machine::impl::on(manifest_follows const& m) {
  if (!is_current(m.update, m)) return;
  if (at != stage::asking)
    return violated(words("the sender sent a manifest for update ", m.update, " that was not asked for"));
  if (m.bytes == 0 || m.bytes > settings.max_manifest_bytes)
    return violated(words("the manifest of update ", m.update, " has ", m.bytes, " bytes, allowed are 1 to ",
                          settings.max_manifest_bytes));
  go(stage::reading);
  actions.emplace_back(receive_action::read_manifest{current, m.bytes});
}

void receiver_machine::impl::on(placement_follows const& m) {
  if (!is_current(m.update, m)) return;
  if (at != stage::asking_placement)
    return violated(words("the sender sent a placement for update ", m.update, " that was not asked for"));
  if (m.bytes == 0 || m.bytes > settings.max_manifest_bytes)
    return violated(words("the placement of update ", m.update, " has ", m.bytes, " bytes, allowed are 1 to ",
                          settings.max_manifest_bytes));
  go(stage::reading_placement);
  actions.emplace_back(receive_action::read_placement{current, m.bytes});
}

void receiver_machine::impl::on(segment_part const& m) {
  // What was asked for may be on its way when the embedder decides, or gives up.
  bool const asked = last_update != 0 && m.update == last_update && m.segment == asked_segment &&
                     m.part == next_part && next_part != end_part;
  if (asked) {
    ++next_part;
    if (m.code != 0) end_part = next_part; // what comes after it is not sent
    if (at != stage::offered) return;
  } else {
    if (!is_current(m.update, m)) return;
    return violated(words("the sender sent part ", m.part, " of segment ", m.segment, " for update ",
                          m.update, ", which was not asked for"));
  }
  actions.emplace_back(receive_action::take_part{m, next_part == end_part});
}

void receiver_machine::impl::on(read_mapped const& m) {
  if (m.update == last_update && std::exchange(may_be_told, false)) return;
  if (!is_current(m.update, m)) return;
  // It may come before the decision, which another route may win.
  if (current.placement == 0 || at > stage::loading || std::exchange(told_to_read, true))
    return violated(
        words("the sender said read_mapped for update ", m.update, " twice, or when it can't be"));
  if (m.commits_itself > 1 || (m.commits_itself == 1 && current.digests != 0))
    return violated(words("the sender said read_mapped for update ", m.update, " with ",
                          int(m.commits_itself), " for whether a commit follows, and ",
                          current.digests != 0 ? "" : "no ", "digests to compare"));
  commits_itself = m.commits_itself == 1 && (mapped || at != stage::loading);
  if (at != stage::loading) return;
  idle = {};
  if (mapped) actions.emplace_back(receive_action::read_mapped{m.update});
}

void receiver_machine::impl::on(digest_table const& m) {
  if (running()) return violated(words("the sender gave digests while update ", current.update, " runs"));
  if (m.id <= table) return violated(words("the sender gave table ", m.id, " of digests after ", table));
  if (m.bytes == 0 || m.bytes > settings.max_manifest_bytes || m.bytes % digest_bytes != 0)
    return violated(words("table ", m.id, " of digests has ", m.bytes, " bytes, allowed are multiples of ",
                          digest_bytes, " up to ", settings.max_manifest_bytes));
  heard_idly(m);
  if (life != session::open) return;
  table = m.id;
  actions.emplace_back(receive_action::take_digest_table{m.id, m.bytes});
}

void receiver_machine::impl::on(protocol::digests_ready const& m) {
  if (!is_current(m.update, m)) return;
  if (at != stage::loading || current.digests == 0 || digests_ready)
    return violated(
        words("the sender said digests_ready for update ", m.update, " twice, or without having any"));
  idle = {};
  digests_ready = true;
  check_all_copied();
}

void receiver_machine::impl::on(unmap const& m) {
  if (m.segments.empty()) return violated("the sender said unmap for no segment");
  heard_idly(m);
  if (life != session::open) return;
  actions.emplace_back(receive_action::unmap{m.segments});
}

void receiver_machine::impl::on(published const& m) {
  if (!is_current(m.update, m)) return;
  auto const wrong = [&](auto const&... why) {
    violated(words("published for update ", m.update, " seq ", m.seq, " bucket ", m.bucket, ": ", why...));
  };
  if (at != stage::loading && at != stage::all_copied && at != stage::committing)
    return wrong("the update is not accepted yet");
  if (next_bucket == current.buckets)
    return wrong("all ", expected_buckets, " buckets were published already");
  if (m.bucket != next_bucket) return wrong("bucket ", next_bucket, " is next");
  if (m.seq <= last_seq) return wrong("seq does not grow beyond ", last_seq);
  auto const where = rings.find(m.ring);
  if (where == rings.end() || where->second.at != known_ring::state::mapped)
    return wrong("ring ", m.ring, " is not mapped");
  if (m.slot >= where->second.what.slots)
    return wrong("ring ", m.ring, " has ", where->second.what.slots, " slots, not a slot ", m.slot);
  if (std::any_of(held.begin(), held.end(),
                  [&](auto const& h) { return h.ring == m.ring && h.slot == m.slot; }))
    return wrong("slot ", m.slot, " of ring ", m.ring, " is not released yet");
  if (m.bytes != bucket_bytes[m.bucket])
    return wrong(m.bytes, " bytes, but ", bucket_bytes[m.bucket], " by the manifest");
  idle = {};
  ++next_bucket;
  skip_buckets();
  last_seq = m.seq;
  held.push_back({m.seq, m.ring, m.slot});
  actions.emplace_back(receive_action::bucket{m.update, m.seq, m.bucket, m.ring, m.slot, m.bytes});
}

void receiver_machine::impl::on(commit const& m) {
  if (!is_current(m.update, m)) return;
  if (commits_itself)
    return violated(
        words("the sender said commit for update ", m.update, ", which it had left to the receiver"));
  if (at != stage::all_copied)
    return violated(words("the sender said commit for update ", m.update,
                          at == stage::committing ? " twice" : " before all_copied"));
  idle = {};
  go(stage::committing);
  actions.emplace_back(receive_action::commit{m.update, one_line(m.text)});
}

void receiver_machine::impl::on(abort_update const& m) {
  if (last_update == 0 || m.update != last_update)
    return violated(
        words("the sender said abort_update for update ", m.update, ", the newest is ", last_update));
  if (at == stage::committing || at_drained == last_word::failed) {
    if (!commits_itself || std::exchange(crossed, true))
      return violated(words("the sender said abort_update for update ", m.update, " after its commit"));
    return heard_idly(m); // it comes too late; its answer follows ours about the commit
  }
  if (at == stage::draining) return heard_idly(m); // both gave up at once; one `aborted` answers both
  if (running()) return stop(reason(m.code, errc::peer_aborted), one_line(m.text), true, last_word::aborted);
  if (said_aborted) return heard_idly(m);
  said_aborted = true; // our last word about the update and its abort have crossed
  say(aborted{m.update});
}

void receiver_machine::impl::on(alive const& m) { heard_idly(m); }

void receiver_machine::impl::on(goodbye const& m) { end(static_cast<errc>(m.code), one_line(m.text)); }

template <class Other>
void receiver_machine::impl::on(Other const& m) {
  violated(words("the sender said ", name_of(m), ", which only a receiver says"));
}

} // namespace ropeway::protocol
