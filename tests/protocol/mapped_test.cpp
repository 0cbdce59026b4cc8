// Updates whose receivers read the sender's own tensors: both machines.
#include <doctest/doctest.h>

#include "mapping_bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

TEST_CASE(
    "a receiver that maps is told to read when the tensors are ready; no ring is made, nothing packed") {
  mapping_bench b;
  b.greet(1, {"", 0, true});
  b.start();
  CHECK(b.done() == lines(to(1, b.begin_of_mapped())));
  b.from(1, b.accept_mapped());
  CHECK(b.done() == lines("await source"));
  b.machine.source_ready(b.now);
  CHECK(b.done() == lines(to(1, read_mapped{1})));
  b.from(1, all_copied{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1}), "source free"));
  b.from(1, committed{1});
  CHECK(b.done() == lines("finished (0) [1 committed (0)  mapped ring 1]"));
}

TEST_CASE("the source is not free while one of two still reads") {
  mapping_bench b;
  b.both_read();
  b.from(1, all_copied{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1})));
  SUBCASE("and is when it has") {
    b.from(2, all_copied{1});
    CHECK(b.done() == lines(to(2, protocol::commit{1}), "source free"));
  }
  SUBCASE("and is when it has gone") {
    b.machine.gone(2, errc::peer_gone, "killed", b.now);
    CHECK(b.done() == lines("source free"));
  }
  SUBCASE("and not when it gives up, before its copies are done") {
    b.from(2, abort_update{1, code(errc::loader_failed), "no"});
    CHECK(b.done().empty());
    b.from(1, committed{1});
    CHECK(b.done().empty()); // the update is not over, either
    b.from(2, aborted{1});
    CHECK(b.done() == lines("source free",
                            "finished (0) [1 committed (0)  mapped ring 1][2 failed (32) no mapped "
                            "ring 1]"));
  }
}

TEST_CASE("a sender that gives up waits for those who read, and drops them in the end") {
  mapping_bench b;
  b.both_read();
  b.machine.give_up(errc::source_failed, "why", b.now);
  b.machine.take();
  b.machine.drained(b.now);
  CHECK(b.done().empty());
  b.from(1, aborted{1});
  CHECK(b.done().empty());
  SUBCASE("one that answers") {
    b.from(2, aborted{1});
    CHECK(b.done().find("finished") != std::string::npos);
  }
  SUBCASE("one that is silent") {
    b.pass(11s);
    auto const said = b.done();
    CHECK(said.find("drop 2") != std::string::npos);
    CHECK(said.find("finished") != std::string::npos);
  }
}

TEST_CASE("members of a group read only when all have decided") {
  mapping_bench b;
  b.greet(1, {"tp", 2, true});
  b.greet(2, {"tp", 2, true});
  b.start();
  b.from(1, b.accept_mapped());
  b.machine.source_ready(b.now);
  b.machine.take();
  SUBCASE("all accept") {
    b.from(2, b.accept_mapped());
    CHECK(b.done() == lines(to(1, read_mapped{1}), to(2, read_mapped{1})));
    b.from(1, all_copied{1});
    CHECK(b.done().empty());
    b.from(2, all_copied{1});
    CHECK(b.done() == lines(to(1, protocol::commit{1}), to(2, protocol::commit{1}), "source free"));
  }
  SUBCASE("one refuses, and no byte of the other was written") {
    b.from(2, refuse{1, code(errc::peer_refused), "asleep"});
    CHECK(b.done().find("read_mapped") == std::string::npos);
  }
}

