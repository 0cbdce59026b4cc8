// The sender's sessions: handshake, groups, leaving.
#include <doctest/doctest.h>

#include "bench.hpp"
#include "ropeway/watch_status.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// What a sender answers to this hello.
std::string answer_to(hello const& hi) {
  sender_bench b;
  b.connect(1);
  b.from(1, hi);
  return b.done();
}

std::string turned_away_with(errc e, std::string const& text) {
  return lines(to(1, turned_away{code(e), text}), words("drop 1 (", code(e), ") ", text));
}

} // namespace

TEST_CASE("before an update receivers can be roused; while one runs there is no need") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.connect(3); // has not said who it is
  b.machine.rouse(b.now);
  CHECK(b.done() == lines(to(1, alive{1}), to(2, alive{1})));
  b.start(1);
  b.machine.take();
  b.machine.rouse(b.now);
  CHECK(b.done().empty());
}

TEST_CASE("a receiver that says hello is welcomed with the sender's bucket size and silence limit") {
  sender_bench b;
  b.connect(1);
  CHECK(b.done().empty());
  CHECK(b.machine.greeted() == 0);
  b.from(1, b.hello_of(1));
  CHECK(b.done() == lines(to(1, b.welcome_of())));
  CHECK(b.machine.greeted() == 1);
  REQUIRE(b.machine.peers().size() == 1);
  CHECK(b.machine.peers()[0].name == "r1 (pid 101)");
  CHECK_FALSE(b.machine.peers()[0].holds_version);
}

TEST_CASE("the newest protocol version that both speak is chosen") {
  auto hi = sender_bench::hello_of(1);
  hi.oldest = 0;
  hi.newest = 900;
  CHECK(answer_to(hi) == lines(to(1, sender_bench().welcome_of())));
}

TEST_CASE("a receiver without a protocol version in common is turned away with both ranges") {
  auto hi = sender_bench::hello_of(1);
  hi.oldest = 2;
  hi.newest = 3;
  CHECK(answer_to(hi) ==
        turned_away_with(errc::version_mismatch,
                         "the receiver speaks protocol versions 2 to 3, this sender 1 to 1; use "
                         "builds with a version in common"));
  hi.oldest = 1;
  hi.newest = 0;
  CHECK(answer_to(hi).find("drop 1 (25)") != std::string::npos);
}

TEST_CASE("a receiver built from other messages is turned away") {
  auto hi = sender_bench::hello_of(1);
  hi.schema ^= 1;
  CHECK(answer_to(hi) ==
        turned_away_with(errc::version_mismatch,
                         "receiver and sender both speak protocol version 1 but were built from "
                         "different messages; use the same build"));
}

TEST_CASE("who does not know the magic number is turned away") {
  auto hi = sender_bench::hello_of(1);
  hi.magic = 1;
  CHECK(answer_to(hi) ==
        turned_away_with(errc::protocol_error, "hello does not start with ropeway's magic number"));
}

TEST_CASE("a hello with more devices than allowed is turned away") {
  auto hi = sender_bench::hello_of(1);
  hi.devices.resize(max_devices + 1);
  CHECK(answer_to(hi) == turned_away_with(errc::invalid_argument, "hello names 65 devices, more than 64"));
}

TEST_CASE("a group needs both a name and a size") {
  CHECK(answer_to(sender_bench::hello_of(1, {"tp", 0})).find("drop 1 (1)") != std::string::npos);
  CHECK(answer_to(sender_bench::hello_of(1, {"", 2})).find("drop 1 (1)") != std::string::npos);
}

TEST_CASE("members of a group must agree on its size") {
  sender_bench b;
  b.greet(1, {"tp", 2});
  b.connect(2);
  b.from(2, b.hello_of(2, {"tp", 3}));
  std::string const text = "hello says that group tp has 3 members, r1 (pid 101) says 2";
  CHECK(b.done() == lines(to(2, turned_away{1, text}), "drop 2 (1) " + text));
}

TEST_CASE("a group takes no more members than its size, but a place that became free") {
  sender_bench b;
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.connect(3);
  b.from(3, b.hello_of(3, {"tp", 2}));
  std::string const text = "all 2 members of group tp are connected already";
  CHECK(b.done() == lines(to(3, turned_away{2, text}), "drop 3 (2) " + text));
  b.machine.gone(1, errc::peer_gone, "EOF", b.now);
  b.greet(4, {"tp", 2});
  CHECK(b.machine.greeted() == 2);
}

