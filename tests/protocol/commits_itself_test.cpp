// Receivers that read the sender's own tensors and commit without being told to: both machines.
#include <doctest/doctest.h>

#include "mapping_bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// A sender of tensors that are ready and can be mapped as a whole, and whose owner waits for the end.
struct trusting_bench : mapping_bench {
  trusting_bench() { mapped.source_ready = mapped.waited_for = true; }
  void starts_with(peer_id id, who const& w = {"", 0, true}) {
    greet(id, w);
    start();
  }
  /// Receiver 1, which reads.
  void reads() {
    starts_with(1);
    from(1, accept_mapped());
    machine.take();
  }
  void gives_up() {
    machine.give_up(errc::source_failed, "why", now);
    machine.take();
    machine.drained(now);
  }
  bool tells_to_commit_itself() {
    auto const said = done();
    return said.find("commits_itself=1") != std::string::npos;
  }
  void leaves() { machine.gone(1, errc::peer_gone, "it has ended", now); }
};

std::string const finished_committed = "finished (0) [1 committed (0)  mapped ring 1]";

} // namespace

TEST_CASE("who reads alone is told that no commit follows, and none does") {
  trusting_bench b;
  b.starts_with(1);
  CHECK(b.tells_to_commit_itself());
  b.from(1, b.accept_mapped());
  CHECK(b.done().empty());
  b.from(1, all_copied{1, {}, 77});
  CHECK(b.done() == lines("source free"));
  b.from(1, committed{1});
  CHECK(b.done().find(finished_committed) != std::string::npos);
}

TEST_CASE("a commit follows where something else than the reading must end, or where nobody waits for it") {
  trusting_bench b;
  SUBCASE("a group") {
    b.greet(2, {"tp", 2, true});
    b.starts_with(1, {"tp", 2, true});
    for (peer_id id : {1u, 2u}) b.from(id, b.accept_mapped());
  }
  SUBCASE("digests") {
    b.mapped.digests = 1;
    b.starts_with(1);
  }
  SUBCASE("a bucket") {
    b.mapped.needed[1] = true;
    b.starts_with(1);
    b.from(1, b.accept_mapped());
  }
  SUBCASE("the receiver is to hear why not all was mapped") {
    b.mapped.note = "one lies elsewhere";
    b.starts_with(1);
  }
  SUBCASE("whoever sends may change the tensors before the end") {
    b.mapped.waited_for = false;
    b.starts_with(1);
  }
  CHECK_FALSE(b.tells_to_commit_itself());
}

TEST_CASE("a sender that gives up waits for who may commit by itself to say what it did") {
  trusting_bench b;
  b.reads();
  b.gives_up();
  CHECK(b.done().empty());
  SUBCASE("it has aborted") {
    b.from(1, aborted{1});
    CHECK(b.done().find("[1 skipped") != std::string::npos);
  }
  SUBCASE("it had read all, and has aborted") {
    b.from(1, all_copied{1});
    CHECK(b.done().find("finished") == std::string::npos);
    b.from(1, aborted{1});
    CHECK(b.done().find("[1 skipped") != std::string::npos);
  }
  SUBCASE("it has committed, and answers the abort after that") {
    b.from(1, all_copied{1});
    b.from(1, committed{1});
    CHECK(b.done().find("[1 committed") != std::string::npos);
    b.from(1, aborted{1});
    b.start();
    CHECK(b.done().find("begin") != std::string::npos);
  }
  SUBCASE("its commit has failed") {
    b.from(1, all_copied{1});
    b.from(1, failed{1, code(errc::loader_failed), "no"});
    CHECK(b.done().find("[1 failed (32) no") != std::string::npos);
  }
  SUBCASE("it leaves without a word") {
    b.leaves();
    CHECK(b.done().find("[1 skipped") != std::string::npos);
  }
  SUBCASE("it leaves when it had read all") {
    b.from(1, all_copied{1});
    b.leaves();
    CHECK(b.done().find("[1 unconfirmed") != std::string::npos);
  }
  SUBCASE("it has given up as well: then it did not commit, whatever it says later") {
    b.from(1, all_copied{1});
    b.from(1, abort_update{1, code(errc::loader_failed), "no"});
    CHECK(b.done().find("[1 skipped") != std::string::npos);
    b.from(1, committed{1});
    CHECK_FALSE(b.machine.peers().at(0).holds_version);
    b.from(1, aborted{1});
    b.start();
    CHECK(b.done().find("begin") != std::string::npos);
  }
  SUBCASE("committed without having read is a breach") {
    b.from(1, committed{1});
    CHECK(b.done().find("committed (0)") == std::string::npos);
  }
}