TEST_CASE("who reads alone is told to with the announcement, if the tensors are ready by then") {
  mapping_bench b;
  b.mapped.source_ready = true;
  b.greet(1, {"", 0, true});
  b.start();
  CHECK(b.done() == lines(to(1, b.begin_of_mapped()), to(1, read_mapped{1})));
  SUBCASE("and is done when it says so, whether it was quick or not") {
    b.from(1, b.accept_mapped());
    CHECK(b.done().empty());
    b.from(1, all_copied{1});
    CHECK(b.done() == lines(to(1, protocol::commit{1}), "source free"));
    b.from(1, committed{1});
    CHECK(b.done() == lines("finished (0) [1 committed (0)  mapped ring 1]"));
  }
  SUBCASE("but has everything only after it has accepted") {
    b.from(1, all_copied{1});
    CHECK(b.done().find("drop 1") != std::string::npos);
  }
  SUBCASE("and holds nothing up when it refuses") {
    b.from(1, refuse{1, code(errc::peer_refused), "asleep"});
    CHECK(b.done() ==
          lines("source free",
                "finished (0) [1 refused (" + std::to_string(code(errc::peer_refused)) + ") asleep ring 1]"));
  }
  SUBCASE("or puts it off") {
    b.from(1, not_now{1, 5, "busy"});
    CHECK(b.done().find("finished (0) [1 skipped") != std::string::npos);
  }
  SUBCASE("or gives it up before it has begun") {
    b.from(1, abort_update{1, code(errc::loader_failed), "no"});
    CHECK(b.done() == lines("source free", "finished (0) [1 failed (32) no ring 1]"));
  }
  SUBCASE("or takes the ring after all") {
    b.from(1, b.accept_staged(errc::not_reachable, "no peer access"));
    CHECK(b.done() == lines("make ring 1"));
    b.machine.ring_ready(1, b.now);
    b.from(1, ring_mapped{1});
    b.machine.packed(1, b.now);
    b.machine.packed(2, b.now);
    CHECK(b.done().find("source free") != std::string::npos);
  }
  SUBCASE("and may read already when the sender gives up, until it says otherwise") {
    b.machine.give_up(errc::source_failed, "why", b.now);
    b.machine.take();
    b.machine.drained(b.now);
    CHECK(b.done().empty());
    SUBCASE("in a word") { b.from(1, aborted{1}); }
    SUBCASE("after its decision, which crossed") {
      b.from(1, b.accept_mapped());
      CHECK(b.done().empty());
      b.from(1, aborted{1});
    }
    SUBCASE("or goes") { b.machine.gone(1, errc::peer_gone, "killed", b.now); }
    SUBCASE("or is silent") { b.pass(11s); }
    CHECK(b.done().find("source free\nfinished") != std::string::npos);
  }
  SUBCASE("also when it does not decide in time") {
    for (int i = 0; i < 20; ++i) {
      b.pass(500ms);
      b.from(1, alive{1});
    }
    auto const said = b.done();
    CHECK(said.find("it did not decide about update 1") != std::string::npos);
    CHECK(said.find("source free") == std::string::npos);
    b.from(1, aborted{1});
    CHECK(b.done().find("source free\nfinished") != std::string::npos);
  }
}

TEST_CASE("nobody is told to read with the announcement who needs more than the tensors") {
  mapping_bench b(2);
  b.mapped.source_ready = true;
  auto const told_at_once = [&] { return b.done().find("read_mapped") != std::string::npos; };
  SUBCASE("a member of a group") {
    b.greet(1, {"tp", 2, true});
    b.greet(2, {"tp", 2, true});
    b.start();
    CHECK_FALSE(told_at_once());
    b.from(1, b.accept_mapped());
    CHECK_FALSE(told_at_once());
    b.from(2, b.accept_mapped());
    CHECK(b.done() == lines(to(1, read_mapped{1}), to(2, read_mapped{1}))); // and nothing is waited for
  }
  SUBCASE("where there is nothing to read") {
    b.mapped.bucket_bytes.clear();
    b.mapped.needed.clear();
    b.greet(1, {"", 0, true});
    b.start();
    CHECK_FALSE(told_at_once());
  }
  SUBCASE("where a bucket is needed, too") {
    b.mapped.needed = {true, false};
    b.greet(1, {"", 0, true});
    b.start();
    CHECK_FALSE(told_at_once());
  }
  SUBCASE("who did not map last time") {
    b.greet(1, {"", 0, true});
    b.start();
    b.from(1, b.accept_staged());
    b.machine.ring_ready(1, b.now);
    b.from(1, ring_mapped{1});
    for (std::uint64_t seq : {1u, 2u}) b.machine.packed(seq, b.now);
    for (std::uint64_t seq : {1u, 2u}) b.from(1, released{1, seq});
    b.from(1, all_copied{1});
    b.from(1, committed{1});
    b.machine.take();
    b.start();
    CHECK_FALSE(told_at_once());
    b.from(1, b.accept_mapped());
    CHECK(told_at_once());
  }
}

