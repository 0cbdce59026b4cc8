// Buckets through the sender's slots and rings.
#include <doctest/doctest.h>

#include "bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// A sender of CUDA tensors (ring 1) with receiver 1 on the device and receiver 2 on the host, both ready.
struct two_rings : sender_bench {
  explicit two_rings(std::uint32_t buckets) {
    greet(1, {"", 0, true});
    greet(2);
    start(buckets, 1);
    CHECK(done() == lines("make ring 1", "make ring 0"));
    machine.ring_ready(1, now);
    machine.ring_ready(0, now);
    machine.take();
    from(1, ring_mapped{1});
    from(2, ring_mapped{0});
    from(1, accept{1});
    from(2, accept{1});
    CHECK(done().empty());
  }
};

} // namespace

TEST_CASE("slots are packed ahead, in bucket order, as many as there are") {
  for (std::uint32_t slots : {1u, 2u, 3u}) {
    sender_bench b(slots);
    b.greet(1);
    b.start(5);
    b.machine.take();
    b.machine.ring_ready(0, b.now);
    std::string expected = lines(to(1, b.ring_of(0, slots)), to(1, b.begin_of(5)));
    for (std::uint32_t i = 0; i < slots; ++i)
      expected += lines(words("pack seq ", i + 1, " bucket ", i, " slot ", i));
    CHECK(b.done() == expected);
  }
}

TEST_CASE("nothing is published before everyone has decided and mapped the ring") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start(1);
  b.machine.ring_ready(0, b.now);
  b.machine.take();
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines("source free"));
  b.from(1, accept{1});
  b.from(1, ring_mapped{0});
  b.from(2, accept{1});
  CHECK(b.done().empty());
  b.from(2, ring_mapped{0});
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0)), to(2, b.published_of(1, 0, 0))));
}

TEST_CASE("a slot is packed again when the last of its readers released it") {
  sender_bench b(1);
  b.greet(1);
  b.greet(2);
  b.start_accepted(2, 1, 2);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.from(2, released{1, 1});
  CHECK(b.done().empty());
  b.from(1, released{1, 1});
  CHECK(b.done() == lines("pack seq 2 bucket 1 slot 0"));
}

TEST_CASE("while one bucket is loaded the next is packed and published") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(3, 1);
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0))));
  b.machine.packed(2, b.now);
  CHECK(b.done() == lines(to(1, b.published_of(2, 1, 1))));
  b.from(1, released{1, 1});
  CHECK(b.done() == lines("pack seq 3 bucket 2 slot 0"));
  b.machine.packed(3, b.now);
  CHECK(b.done() == lines("source free", to(1, b.published_of(3, 2, 0))));
}

TEST_CASE("a packed slot stays taken while somebody has not decided") {
  sender_bench b(1);
  b.greet(1);
  b.start(2);
  b.machine.ring_ready(0, b.now);
  b.machine.take();
  b.machine.packed(1, b.now);
  b.pass(1s);
  CHECK(b.done().empty());
}

TEST_CASE("the slots of a dead receiver become free") {
  sender_bench b(1);
  b.greet(1);
  b.greet(2);
  b.start_accepted(2, 1, 2);
  b.machine.packed(1, b.now);
  b.from(1, released{1, 1});
  b.machine.take();
  b.machine.gone(2, errc::peer_gone, "EOF", b.now);
  CHECK(b.done() == lines("pack seq 2 bucket 1 slot 0"));
}

TEST_CASE("the slots of a receiver that gave up stay taken until it says aborted") {
  sender_bench b(1);
  b.greet(1);
  b.greet(2);
  b.start_accepted(2, 1, 2);
  b.machine.packed(1, b.now);
  b.from(1, released{1, 1});
  b.from(2, abort_update{1, 32, "x"});
  b.machine.take();
  b.pass(1s);
  CHECK(b.done().empty());
  b.from(2, aborted{1});
  CHECK(b.done() == lines("pack seq 2 bucket 1 slot 0"));
}