TEST_CASE("receivers beyond the limit are turned away and harm nobody") {
  sender_bench b;
  for (peer_id id = 1; id <= 5; ++id) b.greet(id);
  b.connect(6);
  b.from(6, b.hello_of(6));
  std::string const text = "the sender has its limit of 5 receivers; try again later";
  CHECK(b.done() == lines(to(6, turned_away{2, text}), "drop 6 (2) " + text));
  b.from(6, b.hello_of(6));
  CHECK(b.done().empty());
  CHECK(b.machine.greeted() == 5);
}

TEST_CASE("connections that say nothing take no receiver's place, and the oldest makes room for the next") {
  sender_bench b;
  for (peer_id id = 1; id <= 3; ++id) b.connect(id); // as many as may be unfinished
  for (peer_id id = 11; id <= 15; ++id) {
    b.connect(id);
    std::string const text = "3 connections have not said hello, and others come; try again later";
    CHECK(b.done() == (id == 11 ? lines(to(1, turned_away{2, text}), "drop 1 (2) " + text) : ""));
    b.from(id, b.hello_of(id));
    CHECK(b.done() == lines(to(id, b.welcome_of())));
  }
  CHECK(b.machine.greeted() == 5);
  // The two that are left may say hello, but come too late.
  std::string const text = "the sender has its limit of 5 receivers; try again later";
  b.from(2, b.hello_of(2));
  CHECK(b.done() == lines(to(2, turned_away{2, text}), "drop 2 (2) " + text));
  CHECK(b.machine.greeted() == 5);
}

TEST_CASE("words that move nothing are bounded, however they are mixed, and an honest pace never meets it") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(1, 1, 2);
  for (int i = 0; i < max_idle_messages; ++i) b.from(1, alive{b.update});
  CHECK(b.done().empty());
  SUBCASE("one too many") {
    b.from(1, alive{b.update});
    std::string const text =
        "alive and no end: 4096 messages in a row that move nothing; alive is needed every "
        "3333 ms";
    CHECK(b.done() == lines(to(1, goodbye{24, text}), "drop 1 (24) " + text));
    CHECK(b.machine.greeted() == 1);
  }
  SUBCASE("what crossed an abort counts too") {
    b.machine.give_up(errc::source_failed, "x", b.now);
    b.done();
    b.from(1, released{b.update, 1});
    CHECK(b.done().find("released and no end") != std::string::npos);
  }
  SUBCASE("what moves the update starts the count again") {
    b.machine.packed(1, b.now);
    b.done();
    b.from(1, released{b.update, 1});
    for (int i = 0; i < max_idle_messages; ++i) b.from(1, alive{b.update});
    CHECK(b.done().find("drop") == std::string::npos);
  }
  SUBCASE("time makes room, for more than is needed") {
    for (int i = 0; i < 100; ++i) {
      b.now += 3333ms;
      for (int k = 0; k < 2; ++k) b.from(1, alive{b.update});
    }
    CHECK(b.done().find("drop") == std::string::npos);
  }
}