TEST_CASE("who is silent where it may commit by itself is cut off, and what it had said decides") {
  trusting_bench b;
  b.reads();
  b.pass(11s);
  auto const said = b.done();
  CHECK(said.find("cut 1") != std::string::npos);
  CHECK(said.find("drop 1") == std::string::npos);
  CHECK(said.find("finished") == std::string::npos); // it may still read
  CHECK_FALSE(b.machine.deadline().has_value());
  SUBCASE("nothing") {
    b.leaves();
    CHECK(b.done().find("[1 dropped (" + std::to_string(code(errc::peer_silent)) + ") silent for 10000 ms") !=
          std::string::npos);
  }
  SUBCASE("that it had read all") {
    b.from(1, all_copied{1});
    b.leaves();
    CHECK(b.done().find("[1 unconfirmed") != std::string::npos);
  }
  SUBCASE("that it has committed") {
    b.from(1, all_copied{1});
    b.from(1, committed{1});
    CHECK(b.done().find("[1 committed") != std::string::npos);
    b.leaves();
    CHECK(b.done().empty());
  }
}

TEST_CASE("of who may commit by itself and is dropped unheard nobody says that it did not") {
  trusting_bench b;
  b.reads();
  SUBCASE("by a sender that closes") { b.machine.close("the end", b.now); }
  SUBCASE("by a connection that failed") { b.machine.gone(1, errc::peer_silent, "it reads nothing", b.now); }
  auto all = b.done();
  b.machine.drained(b.now);
  all += b.done();
  CHECK_MESSAGE(all.find("[1 unconfirmed") != std::string::npos, all);
}

namespace {

/// A receiver that reads the tensors of update 1, and was told to commit by itself.
struct trusted_bench : mapping_receiver {
  trusted_bench() {
    machine.placement_known({false, false}, now);
    hears(read_mapped{1, 1});
    accept_mapped();
    machine.take();
  }
  void has_read() {
    machine.mapped_read(now);
    machine.take();
  }
};

} // namespace

TEST_CASE("a receiver that commits by itself says all_copied, looks, and commits") {
  trusted_bench b;
  b.machine.mapped_read(b.now);
  CHECK(b.done() == lines(say(all_copied{1}), "look 1"));
  b.machine.nothing_heard(b.now);
  CHECK(b.done() == lines("commit 1"));
  b.machine.nothing_heard(b.now);
  CHECK(b.done().empty());
  b.machine.commit_done(b.now);
  CHECK(b.done() == lines(say(committed{1})));
  b.hears(abort_update{1, code(errc::source_failed), "too late"});
  CHECK(b.done() == lines(say(aborted{1})));
}

TEST_CASE("a receiver that finds when it looks that the update was given up does not commit") {
  trusted_bench b;
  b.has_read();
  SUBCASE("by an abort") { b.hears(abort_update{1, code(errc::source_failed), "why"}); }
  SUBCASE("by the end of the connection") { b.machine.gone(errc::peer_gone, "it has ended", b.now); }
  SUBCASE("by a goodbye") { b.hears(goodbye{0, "the end"}); }
  SUBCASE("by itself") { b.machine.give_up(errc::loader_failed, "no", b.now); }
  b.machine.nothing_heard(b.now);
  CHECK(b.done().find("commit 1") == std::string::npos);
  b.machine.drained(b.now);
  CHECK(b.done().find("commit") == std::string::npos);
}

TEST_CASE("an abort that comes too late is answered when the commit is over") {
  trusted_bench b;
  b.has_read();
  b.machine.nothing_heard(b.now);
  b.machine.take();
  b.hears(abort_update{1, code(errc::source_failed), "too late"});
  CHECK(b.done().empty());
  SUBCASE("which succeeds") {
    b.machine.commit_done(b.now);
    CHECK(b.done() == lines(say(committed{1}), say(aborted{1})));
  }
  SUBCASE("which fails") {
    b.machine.commit_failed(errc::loader_failed, "no", b.now);
    auto const said = b.done();
    CHECK(said.find("say failed") < said.find("say aborted"));
    CHECK(said.find("say aborted") != std::string::npos);
  }
  SUBCASE("which is given up") {
    b.machine.give_up(errc::loader_failed, "no", b.now);
    b.machine.drained(b.now);
    auto const said = b.done();
    CHECK(said.find("say failed") < said.find("say aborted"));
    CHECK(said.find("say aborted") != std::string::npos);
  }
  SUBCASE("and comes once") {
    b.hears(abort_update{1, code(errc::source_failed), "too late"});
    CHECK(b.done().find("closed (") != std::string::npos);
    b.machine.drained(b.now);
  }
  CHECK_FALSE(b.machine.updating());
}

TEST_CASE("commit of what was left to the receiver ends the session") {
  trusted_bench b;
  b.has_read();
  SUBCASE("before it has looked") {}
  SUBCASE("while it commits") { b.machine.nothing_heard(b.now); }
  b.hears(protocol::commit{1});
  CHECK(b.done().find("commit for update 1, which it had left to the receiver") != std::string::npos);
}