TEST_CASE("one receiver maps, another does not: buckets go to that one only, through a ring made for it") {
  mapping_bench b(2);
  b.greet(1, {"", 0, true});
  b.greet(2);
  b.start();
  b.machine.take();
  b.from(1, b.accept_mapped());
  CHECK(b.done() == lines("await source"));
  b.from(2, b.accept_staged(errc::not_reachable, "host only"));
  CHECK(b.done() == lines("make ring 0", "make ring 1"));
  b.machine.ring_ready(0, b.now);
  b.machine.ring_ready(1, b.now);
  CHECK(b.done() == lines(to(2, b.ring_of(0)), "pack seq 1 bucket 0 slot 0", "pack seq 2 bucket 1 slot 1"));
  b.machine.source_ready(b.now);
  CHECK(b.done() == lines(to(1, read_mapped{1})));
  b.from(2, ring_mapped{0});
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines("relay seq 1 from 0 to 0 bytes 100"));
  b.machine.packed(2, b.now);
  CHECK(b.done() == lines("relay seq 2 from 1 to 1 bytes 101"));
  b.from(1, all_copied{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1}), "source free"));
  b.from(1, committed{1});
  b.machine.relayed(1, b.now);
  b.machine.relayed(2, b.now);
  b.machine.take();
  b.from(2, released{1, 1});
  b.from(2, released{1, 2});
  b.from(2, all_copied{1});
  b.from(2, committed{1});
  CHECK(
      b.done() ==
      lines(to(2, protocol::commit{1, "through the ring, because it can't map the tensors: host only; "
                                      "through host memory, because it names no device"}),
            "finished (0) [1 committed (0)  mapped ring 1][2 committed (0)  ring 0, for through the ring, "
            "because it can't map the tensors: host only; through host memory, because it names no device]"));
}

TEST_CASE(
    "what is not mapped comes through the ring, in the buckets that hold it, and nothing else is packed") {
  mapping_bench b(3, {false, true, false});
  b.mapped.note = "1 tensor is elsewhere";
  b.greet(1, {"", 0, true});
  b.start();
  b.machine.take();
  b.from(1, b.accept_mapped());
  CHECK(b.done() == lines("make ring 1"));
  b.machine.ring_ready(1, b.now);
  CHECK(b.done() == lines(to(1, b.ring_of(1)), "pack seq 1 bucket 1 slot 0 unmapped only"));
  b.from(1, ring_mapped{1});
  CHECK(b.done() == lines("await source"));
  b.machine.source_ready(b.now);
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines(to(1, read_mapped{1}), to(1, b.published_of(1, 1, 0, 1))));
  SUBCASE("all_copied before the bucket is released breaks the protocol") {
    b.from(1, all_copied{1});
    CHECK(b.done().find("released 0 of 1 buckets") != std::string::npos);
  }
  SUBCASE("after it") {
    b.from(1, released{1, 1});
    b.from(1, all_copied{1});
    b.from(1, committed{1});
    CHECK(b.done() == lines(to(1, protocol::commit{1, "1 tensor is elsewhere"}), "source free",
                            "finished (0) [1 committed (0)  mapped ring 1, for 1 tensor is elsewhere]"));
  }
}

TEST_CASE(
    "a result has its receiver's own bytes and route reason, also beside the words of one that failed") {
  mapping_bench b(1);
  b.greet(1, {"", 0, true});
  b.greet(2, {"", 0, true});
  b.greet(3, {"", 0, true});
  b.start();
  b.from(1, b.accept_mapped());
  b.from(2, b.accept_staged(errc::not_reachable, "no\npeer access"));
  b.from(3, b.accept_staged(errc::not_reachable, "another machine"));
  b.machine.source_ready(b.now);
  b.machine.ring_ready(1, b.now);
  for (peer_id id : {2u, 3u}) b.from(id, ring_mapped{1});
  b.machine.packed(1, b.now);
  b.machine.take();
  b.from(1, all_copied{1, {}, 40}); // a shard: it has read less than there is
  b.from(2, released{1, 1});
  b.from(2, all_copied{1, {}, 100});
  CHECK(b.done().find("through the ring, because it can't map the tensors: no peer access") !=
        std::string::npos); // the receiver hears of it as well
  b.from(1, committed{1});
  b.from(2, failed{1, code(errc::loader_failed), "no room"});
  b.from(3, abort_update{1, code(errc::loader_failed), {}}); // without a word
  b.from(3, aborted{1});
  auto const actions = b.machine.take();
  auto const* const end = std::get_if<send_action::finished>(&actions.back());
  REQUIRE(end);
  auto const& of = end->results;
  REQUIRE(of.size() == 3);
  CHECK(of[0].copied == 40);
  CHECK(of[0].text.empty());
  CHECK(of[0].route_reason.empty());
  CHECK(of[1].copied == 100);
  CHECK(of[1].text == "no room");
  CHECK(of[1].route_reason == "through the ring, because it can't map the tensors: no peer access");
  CHECK(of[2].copied == 0);
  CHECK(of[2].text == make_error_code(errc::loader_failed).message());
  CHECK(of[2].route_reason == "through the ring, because it can't map the tensors: another machine");
}

