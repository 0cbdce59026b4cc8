// The receiver's machine, rule by rule.
#include <doctest/doctest.h>

#include <functional>

#include "bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// What a broken protocol does to a session; `in_update`: one was running.
std::string violation(std::string const& text, std::uint64_t in_update = 0) {
  auto first = lines(say(goodbye{24, text}));
  if (in_update != 0) first += lines(words("abort ", in_update, " (24) ", text));
  return first + lines("closed (24) " + text);
}

} // namespace

// ---- the session ----

TEST_CASE("the first thing said is hello, with what this build speaks") {
  receiver_bench b;
  b.machine.connected(b.now);
  hello hi;
  hi.magic = hello_magic;
  hi.oldest = version_min;
  hi.newest = version_max;
  hi.schema = schema_hash();
  hi.name = "r1";
  CHECK(b.done() == lines(say(hi)));
  CHECK_FALSE(b.machine.greeted());
  b.hears(b.welcome_of());
  CHECK(b.done() == lines("greeted 1000"));
  CHECK(b.machine.greeted());
}

TEST_CASE("a receiver that was turned away has the sender's reason") {
  receiver_bench b;
  b.machine.connected(b.now);
  b.machine.take();
  b.hears(turned_away{2, "full"});
  CHECK(b.done() == lines("closed (2) the sender turned this receiver away: full"));
  CHECK(b.machine.over());
}

