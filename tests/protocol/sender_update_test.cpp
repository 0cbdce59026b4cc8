// Who takes part in the sender's updates, and what becomes of them.
#include <doctest/doctest.h>

#include "bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

TEST_CASE("one receiver, one bucket, from begin to commit") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  CHECK(b.update == 1);
  CHECK(b.done() == lines("make ring 0"));
  b.machine.ring_ready(0, b.now);
  CHECK(b.done() == lines(to(1, b.ring_of(0)), to(1, b.begin_of(1)), "pack seq 1 bucket 0 slot 0"));
  b.from(1, ring_mapped{0});
  b.from(1, accept{1});
  CHECK(b.done().empty());
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines("source free", to(1, b.published_of(1, 0, 0))));
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1})));
  CHECK(b.machine.updating());
  b.from(1, committed{1});
  CHECK(b.done() == lines("finished (0) [1 committed (0)  ring 0]"));
  CHECK_FALSE(b.machine.updating());
  CHECK(b.machine.peers()[0].version_held == 42);
  CHECK(b.machine.peers()[0].holds_version);
}

TEST_CASE("the second update makes no ring, sends none, and neither update ids nor seq start again") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  b.from(1, committed{1});
  b.machine.take();
  b.start(1);
  CHECK(b.update == 2);
  CHECK(b.done() == lines(to(1, b.begin_of(1)), "pack seq 2 bucket 0 slot 1"));
}

TEST_CASE("an update without tensors is still committed, without any ring") {
  for (std::uint32_t ring : {host_ring, 1u}) {
    CAPTURE(ring);
    sender_bench b;
    b.greet(1, {.cuda = true});
    b.start(0, ring);
    CHECK(b.done() == lines(to(1, b.begin_of(0))));
    b.from(1, accept{1});
    b.from(1, all_copied{1});
    CHECK(b.done() == lines(to(1, protocol::commit{1})));
    b.from(1, committed{1});
    CHECK(b.done() == lines("source free", "finished (0) [1 committed (0)  ring 0]"));
  }
}

TEST_CASE("an update without receivers finishes at once and packs nothing") {
  sender_bench b;
  b.start(5);
  CHECK(b.done() == lines("source free", "finished (0) "));
}

TEST_CASE("a second update while one runs is the caller's error") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  CHECK_THROWS_AS(b.start(1), transfer_error);
}

TEST_CASE("who joins during an update waits for the next one") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(1, 1);
  b.greet(2);
  b.machine.packed(1, b.now);
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done().find("[2 ") == std::string::npos);
  b.start(1);
  CHECK(b.done().find(to(2, b.begin_of(1))) != std::string::npos);
}

TEST_CASE("the manifest is sent to who asks for it, once") {
  sender_bench b;
  b.greet(1);
  b.start(0);
  b.machine.take();
  b.from(1, need_manifest{1});
  CHECK(b.done() == lines(to(1, manifest_follows{1, 0})));
  b.from(1, need_manifest{1});
  CHECK(b.done().find("need_manifest for update 1 twice") != std::string::npos);
}

TEST_CASE("a refusal is reported in the receiver's words, and a lone refusal ends the update") {
  sender_bench b;
  b.greet(1);
  b.start(1);
  b.machine.ring_ready(0, b.now);
  b.machine.take();
  b.from(1, refuse{1, 8, "asleep"});
  CHECK(b.done() == lines("drain"));
  b.machine.drained(b.now);
  CHECK(b.done() == lines("source free", "finished (0) [1 refused (8) asleep ring 0]"));
  CHECK(b.machine.peers()[0].last_error == "asleep");
}

TEST_CASE("not now is skipped, with the time after which to try again") {
  sender_bench b;
  b.greet(1);
  b.start(0);
  b.machine.take();
  b.from(1, not_now{1, 250, "serving"});
  CHECK(b.done() ==
        lines("source free", "finished (0) [1 skipped (22) not now, again in 250 ms: serving ring 0]"));
}

TEST_CASE("refusals of some do not stop the others") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(1, 1);
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines("source free")); // 2 has not decided
  b.from(2, refuse{1, 8, "no"});
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0))));
}

TEST_CASE("what was accepted can't be refused, and can't be accepted again") {
  for (message const& m : {message(accept{1}), message(refuse{1, 8, "no"}), message(not_now{1, 5, "no"}),
                           message(need_manifest{1})}) {
    sender_bench b;
    b.greet(1);
    b.start(0);
    b.from(1, accept{1});
    b.machine.take();
    b.from(1, m);
    auto const done = b.done();
    CHECK(done.find("drop 1 (24) " + std::string(name_of(m)) + " for update 1") != std::string::npos);
    CHECK(done.find("[1 dropped (24)") != std::string::npos);
  }
}

