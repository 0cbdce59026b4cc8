// Both machines, of updates whose receivers read the sender's own tensors. Part of ropeway; Apache-2.0.
#pragma once
#include "bench.hpp"

namespace ropeway::test {

/// A sender with CUDA tensors in two segments, of 1 and of 40 parts; by default no bucket is needed.
struct mapping_bench : sender_bench {
  explicit mapping_bench(std::uint32_t buckets = 2, std::vector<bool> needed = {}) {
    mapped = facts(buckets, 1);
    mapped.placement = 9;
    mapped.segments = {{5, 1}, {6, 40}};
    needed.resize(buckets, false);
    mapped.needed = needed;
  }
  void start() { update = machine.begin_update(mapped, now); }
  begin begin_of_mapped() const {
    auto b = begin_of(static_cast<std::uint32_t>(mapped.bucket_bytes.size()));
    b.placement = mapped.placement;
    return b;
  }
  accept accept_mapped() const {
    accept a(update);
    a.mapped = 1;
    return a;
  }
  accept accept_staged(errc why = errc::ok, std::string text = {}) const {
    accept a(update);
    a.code = code(why);
    a.text = std::move(text);
    return a;
  }
  /// Receivers 1 and 2, told to read.
  void both_read() {
    for (peer_id id : {1u, 2u}) greet(id, {"", 0, true});
    start();
    for (peer_id id : {1u, 2u}) from(id, accept_mapped());
    machine.source_ready(now);
    machine.take();
  }
  update_facts mapped;
};

/// A receiver that may map, with an update of placement 9 announced and its manifest known.
struct mapping_receiver : receiver_bench {
  static receiver_settings settings() {
    auto s = receiver_bench::settings();
    s.maps = true;
    return s;
  }
  mapping_receiver() {
    machine = receiver_machine(settings());
    greet();
    hears(ring_of(0));
    machine.ring_mapped(0, now);
    announce(1);
  }
  void announce(std::uint64_t update, std::uint32_t buckets = 2) {
    begin b = begin_of(update, buckets);
    b.placement = 9;
    hears(b);
    machine.take();
    std::vector<std::uint64_t> bytes;
    for (std::uint32_t i = 0; i < buckets; ++i) bytes.push_back(100 + i);
    machine.manifest_known(bytes, now);
  }
  void accept_mapped() {
    receiver_machine::acceptance how;
    how.mapped = true;
    machine.accept_update(now, how);
  }
};

} // namespace ropeway::test