TEST_CASE("a ring that can't be made harms only those who need it") {
  mapping_bench b;
  b.greet(1, {"", 0, true});
  b.greet(2, {"", 0, true});
  b.start();
  b.from(1, b.accept_mapped());
  b.from(2, b.accept_staged());
  b.machine.source_ready(b.now);
  b.machine.take();
  b.machine.ring_failed(1, errc::out_of_memory, "full", b.now);
  CHECK(b.done().find("to 2: abort_update") != std::string::npos);
  b.from(2, aborted{1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done() ==
        lines(to(1, protocol::commit{1}), "source free",
              "finished (0) [1 committed (0)  mapped ring 1][2 skipped (42) the sender can't make the ring "
              "that it needs: full ring 1, for it takes the update through the ring by its own choice]"));
}

TEST_CASE("where only the mapped route is allowed, who can't map is refused") {
  mapping_bench b;
  b.mapped.only_mapped = true;
  b.greet(1, {"", 0, true});
  b.start();
  b.machine.take();
  b.from(1, b.accept_staged(errc::not_reachable, "no peer access"));
  auto const said = b.done();
  CHECK(said.find("abort_update") != std::string::npos);
  CHECK(said.find("1 refused (" + std::to_string(code(errc::not_reachable)) + ")") != std::string::npos);
  CHECK(said.find("no peer access") != std::string::npos);
}

TEST_CASE("segments are sent in batches, and only those of the placement, before accept") {
  mapping_bench b;
  b.greet(1, {"", 0, true});
  b.start();
  b.machine.take();
  b.from(1, need_placement{1});
  CHECK(b.done() == lines(to(1, placement_follows{1, 0})));
  b.from(1, need_segment{1, 5, 0});
  CHECK(b.done() == lines("send parts 0+1 of segment 5 to 1"));
  b.from(1, need_segment{1, 6, 0});
  CHECK(b.done() == lines("send parts 0+32 of segment 6 to 1"));
  b.from(1, need_segment{1, 6, 32});
  CHECK(b.done() == lines("send parts 32+8 of segment 6 to 1"));
  auto const broken = [&](message const& what) {
    auto other = b.machine.clone();
    other.received(1, what, b.now);
    CHECK_MESSAGE(show(other.take()).find("drop 1") != std::string::npos, print(what));
  };
  broken(need_segment{1, 7, 0});
  broken(need_segment{1, 6, 40});
  broken(need_placement{1});
  broken(unmapped{{5}});
  broken(unmapped{});
  broken(read_mapped{1});
  b.from(1, b.accept_mapped());
  b.machine.take();
  broken(need_segment{1, 5, 0});
  broken(need_placement{1});
  broken(all_copied{1}); // before it was told to read
}

TEST_CASE("asking for the same segment without end is a flood; for many different ones it is work") {
  mapping_bench b;
  b.mapped.segments.clear();
  for (std::uint64_t i = 1; i <= 10'000; ++i) b.mapped.segments.push_back({i, 1});
  b.greet(1, {"", 0, true});
  b.start();
  for (std::uint64_t i = 1; i <= 10'000; ++i) b.from(1, need_segment{1, i, 0});
  CHECK(b.done().find("drop") == std::string::npos);
  for (int i = 0; i <= max_idle_messages; ++i) b.from(1, need_segment{1, 1, 0});
  CHECK(b.done().find("drop 1") != std::string::npos);
}

TEST_CASE("asking for parts that were sent already is a flood in any order, and no reason to wait longer") {
  mapping_bench b;
  b.greet(1, {"", 0, true});
  b.start();
  b.machine.take();
  SUBCASE("a flood") {
    for (int i = 0; i <= max_idle_messages; ++i) b.from(1, need_segment{1, 6, i % 2 == 0 ? 0u : 32u});
    for (int i = 0; i < 3; ++i) b.from(1, need_segment{1, 6, 0});
    CHECK(b.done().find("drop 1") != std::string::npos);
  }
  SUBCASE("the limit for its decision passes") {
    b.from(1, need_segment{1, 6, 0});
    for (int i = 0; i < 19; ++i) {
      b.pass(500ms);
      b.from(1, need_segment{1, 6, 0});
    }
    CHECK(b.done().find("abort_update") == std::string::npos);
    b.pass(500ms);
    CHECK(b.done().find("it did not decide about update 1") != std::string::npos);
  }
  SUBCASE("and is put off by what is new") {
    for (int i = 0; i < 19; ++i) {
      b.pass(500ms);
      b.from(1, alive{1});
    }
    b.from(1, need_segment{1, 6, 32});
    b.pass(9500ms);
    CHECK(b.done().find("abort_update") == std::string::npos);
  }
}

TEST_CASE("parts are for who still decides about the update that they were asked for") {
  mapping_bench b;
  for (peer_id id : {1u, 2u, 3u}) b.greet(id, {"", 0, true});
  CHECK_FALSE(b.machine.wants_parts(1, 1));
  b.start();
  for (peer_id id : {1u, 2u, 3u}) {
    b.from(id, need_segment{1, 6, 0});
    CHECK(b.machine.wants_parts(id, 1));
    CHECK_FALSE(b.machine.wants_parts(id, 2));
  }
  b.from(1, b.accept_mapped());
  CHECK_FALSE(b.machine.wants_parts(1, 1));
  b.from(2, refuse{1, code(errc::peer_refused), "no"});
  CHECK_FALSE(b.machine.wants_parts(2, 1));
  b.machine.give_up(errc::source_failed, "why", b.now);
  CHECK_FALSE(b.machine.wants_parts(3, 1));
  CHECK_FALSE(b.machine.wants_parts(4, 1));
}

TEST_CASE("a sender without a placement is asked for none, and accepts nobody as mapped") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  b.machine.take();
  accept mapped(1);
  mapped.mapped = 1;
  for (message const& what : {message(mapped), message(need_placement{1}), message(need_segment{1, 5, 0})}) {
    auto other = b.machine.clone();
    other.received(1, what, b.now);
    CHECK_MESSAGE(show(other.take()).find("drop 1") != std::string::npos, print(what));
  }
}

TEST_CASE("segments that are retired are unmapped by those who asked for them, and each says so once") {
  mapping_bench b;
  b.both_read();
  for (peer_id id : {1u, 2u}) {
    b.from(id, all_copied{1});
    b.from(id, committed{1});
  }
  b.machine.take();
  b.start();
  b.from(1, need_segment{b.update, 5, 0});
  for (peer_id id : {1u, 2u}) b.from(id, b.accept_mapped());
  b.machine.source_ready(b.now);
  for (peer_id id : {1u, 2u}) {
    b.from(id, all_copied{b.update});
    b.from(id, committed{b.update});
  }
  b.machine.take();
  b.machine.retire_segments({4, 5, 6}, b.now);
  CHECK(b.done() == lines(to(1, unmap{{5}})));
  CHECK(b.machine.unmapping() == 1);
  SUBCASE("said") {
    b.from(1, unmapped{{5}});
    CHECK(b.machine.unmapping() == 0);
    b.from(1, unmapped{{5}});
    CHECK(b.done().find("drop 1") != std::string::npos);
  }
  SUBCASE("gone") {
    b.machine.gone(1, errc::peer_gone, "killed", b.now);
    CHECK(b.machine.unmapping() == 0);
  }
}

TEST_CASE("who did not map last time is expected not to, so that packing need not wait for its word") {
  mapping_bench b(1);
  b.greet(1, {"", 0, true});
  b.start();
  b.machine.take();
  b.from(1, b.accept_staged());
  b.machine.ring_ready(1, b.now);
  b.from(1, ring_mapped{1});
  b.machine.packed(1, b.now);
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  b.machine.take();
  b.start();
  CHECK(b.done() == lines(to(1, b.begin_of_mapped()), "pack seq 2 bucket 0 slot 1"));
}

// ---- the receiver's half ----

namespace {

accept said_mapped(std::uint64_t update) {
  accept a(update);
  a.mapped = 1;
  return a;
}

} // namespace

TEST_CASE("a receiver that maps gets the placement, its segments in batches, and reads when it is told to") {
  mapping_receiver b;
  CHECK(b.done() == lines("look up placement 9"));
  b.machine.placement_unknown(b.now);
  CHECK(b.done() == lines(say(need_placement{1})));
  b.hears(placement_follows{1, 300});
  CHECK(b.done() == lines("read placement 9 bytes 300"));
  b.machine.placement_known({false, false}, b.now);
  CHECK(b.done() == lines("offer 1"));
  b.machine.need_segment(6, 0, 33, b.now);
  CHECK(b.done() == lines(say(need_segment{1, 6, 0})));
  for (std::uint32_t i = 0; i < 32; ++i) b.hears(segment_part{1, 6, i, 2, 10, {}, 0, {}});
  CHECK(b.done().find("take part 31 of segment 6, the last") != std::string::npos);
  b.machine.need_segment(6, 32, 33, b.now);
  b.hears(segment_part{1, 6, 32, 2, 10, {}, 0, {}});
  CHECK(b.done() == lines(say(need_segment{1, 6, 32}), "take part 32 of segment 6, the last"));
  b.accept_mapped();
  CHECK(b.done() == lines(say(said_mapped(1))));
  b.hears(read_mapped{1});
  CHECK(b.done() == lines("read mapped 1"));
  b.machine.mapped_read(b.now);
  CHECK(b.done() == lines(say(all_copied{1})));
  b.hears(protocol::commit{1});
  b.machine.take();
  b.machine.commit_done(b.now);
  CHECK(b.done() == lines(say(committed{1})));
}

TEST_CASE("all that is said about a steady mapped update is less than 1 KiB") {
  mapping_receiver b;
  std::size_t bytes = 0;
  std::vector<std::byte> encoded;
  auto const count = [&](message const& what) {
    encode(what, encoded);
    bytes += encoded.size();
  };
  auto const count_said = [&] {
    for (auto const& action : b.machine.take())
      if (auto const* said = std::get_if<receive_action::say>(&action)) count(said->what);
  };
  auto const hears = [&](message const& what) {
    count(what);
    b.hears(what);
  };
  begin next = b.begin_of(1, 2);
  next.placement = 9;
  count(next); // heard in the constructor
  b.machine.placement_known({false, false}, b.now);
  b.accept_mapped();
  hears(read_mapped{1});
  b.machine.mapped_read(b.now);
  hears(protocol::commit{1});
  count_said();
  b.machine.commit_done(b.now);
  count_said();
  CHECK(bytes > 100);
  CHECK(bytes <= 1024);
  MESSAGE("bytes of messages in a steady mapped update, both ways: " << bytes);
}

TEST_CASE("a receiver that maps is published only the buckets that hold what is not mapped") {
  mapping_receiver b;
  b.machine.placement_known({false, true}, b.now);
  b.accept_mapped();
  b.machine.take();
  SUBCASE("and copies both") {
    b.hears(b.published_of(1, 1, 1, 0));
    b.hears(read_mapped{1});
    b.machine.take();
    b.machine.loaded(1, b.now);
    CHECK(b.done() == lines(say(released{1, 1})));
    b.machine.mapped_read(b.now);
    CHECK(b.done() == lines(say(all_copied{1})));
  }
  SUBCASE("another one ends the session") {
    b.hears(b.published_of(1, 1, 0, 0));
    CHECK(b.done().find("bucket 1 is next") != std::string::npos);
  }
  SUBCASE("one more ends the session") {
    b.hears(b.published_of(1, 1, 1, 0));
    b.machine.take();
    b.hears(b.published_of(1, 2, 0, 1));
    CHECK(b.done().find("all 1 buckets were published already") != std::string::npos);
  }
}

TEST_CASE("a receiver that can't map says why, and takes all buckets") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  b.machine.take();
  receiver_machine::acceptance how;
  how.code = errc::not_reachable;
  how.text = "no peer access";
  b.machine.accept_update(b.now, how);
  accept said(1);
  said.code = code(errc::not_reachable);
  said.text = "no peer access";
  CHECK(b.done() == lines(say(said)));
  b.hears(b.published_of(1, 1, 0, 0));
  CHECK(b.done() == lines("bucket 0 of 1 seq 1 ring 0 slot 0 bytes 100"));
  b.hears(read_mapped{1}); // the sender had not heard of that
  CHECK(b.done().empty());
  b.hears(read_mapped{1});
  CHECK(b.done().find("closed") != std::string::npos);
}

TEST_CASE("a receiver that is told to read before it has decided does so when it accepts") {
  enum class moment : std::uint8_t { announced, asking, offered };
  for (auto const told : {moment::announced, moment::asking, moment::offered}) {
    CAPTURE(static_cast<int>(told));
    mapping_receiver b;
    auto const if_now = [&](moment now) {
      if (now == told) b.hears(read_mapped{1});
    };
    if_now(moment::announced);
    b.machine.placement_unknown(b.now);
    if_now(moment::asking);
    b.hears(placement_follows{1, 300});
    b.machine.placement_known({false, false}, b.now);
    if_now(moment::offered);
    auto const before = b.done();
    CHECK(before.find("offer 1") != std::string::npos);
    CHECK(before.find("read mapped") == std::string::npos);
    b.accept_mapped();
    CHECK(b.done() == lines(say(said_mapped(1)), "read mapped 1"));
    b.machine.mapped_read(b.now);
    CHECK(b.done() == lines(say(all_copied{1})));
  }
}

TEST_CASE("a receiver that is told to read and decides otherwise reads nothing") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  bool told_before = false;
  SUBCASE("told before it decides") { told_before = true; }
  SUBCASE("told when it has, which crossed") {}
  if (told_before) b.hears(read_mapped{1});
  b.machine.take();
  SUBCASE("refused") {
    b.machine.refuse_update(errc::loader_failed, "no", b.now);
    CHECK(b.done() == lines(say(refuse{1, code(errc::loader_failed), "no"})));
  }
  SUBCASE("put off") {
    b.machine.not_now_update(5ms, "later", b.now);
    CHECK(b.done() == lines(say(not_now{1, 5, "later"})));
  }
  SUBCASE("given up") {
    b.machine.give_up(errc::loader_failed, "no", b.now);
    b.machine.drained(b.now);
    CHECK(b.done().find("read mapped") == std::string::npos);
  }
  SUBCASE("by the ring") {
    b.machine.accept_update(b.now, {});
    CHECK(b.done() == lines(say(accept(1))));
  }
  if (!told_before) b.hears(read_mapped{1});
  CHECK(b.done().empty());
}