TEST_CASE("a connection that says nothing is dropped after the handshake limit") {
  sender_bench b;
  b.connect(1);
  CHECK(b.machine.deadline() == b.now + 5s);
  b.pass(4999ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  std::string const text = "no hello within 5000 ms";
  CHECK(b.done() == turned_away_with(errc::handshake_timeout, text));
  CHECK_FALSE(b.machine.deadline());
}

TEST_CASE("an idle session has no deadline") {
  sender_bench b;
  b.greet(1);
  CHECK_FALSE(b.machine.deadline());
  b.pass(24h);
  CHECK(b.done().empty());
}

TEST_CASE("a first message other than hello ends the connection") {
  sender_bench b;
  b.connect(1);
  b.from(1, accept{1});
  CHECK(b.done() == turned_away_with(errc::protocol_error, "its first message was accept, not hello"));
}

TEST_CASE("hello twice, and what only a sender says, end the session") {
  sender_bench b;
  for (message const& m : {message(b.hello_of(1)), message(welcome{}), message(begin{}), message(published{}),
                           message(protocol::commit{}), message(manifest_follows{}), message(ring{})}) {
    b.greet(1);
    b.from(1, m);
    std::string const text = words(name_of(m), ", which a receiver never says to a greeted sender");
    CHECK(b.done() == lines(to(1, goodbye{24, text}), "drop 1 (24) " + text));
    CHECK(b.machine.greeted() == 0);
  }
}

TEST_CASE("what a dropped peer had under way is ignored") {
  sender_bench b;
  b.greet(1);
  b.from(1, accept{1});
  b.machine.take();
  b.from(1, accept{1});
  b.from(1, b.hello_of(1));
  b.machine.gone(1, errc::peer_gone, "EOF", b.now);
  CHECK(b.done().empty());
}

TEST_CASE("a receiver that says goodbye is let go") {
  sender_bench b;
  b.greet(1);
  b.from(1, goodbye{0, "done\nhere"});
  CHECK(b.done() == lines("drop 1 (0) it said goodbye: done here"));
  CHECK(b.machine.greeted() == 0);
}

TEST_CASE("the version that a receiver brings along is known, and whether it is ours") {
  sender_bench b;
  auto hi = b.hello_of(1);
  hi.version_held = 11;
  hi.last_update = 5;
  hi.last_sender = b.settings(2).instance;
  b.connect(1);
  b.from(1, hi);
  hi.last_sender[0] = 99;
  b.connect(2);
  b.from(2, hi);
  auto const peers = b.machine.peers();
  REQUIRE(peers.size() == 2);
  CHECK(peers[0].version_held == 11);
  CHECK(peers[0].holds_version);
  CHECK_FALSE(peers[1].holds_version);
}

TEST_CASE("names of peers are one line, whatever they send") {
  sender_bench b;
  auto hi = b.hello_of(1);
  hi.name = "evil\n\x1b[31m";
  b.connect(1);
  b.from(1, hi);
  CHECK(b.machine.peers()[0].name == "evil  [31m (pid 101)");
  hi.name.clear();
  b.connect(2);
  b.from(2, hi);
  CHECK(b.machine.peers()[1].name == "receiver (pid 102)");
}

TEST_CASE("close says goodbye to everybody, and who comes later is turned away") {
  sender_bench b;
  b.greet(1);
  b.connect(2);
  b.machine.close("trainer ends", b.now);
  CHECK(b.done() == lines(to(1, goodbye{0, "trainer ends"}), "drop 1 (0) trainer ends",
                          to(2, turned_away{3, "trainer ends"}), "drop 2 (3) trainer ends"));
  b.connect(3);
  CHECK(b.done() ==
        lines(to(3, turned_away{3, "the sender is closing"}), "drop 3 (3) the sender is closing"));
}

TEST_CASE("close gives a running update up first and finishes it when it is drained") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(3, 1);
  b.machine.close("trainer ends", b.now);
  CHECK(b.done() == lines(to(1, abort_update{1, 3, "trainer ends"}), "drain",
                          to(1, goodbye{0, "trainer ends"}), "drop 1 (0) trainer ends"));
  b.machine.drained(b.now);
  CHECK(b.done() == lines("source free",
                          "finished (3) trainer ends[1 skipped (3) the sender gave the update up: "
                          "trainer ends ring 0]"));
}

namespace {

watch question() {
  watch what;
  what.magic = hello_magic;
  what.oldest = version_min;
  what.newest = version_max;
  what.schema = schema_hash();
  return what;
}

seen_receiver seen(std::string name, receiver_activity doing) {
  seen_receiver one;
  one.name = std::move(name);
  one.doing = static_cast<std::uint8_t>(doing);
  return one;
}

seen_sender whole(std::uint32_t receivers) {
  seen_sender one;
  one.receivers = receivers;
  one.sender = sender_bench::settings(2).instance;
  return one;
}

} // namespace

TEST_CASE("who watches is told of every receiver, and is none itself") {
  sender_bench b;
  b.connect(9);
  b.from(9, question());
  CHECK(b.done() == lines(to(9, whole(0))));
  b.greet(1);
  b.greet(2);
  CHECK(b.machine.greeted() == 2);
  CHECK(b.machine.peers().size() == 2);
  b.from(9, question());
  auto const one = seen("r1 (pid 101)", receiver_activity::idle),
             two = seen("r2 (pid 102)", receiver_activity::idle);
  CHECK(b.done() == lines(to(9, one), to(9, two), to(9, whole(2))));
}