TEST_CASE("a sender that does not answer hello in time is given up") {
  receiver_bench b;
  b.machine.connected(b.now);
  b.machine.take();
  CHECK(b.machine.deadline() == b.now + 5s);
  b.pass(4999ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  CHECK(b.done() == lines("closed (30) the sender did not answer hello within 5000 ms"));
  CHECK_FALSE(b.machine.deadline());
}

TEST_CASE("a welcome that makes no sense ends the session") {
  auto const after = [](std::function<void(welcome&)> change) {
    receiver_bench b;
    b.machine.connected(b.now);
    b.machine.take();
    auto w = b.welcome_of();
    change(w);
    b.hears(w);
    return b.done();
  };
  CHECK(after([](welcome& w) { w.version = 2; }) ==
        violation("the sender chose protocol version 2, not one of 1 to 1"));
  CHECK(after([](welcome& w) { w.bucket_bytes = 0; }) ==
        violation("the sender's buckets have 0 bytes, allowed are 1 to 5000"));
  CHECK(after([](welcome& w) { w.bucket_bytes = 5001; }) ==
        violation("the sender's buckets have 5001 bytes, allowed are 1 to 5000"));
  CHECK(after([](welcome& w) { w.silence_ms = 0; }) ==
        violation("the sender's welcome has a silence limit of 0 ms"));
}

TEST_CASE("anything but welcome first, and welcome twice, ends the session") {
  receiver_bench b;
  b.machine.connected(b.now);
  b.machine.take();
  SUBCASE("first") {
    b.hears(b.begin_of(1, 1));
    CHECK(b.done() == violation("the sender's first message was begin, not welcome"));
  }
  SUBCASE("twice") {
    b.hears(b.welcome_of());
    b.machine.take();
    b.hears(b.welcome_of());
    CHECK(b.done() == violation("the sender said welcome after its welcome"));
  }
}

TEST_CASE("what only a receiver says ends the session") {
  for (message const& m : {message(hello{}), message(accept{1}), message(released{1, 1}), message(aborted{1}),
                           message(ring_mapped{0}), message(committed{1}), message(failed{1, 1, "x"})}) {
    receiver_bench b;
    b.greet();
    b.hears(m);
    CHECK(b.done() == violation(words("the sender said ", name_of(m), ", which only a receiver says")));
  }
}

TEST_CASE("the sender's goodbye closes the session with its words") {
  receiver_bench b;
  b.greet();
  b.hears(goodbye{0, "trainer ends"});
  CHECK(b.done() == lines("closed (0) trainer ends"));
  b.machine.gone(errc::peer_gone, "EOF", b.now);
  b.hears(b.begin_of(1, 1));
  CHECK(b.done().empty());
}

TEST_CASE("a session that ends in an update aborts it, and needs no answer when it is drained") {
  receiver_bench b;
  b.accepted(1, 2);
  SUBCASE("goodbye") {
    b.hears(goodbye{0, "x"});
    CHECK(b.done() == lines("abort 1 (20) x", "closed (0) x"));
  }
  SUBCASE("gone") {
    b.machine.gone(errc::peer_gone, "EOF", b.now);
    CHECK(b.done() == lines("abort 1 (20) EOF", "closed (20) EOF"));
  }
  CHECK(b.machine.updating());
  b.machine.drained(b.now);
  CHECK(b.done().empty());
  CHECK_FALSE(b.machine.updating());
}

TEST_CASE("close says goodbye; in an update it gives up, drains and answers first") {
  receiver_bench b;
  SUBCASE("idle") {
    b.greet();
    b.machine.close("server ends", b.now);
    CHECK(b.done() == lines(say(goodbye{0, "server ends"}), "closed (0) server ends"));
  }
  SUBCASE("loading") {
    b.accepted(1, 2);
    b.machine.close("server ends", b.now);
    CHECK(b.done() == lines(say(abort_update{1, 3, "server ends"}), "abort 1 (3) server ends"));
    b.machine.drained(b.now);
    CHECK(b.done() == lines(say(aborted{1}), say(goodbye{0, "server ends"}), "closed (0) server ends"));
  }
  SUBCASE("committing") {
    b.copied(1);
    b.hears(protocol::commit{1});
    b.machine.take();
    b.machine.close("server ends", b.now);
    CHECK(b.done() == lines("abort 1 (3) server ends"));
    b.machine.drained(b.now);
    CHECK(b.done() ==
          lines(say(failed{1, 3, "server ends"}), say(goodbye{0, "server ends"}), "closed (0) server ends"));
  }
  b.machine.close("again", b.now);
  CHECK(b.done().empty());
}

// ---- rings ----

TEST_CASE("a ring is mapped by the driver, who is quoted") {
  receiver_bench b;
  b.greet();
  b.hears(b.ring_of(0));
  CHECK(b.done() == lines("map ring 0"));
  b.machine.ring_mapped(0, b.now);
  CHECK(b.done() == lines(say(ring_mapped{0})));
  b.machine.ring_mapped(0, b.now);
  CHECK(b.done().empty());
  b.hears(b.ring_of(1));
  b.machine.ring_refused(1, errc::not_reachable, "other GPU", b.now);
  CHECK(b.done() == lines("map ring 1", say(ring_refused{1, 43, "other GPU"})));
}

TEST_CASE("a ring that can't be is refused with its numbers") {
  auto const after = [](std::function<void(ring&)> change) {
    receiver_bench b;
    b.greet();
    auto r = b.ring_of(0);
    change(r);
    b.hears(r);
    return b.done();
  };
  CHECK(after([](ring& r) { r.slots = 0; }) == violation("ring 0 has 0 slots, allowed are 1 to 4"));
  CHECK(after([](ring& r) { r.slots = 5; }) == violation("ring 0 has 5 slots, allowed are 1 to 4"));
  CHECK(after([](ring& r) { r.slot_bytes = 999; }) ==
        violation("ring 0 has slots of 999 bytes for buckets of 1000, allowed are up to 5000"));
  CHECK(after([](ring& r) { r.slot_bytes = 5001; }) ==
        violation("ring 0 has slots of 5001 bytes for buckets of 1000, allowed are up to 5000"));
  CHECK(after([](ring& r) { r.on_device = 2; }) == violation("ring 0 is neither host memory nor a device's"));
  CHECK(after([](ring& r) { r.origin[3] = 1; }) == violation("ring 0 is neither host memory nor a device's"));
  CHECK(after([](ring&) {}) == lines("map ring 0"));

  receiver_bench twice;
  twice.greet();
  twice.hears(twice.ring_of(0));
  twice.machine.take();
  twice.hears(twice.ring_of(0));
  CHECK(twice.done() == violation("the sender offers ring 0 twice"));

  receiver_bench many;
  many.greet();
  for (std::uint32_t i = 0; i < 65; ++i) many.hears(many.ring_of(i));
  many.machine.take();
  many.hears(many.ring_of(65));
  CHECK(many.done() == violation("the sender offers more than 65 rings"));
}

// ---- an update ----

TEST_CASE("an update from begin to committed") {
  receiver_bench b;
  b.greet();
  b.hears(b.ring_of(0));
  b.machine.ring_mapped(0, b.now);
  b.machine.take();
  b.hears(b.begin_of(1, 2));
  CHECK(b.done() == lines("look up manifest of 1"));
  CHECK(b.machine.updating());
  b.machine.manifest_unknown(b.now);
  CHECK(b.done() == lines(say(need_manifest{1})));
  b.hears(manifest_follows{1, 5000});
  CHECK(b.done() == lines("read manifest of 1 bytes 5000"));
  b.machine.manifest_known({100, 101}, b.now);
  CHECK(b.done() == lines("offer 1"));
  b.machine.accept_update(b.now);
  CHECK(b.done() == lines(say(accept{1})));
  b.hears(b.published_of(1, 4, 0, 1));
  b.hears(b.published_of(1, 5, 1, 0));
  CHECK(b.done() ==
        lines("bucket 0 of 1 seq 4 ring 0 slot 1 bytes 100", "bucket 1 of 1 seq 5 ring 0 slot 0 bytes 101"));
  b.machine.loaded(5, b.now); // any order
  CHECK(b.done() == lines(say(released{1, 5})));
  b.machine.loaded(4, b.now);
  CHECK(b.done() == lines(say(released{1, 4}), say(all_copied{1})));
  b.hears(protocol::commit{1});
  CHECK(b.done() == lines("commit 1"));
  b.machine.commit_done(b.now);
  CHECK(b.done() == lines(say(committed{1})));
  CHECK_FALSE(b.machine.updating());
}

TEST_CASE("a known layout is offered without asking for its manifest") {
  receiver_bench b;
  b.greet();
  b.hears(b.begin_of(1, 1));
  b.machine.take();
  b.machine.manifest_known({100}, b.now);
  CHECK(b.done() == lines("offer 1"));
}

TEST_CASE("an update without buckets is all copied when it is accepted") {
  receiver_bench b;
  b.offered(1, 0);
  b.machine.accept_update(b.now);
  CHECK(b.done() == lines(say(accept{1}), say(all_copied{1})));
}

TEST_CASE("an embedder that takes buckets itself says when all is in place, and all_copied waits for it") {
  receiver_bench b;
  SUBCASE("after the last bucket") {
    b.offered(1, 1);
    b.machine.accept_update(b.now, true);
    b.hears(b.published_of(1, 1, 0, 0));
    b.machine.take();
    b.machine.loaded(1, b.now);
    CHECK(b.done() == lines(say(released{1, 1})));
    b.machine.in_place(b.now);
    CHECK(b.done() == lines(say(all_copied{1})));
  }
  SUBCASE("before the last bucket") {
    b.offered(1, 1);
    b.machine.accept_update(b.now, true);
    b.machine.take();
    b.machine.in_place(b.now);
    CHECK(b.done().empty());
    b.hears(b.published_of(1, 1, 0, 0));
    b.machine.take();
    b.machine.loaded(1, b.now);
    CHECK(b.done() == lines(say(released{1, 1}), say(all_copied{1})));
  }
  SUBCASE("of nothing") {
    b.offered(1, 0);
    b.machine.accept_update(b.now, true);
    CHECK(b.done() == lines(say(accept{1})));
    b.machine.in_place(b.now);
    CHECK(b.done() == lines(say(all_copied{1})));
  }
  b.machine.in_place(b.now);
  CHECK(b.done().empty());
}

TEST_CASE("released is said once a bucket, and only for buckets that came") {
  receiver_bench b;
  b.accepted(1, 3);
  b.hears(b.published_of(1, 1, 0, 0));
  b.machine.take();
  b.machine.loaded(2, b.now);
  CHECK(b.done().empty());
  b.machine.loaded(1, b.now);
  b.machine.loaded(1, b.now);
  CHECK(b.done() == lines(say(released{1, 1})));
}

TEST_CASE("refuse and not_now end the update here, and the next one may begin") {
  receiver_bench b;
  b.offered(1, 1);
  b.machine.refuse_update(errc::destination_mismatch, "two\nlines", b.now);
  CHECK(b.done() == lines(say(refuse{1, 8, "two lines"})));
  CHECK_FALSE(b.machine.updating());
  b.offered(2, 1);
  b.machine.not_now_update(1500ms, "serving", b.now);
  CHECK(b.done() == lines(say(not_now{2, 1500, "serving"})));
  b.offered(3, 1);
  CHECK(b.machine.updating());
}

TEST_CASE("a commit that fails is said with its reason") {
  receiver_bench b;
  b.copied(1);
  b.hears(protocol::commit{1});
  b.machine.take();
  b.machine.commit_failed(errc::loader_failed, "swap threw", b.now);
  CHECK(b.done() == lines(say(failed{1, 32, "swap threw"})));
  CHECK_FALSE(b.machine.updating());
}

TEST_CASE("a manifest that is not what begin said ends the session") {
  receiver_bench b;
  b.greet();
  b.hears(b.begin_of(1, 2));
  b.machine.take();
  SUBCASE("other count") {
    b.machine.manifest_known({100}, b.now);
    CHECK(b.done() == violation("update 1 announces 2 buckets, its manifest has 1", 1));
  }
  SUBCASE("bucket too large") {
    b.machine.manifest_known({100, 1001}, b.now);
    CHECK(b.done() == violation("update 1 has a bucket of 1001 bytes, allowed are 1000", 1));
  }
  SUBCASE("bad by the driver's word") {
    b.machine.manifest_unknown(b.now);
    b.hears(manifest_follows{1, 100});
    b.machine.take();
    b.machine.manifest_bad(errc::protocol_error, "overlap", b.now);
    CHECK(b.done() == violation("overlap", 1));
  }
  SUBCASE("size of nothing") {
    b.machine.manifest_unknown(b.now);
    b.machine.take();
    b.hears(manifest_follows{1, 0});
    CHECK(b.done() == violation("the manifest of update 1 has 0 bytes, allowed are 1 to 5000", 1));
  }
  SUBCASE("size beyond the limit") {
    b.machine.manifest_unknown(b.now);
    b.machine.take();
    b.hears(manifest_follows{1, 5001});
    CHECK(b.done() == violation("the manifest of update 1 has 5001 bytes, allowed are 1 to 5000", 1));
  }
  SUBCASE("not asked for") {
    b.hears(manifest_follows{1, 100});
    CHECK(b.done() == violation("the sender sent a manifest for update 1 that was not asked for", 1));
  }
  CHECK(b.machine.over());
}

TEST_CASE("begin in an update, or with an id that does not grow, ends the session") {
  receiver_bench b;
  b.accepted(5, 1);
  SUBCASE("twice") {
    b.hears(b.begin_of(6, 1));
    CHECK(b.done() == violation("the sender said begin for update 6 while update 5 runs", 5));
  }
  SUBCASE("old") {
    b.hears(abort_update{5, 6, "x"});
    b.machine.drained(b.now);
    b.machine.take();
    b.hears(b.begin_of(5, 1));
    CHECK(b.done() == violation("the sender said begin for update 5 after update 5"));
  }
}

TEST_CASE("a published that does not fit ends the session and says why") {
  auto const after = [](std::function<void(published&)> change) {
    receiver_bench b;
    b.accepted(1, 3);
    b.hears(b.published_of(1, 1, 0, 0));
    b.machine.take();
    auto p = b.published_of(1, 2, 1, 1);
    change(p);
    b.hears(p);
    return b.done();
  };
  auto const wrong = [](std::uint64_t seq, std::uint32_t bucket, std::string const& why) {
    return violation(words("published for update 1 seq ", seq, " bucket ", bucket, ": ") + why, 1);
  };
  CHECK(after([](published&) {}).find("bucket 1 of 1") == 0);
  CHECK(after([](published& p) { p.bucket = 2; }) == wrong(2, 2, "bucket 1 is next"));
  CHECK(after([](published& p) { p.bucket = 0; }) == wrong(2, 0, "bucket 1 is next"));
  CHECK(after([](published& p) { p.seq = 1; }) == wrong(1, 1, "seq does not grow beyond 1"));
  CHECK(after([](published& p) { p.ring = 9; }) == wrong(2, 1, "ring 9 is not mapped"));
  CHECK(after([](published& p) { p.slot = 2; }) == wrong(2, 1, "ring 0 has 2 slots, not a slot 2"));
  CHECK(after([](published& p) { p.slot = 0; }) == wrong(2, 1, "slot 0 of ring 0 is not released yet"));
  CHECK(after([](published& p) { p.bytes = 7; }) == wrong(2, 1, "7 bytes, but 101 by the manifest"));
  CHECK(after([](published& p) { p.update = 2; }) ==
        violation("the sender said published for update 2, which is not running", 1));

  receiver_bench early;
  early.offered(1, 1);
  early.hears(early.published_of(1, 1, 0, 0));
  CHECK(early.done() == wrong(1, 0, "the update is not accepted yet"));

  receiver_bench late;
  late.copied(1);
  late.hears(late.published_of(1, 9, 1, 0));
  CHECK(late.done() == wrong(9, 1, "all 1 buckets were published already"));

  receiver_bench unmapped;
  unmapped.greet();
  unmapped.hears(unmapped.ring_of(0));
  unmapped.hears(unmapped.begin_of(1, 1));
  unmapped.machine.manifest_known({100}, unmapped.now);
  unmapped.machine.accept_update(unmapped.now);
  unmapped.machine.take();
  unmapped.hears(unmapped.published_of(1, 1, 0, 0));
  CHECK(unmapped.done() == wrong(1, 0, "ring 0 is not mapped"));
}

TEST_CASE("seq goes on growing over updates") {
  receiver_bench b;
  b.copied(3);
  b.hears(protocol::commit{3});
  b.machine.commit_done(b.now);
  b.accepted(4, 1);
  b.hears(b.published_of(4, 3, 0, 0));
  CHECK(b.done() == violation("published for update 4 seq 3 bucket 0: seq does not grow beyond 3", 4));
}

TEST_CASE("commit before all_copied, twice, or for another update ends the session") {
  receiver_bench b;
  SUBCASE("early") {
    b.accepted(1, 1);
    b.hears(protocol::commit{1});
    CHECK(b.done() == violation("the sender said commit for update 1 before all_copied", 1));
  }
  SUBCASE("twice") {
    b.copied(1);
    b.hears(protocol::commit{1});
    b.machine.take();
    b.hears(protocol::commit{1});
    CHECK(b.done() == violation("the sender said commit for update 1 twice", 1));
  }
  SUBCASE("other") {
    b.copied(1);
    b.hears(protocol::commit{2});
    CHECK(b.done() == violation("the sender said commit for update 2, which is not running", 1));
  }
}

// ---- aborts ----

TEST_CASE("an abort by the sender is answered when the driver has drained, at every stage") {
  receiver_bench b;
  SUBCASE("looking up") {
    b.greet();
    b.hears(b.begin_of(1, 1));
  }
  SUBCASE("asking") {
    b.greet();
    b.hears(b.begin_of(1, 1));
    b.machine.manifest_unknown(b.now);
  }
  SUBCASE("offered") { b.offered(1, 1); }
  SUBCASE("loading") {
    b.accepted(1, 1);
    b.hears(b.published_of(1, 1, 0, 0));
  }
  SUBCASE("all copied") { b.copied(1); }
  b.machine.take();
  b.hears(abort_update{1, 6, "source threw"});
  CHECK(b.done() == lines("abort 1 by sender (6) source threw"));
  // Answers of the driver that come too late do no harm.
  b.machine.manifest_known({100}, b.now);
  b.machine.accept_update(b.now);
  b.machine.loaded(1, b.now);
  b.machine.give_up(errc::busy, "x", b.now);
  CHECK(b.done().empty());
  CHECK(b.machine.updating());
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(aborted{1})));
  CHECK_FALSE(b.machine.updating());
  b.offered(2, 1);
}