TEST_CASE("word to read an update that was turned down comes once") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  b.machine.refuse_update(errc::loader_failed, "no", b.now);
  b.machine.take();
  SUBCASE("for this one") {
    b.hears(read_mapped{1});
    CHECK(b.done().empty());
  }
  SUBCASE("and not when the next has begun") { b.announce(2); }
  b.machine.take();
  b.hears(read_mapped{1});
  CHECK(b.done().find("closed") != std::string::npos);
}

TEST_CASE("a part that can't be exported ends its batch") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  b.machine.need_segment(6, 0, 10, b.now);
  b.machine.take();
  b.hears(segment_part{1, 6, 0, 0, 0, {}, code(errc::not_reachable), "freed"});
  CHECK(b.done() == lines("take part 0 of segment 6, the last"));
  b.hears(segment_part{1, 6, 1, 2, 10, {}, 0, {}});
  CHECK(b.done().find("closed") != std::string::npos);
}

TEST_CASE("parts that were on their way when the embedder decided are no breach, and others are") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  b.machine.need_segment(6, 0, 3, b.now);
  b.hears(segment_part{1, 6, 0, 2, 10, {}, 0, {}});
  SUBCASE("refused") { b.machine.refuse_update(errc::loader_failed, "no", b.now); }
  SUBCASE("put off") { b.machine.not_now_update(5ms, "later", b.now); }
  SUBCASE("accepted") { b.accept_mapped(); }
  SUBCASE("given up") {
    b.machine.give_up(errc::loader_failed, "no", b.now);
    b.machine.drained(b.now);
  }
  SUBCASE("given up by the sender") {
    b.hears(abort_update{1, code(errc::source_failed), "no"});
    b.machine.drained(b.now);
  }
  b.machine.take();
  b.hears(segment_part{1, 6, 1, 2, 10, {}, 0, {}});
  b.hears(segment_part{1, 6, 2, 2, 10, {}, 0, {}});
  CHECK(b.done().empty());
}

