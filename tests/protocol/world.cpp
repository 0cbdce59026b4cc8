#include "world.hpp"

#include <algorithm>

namespace ropeway::test {

using namespace std::chrono_literals;

namespace {
sender_settings sender_of(std::uint32_t slots) {
  sender_settings s;
  s.instance[0] = 7;
  s.bucket_bytes = 1 << 20;
  s.slots = slots;
  s.max_peers = 6;
  return s;
}
} // namespace

namespace {
/// What the driver of a receiver fills in.
std::uint64_t copied_by(peer_id id, std::uint64_t update) { return update * 1000 + id; }
} // namespace

world::world(std::uint32_t seed, faults odds, std::uint32_t slots)
    : random_(seed), odds_(odds), slots_(slots), now_(time_point{} + 1h), sender_(sender_of(slots)) {}

void world::join(wish const& how) {
  auto& e = *ends_.emplace_back(std::make_unique<end>());
  e.id = static_cast<peer_id>(ends_.size());
  e.how = how;
  receiver_settings s;
  s.greeting.name = "r" + std::to_string(e.id);
  s.greeting.group = how.group;
  s.greeting.group_size = how.group_size;
  if (how.cuda) s.greeting.devices.resize(1);
  e.machine = std::make_unique<receiver_machine>(s);
  e.machine->connected(now_);
  sender_.connected(e.id, "pid 1", now_);
  take_all();
}

world::end* world::find(peer_id id) { return id >= 1 && id <= ends_.size() ? ends_[id - 1].get() : nullptr; }

void world::take_all() {
  for (bool more = true; more;) {
    more = false;
    for (auto& what : sender_.take()) act(what), more = true;
    for (std::size_t i = 0; i < ends_.size(); ++i)
      for (auto& what : ends_[i]->machine->take()) act(*ends_[i], what), more = true;
  }
}

void world::write(std::uint32_t ring, std::uint32_t slot, std::uint64_t seq, std::uint32_t bucket) {
  auto& content = memory_[ring];
  content.resize(slots_);
  check(slot < slots_, "slots are within the ring");
  check(!content[slot].writing, "one filling of a slot at a time");
  for (auto& e : ends_)
    for (auto& r : e->reads)
      if (r.ring == ring && r.slot == slot) {
        r.spoiled = true;
        // Who was dropped, or left, may still be copying; it can never commit.
        bool const cut = !e->alive || e->sender_closed || e->machine->over();
        check(cut, "no slot is filled again while a receiver reads it");
      }
  content[slot] = {seq, update_, bucket, true};
}

void world::act(sender_action& what) {
  using namespace send_action;
  if (auto* a = std::get_if<say>(&what)) {
    end* e = find(a->to);
    check(e && !e->sender_closed, "nothing is said to who was dropped: " + print(a->what));
    if (auto const* c = std::get_if<protocol::commit>(&a->what)) {
      check(e->all_copied.count(c->update) == 1, "commit only after all_copied");
      for (peer_id const member : groups_[e->how.group])
        check(e->how.group.empty() || find(member)->all_copied.count(c->update) == 1,
              "commit to a group only when all its members have all_copied");
    }
    if (auto* m = std::get_if<manifest_follows>(&a->what)) m->bytes = 100; // as a driver does
    e->to_receiver.push_back(std::move(a->what));
  } else if (auto* m = std::get_if<make_ring>(&what)) {
    sender_jobs_.push_back([this, ring = m->ring] {
      if (happens(odds_.ring_fails))
        sender_.ring_failed(ring, errc::out_of_memory, "no memory", now_);
      else
        sender_.ring_ready(ring, now_);
    });
  } else if (auto* p = std::get_if<pack>(&what)) {
    check(!drain_asked_, "nothing is packed after drain");
    check(!source_free_, "nothing is packed after source_free");
    check(bucket_of_seq_.emplace(p->seq, p->bucket).second, "seq never repeats");
    write(facts_.ring, p->slot, p->seq, p->bucket);
    copies_.push_back([this, p = *p] {
      memory_[facts_.ring][p.slot].writing = false;
      ++packed_;
      sender_.packed(p.seq, now_);
    });
  } else if (auto* r = std::get_if<relay>(&what)) {
    check(!drain_asked_, "nothing is relayed after drain");
    auto const& from = memory_[facts_.ring].at(r->from);
    check(from.seq == r->seq && !from.writing, "a relay copies a packed slot");
    write(host_ring, r->to, r->seq, bucket_of_seq_[r->seq]);
    copies_.push_back([this, r = *r] {
      check(memory_[facts_.ring].at(r.from).seq == r.seq,
            "a slot is not filled again while a relay reads it");
      memory_[host_ring][r.to].writing = false;
      sender_.relayed(r.seq, now_);
    });
  } else if (auto* d = std::get_if<drop>(&what)) {
    check(d->code != errc::protocol_error, "nobody breaks the protocol: " + d->text);
    end* e = find(d->peer);
    check(e && !e->sender_closed, "nobody is dropped twice");
    e->sender_closed = true;
  } else if (std::holds_alternative<source_free>(what)) {
    check(!source_free_, "source_free once");
    source_free_ = true;
    check(packed_ == facts_.bucket_bytes.size() || copies_.empty(), "the source is free when no pack runs");
  } else if (std::holds_alternative<drain>(what)) {
    check(!drain_asked_, "drain once");
    drain_asked_ = true;
    sender_jobs_.push_back([this] {
      // Copies that run are waited for, those that did not start are forgotten.
      auto waiting = std::move(copies_);
      copies_.clear();
      if (!waiting.empty() && dice(2) == 0) waiting.front()();
      for (auto& [ring, slots] : memory_)
        for (auto& s : slots) s.writing = false;
      sender_.drained(now_);
    });
  } else if (auto* f = std::get_if<finished>(&what)) {
    judge(*f);
  }
}

void world::judge(send_action::finished const& f) {
  check(running_, "finished once");
  check(source_free_, "source_free before finished");
  check(copies_.empty(), "no copy runs when the update is finished");
  running_ = false;
  ++updates_finished;
  check(f.results.size() == present_.size(), "one result for each receiver that was there");
  for (auto const& r : f.results) {
    check(std::count(present_.begin(), present_.end(), r.peer) == 1,
          "results are about those who were there");
    bool const has_it = find(r.peer)->committed.count(update_) == 1;
    check(r.copied == 0 ? !has_it : r.copied == copied_by(r.peer, update_), "its own bytes are reported");
    check(!has_it || r.route_reason == find(r.peer)->reasons.at(update_),
          "both sides have the same reason for the route");
    if (r.what == outcome::committed) {
      check(has_it, "who is reported as committed is");
      ++committed;
    } else {
      check(!has_it || r.what == outcome::unconfirmed, "who has committed is reported so, or as unconfirmed");
      check(!r.text.empty(), "who did not commit has a reason");
      ++(r.code == static_cast<std::uint16_t>(errc::group_incomplete) ? incomplete : not_committed);
    }
  }
}

void world::said(end& e, message const& m) {
  if (auto const* a = std::get_if<all_copied>(&m))
    check(e.all_copied.insert(a->update).second, "all_copied once");
  if (auto const* r = std::get_if<released>(&m)) check(e.released.insert(r->seq).second, "released once");
}

void world::act(end& e, receiver_action& what) {
  using namespace receive_action;
  if (auto* a = std::get_if<say>(&what)) {
    said(e, a->what);
    if (auto* all = std::get_if<all_copied>(&a->what)) all->copied = copied_by(e.id, all->update);
    if (!e.receiver_closed) e.to_sender.push_back(std::move(a->what));
  } else if (auto* m = std::get_if<map_ring>(&what)) {
    e.jobs.push_back([this, &e, ring = m->what] {
      if (happens(ring.on_device ? odds_.refuse_device_ring : odds_.refuse_host_ring))
        e.machine->ring_refused(ring.id, errc::not_reachable, "can't map it", now_);
      else
        e.machine->ring_mapped(ring.id, now_);
    });
  } else if (auto* l = std::get_if<look_up_manifest>(&what)) {
    e.jobs.push_back([this, &e, update = l->what.update] {
      if (e.machine_update != update) return; // a driver knows which update its answer is about
      if (e.knows_layout)
        e.machine->manifest_known(history_[update], now_);
      else
        e.machine->manifest_unknown(now_);
    });
    e.machine_update = l->what.update;
  } else if (auto* m2 = std::get_if<read_manifest>(&what)) {
    e.jobs.push_back([this, &e, update = m2->what.update] {
      if (e.machine_update == update) e.machine->manifest_known(history_[update], now_);
    });
  } else if (auto* o = std::get_if<offer>(&what)) {
    e.update = o->what.update;
    e.good.clear();
    if (happens(odds_.never_decides)) return;
    e.jobs.push_back([this, &e, update = e.update] {
      if (e.machine_update != update) return;
      if (happens(odds_.refuse))
        e.machine->refuse_update(errc::destination_mismatch, "does not fit", now_);
      else if (happens(odds_.not_now))
        e.machine->not_now_update(100ms, "serving", now_);
      else
        accept_offer(e);
    });
  } else if (auto* b = std::get_if<receive_action::bucket>(&what)) {
    check(!e.drain_asked, "no bucket after an abort");
    auto const& content = memory_[b->ring].at(b->slot);
    bool const good = content.seq == b->seq && content.bucket == b->bucket && !content.writing;
    check(good || e.sender_closed || !running_ || update_ != b->update, "a published slot holds its bucket");
    e.reads.push_back({b->update, b->seq, b->bucket, b->ring, b->slot, !good});
    e.jobs.push_back([this, &e, b = *b] {
      if (e.machine_update == b.update && happens(odds_.load_fails))
        return e.machine->give_up(errc::loader_failed, "loader threw", now_);
      auto const at =
          std::find_if(e.reads.begin(), e.reads.end(), [&](auto const& r) { return r.seq == b.seq; });
      if (at == e.reads.end()) return;
      if (!at->spoiled) e.good.insert(b.bucket);
      e.reads.erase(at);
      e.machine->loaded(b.seq, now_);
      if (e.by_hand && e.good.size() == history_[b.update].size()) put_in_place(e);
    });
  } else if (auto* c = std::get_if<receive_action::commit>(&what)) {
    check(e.update == c->update && e.good.size() == history_[c->update].size(),
          "nothing is committed before every bucket was loaded whole");
    if (happens(odds_.never_commits)) return;
    e.reasons[c->update] = c->route_reason;
    e.jobs.push_back([this, &e, c = *c] {
      if (e.machine_update == c.update && happens(odds_.commit_fails))
        return e.machine->commit_failed(errc::loader_failed, "commit threw", now_);
      if (e.drain_asked || e.machine_update != c.update || !e.machine->updating()) return; // too late
      e.committed.insert(c.update);
      e.knows_layout = true;
      e.machine->commit_done(now_);
    });
  } else if (std::holds_alternative<receive_action::abort>(what)) {
    check(!e.drain_asked, "one abort an update");
    e.drain_asked = true;
    // Mappings go on; what belonged to the update is forgotten or waited for.
    std::vector<job> rest;
    rest.push_back([this, &e] {
      e.reads.clear();
      e.drain_asked = false;
      e.machine->drained(now_);
    });
    for (auto& j : e.jobs)
      if (dice(2) == 0) rest.push_back(std::move(j)); // late answers must do no harm
    e.jobs = std::move(rest);
  } else if (auto* closed = std::get_if<receive_action::closed>(&what)) {
    check(closed->code != errc::protocol_error, "nobody breaks the protocol: " + closed->text);
    check(!e.receiver_closed, "closed once");
    e.receiver_closed = true;
  }
}

void world::accept_offer(end& e) {
  e.by_hand = dice(3) == 0;
  e.machine->accept_update(now_, e.by_hand);
  if (e.by_hand && history_[e.update].empty()) put_in_place(e);
}

void world::put_in_place(end& e) {
  e.jobs.push_back([this, &e, update = e.update] {
    if (e.machine_update == update) e.machine->in_place(now_);
  });
}

bool world::deliver(end& e, bool to_sender) {
  if (to_sender) {
    if (e.sender_closed) return false;
    if (!e.to_sender.empty()) {
      message const m = std::move(e.to_sender.front());
      e.to_sender.pop_front();
      sender_.received(e.id, m, now_);
    } else if ((e.receiver_closed || !e.alive) && e.sender_knows) {
      e.sender_knows = false;
      e.sender_closed = true;
      sender_.gone(e.id, errc::peer_gone, "connection closed", now_);
    } else {
      return false;
    }
    return true;
  }
  if (!e.alive || e.stopped || e.receiver_closed) return false;
  if (!e.to_receiver.empty()) {
    message const m = std::move(e.to_receiver.front());
    e.to_receiver.pop_front();
    e.machine->received(m, now_);
  } else if (e.sender_closed && e.receiver_knows) {
    e.receiver_knows = false;
    e.machine->gone(errc::peer_gone, "connection closed", now_);
  } else {
    return false;
  }
  return true;
}

void world::kill(end& e) {
  e.alive = false;
  e.jobs.clear();
  e.reads.clear();
  e.to_receiver.clear();
}

void world::begin() {
  facts_ = {};
  facts_.version = update_ + 100;
  facts_.ring = dice(3) == 0 ? host_ring : 1;
  facts_.bucket_bytes.resize(dice(5) == 0 ? 0 : 1 + dice(5));
  for (auto& bytes : facts_.bucket_bytes) bytes = 1 + dice(1000);
  facts_.tensors = static_cast<std::uint32_t>(facts_.bucket_bytes.size());
  source_free_ = drain_asked_ = false;
  packed_ = 0;
  running_ = true;
  present_.clear();
  groups_.clear();
  for (auto const& s : sender_.peers()) {
    present_.push_back(s.peer);
    groups_[find(s.peer)->how.group].push_back(s.peer);
  }
  update_ = sender_.begin_update(facts_, now_);
  history_[update_] = facts_.bucket_bytes;
}

bool world::step() {
  unsigned const choice = dice(10);
  if (choice < 2 && !copies_.empty()) {
    auto const j = std::move(copies_.front());
    copies_.pop_front();
    j();
    return true;
  }
  if (choice == 2 && !sender_jobs_.empty()) {
    auto const at = sender_jobs_.begin() + dice(static_cast<unsigned>(sender_jobs_.size()));
    auto const j = std::move(*at);
    sender_jobs_.erase(at);
    j();
    return true;
  }
  if (ends_.empty()) return false;
  end& e = *ends_[dice(static_cast<unsigned>(ends_.size()))];
  if (choice < 5 && e.alive && !e.stopped && !e.jobs.empty()) {
    auto const at = e.jobs.begin() + dice(static_cast<unsigned>(e.jobs.size()));
    auto const j = std::move(*at);
    e.jobs.erase(at);
    j();
    return true;
  }
  return deliver(e, choice % 2 == 0);
}

void world::run(unsigned steps, unsigned updates) {
  for (unsigned i = 0; i < steps; ++i) {
    if (!sender_.updating() && updates > 0 && dice(8) == 0) {
      --updates;
      begin();
      take_all();
    }
    step();
    take_all();
    if (dice(16) == 0) {
      now_ += std::chrono::milliseconds(dice(300));
      sender_.tick(now_);
      for (auto& e : ends_)
        if (e->alive && !e->stopped) e->machine->tick(now_);
    }
    if (happens(odds_.sender_cancels)) sender_.give_up(errc::source_failed, "source threw", now_);
    if (!ends_.empty()) {
      end& e = *ends_[dice(static_cast<unsigned>(ends_.size()))];
      if (e.alive && happens(odds_.receiver_cancels)) e.machine->give_up(errc::busy, "cancelled", now_);
      if (e.alive && happens(odds_.receiver_closes)) e.machine->close("leaving", now_);
      if (happens(odds_.kill)) kill(e);
      if (e.alive && happens(odds_.stop)) e.stopped = !e.stopped;
    }
    take_all();
  }
}

bool world::wait_for_time() {
  std::optional<time_point> next = sender_.deadline();
  for (auto& e : ends_)
    if (e->alive && !e->stopped)
      if (auto const at = e->machine->deadline(); at && (!next || *at < *next)) next = at;
  if (!next) return false;
  now_ = std::max(now_, *next);
  sender_.tick(now_);
  for (auto& e : ends_)
    if (e->alive && !e->stopped) e->machine->tick(now_);
  take_all();
  return true;
}

void world::wind_down() {
  calm_ = true;
  for (unsigned ticks = 0; sender_.updating(); ++ticks) {
    check(ticks < 2000, "every update comes to its end");
    for (unsigned idle = 0; idle < 60; ++idle) {
      if (step()) idle = 0;
      take_all();
    }
    if (sender_.updating() && !wait_for_time())
      check(!copies_.empty() || !sender_jobs_.empty(), "who waits for somebody has a deadline");
  }
  // The stopped wake up; whoever was dropped finds out.
  for (auto& e : ends_) e->stopped = false;
  for (unsigned idle = 0; idle < 100; ++idle) {
    if (step()) idle = 0;
    take_all();
  }
  check(!sender_.updating() && !running_, "the update is finished");
}

} // namespace ropeway::test
