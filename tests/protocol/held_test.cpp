// A version that is held: who is given it, when, and who is not.
#include <doctest/doctest.h>

#include "bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// Updates without buckets, so that nothing but the order of words matters; `with_bucket` where something is
/// to be written.
struct held_bench : sender_bench {
  void hold(std::uint64_t version = 42) { machine.hold(version, now); }
  void deliver(std::uint32_t buckets = 0) {
    auto what = facts(buckets);
    what.held = true;
    update = machine.begin_update(what, now);
  }
  void send(std::uint64_t version, std::uint32_t buckets = 0) {
    auto what = facts(buckets);
    what.version = version;
    update = machine.begin_update(what, now);
  }
  void takes(peer_id id) {
    from(id, accept{update});
    from(id, all_copied{update});
    from(id, committed{update});
  }
  /// Greeted, and given a version by an update of its own.
  template <class... Id>
  void holding(std::uint64_t version, Id... id) {
    send(version);
    (takes(static_cast<peer_id>(id)), ...);
    machine.take();
  }
  std::uint64_t version_of(peer_id id) const {
    for (auto const& one : machine.peers())
      if (one.peer == id) return one.holds_version ? one.version_held : 0;
    return 0;
  }
};

std::string const asked = lines("deliver held");

} // namespace

TEST_CASE("who joins while a version is held is given it, and nobody else takes part") {
  held_bench b;
  b.greet(1);
  b.holding(42, 1);
  b.hold();
  CHECK(b.done().empty()); // all have it
  b.connect(2);
  b.from(2, b.hello_of(2));
  CHECK(b.done() == lines(to(2, b.welcome_of()), "deliver held"));
  CHECK(b.machine.wants_held());
  b.deliver();
  CHECK_FALSE(b.machine.wants_held());
  CHECK(b.done() == lines(to(2, b.begin_of(0))));
  b.takes(2);
  auto const done = b.done();
  CHECK(done.ends_with("finished (0) [2 committed (0)  ring 0]\n"));
  CHECK(b.version_of(2) == 42);
}

TEST_CASE("a version that is held before anything was sent goes to all, and to who comes back without it") {
  held_bench b;
  b.greet(1);
  b.greet(2);
  b.hold();
  CHECK(b.done() == asked);
  b.deliver();
  b.takes(1);
  b.takes(2);
  CHECK(b.done().find("[1 committed (0)  ring 0][2 committed (0)  ring 0]") != std::string::npos);
  b.machine.gone(1, errc::peer_gone, "killed", b.now);
  b.connect(3);
  auto with_it = b.hello_of(3);
  with_it.last_sender = b.settings(2).instance;
  with_it.last_update = b.update;
  with_it.version_held = 42;
  b.from(3, with_it);
  CHECK(b.done() == lines(to(3, b.welcome_of())));
  b.connect(4);
  with_it.last_sender[15] = 8; // of another sender's
  b.from(4, with_it);
  CHECK(b.done() == lines(to(4, b.welcome_of()), "deliver held"));
}

TEST_CASE("nobody is taken back from what was sent after the hold began, or was being sent then") {
  held_bench b;
  b.greet(1);
  b.send(43);
  b.hold();
  b.takes(1);
  CHECK(b.done().find("deliver held") == std::string::npos);
  b.holding(44, 1);
  b.greet(2);
  CHECK(b.machine.wants_held());
  b.deliver();
  CHECK(b.done() == lines(to(2, b.begin_of(0)))); // not to 1
  b.takes(2);
  b.machine.take();
  b.hold(45); // of now: this is newer than all
  CHECK(b.done() == asked);
  b.deliver();
  CHECK(b.done() == lines(to(1, b.begin_of(0)), to(2, b.begin_of(0))));
}

TEST_CASE("who leaves before the delivery begins is not waited for, and the next one is asked for anew") {
  held_bench b;
  b.hold();
  b.connect(1);
  b.from(1, b.hello_of(1));
  CHECK(b.done() == lines(to(1, b.welcome_of()), "deliver held"));
  b.machine.gone(1, errc::peer_gone, "killed", b.now);
  CHECK_FALSE(b.machine.wants_held()); // so the driver does nothing
  b.connect(2);
  b.from(2, b.hello_of(2));
  CHECK(b.done() == lines(to(2, b.welcome_of()), "deliver held"));
}