TEST_CASE("parts of an update that was refused, beyond those that were asked for, end the session") {
  mapping_receiver b;
  b.machine.placement_known({false, false}, b.now);
  b.machine.need_segment(6, 0, 2, b.now);
  b.machine.refuse_update(errc::loader_failed, "no", b.now);
  b.machine.take();
  SUBCASE("in another order") { b.hears(segment_part{1, 6, 1, 2, 10, {}, 0, {}}); }
  SUBCASE("too many") {
    for (std::uint32_t i = 0; i < 3; ++i) b.hears(segment_part{1, 6, i, 2, 10, {}, 0, {}});
  }
  SUBCASE("after the next update was announced") {
    b.announce(2);
    b.hears(segment_part{1, 6, 0, 2, 10, {}, 0, {}});
  }
  CHECK(b.done().find("closed") != std::string::npos);
}

TEST_CASE("more segments than one message holds are unmapped in several") {
  mapping_receiver b;
  b.machine.take();
  std::vector<std::uint64_t> all(2 * max_unmap + 1, 5);
  b.machine.unmapped(all, b.now);
  std::vector<std::byte> datagram;
  std::size_t count = 0;
  for (auto const& action : b.machine.take()) {
    auto const& said = std::get<receive_action::say>(action).what;
    CHECK_NOTHROW(encode(said, datagram));
    count += std::get<protocol::unmapped>(said).segments.size();
  }
  CHECK(count == all.size());
  b.machine.unmapped({}, b.now);
  CHECK(b.done().empty());
}