TEST_CASE("released twice, or of a bucket that was not published, breaks the protocol") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(3, 1);
  b.machine.packed(1, b.now);
  b.machine.take();
  SUBCASE("not published") { b.from(1, released{1, 2}); }
  SUBCASE("unknown") { b.from(1, released{1, 99}); }
  SUBCASE("twice") {
    b.from(1, released{1, 1});
    b.from(1, released{1, 1});
  }
  CHECK(b.done().find("drop 1 (24) released for update 1 seq ") != std::string::npos);
}

TEST_CASE("the source is free when the last bucket is packed, and is said to be once") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(2, 1);
  b.machine.packed(1, b.now);
  CHECK(b.done().find("source free") == std::string::npos);
  b.machine.packed(2, b.now);
  CHECK(b.done().find("source free") == 0);
  b.machine.packed(2, b.now);
  b.machine.packed(77, b.now);
  CHECK(b.done().empty());
}

TEST_CASE("when nobody is left the rest is not packed, and what is being packed is waited for") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(5, 1);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.machine.gone(1, errc::peer_gone, "EOF", b.now);
  CHECK(b.done() == lines("drain"));
  b.machine.packed(2, b.now);
  CHECK(b.done().empty());
  b.machine.drained(b.now);
  CHECK(b.done() == lines("source free", "finished (0) [1 dropped (20) EOF ring 0]"));
  // All slots are free again.
  b.greet(2);
  b.start(2);
  CHECK(b.done() == lines(to(2, b.ring_of(0)), to(2, b.begin_of(2)), "pack seq 3 bucket 0 slot 0",
                          "pack seq 4 bucket 1 slot 1"));
}

TEST_CASE("a slot whose packing was abandoned is free for the next update") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(5, 1);
  b.machine.give_up(errc::source_failed, "x", b.now);
  b.machine.drained(b.now);
  b.from(1, aborted{1});
  b.machine.take();
  b.start(2);
  auto const done = b.done();
  CHECK(done.find("pack seq 3 bucket 0 slot") != std::string::npos);
  CHECK(done.find("pack seq 4 bucket 1 slot") != std::string::npos);
}

TEST_CASE("a ring that can't be made ends the update, and is asked for again by the next") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  b.machine.take();
  b.machine.ring_failed(0, errc::out_of_memory, "no memory for 2 slots", b.now);
  CHECK(b.done() == lines("drain"));
  b.machine.drained(b.now);
  CHECK(b.done() ==
        lines("source free",
              "finished (42) no memory for 2 slots[1 skipped (42) the sender gave the update up: no "
              "memory for 2 slots ring 0]"));
  b.start(1);
  CHECK(b.done() == lines("make ring 0"));
}

TEST_CASE("a receiver without CUDA takes a CUDA update from the host ring, by relay") {
  two_rings b(1);
  b.machine.packed(1, b.now);
  CHECK(b.done() ==
        lines("source free", to(1, b.published_of(1, 0, 0, 1)), "relay seq 1 from 0 to 0 bytes 100"));
  b.machine.relayed(1, b.now);
  CHECK(b.done() == lines(to(2, b.published_of(1, 0, 0, 0))));
  for (peer_id id : {1u, 2u}) {
    b.from(id, released{1, 1});
    b.from(id, all_copied{1});
    b.from(id, committed{1});
  }
  CHECK(
      b.done().find("[1 committed (0)  ring 1][2 committed (0)  ring 0, for through host memory, because it "
                    "names no device]") != std::string::npos);
}