TEST_CASE("a receiver that dies before it decided is dropped and the others go on") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(1, 1);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.machine.gone(2, errc::peer_gone, "its process ended", b.now);
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0))));
  b.from(1, released{1, 1});
  b.from(1, all_copied{1});
  b.from(1, committed{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1}),
                          "finished (0) [1 committed (0)  ring 0][2 dropped (20) its "
                          "process ended ring 0]"));
}

TEST_CASE("a receiver that dies after commit was sent is unconfirmed") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  b.machine.take();
  b.machine.gone(1, errc::peer_gone, "EOF", b.now);
  CHECK(b.done() ==
        lines("finished (0) [1 unconfirmed (27) it was to commit and left without an answer: EOF ring 0]"));
}

TEST_CASE("a commit that fails is reported in the receiver's words") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  b.machine.take();
  b.from(1, failed{1, 32, "swap threw"});
  CHECK(b.done() == lines("finished (0) [1 failed (32) swap threw ring 0]"));
}

TEST_CASE("a receiver that gives up while it loads is failed, and others commit") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(1, 1, 2);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.from(1, abort_update{1, 32, "loader threw"});
  CHECK(b.done().empty());
  b.from(2, released{1, 1});
  b.from(2, all_copied{1});
  b.from(2, committed{1});
  CHECK(b.done() == lines(to(2, protocol::commit{1}),
                          "finished (0) [1 failed (32) loader threw ring 0][2 committed (0)  ring 0]"));
}

TEST_CASE("a receiver may give up before the commit on its way to it arrives") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  b.machine.take();
  b.from(1, abort_update{1, 2, "cancelled"});
  CHECK(b.done() == lines("finished (0) [1 failed (2) cancelled ring 0]"));
  b.from(1, aborted{1});
  CHECK(b.done().empty());
}

TEST_CASE("all_copied before every bucket was released breaks the protocol") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(2, 1);
  b.machine.packed(1, b.now);
  b.from(1, released{1, 1});
  b.machine.take();
  b.from(1, all_copied{1});
  CHECK(b.done().find("all_copied for update 1 after it released 1 of 2 buckets") != std::string::npos);
}

TEST_CASE("committed and failed without a commit break the protocol") {
  for (message const& m : {message(committed{1}), message(failed{1, 1, "x"})}) {
    sender_bench b;
    b.greet(1);
    b.start_accepted(1, 1);
    b.from(1, m);
    CHECK(b.done().find("which it was not told to commit") != std::string::npos);
  }
}

TEST_CASE("messages for an update that the peer has no part in break the protocol and harm nobody else") {
  for (message const& m : {message(accept{2}), message(released{7, 1}), message(all_copied{0}),
                           message(aborted{1}), message(alive{9}), message(ring_mapped{3}),
                           message(ring_refused{3, 1, "x"}), message(abort_update{2, 1, "x"})}) {
    sender_bench b;
    b.greet(1);
    b.greet(2);
    b.start_accepted(1, 1, 2);
    b.from(1, m);
    CHECK(b.done().find("drop 1 (24) " + std::string(name_of(m)) + " for ") != std::string::npos);
    b.machine.packed(1, b.now);
    CHECK(b.done() == lines("source free", to(2, b.published_of(1, 0, 0))));
  }
}

// ---- groups ----

TEST_CASE("members of a group that is not complete are skipped, others are not") {
  sender_bench b;
  b.greet(1, {"tp", 3});
  b.greet(2, {"tp", 3});
  b.greet(3);
  b.start(0);
  CHECK(b.done() == lines(to(3, b.begin_of(0))));
  b.from(3, accept{1});
  b.from(3, all_copied{1});
  b.from(3, committed{1});
  CHECK(b.done() == lines(to(3, protocol::commit{1}), "source free",
                          "finished (0) [1 skipped (28) 2 of 3 members of group tp are connected ring 0][2 "
                          "skipped (28) 2 of 3 "
                          "members of group tp are connected ring 0][3 committed (0)  ring 0]"));
}

TEST_CASE("a group commits when all its members have copied, others need not wait for it") {
  sender_bench b;
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.greet(3);
  b.start_accepted(1, 1, 2, 3);
  b.machine.packed(1, b.now);
  b.machine.take();
  for (peer_id id : {1u, 3u}) {
    b.from(id, released{1, 1});
    b.from(id, all_copied{1});
  }
  CHECK(b.done() == lines(to(3, protocol::commit{1})));
  b.from(2, released{1, 1});
  b.from(2, all_copied{1});
  CHECK(b.done() == lines(to(1, protocol::commit{1}), to(2, protocol::commit{1})));
}