TEST_CASE("giving up tells the sender, drains, and then says aborted") {
  receiver_bench b;
  b.accepted(1, 2);
  b.hears(b.published_of(1, 1, 0, 0));
  b.machine.take();
  b.machine.give_up(errc::loader_failed, "threw", b.now);
  CHECK(b.done() == lines(say(abort_update{1, 32, "threw"}), "abort 1 (32) threw"));
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(aborted{1})));
  b.machine.drained(b.now);
  b.machine.give_up(errc::loader_failed, "threw", b.now);
  CHECK(b.done().empty());
}

TEST_CASE("what crossed an own abort is ignored until the next update begins, and an error after it") {
  receiver_bench b;
  b.accepted(1, 2);
  b.machine.give_up(errc::loader_failed, "threw", b.now);
  b.machine.take();
  b.hears(b.published_of(1, 1, 0, 0));
  b.hears(abort_update{1, 6, "me too"});
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(aborted{1})));
  b.hears(b.published_of(1, 2, 1, 1));
  b.hears(protocol::commit{1});
  b.hears(manifest_follows{1, 10});
  b.hears(abort_update{1, 6, "me too"});
  CHECK(b.done().empty());
  b.offered(2, 1);
  b.hears(b.published_of(1, 3, 1, 1));
  CHECK(b.done() == violation("the sender said published for update 1, which is not running", 2));
}