namespace {

/// A sender of tensors on device 1, in ring 1, whose receivers have all accepted: the first two buckets are
/// being packed.
struct beside_links : sender_bench {
  explicit beside_links(std::vector<who> const& receivers) {
    for (auto const& each : receivers) greet(++last, each);
    auto what = facts(9, 1);
    what.device[15] = 1;
    update = machine.begin_update(what, now);
    machine.ring_ready(0, now);
    machine.take();
    machine.ring_ready(1, now);
    begun = done();
    for (peer_id id = 1; id <= last; ++id) {
      from(id, ring_mapped{receivers[id - 1].cuda ? 1u : 0u});
      from(id, accept{update});
    }
    machine.take();
  }
  peer_id last = 0;
  std::string begun;
};
who on_device(std::uint8_t device) { return {"", 0, true, device}; }

/// What is done when these let go of a bucket, of which the next is packed.
template <class... Id>
std::string when_released(sender_bench& b, std::uint64_t seq, Id... ids) {
  b.machine.packed(seq + 1, b.now);
  b.machine.take();
  (b.from(static_cast<peer_id>(ids), released{b.update, seq}), ...);
  return b.done();
}

} // namespace

TEST_CASE("a device's slots are packed beside the link only while others are read over it") {
  beside_links b({on_device(2)});
  CHECK(b.begun.find("pack seq 1 bucket 0 slot 0\npack seq 2 bucket 1 slot 1\n") != std::string::npos);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.from(1, released{b.update, 1});
  CHECK(b.done() == lines("pack seq 3 bucket 2 slot 0")); // nothing is read meanwhile
  b.machine.packed(2, b.now);
  CHECK(when_released(b, 2, 1) == lines("pack seq 4 bucket 3 slot 1 beside a link"));
}

TEST_CASE("who takes part and copies on the ring's own device is not kept waiting for a slower packing") {
  beside_links b({on_device(2), on_device(1)});
  b.machine.packed(1, b.now);
  CHECK(when_released(b, 1, 1, 2) == lines("pack seq 3 bucket 2 slot 0"));
  CHECK(when_released(b, 2, 1, 2) == lines("pack seq 4 bucket 3 slot 1"));
  b.machine.gone(2, errc::peer_gone, "gone", b.now);
  CHECK(when_released(b, 3, 1) == lines("pack seq 5 bucket 4 slot 0 beside a link"));
}

TEST_CASE("a relay is no link, nor is one that reads the host ring") {
  beside_links b({who{}});
  for (std::uint64_t seq : {1u, 2u}) {
    b.machine.packed(seq, b.now);
    b.machine.relayed(seq, b.now);
  }
  CHECK(b.done().find("beside") == std::string::npos); // 3 and 4 are packed while it reads the host's two
  sender_bench host;
  host.greet(1, on_device(2));
  host.start_accepted(3, 1);
  host.machine.packed(1, host.now);
  CHECK(when_released(host, 1, 1) == lines("pack seq 3 bucket 2 slot 0"));
}

TEST_CASE("a device slot is not packed again while a relay reads it") {
  two_rings b(3);
  b.machine.packed(1, b.now);
  b.machine.packed(2, b.now);
  b.from(1, released{1, 1});
  b.machine.take();
  CHECK(b.done().empty());
  b.machine.relayed(1, b.now);
  CHECK(b.done() == lines(to(2, b.published_of(1, 0, 0, 0)), "pack seq 3 bucket 2 slot 0"));
}

TEST_CASE("relays wait for a free host slot, in order, and do not hold up the device's readers") {
  two_rings b(4);
  b.machine.packed(1, b.now);
  b.machine.packed(2, b.now);
  b.machine.relayed(1, b.now);
  b.machine.relayed(2, b.now);
  b.from(1, released{1, 1});
  b.from(1, released{1, 2});
  b.machine.take();
  b.machine.packed(3, b.now);
  CHECK(b.done() == lines(to(1, b.published_of(3, 2, 0, 1)))); // both host slots are held by 2
  b.machine.packed(4, b.now);
  CHECK(b.done() == lines("source free", to(1, b.published_of(4, 3, 1, 1))));
  b.from(2, released{1, 2});
  CHECK(b.done() == lines("relay seq 3 from 0 to 1 bytes 102"));
  b.from(2, released{1, 1});
  CHECK(b.done() == lines("relay seq 4 from 1 to 0 bytes 103"));
}