TEST_CASE("what a sender says of mapped memory at the wrong moment ends the session") {
  auto const broken = [](mapping_receiver& b, message const& what) {
    b.machine.take();
    auto other = b.machine.clone();
    other.received(what, b.now);
    CHECK_MESSAGE(show(other.take()).find("closed") != std::string::npos, print(what));
  };
  mapping_receiver b;
  broken(b, read_mapped{2});
  broken(b, placement_follows{1, 300}); // not asked for
  b.machine.placement_unknown(b.now);
  broken(b, placement_follows{1, 0});
  broken(b, placement_follows{1, 5001});
  b.hears(placement_follows{1, 300});
  broken(b, placement_follows{1, 300});
  b.machine.placement_known({false, false}, b.now);
  broken(b, segment_part{1, 6, 0, 2, 10, {}, 0, {}});
  b.machine.need_segment(6, 0, 2, b.now);
  broken(b, segment_part{1, 5, 0, 2, 10, {}, 0, {}});
  broken(b, segment_part{1, 6, 1, 2, 10, {}, 0, {}});
  broken(b, unmap{});
  b.hears(segment_part{1, 6, 0, 2, 10, {}, 0, {}});
  b.hears(segment_part{1, 6, 1, 2, 10, {}, 0, {}});
  broken(b, segment_part{1, 6, 2, 2, 10, {}, 0, {}});
  b.accept_mapped();
  broken(b, protocol::commit{1});
  b.hears(read_mapped{1});
  broken(b, read_mapped{1});
  broken(b, protocol::commit{1});
  b.machine.mapped_read(b.now);
  broken(b, read_mapped{1});
  receiver_bench unplaced;
  unplaced.greet();
  unplaced.hears(unplaced.begin_of(1, 1));
  unplaced.hears(read_mapped{1});
  CHECK(unplaced.done().find("closed") != std::string::npos);
}