TEST_CASE("words of the sender that move nothing are bounded, and so are updates that come to nothing") {
  receiver_bench b;
  SUBCASE("alive") {
    b.accepted(1, 1);
    for (int i = 0; i < max_idle_messages; ++i) b.hears(alive{1});
    CHECK(b.done().empty());
    b.hears(alive{1});
    CHECK(b.done() == violation("the sender said alive and no end: 4096 messages in a row that move nothing; "
                                "alive is needed every 3333 ms",
                                1));
  }
  SUBCASE("alive, while buckets come") {
    b.accepted(1, 2);
    for (int i = 0; i < max_idle_messages; ++i) b.hears(alive{1});
    b.hears(b.published_of(1, 1, 0, 0));
    for (int i = 0; i < max_idle_messages; ++i) b.hears(alive{1});
    CHECK(b.machine.greeted());
  }
  SUBCASE("what crossed an own abort") {
    b.accepted(1, 1);
    b.machine.give_up(errc::loader_failed, "threw", b.now);
    b.machine.drained(b.now);
    for (int i = 0; i <= max_idle_messages; ++i) b.hears(b.published_of(1, 1, 0, 0));
    CHECK(b.machine.over());
  }
  SUBCASE("updates that are taken back at once") {
    b.greet();
    std::uint64_t id = 1;
    for (; id <= max_idle_messages && !b.machine.over(); ++id) {
      b.hears(b.begin_of(id, 1));
      b.hears(abort_update{id, 6, "no"});
      b.machine.drained(b.now);
    }
    CHECK_FALSE(b.machine.over());
    b.hears(b.begin_of(id, 1));
    CHECK(b.machine.over());
  }
  SUBCASE("updates that the embedder refuses are no flood") {
    for (std::uint64_t id = 1; id <= 2 * max_idle_messages; ++id) {
      b.offered(id, 1);
      b.machine.refuse_update(errc::busy, "no", b.now);
    }
    CHECK_FALSE(b.machine.over());
  }
  SUBCASE("time makes room, also for a sender that speaks each millisecond") {
    b.machine.connected(b.now);
    auto hi = b.welcome_of();
    hi.silence_ms = 1;
    b.hears(hi);
    for (int i = 0; i < 5 * max_idle_messages; ++i) {
      b.now += std::chrono::milliseconds(1);
      b.hears(alive{1});
    }
    CHECK_FALSE(b.machine.over());
  }
}