TEST_CASE("relays stop when the last host receiver has gone, and the one that runs is waited for") {
  two_rings b(2);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.machine.gone(2, errc::peer_gone, "EOF", b.now);
  b.machine.packed(2, b.now);
  CHECK(b.done() == lines("source free", to(1, b.published_of(2, 1, 1, 1))));
  b.from(1, released{1, 1});
  b.from(1, released{1, 2});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1}), "drain")); // the relay still runs
  b.machine.drained(b.now);
  CHECK(b.done().find("finished (0) [1 committed") == 0);
}

TEST_CASE("who refuses the device ring is offered the host ring, and the reason stays in the report") {
  sender_bench b;
  b.greet(1, {"", 0, true});
  b.start(1, 1);
  b.machine.ring_ready(1, b.now);
  b.machine.take();
  b.from(1, accept{1});
  b.from(1, ring_refused{1, 43, "no peer access"});
  CHECK(b.done() == lines("make ring 0"));
  b.machine.ring_ready(0, b.now);
  CHECK(b.done() == lines(to(1, b.ring_of(0))));
  b.from(1, ring_mapped{0});
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines("source free", "relay seq 1 from 0 to 0 bytes 100"));
  b.machine.relayed(1, b.now);
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done().find("[1 committed (0)  ring 0, for through host memory, because it can't map ring 1: no "
                      "peer access]") != std::string::npos);
  b.start(1, 1); // it is not asked again
  CHECK(b.done() == lines(to(1, b.begin_of(1)), "pack seq 2 bucket 0 slot 1"));
}

TEST_CASE("who refuses the host ring has refused the update") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  b.machine.ring_ready(0, b.now);
  b.machine.take();
  b.from(1, ring_refused{0, 44, "not sealed"});
  std::string const text = "it can't map the sender's host ring: not sealed";
  CHECK(b.done() == lines(to(1, abort_update{1, 44, text}), "drain"));
  b.machine.drained(b.now);
  CHECK(b.done() == lines("source free", "finished (0) [1 refused (44) " + text + " ring 0]"));
}

TEST_CASE("a host ring that can't be made skips only who needs it") {
  sender_bench b;
  b.greet(1, {"", 0, true});
  b.greet(2);
  b.start(1, 1);
  b.machine.ring_ready(1, b.now);
  b.from(1, ring_mapped{1});
  b.from(1, accept{1});
  b.machine.packed(1, b.now);
  b.machine.take();
  b.machine.ring_failed(0, errc::out_of_memory, "no memory", b.now);
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0, 1))));
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done().find(
            "[1 committed (0)  ring 1][2 skipped (42) the sender can't make the ring that it needs: no "
            "memory ring 0]") != std::string::npos);
}

TEST_CASE("host tensors and CUDA tensors may take turns: each ring is made and offered once") {
  sender_bench b;
  b.greet(1, {"", 0, true});
  auto const run = [&](std::uint32_t ring, std::uint64_t seq) {
    b.start(1, ring);
    std::string done = b.done();
    b.machine.ring_ready(ring, b.now);
    done += b.done();
    if (done.find("ring{id=") != std::string::npos) b.from(1, ring_mapped{ring});
    b.from(1, accept{b.update});
    b.machine.packed(seq, b.now);
    b.from(1, released{b.update, seq});
    b.from(1, all_copied{b.update});
    b.from(1, committed{b.update});
    CHECK(b.done().find(words("[1 committed (0)  ring ", ring, "]")) != std::string::npos);
    return done;
  };
  CHECK(run(0, 1).find("make ring 0") == 0);
  CHECK(run(2, 2).find("make ring 2") == 0);
  CHECK(run(0, 3) == lines(to(1, begin{3, 42, {}, 100, 1, 1}), "pack seq 3 bucket 0 slot 1"));
  CHECK(run(2, 4) == lines(to(1, begin{4, 42, {}, 100, 1, 1}), "pack seq 4 bucket 0 slot 1"));
}