TEST_CASE("a watcher sees how far an update is, and what became of it") {
  sender_bench b;
  b.connect(9);
  b.greet(1);
  b.greet(2);
  auto const look = [&] {
    b.machine.take();
    b.from(9, question());
    return b.done();
  };
  b.start(1);
  b.machine.ring_ready(host_ring, b.now);
  b.now += 5ms;
  auto one = seen("r1 (pid 101)", receiver_activity::deciding),
       two = seen("r2 (pid 102)", receiver_activity::deciding);
  auto state = whole(2);
  state.updating = 1;
  state.version = 42;
  state.total_bytes = 100;
  state.tensors = state.buckets = 1;
  state.running_ns = 5'000'000;
  CHECK(look() == lines(to(9, one), to(9, two), to(9, state)));
  for (peer_id id : {1u, 2u}) {
    b.from(id, ring_mapped{host_ring});
    b.from(id, accept{b.update});
  }
  b.machine.packed(1, b.now);
  b.from(1, released{b.update, 1});
  one.doing = two.doing = static_cast<std::uint8_t>(receiver_activity::loading);
  one.bytes_released = 100;
  state.packed = 1;
  CHECK(look() == lines(to(9, one), to(9, two), to(9, state)));
  b.from(1, all_copied{b.update, {}, 60}); // of the 100: a shard
  one.doing = static_cast<std::uint8_t>(receiver_activity::committing);
  CHECK(look() == lines(to(9, one), to(9, two), to(9, state)));
  b.from(1, committed{b.update});
  one.doing = static_cast<std::uint8_t>(receiver_activity::idle);
  one.holds_version = 1;
  one.version = 42;
  one.last_bytes = 60;
  one.last_ns = 5'000'000;
  CHECK(look() == lines(to(9, one), to(9, two), to(9, state)));
  b.from(2, abort_update{b.update, 32, "no\nroom"});
  one.bytes_released = 0;
  two = seen("r2 (pid 102)", receiver_activity::late);
  two.last_error = "no room";
  CHECK(look() == lines(to(9, one), to(9, two), to(9, whole(2))));
}

TEST_CASE("a member of a group that has everything waits, as a watcher sees it") {
  sender_bench b;
  b.connect(9);
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.start_accepted(1, 1, 2);
  b.machine.packed(1, b.now);
  b.from(1, released{b.update, 1});
  b.from(1, all_copied{b.update});
  b.machine.take();
  b.from(9, question());
  auto const said = b.done();
  auto one = seen("r1 (pid 101)", receiver_activity::waiting);
  one.bytes_released = 100;
  CHECK(said.find(to(9, one)) != said.npos);
}

TEST_CASE("watchers have limits: of their number, of silence, of questions, and of what they say") {
  sender_bench b;
  for (peer_id id = 1; id <= max_watchers; ++id) {
    b.connect(id);
    b.from(id, question());
  }
  b.machine.take();
  b.connect(90);
  b.from(90, question());
  std::string const full = "the sender has its limit of 16 watchers; try again later";
  CHECK(b.done() == lines(to(90, turned_away{2, full}), "drop 90 (2) " + full));
  // They take no place of those who shake hands, nor of receivers.
  for (peer_id id = 21; id <= 25; ++id) b.greet(id);
  CHECK(b.machine.greeted() == 5);
  for (peer_id id = 31; id <= 33; ++id) b.connect(id);
  CHECK(b.done().empty());

  b.from(1, alive{0});
  std::string const strange = "alive, which one that only watches never says";
  CHECK(b.done() == lines(to(1, goodbye{24, strange}), "drop 1 (24) " + strange));
  b.from(2, goodbye{});
  CHECK(b.done() == lines("drop 2 (0) it said goodbye: "));
  b.from(3, b.hello_of(3));
  CHECK(b.done().find("drop 3 (24)") != std::string::npos);
  b.from(21, question());
  CHECK(b.done().find("drop 21 (24)") != std::string::npos);
  auto wrong = question();
  wrong.schema ^= 1;
  b.from(31, wrong);
  CHECK(b.done().find("drop 31 (25)") != std::string::npos);
  wrong = question();
  wrong.magic ^= 1;
  b.from(32, wrong);
  CHECK(b.done().find("watch does not start with ropeway's magic number") != std::string::npos);

  int questions = 0;
  for (; b.done().find("drop 4") == std::string::npos && questions < 10'000; ++questions) {
    b.machine.take();
    b.from(4, question());
  }
  CHECK(questions > 1000);
  CHECK(questions <= max_idle_messages + 2);

  b.now += 10s;
  b.machine.tick(b.now);
  auto const silent = b.done();
  for (peer_id id = 5; id <= max_watchers; ++id)
    CHECK(silent.find("drop " + std::to_string(id) +
                      " (21) one that watches has asked nothing for 10000 ms") != silent.npos);
}

TEST_CASE("a sender that closes says goodbye to who watches") {
  sender_bench b;
  b.connect(9);
  b.from(9, question());
  b.machine.take();
  b.machine.close("it is over", b.now);
  CHECK(b.done() == lines(to(9, goodbye{0, "it is over"}), "drop 9 (0) it is over"));
}