TEST_CASE("an abort that crossed a refusal is answered at once, and once") {
  receiver_bench b;
  b.offered(1, 1);
  b.machine.refuse_update(errc::busy, "no", b.now);
  b.machine.take();
  b.hears(abort_update{1, 6, "x"});
  CHECK(b.done() == lines(say(aborted{1})));
  b.hears(abort_update{1, 6, "x"});
  CHECK(b.done().empty());
}

TEST_CASE("an abort for an update that never was, or after commit, ends the session") {
  receiver_bench b;
  SUBCASE("never was") {
    b.greet();
    b.hears(abort_update{1, 6, "x"});
    CHECK(b.done() == violation("the sender said abort_update for update 1, the newest is 0"));
  }
  SUBCASE("update 0") {
    b.greet();
    b.hears(abort_update{0, 6, "x"});
    CHECK(b.done() == violation("the sender said abort_update for update 0, the newest is 0"));
  }
  SUBCASE("after commit") {
    b.copied(1);
    b.hears(protocol::commit{1});
    b.machine.take();
    b.hears(abort_update{1, 6, "x"});
    CHECK(b.done() == violation("the sender said abort_update for update 1 after its commit", 1));
  }
}

TEST_CASE("giving up while committing makes the commit fail when it is drained") {
  receiver_bench b;
  b.copied(1);
  b.hears(protocol::commit{1});
  b.machine.take();
  b.machine.give_up(errc::busy, "cancelled", b.now);
  CHECK(b.done() == lines("abort 1 (2) cancelled"));
  b.machine.commit_done(b.now); // too late
  CHECK(b.done().empty());
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(failed{1, 2, "cancelled"})));
}

