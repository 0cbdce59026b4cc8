// One machine on the workbench: events by hand, and the actions that came of them as lines of text, so that a
// failed comparison shows what was done instead. Part of ropeway; Apache-2.0.
#pragma once
#include <string>

#include "protocol/codec.hpp"
#include "protocol/receiver_machine.hpp"
#include "protocol/sender_machine.hpp"
#include "protocol/text.hpp"

namespace ropeway::test {

using namespace ropeway::protocol;
using namespace std::chrono_literals;

std::string show(sender_action const& what);
std::string show(receiver_action const& what);

template <class Action>
std::string show(std::vector<Action> const& all) {
  std::string lines;
  for (auto const& a : all) lines += show(a) + "\n";
  return lines;
}

/// Lines, as show() of several actions makes them.
template <class... Line>
std::string lines(Line const&... line) {
  std::string all;
  ((all += std::string(line) + "\n"), ...);
  return all;
}

/// The lines of actions that say something.
inline std::string to(peer_id peer, message const& what) {
  return "to " + std::to_string(peer) + ": " + print(what);
}
inline std::string say(message const& what) { return "say " + print(what); }

inline std::uint16_t code(errc e) { return static_cast<std::uint16_t>(e); }

/// What a receiver is, as hello says.
struct who {
  std::string group = {};
  std::uint32_t size = 0;
  bool cuda = false;
  std::uint8_t device = 0; ///< the last byte of the UUID of that which it copies on
};

struct sender_bench {
  explicit sender_bench(std::uint32_t slots = 2) : machine(settings(slots)) {}

  static sender_settings settings(std::uint32_t slots) {
    sender_settings s;
    s.instance[15] = 7;
    s.bucket_bytes = 1000;
    s.slots = slots;
    s.max_peers = 5;
    s.max_handshakes = 3;
    return s;
  }
  static hello hello_of(peer_id id) { return hello_of(id, who{}); }
  static hello hello_of(peer_id id, who const& w) {
    hello hi;
    hi.magic = hello_magic;
    hi.oldest = version_min;
    hi.newest = version_max;
    hi.schema = schema_hash();
    hi.name = "r" + std::to_string(id);
    hi.group = w.group;
    hi.group_size = w.size;
    if (w.cuda) hi.devices.resize(1), hi.devices[0][15] = w.device;
    return hi;
  }
  welcome welcome_of() const { return {1, settings(2).instance, 1000, 10000}; }

  void connect(peer_id id) { machine.connected(id, "pid " + std::to_string(100 + id), now); }
  void from(peer_id id, message const& what) { machine.received(id, what, now); }
  void greet(peer_id id) { greet(id, who{}); }
  void greet(peer_id id, who const& w) {
    connect(id);
    from(id, hello_of(id, w));
    machine.take();
  }
  static update_facts facts(std::uint32_t buckets, std::uint32_t ring = host_ring) {
    update_facts f;
    f.version = 42;
    f.tensors = buckets;
    f.ring = ring;
    for (std::uint32_t i = 0; i < buckets; ++i) f.bucket_bytes.push_back(100 + i);
    f.total_bytes = 100 * buckets;
    return f;
  }
  void start(std::uint32_t buckets, std::uint32_t ring = host_ring) {
    update = machine.begin_update(facts(buckets, ring), now);
  }
  begin begin_of(std::uint32_t buckets) const { return {update, 42, {}, 100 * buckets, buckets, buckets}; }
  static ring ring_of(std::uint32_t id, std::uint32_t slots = 2) {
    return {id, static_cast<std::uint8_t>(id == 0 ? 0 : 1), {}, 1000, slots};
  }
  published published_of(std::uint64_t seq, std::uint32_t bucket, std::uint32_t slot,
                         std::uint32_t ring = 0) const {
    return {update, seq, bucket, ring, slot, 100 + bucket};
  }
  /// Starts an update and brings the named peers to where they have mapped its ring and accepted.
  template <class... Id>
  void start_accepted(std::uint32_t buckets, Id... id) {
    start(buckets);
    machine.ring_ready(host_ring, now);
    (from(static_cast<peer_id>(id), ring_mapped{host_ring}), ...);
    (from(static_cast<peer_id>(id), accept{update}), ...);
    machine.take();
  }
  /// As start_accepted, with the only bucket published, released and copied by all. Nobody has said so after
  /// the first update's ring_mapped twice: call it once a bench.
  template <class... Id>
  void start_copied(Id... id) {
    start_accepted(1, id...);
    machine.packed(1, now);
    machine.take();
    (from(static_cast<peer_id>(id), released{update, 1}), ...);
    (from(static_cast<peer_id>(id), all_copied{update}), ...);
  }
  void pass(duration d) {
    now += d;
    machine.tick(now);
  }
  std::string done() { return show(machine.take()); }

  time_point now = time_point{} + 1h;
  sender_machine machine;
  std::uint64_t update = 0;
};

struct receiver_bench {
  receiver_bench() : machine(settings()) {}

  static receiver_settings settings() {
    receiver_settings s;
    s.greeting.name = "r1";
    s.max_slots = 4;
    s.max_bucket_bytes = 5000;
    s.max_manifest_bytes = 5000;
    return s;
  }
  static welcome welcome_of() {
    welcome w;
    w.version = 1;
    w.sender[15] = 7;
    w.bucket_bytes = 1000;
    w.silence_ms = 10000;
    return w;
  }
  void hears(message const& what) { machine.received(what, now); }
  void greet() {
    machine.connected(now);
    hears(welcome_of());
    machine.take();
  }
  static ring ring_of(std::uint32_t id, std::uint32_t slots = 2) {
    return {id, static_cast<std::uint8_t>(id == 0 ? 0 : 1), {}, 1000, slots};
  }
  static begin begin_of(std::uint64_t update, std::uint32_t buckets) {
    return {update, 42, {}, 500, 3, buckets};
  }
  /// Greeted, ring 0 mapped, an update with buckets of 100, 101, ... bytes offered.
  void offered(std::uint64_t update, std::uint32_t buckets) {
    if (!machine.greeted()) {
      greet();
      hears(ring_of(0));
      machine.ring_mapped(0, now);
    }
    hears(begin_of(update, buckets));
    std::vector<std::uint64_t> bytes;
    for (std::uint32_t i = 0; i < buckets; ++i) bytes.push_back(100 + i);
    machine.manifest_known(bytes, now);
    machine.take();
  }
  void accepted(std::uint64_t update, std::uint32_t buckets) {
    offered(update, buckets);
    machine.accept_update(now);
    machine.take();
  }
  static published published_of(std::uint64_t update, std::uint64_t seq, std::uint32_t bucket,
                                std::uint32_t slot) {
    return {update, seq, bucket, 0, slot, 100 + bucket};
  }
  /// One bucket, loaded; now it waits for commit.
  void copied(std::uint64_t update) {
    accepted(update, 1);
    hears(published_of(update, update, 0, 0));
    machine.loaded(update, now);
    machine.take();
  }
  void pass(duration d) {
    now += d;
    machine.tick(now);
  }
  std::string done() { return show(machine.take()); }

  time_point now = time_point{} + 1h;
  receiver_machine machine;
};

} // namespace ropeway::test