TEST_CASE("when a member of a group dies, refuses or fails, the others get an abort") {
  std::string const head = "group tp can't commit without r1 (pid 101): ";
  SUBCASE("it dies") {
    sender_bench b;
    b.greet(1, {"tp", 2});
    b.greet(2, {"tp", 2});
    b.start_accepted(1, 1, 2);
    b.machine.gone(1, errc::peer_gone, "EOF", b.now);
    CHECK(b.done().find(to(2, abort_update{1, 28, head + "EOF"})) == 0);
  }
  SUBCASE("it refuses") {
    sender_bench b;
    b.greet(1, {"tp", 2});
    b.greet(2, {"tp", 2});
    b.start(0);
    b.from(2, accept{1});
    b.from(2, all_copied{1});
    b.machine.take();
    b.from(1, refuse{1, 8, "no"});
    CHECK(b.done() == lines(to(2, abort_update{1, 28, head + "no"}), "source free",
                            "finished (0) [1 refused (8) no ring 0][2 skipped (28) " + head + "no ring 0]"));
  }
  SUBCASE("it fails") {
    sender_bench b;
    b.greet(1, {"tp", 2});
    b.greet(2, {"tp", 2});
    b.start_accepted(1, 1, 2);
    b.from(1, abort_update{1, 32, "loader"});
    CHECK(b.done().find(to(2, abort_update{1, 28, head + "loader"})) == 0);
  }
}

TEST_CASE("a member that dies when its group was told to commit takes nobody along") {
  sender_bench b;
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.start_copied(1, 2);
  b.machine.take();
  b.machine.gone(1, errc::peer_gone, "EOF", b.now);
  CHECK(b.done().empty());
  b.from(2, committed{1});
  CHECK(b.done() == lines("finished (0) [1 unconfirmed (27) it was to commit and left without an answer: EOF "
                          "ring 0][2 committed (0)  ring 0]"));
}

// ---- giving up ----

TEST_CASE("giving up tells everyone, waits for the copies, and finishes with the reason") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(3, 1);
  b.machine.give_up(errc::source_failed, "tensor 3 threw", b.now);
  CHECK(b.done() == lines(to(1, abort_update{1, 6, "tensor 3 threw"}),
                          to(2, abort_update{1, 6, "tensor 3 threw"}), "drain"));
  b.machine.packed(1, b.now); // it ran already
  b.machine.give_up(errc::busy, "again", b.now);
  CHECK(b.done().empty());
  b.machine.drained(b.now);
  std::string const why = "skipped (6) the sender gave the update up: tensor 3 threw ring 0]";
  CHECK(b.done() == lines("source free", "finished (6) tensor 3 threw[1 " + why + "[2 " + why));
  b.machine.drained(b.now);
  CHECK(b.done().empty());
}

TEST_CASE("giving up when nothing runs does nothing") {
  sender_bench b;
  b.greet(1);
  b.machine.give_up(errc::source_failed, "x", b.now);
  b.machine.drained(b.now);
  CHECK(b.done().empty());
}

TEST_CASE("giving up can't take a commit back: it is unconfirmed, and its answer is still heard") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  b.machine.take();
  b.machine.give_up(errc::busy, "cancelled", b.now);
  b.machine.drained(b.now);
  CHECK(b.done() == lines("drain",
                          "finished (2) cancelled[1 unconfirmed (27) it was told to commit and had not "
                          "answered when the sender gave the update up: cancelled ring 0]"));
  b.start(0);
  CHECK(b.done().empty()); // its answer comes first
  b.from(1, committed{1});
  CHECK(b.done() == lines(to(1, b.begin_of(0))));
  CHECK(b.machine.peers()[0].version_held == 42);
}

TEST_CASE("who owes an aborted is waited for before the next begin") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(2, 1, 2);
  b.machine.packed(1, b.now);
  b.machine.give_up(errc::source_failed, "x", b.now);
  b.machine.drained(b.now);
  b.machine.take();
  b.from(2, aborted{1});
  b.start(1);
  // Slot 0 is still read by 1; the next bucket goes into slot 1.
  CHECK(b.done() == lines(to(2, b.begin_of(1)), "pack seq 3 bucket 0 slot 1"));
  b.from(1, released{1, 1}); // crossed the abort
  b.from(1, alive{1});
  CHECK(b.done().empty());
  b.from(1, aborted{1});
  CHECK(b.done() == lines(to(1, b.begin_of(1))));
}

TEST_CASE("what crossed the sender's abort is ignored until aborted, and is an error after it") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(1, 1);
  b.machine.packed(1, b.now);
  b.machine.give_up(errc::source_failed, "x", b.now);
  b.machine.drained(b.now);
  b.machine.take();
  for (message const& m :
       {message(released{1, 1}), message(all_copied{1}), message(accept{1}), message(refuse{1, 1, "x"}),
        message(need_manifest{1}), message(abort_update{1, 1, "x"})})
    b.from(1, m);
  CHECK(b.done().empty());
  b.from(1, aborted{1});
  b.from(1, released{1, 1});
  CHECK(b.done().find("drop 1 (24) released for update 1, in which it does not take part") !=
        std::string::npos);
}