TEST_CASE("unmap is the driver's, at any time, and not without end") {
  mapping_receiver b;
  b.machine.take();
  b.hears(unmap{{5, 6}});
  CHECK(b.done() == lines("unmap 2"));
  b.machine.unmapped({5, 6}, b.now);
  CHECK(b.done() == lines(say(unmapped{{5, 6}})));
  for (int i = 0; i <= max_idle_messages; ++i) b.hears(unmap{{5}});
  CHECK(b.done().find("closed") != std::string::npos);
}

TEST_CASE("a receiver that does not map knows nothing of placements") {
  receiver_bench b;
  b.greet();
  begin announced = b.begin_of(1, 1);
  announced.placement = 9;
  b.hears(announced);
  b.machine.take();
  b.machine.manifest_known({100}, b.now);
  CHECK(b.done() == lines("offer 1"));
}

TEST_CASE("a sender that does not answer for a placement or a segment is given up") {
  mapping_receiver b;
  SUBCASE("placement") { b.machine.placement_unknown(b.now); }
  SUBCASE("segment") {
    b.machine.placement_known({false, false}, b.now);
    b.machine.need_segment(6, 0, 2, b.now);
  }
  b.machine.take();
  for (int i = 0; i < 40; ++i) b.pass(500ms);
  CHECK(b.done().find("closed") != std::string::npos);
}