// ---- time ----

TEST_CASE("alive is said often enough while somebody here works on an update") {
  receiver_bench b;
  b.offered(1, 1);
  CHECK(b.machine.deadline() == b.now + 3333ms);
  b.pass(3332ms);
  CHECK(b.done().empty());
  b.pass(1ms);
  CHECK(b.done() == lines(say(alive{1})));
  b.pass(1h); // the embedder thinks for as long as it likes
  CHECK(b.done() == lines(say(alive{1})));
  b.machine.give_up(errc::busy, "x", b.now);
  b.machine.take();
  b.pass(1h); // so may its copies
  CHECK(b.done() == lines(say(alive{1})));
  b.machine.drained(b.now);
  b.machine.take();
  CHECK_FALSE(b.machine.deadline());
}

TEST_CASE("a sender that is silent while it is waited for is given up") {
  receiver_bench b;
  SUBCASE("manifest") {
    b.greet();
    b.hears(b.begin_of(1, 1));
    b.machine.manifest_unknown(b.now);
  }
  SUBCASE("buckets") { b.accepted(1, 1); }
  SUBCASE("commit") { b.copied(1); }
  b.machine.take();
  b.pass(9s);
  b.hears(alive{1});
  b.pass(9999ms);
  CHECK(b.done() == lines(say(alive{1}), say(alive{1})));
  b.pass(1ms);
  std::string const text = "the sender was silent for 10000 ms in update 1";
  CHECK(b.done() == lines(say(goodbye{21, text}), "abort 1 (21) " + text, "closed (21) " + text));
}

TEST_CASE("the sender's own silence limit counts where it is the longer one") {
  receiver_bench b;
  b.machine.connected(b.now);
  auto w = b.welcome_of();
  w.silence_ms = 60'000;
  b.hears(w);
  b.accepted(1, 1);
  b.pass(59s);
  CHECK(b.done().find("closed") == std::string::npos);
  b.pass(1s);
  CHECK(b.done().find("closed (21)") != std::string::npos);
}

TEST_CASE("an idle session has no deadline here either") {
  receiver_bench b;
  b.greet();
  CHECK_FALSE(b.machine.deadline());
  b.pass(24h);
  CHECK(b.done().empty());
}