// ---- limits ----

TEST_CASE("who decides nothing within the limit but lives is skipped, not dropped") {
  sender_bench b;
  b.greet(1);
  b.start(0);
  b.machine.take();
  b.pass(6s);
  b.from(1, alive{1});
  b.machine.take();
  b.pass(4s);
  std::string const text = "it did not decide about update 1 within 10000 ms";
  CHECK(b.done() == lines(to(1, alive{1}), to(1, abort_update{1, 21, text}), "source free",
                          "finished (0) [1 skipped (21) " + text + " ring 0]"));
  CHECK(b.machine.greeted() == 1);
}

TEST_CASE("who is silent while it is waited for is dropped, however it is waited for") {
  auto const silent = [](sender_bench& b) {
    b.machine.take();
    auto const heard = b.now;
    b.pass(9999ms);
    CHECK(b.done().find("drop") == std::string::npos);
    b.now = heard + 10s;
    b.machine.tick(b.now);
    std::string const text = "silent for 10000 ms while it was waited for";
    auto const done = b.done();
    CHECK(done.find(lines(to(1, goodbye{21, text}), "drop 1 (21) " + text)) != std::string::npos);
    CHECK(b.machine.greeted() == 0);
    return done;
  };
  sender_bench b;
  b.greet(1);
  SUBCASE("it owes its decision") {
    b.pass(1h); // it was idle for long, that does not count
    b.start(0);
    CHECK(silent(b).find("[1 dropped (21) silent") != std::string::npos);
  }
  SUBCASE("it holds a slot") {
    b.start_accepted(2, 1);
    b.machine.packed(1, b.now);
    CHECK(silent(b).find("drain") != std::string::npos);
  }
  SUBCASE("it owes all_copied") {
    b.start_accepted(1, 1);
    b.machine.packed(1, b.now);
    b.from(1, released{1, 1});
    CHECK(silent(b).find("[1 dropped (21) silent") != std::string::npos);
  }
  SUBCASE("it owes the answer to commit") {
    b.start_copied(1);
    CHECK(silent(b).find("[1 unconfirmed (27)") != std::string::npos);
  }
  SUBCASE("it owes aborted") {
    b.start_accepted(1, 1);
    b.machine.give_up(errc::busy, "x", b.now);
    b.machine.drained(b.now);
    silent(b);
  }
}

TEST_CASE("who waits for the sender's next bucket may be silent") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(2, 1);
  b.pass(1h);
  CHECK(b.done().find("drop") == std::string::npos);
  CHECK(b.machine.greeted() == 1);
}

TEST_CASE("a commit that takes too long is unconfirmed, and its receiver is dropped") {
  sender_bench b;
  b.greet(1);
  b.start_copied(1);
  for (int i = 0; i < 59; ++i) {
    b.pass(1s);
    b.from(1, alive{1});
  }
  b.machine.take();
  b.pass(1s);
  std::string const text = "no answer to commit within 60000 ms";
  CHECK(b.done() == lines(to(1, alive{1}), to(1, goodbye{31, text}), "drop 1 (31) " + text,
                          "finished (0) [1 unconfirmed (31) " + text + " ring 0]"));
}

TEST_CASE("who never finishes with an aborted update is skipped by the next and dropped in the end") {
  sender_bench b;
  b.greet(1);
  b.start_accepted(1, 1);
  b.machine.give_up(errc::busy, "x", b.now);
  b.machine.drained(b.now);
  b.start(1);
  b.machine.take();
  std::string done;
  for (int i = 0; i < 60; ++i) {
    b.pass(1s);
    b.from(1, alive{1});
    done += b.done();
    if (i == 8) CHECK(done.empty());
    if (i == 9) {
      b.machine.drained(b.now);
      done += b.done();
      CHECK(done.find("[1 skipped (2) it has not finished with update 1 within 10000 ms ring 0]") !=
            done.npos);
    }
  }
  CHECK(done.find("drop 1 (21) it has not finished with update 1 within 60000 ms") != std::string::npos);
}

TEST_CASE("the sender says alive to who takes part when it has nothing else to say") {
  sender_bench b;
  b.greet(1);
  b.greet(2);
  b.start_accepted(2, 1, 2);
  b.pass(3333ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  CHECK(b.done() == lines(to(1, alive{1}), to(2, alive{1})));
  b.pass(2s);
  b.machine.packed(1, b.now);
  b.machine.take();
  b.pass(2s);
  CHECK(b.done().empty());
}