TEST_CASE("who joins during a delivery has the next one") {
  held_bench b;
  b.hold();
  b.greet(1);
  b.deliver();
  b.greet(2);
  CHECK(b.done().find("deliver held") == std::string::npos);
  b.takes(1);
  CHECK(b.done().ends_with(asked));
  b.deliver();
  CHECK(b.done() == lines(to(2, b.begin_of(0))));
}

TEST_CASE("who refuses or fails it is not asked again, unless another version is held") {
  for (bool const fails : {false, true}) {
    held_bench b;
    b.hold();
    b.greet(1);
    b.deliver();
    if (fails) {
      b.from(1, accept{b.update});
      b.from(1, all_copied{b.update});
      b.from(1, failed{b.update, 32, "broken"});
    } else {
      b.from(1, refuse{b.update, 8, "no"});
    }
    CHECK(b.done().find("deliver held") == std::string::npos);
    b.pass(1h);
    CHECK(b.done().empty());
    CHECK_FALSE(b.machine.deadline());
    b.hold(); // the same number, but another promise
    CHECK(b.done() == asked);
  }
}

TEST_CASE("who says not now is asked when that time is over, who says nothing after another decide limit") {
  held_bench b;
  b.hold();
  b.greet(1);
  b.deliver();
  b.from(1, not_now{b.update, 250, "serving"});
  CHECK(b.done().find("deliver held") == std::string::npos);
  REQUIRE(b.machine.deadline());
  CHECK(*b.machine.deadline() == b.now + 250ms);
  b.pass(249ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  CHECK(b.done() == asked);
  b.deliver();
  b.machine.take();
  for (int i = 0; i < 10; ++i) {
    b.pass(1s);
    b.from(1, alive{b.update});
  }
  CHECK(b.done().find("did not decide") != std::string::npos);
  b.from(1, aborted{b.update});
  CHECK(b.done().empty());
  b.pass(10s);
  CHECK(b.done() == asked);
  // An impatient one is not asked without end.
  b.deliver();
  b.from(1, not_now{b.update, 0, "serving"});
  CHECK(b.done().find("deliver held") == std::string::npos);
}

TEST_CASE("whoever says not now to everything makes no other member of its group say too much") {
  // Each round costs a member that never gets to deciding a message that moves nothing; more is granted for.
  constexpr auto granted = 100ms;
  held_bench b;
  b.hold();
  b.greet(1);
  b.deliver();
  b.from(1, not_now{b.update, 0, "serving"});
  b.machine.take();
  b.pass(granted - 1ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  CHECK(b.done() == asked);
}

TEST_CASE("what was said to a send of the same version, or of any for a while, need not be said again") {
  held_bench b;
  b.greet(1);
  b.greet(2);
  b.holding(41, 1, 2);
  b.hold();
  b.machine.take();
  b.send(42);
  b.from(1, refuse{b.update, 8, "no"});
  b.from(2, not_now{b.update, 500, "serving"});
  CHECK(b.done().find("deliver held") == std::string::npos);
  b.pass(500ms);
  CHECK(b.done() == asked);
  b.deliver();
  CHECK(b.done() == lines(to(2, b.begin_of(0))));
}

TEST_CASE("a delivery that gives way to a send is no failure, and who may be torn is given it again") {
  held_bench b;
  b.greet(1);
  b.holding(42, 1);
  b.hold();
  b.send(43, 1);
  b.machine.ring_ready(0, b.now);
  b.from(1, ring_mapped{0});
  b.from(1, accept{b.update});
  b.machine.packed(1, b.now);
  b.machine.give_up(errc::source_failed, "the trainer's", b.now);
  b.machine.drained(b.now);
  CHECK(b.done().find("deliver held") == std::string::npos); // it still owes an answer
  b.from(1, aborted{b.update});
  CHECK(b.done() == asked); // although 42 is the last that it committed
  b.deliver();
  b.machine.give_up(errc::peer_aborted, "a send", b.now);
  b.machine.drained(b.now);
  b.from(1, aborted{b.update});
  CHECK(b.done().ends_with(asked));
  // What fails on this side is tried again after a while.
  b.deliver();
  b.machine.give_up(errc::device_failed, "broken", b.now);
  b.machine.drained(b.now);
  b.from(1, aborted{b.update});
  CHECK(b.done().find("deliver held") == std::string::npos);
  b.pass(10s);
  CHECK(b.done() == asked);
  b.machine.held_failed(b.now);
  CHECK_FALSE(b.machine.wants_held());
  b.pass(10s);
  CHECK(b.done() == asked);
}

TEST_CASE("who was told to read with the announcement may be torn only if it has accepted") {
  held_bench b;
  b.greet(1, {"", 0, true});
  b.holding(42, 1);
  b.hold();
  auto what = b.facts(1, 1);
  what.version = 43;
  what.placement = 9;
  what.segments = {{5, 1}};
  what.needed = {false};
  what.source_ready = true;
  b.update = b.machine.begin_update(what, b.now);
  CHECK(b.done().find("read_mapped") != std::string::npos);
  b.machine.give_up(errc::source_failed, "the trainer's", b.now);
  b.machine.drained(b.now);
  accept crossed(b.update);
  crossed.mapped = 1;
  bool has_begun = false;
  SUBCASE("it had not decided") {}
  SUBCASE("it refuses, which crosses") { b.from(1, refuse{b.update, code(errc::peer_refused), "asleep"}); }
  SUBCASE("it takes the ring, which crosses") { b.from(1, accept{b.update}); }
  SUBCASE("it accepts, which crosses") {
    b.from(1, crossed);
    has_begun = true;
  }
  CHECK(b.done().find("deliver held") == std::string::npos); // it owes an answer
  b.from(1, aborted{b.update});
  CHECK((b.done().find("deliver held") != std::string::npos) == has_begun);
}

TEST_CASE("an unconfirmed commit that is answered after the delivery gave way counts") {
  held_bench b;
  b.hold();
  b.greet(1);
  b.deliver();
  b.from(1, accept{b.update});
  b.from(1, all_copied{b.update});
  b.machine.give_up(errc::peer_aborted, "a send", b.now);
  b.machine.drained(b.now);
  CHECK(b.done().find("[1 unconfirmed") != std::string::npos);
  CHECK_FALSE(b.machine.wants_held());
  b.from(1, committed{b.update});
  CHECK(b.done().empty());
  CHECK(b.version_of(1) == 42);
}

TEST_CASE("nothing is delivered when nothing is held any more, or to a sender that has closed") {
  held_bench b;
  b.greet(1);
  b.hold();
  b.machine.take();
  b.machine.end_hold(b.now);
  CHECK_FALSE(b.machine.wants_held());
  b.deliver(); // a driver that is late finds nobody
  CHECK(b.done() == lines("source free", "finished (0) "));
  b.hold();
  b.machine.take();
  b.machine.close("bye", b.now);
  CHECK_FALSE(b.machine.wants_held());
}

TEST_CASE("a group is given it when it is complete, and by the members that lack it together") {
  held_bench b;
  b.hold();
  b.greet(1, {"tp", 2});
  CHECK_FALSE(b.machine.wants_held());
  b.greet(2, {"tp", 2});
  CHECK(b.machine.wants_held());
  b.deliver();
  CHECK(b.done() == lines(to(1, b.begin_of(0)), to(2, b.begin_of(0))));
  b.from(1, accept{b.update});
  b.from(1, all_copied{b.update});
  CHECK(b.done().empty()); // the other is not there yet
  b.from(2, accept{b.update});
  b.from(2, all_copied{b.update});
  CHECK(b.done() == lines(to(1, protocol::commit{b.update}), to(2, protocol::commit{b.update})));
  b.from(1, committed{b.update});
  b.from(2, committed{b.update});
  b.machine.take();
  // One is replaced: the other goes on with what it has.
  b.machine.gone(2, errc::peer_gone, "killed", b.now);
  b.greet(3, {"tp", 2});
  b.deliver();
  CHECK(b.done() == lines(to(3, b.begin_of(0))));
  b.takes(3);
  CHECK(b.version_of(3) == 42);
}

TEST_CASE("no member of a group is given a version while another one has something newer, or can't have it") {
  held_bench b;
  b.hold();
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.send(44);
  for (peer_id id : {1u, 2u}) b.from(id, accept{b.update});
  for (peer_id id : {1u, 2u}) b.from(id, all_copied{b.update});
  for (peer_id id : {1u, 2u}) b.from(id, committed{b.update});
  b.machine.take();
  b.machine.gone(2, errc::peer_gone, "killed", b.now);
  b.greet(3, {"tp", 2});
  CHECK_FALSE(b.machine.wants_held()); // 1 has version 44
  b.hold(45);
  CHECK(b.machine.wants_held());
  b.deliver();
  b.from(3, refuse{b.update, 8, "no"});
  auto const done = b.done();
  CHECK(done.find("[1 skipped") != std::string::npos);
  CHECK(done.find("[3 refused") != std::string::npos);
  b.from(1, aborted{b.update});
  CHECK_FALSE(b.machine.wants_held()); // 3 will not have it, and 1 not alone
  b.machine.gone(3, errc::peer_gone, "killed", b.now);
  b.greet(4, {"tp", 2});
  CHECK(b.machine.wants_held());
}

// ---- those who leave and come back ----

namespace {

/// The bench's sender lets so many leave before it paces: `held_turnover` is 64, and 5 may be there at once.
constexpr peer_id turnover = 64;

/// A version is held that everybody who stays has: 1.
struct revolving_door : held_bench {
  revolving_door() {
    greet(1);
    holding(42, 1);
    hold();
    machine.take();
  }
  void leaves(peer_id id) { machine.gone(id, errc::peer_gone, "killed", now); }
  /// Comes, is served in an update of its own, and has gone.
  void comes_and_goes(peer_id id) {
    greet(id);
    REQUIRE(machine.wants_held());
    deliver();
    takes(id);
    leaves(id);
    machine.take();
  }
  /// As many as there may be, each at once.
  void use_up() {
    for (peer_id id = 2; id <= turnover + 2; ++id) comes_and_goes(id);
  }
  /// When the next delivery is asked for, with somebody waiting; nothing is said before.
  void check_pause(duration much) {
    CHECK_FALSE(machine.wants_held());
    REQUIRE(machine.deadline());
    CHECK(*machine.deadline() == now + much);
    pass(much - 1ms);
    CHECK(done().empty());
    pass(1ms);
    CHECK(done() == asked);
    CHECK(machine.wants_held());
  }
};

} // namespace

TEST_CASE("who takes what is held, leaves and comes back is served again, but not without end") {
  revolving_door b;
  b.use_up(); // at the same moment
  b.connect(100);
  b.from(100, b.hello_of(100));
  CHECK(b.done() == lines(to(100, b.welcome_of()))); // and no more
  b.check_pause(1s);
  b.deliver();
  b.takes(100);
  b.leaves(100);
  b.machine.take();
  b.greet(101);
  b.check_pause(1s); // and so on
  // Nobody can make others wait by leaving: it counts from the last delivery.
  b.greet(102);
  b.deliver();
  b.takes(101);
  b.takes(102);
  b.machine.take();
  b.greet(103);
  b.leaves(101);
  b.pass(500ms);
  b.leaves(102);
  b.check_pause(500ms);
}

TEST_CASE("whoever waits while deliveries are paced is served by the same one, whoever has come back") {
  revolving_door b;
  b.use_up();
  b.greet(100);
  b.greet(101);
  b.greet(102);
  CHECK(b.done().empty());
  b.pass(1s);
  CHECK(b.done() == asked);
  b.deliver();
  CHECK(b.done() == lines(to(100, b.begin_of(0)), to(101, b.begin_of(0)), to(102, b.begin_of(0))));
}

TEST_CASE("a fleet that starts again is served as it comes, as often as it has as many members as are free") {
  held_bench b;
  b.greet(1);
  b.holding(42, 1);
  b.hold();
  b.machine.take();
  peer_id next = 2;
  // Four at a time, one by one: 64 have left after 16 rounds.
  for (peer_id round = 0; round <= turnover / 4; ++round) {
    for (peer_id i = 0; i < 4; ++i) {
      b.greet(next + i);
      REQUIRE(b.machine.wants_held());
      b.deliver();
      b.takes(next + i);
    }
    for (peer_id i = 0; i < 4; ++i) b.machine.gone(next + i, errc::peer_gone, "starts again", b.now);
    next += 4;
    b.machine.take();
  }
  b.greet(next); // 68 have left
  CHECK_FALSE(b.machine.wants_held());
}

TEST_CASE("the rest is as long as the last delivery took, within limits") {
  for (auto const& [took, rest] : {std::pair<duration, duration>{0s, 1s}, {3s, 3s}, {25s, 10s}}) {
    revolving_door b;
    b.use_up();
    for (peer_id id = 100; id < 104; ++id) b.greet(id); // all that have been forgotten meanwhile, and more
    b.pass(1s);
    b.deliver();
    for (peer_id id = 101; id < 104; ++id) b.takes(id);
    b.from(100, accept{b.update});
    for (duration left = took; left > 0s; left -= 1s) {
      b.pass(1s);
      b.from(100, alive{b.update});
    }
    b.from(100, all_copied{b.update});
    b.from(100, committed{b.update});
    for (peer_id id = 100; id < 104; ++id) b.leaves(id);
    b.greet(104);
    b.machine.take();
    CAPTURE(std::chrono::duration_cast<std::chrono::seconds>(took).count());
    b.check_pause(rest);
  }
}

TEST_CASE("however many have left, it takes no longer until there is no rest any more") {
  revolving_door b;
  b.use_up();
  for (int rounds = 0; rounds < 30; ++rounds) {
    for (peer_id id = 100; id < 104; ++id) b.greet(id);
    b.pass(1s);
    b.deliver();
    for (peer_id id = 100; id < 104; ++id) b.leaves(id);
    b.machine.take();
  }
  b.pass(30s);
  for (peer_id id = 100; id < 103; ++id) b.comes_and_goes(id);
}

TEST_CASE("those who left are forgotten one by one, and a new promise forgets nobody") {
  revolving_door b;
  b.use_up();
  b.hold();
  b.greet(100);
  b.machine.take();
  CHECK_FALSE(b.machine.wants_held());
  b.machine.end_hold(b.now);
  b.machine.gone(100, errc::peer_gone, "killed", b.now); // it was given nothing, and does not count
  b.pass(30s);
  b.hold();
  for (peer_id id = 101; id < 104; ++id) b.comes_and_goes(id); // as many as were forgotten
  b.greet(104);
  CHECK_FALSE(b.machine.wants_held());
  CHECK(b.machine.deadline());
}

TEST_CASE(
    "who was being given what is held counts as well, whatever came of it; who was given nothing does not") {
  for (int way = 0; way < 4; ++way) {
    revolving_door b;
    for (peer_id id = 2; id <= turnover + 2; ++id) {
      b.greet(id);
      b.deliver();
      if (way == 1) b.from(id, refuse{b.update, 8, "no"});
      if (way == 2) b.from(id, not_now{b.update, 0, "no"});
      if (way == 3) b.from(id, ring_mapped{7}); // which drops it
      b.leaves(id);
    }
    b.greet(100);
    CAPTURE(way);
    CHECK_FALSE(b.machine.wants_held());
  }
  revolving_door b;
  for (peer_id id = 2; id < 200; ++id) {
    b.greet(id);
    b.leaves(id);
    b.send(43);
    b.takes(1);
    b.holding(42, 1);
    b.hold();
    b.machine.take();
  }
  b.comes_and_goes(200);
  b.greet(201);
  CHECK(b.machine.wants_held());
}

TEST_CASE("a send waits for no rest, and takes the place of the delivery") {
  revolving_door b;
  b.use_up();
  b.greet(100);
  b.send(43);
  b.takes(100);
  b.takes(1);
  CHECK(b.version_of(100) == 43);
  b.machine.take();
  b.pass(1s);
  CHECK(b.done().empty()); // nobody lacks it, or is taken back to it
  CHECK_FALSE(b.machine.wants_held());
}
