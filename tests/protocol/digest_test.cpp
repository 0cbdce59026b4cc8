// Digests in the two machines: when the sender's are computed and told, and that nothing is committed before
// they were compared.
#include <doctest/doctest.h>

#include "bench.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

bytes16 const whole{1, 2, 3};

/// An update with digests, and who takes part.
struct digest_bench : sender_bench {
  void start_with_digests(std::uint32_t buckets, std::uint64_t table, bool placed = false) {
    auto f = facts(buckets);
    f.digests = table;
    if (placed) {
      f.placement = 9;
      f.segments = {{4, 1}};
      f.needed.resize(buckets, false);
    }
    update = machine.begin_update(std::move(f), now);
  }
  begin begin_with(std::uint32_t buckets, std::uint64_t table) const {
    auto b = begin_of(buckets);
    b.digests = table;
    return b;
  }
  /// One bucket, with the first peer where it has released it.
  void released_by(peer_id id) {
    start_with_digests(1, 1);
    machine.ring_ready(host_ring, now);
    from(id, ring_mapped{host_ring});
    from(id, accept{update});
    machine.packed(1, now);
    from(id, released{update, 1});
    machine.take();
  }
};

struct digest_receiver : receiver_bench {
  void begins(std::uint64_t update, std::uint64_t table, std::uint32_t buckets = 1) {
    auto b = begin_of(update, buckets);
    b.digests = table;
    hears(b);
    std::vector<std::uint64_t> bytes;
    for (std::uint32_t i = 0; i < buckets; ++i) bytes.push_back(100 + i);
    machine.manifest_known(bytes, now);
  }
  void accepted_with_digests(std::uint64_t update) {
    greet();
    hears(ring_of(0));
    machine.ring_mapped(0, now);
    hears(digest_table{1, 160});
    begins(update, 1);
    machine.accept_update(now);
    machine.take();
  }
};

void ended_by_violation(receiver_bench& b) {
  auto const done = b.done();
  CHECK(done.find("closed (" + std::to_string(code(errc::protocol_error))) != std::string::npos);
}
bool was_dropped(sender_bench& b) { return b.done().find("drop 1 (24)") != std::string::npos; }

} // namespace

TEST_CASE("a receiver is given the table of digests once, before the first update that needs it") {
  digest_bench b;
  b.greet(1);
  b.start_with_digests(0, 1);
  CHECK(b.done() == lines(to(1, digest_table{1, 0}), to(1, b.begin_with(0, 1))));
  b.from(1, accept{b.update});
  b.machine.digested(whole, b.now);
  b.from(1, all_copied{b.update, whole});
  b.from(1, committed{b.update});
  b.machine.take();
  b.start_with_digests(0, 1);
  CHECK(b.done() == lines(to(1, b.begin_with(0, 1))));
  b.from(1, refuse{b.update, 8, "no"});
  b.machine.take();
  b.start_with_digests(0, 0); // one without
  CHECK(b.done() == lines(to(1, b.begin_with(0, 0))));
  b.from(1, refuse{b.update, 8, "no"});
  b.machine.take();
  b.start_with_digests(0, 1); // the table is still there
  CHECK(b.done() == lines(to(1, b.begin_with(0, 1))));
  b.from(1, refuse{b.update, 8, "no"});
  b.machine.take();
  b.start_with_digests(0, 2); // another layout
  CHECK(b.done() == lines(to(1, digest_table{2, 0}), to(1, b.begin_with(0, 2))));
}

TEST_CASE("digests are computed once somebody takes part, and the source is free only after that") {
  digest_bench b;
  b.greet(1);
  b.greet(2);
  b.start_with_digests(1, 1);
  b.machine.ring_ready(host_ring, b.now);
  b.from(1, ring_mapped{host_ring});
  b.from(2, ring_mapped{host_ring});
  b.machine.take();
  b.from(1, accept{b.update});
  CHECK(b.done() == lines("digest source"));
  b.from(2, refuse{b.update, 8, "no"});
  b.machine.packed(1, b.now);
  CHECK(b.done() == lines(to(1, b.published_of(1, 0, 0))));
  b.machine.digested(whole, b.now);
  CHECK(b.done() == lines("source free", to(1, digests_ready{b.update})));
  b.from(1, released{b.update, 1});
  b.from(1, all_copied{b.update, whole});
  CHECK(b.done() == lines(to(1, commit{b.update})));
}

TEST_CASE("a receiver that accepts late is told at once that the digests are ready") {
  digest_bench b;
  b.greet(1);
  b.greet(2);
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.machine.digested(whole, b.now);
  b.machine.take();
  b.from(2, accept{b.update});
  CHECK(b.done() == lines(to(2, digests_ready{b.update})));
}

TEST_CASE(
    "all_copied without digests to compare with, or with a digest where there is none, drops who says so") {
  digest_bench b;
  b.greet(1);
  b.released_by(1);
  b.from(1, all_copied{b.update, whole});
  CHECK(was_dropped(b));
  digest_bench none;
  none.greet(1);
  none.start(0);
  none.from(1, accept{none.update});
  none.from(1, all_copied{none.update, whole});
  CHECK(none.done().find("to 1: abort_update{update=1, code=63") != std::string::npos);
}

TEST_CASE("who compared another update has failed, is told so, and its group does not commit") {
  digest_bench b;
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.from(2, accept{b.update});
  b.machine.digested(whole, b.now);
  b.from(2, all_copied{b.update, whole});
  b.machine.take();
  b.from(1, all_copied{b.update, {9}});
  auto const done = b.done();
  CHECK(done.find("to 1: abort_update{update=1, code=63") != std::string::npos);
  CHECK(done.find("to 2: abort_update{update=1, code=28") != std::string::npos);
  CHECK(done.find("commit{") == std::string::npos);
  CHECK(done.find("[1 failed (63)") != std::string::npos);
}

TEST_CASE("a receiver's mismatch fails the update there, in its words, and keeps its group from committing") {
  digest_bench b;
  b.greet(1, {"tp", 2});
  b.greet(2, {"tp", 2});
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.from(2, accept{b.update});
  b.machine.digested(whole, b.now);
  b.from(1, all_copied{b.update, whole});
  b.from(2, abort_update{b.update, code(errc::digest_mismatch), "tensor \"w\" differs"});
  b.from(2, aborted{b.update});
  b.from(1, aborted{b.update});
  auto const done = b.done();
  CHECK(done.find("[2 failed (63) tensor \"w\" differs") != std::string::npos);
  CHECK(done.find("[1 skipped (28)") != std::string::npos);
  CHECK(done.find("commit{") == std::string::npos);
}

TEST_CASE("a sender that gives up waits for the digests that it was computing") {
  digest_bench b;
  b.greet(1);
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.machine.take();
  b.from(1, abort_update{b.update, 8, "no"});
  b.from(1, aborted{b.update});
  CHECK(b.done() == lines("drain"));
  b.machine.digested(whole, b.now); // it had finished all the same
  b.machine.drained(b.now);
  CHECK(b.done().find("finished (0)") != std::string::npos);
}

TEST_CASE("watchers are told the last digest, and what receivers found of the version that they hold") {
  digest_bench b;
  b.greet(1);
  b.greet(2);
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.from(2, refuse{b.update, 8, "no"});
  b.machine.digested(whole, b.now);
  b.from(1, all_copied{b.update, whole});
  b.from(1, committed{b.update});
  b.connect(3);
  b.machine.take();
  b.from(3, watch{hello_magic, 1, 1, schema_hash()});
  auto const actions = b.machine.take();
  REQUIRE(actions.size() == 3);
  auto const said = [&](std::size_t i) { return std::get<send_action::say>(actions[i]).what; };
  CHECK(std::get<seen_receiver>(said(0)).has_digest == 1);
  CHECK(std::get<seen_receiver>(said(0)).digest == whole);
  CHECK(std::get<seen_receiver>(said(1)).has_digest == 0);
  CHECK(std::get<seen_sender>(said(2)).has_digest == 1);
  CHECK(std::get<seen_sender>(said(2)).digest == whole);
  CHECK(std::get<seen_sender>(said(2)).digest_version == 42);
}

TEST_CASE("the last digest is that of the last version that somebody holds") {
  digest_bench b;
  b.connect(2);
  b.machine.take();
  b.from(2, watch{hello_magic, 1, 1, schema_hash()});
  auto const known = [&] {
    b.machine.take();
    b.from(2, watch{hello_magic, 1, 1, schema_hash()});
    for (auto const& one : b.machine.take())
      if (auto const* const say = std::get_if<send_action::say>(&one))
        if (auto const* const seen = std::get_if<seen_sender>(&say->what)) return seen->has_digest == 1;
    return false;
  };
  b.greet(1);
  b.start_with_digests(0, 1);
  b.from(1, accept{b.update});
  b.machine.digested(whole, b.now);
  CHECK_FALSE(known()); // it runs
  b.from(1, all_copied{b.update, whole});
  CHECK_FALSE(known());
  b.from(1, committed{b.update});
  CHECK(known());
}

TEST_CASE("a receiver compares when everything is in place and the digests are ready, in either order") {
  for (bool const ready_first : {false, true}) {
    digest_receiver b;
    b.accepted_with_digests(1);
    if (ready_first) b.hears(digests_ready{1});
    b.hears(b.published_of(1, 1, 0, 0));
    b.machine.take();
    b.machine.loaded(1, b.now);
    CHECK(b.done() ==
          (ready_first ? lines(say(released{1, 1}), "check digests 1") : lines(say(released{1, 1}))));
    if (!ready_first) {
      b.hears(digests_ready{1});
      CHECK(b.done() == lines("check digests 1"));
    }
    b.machine.digests_agree(whole, b.now);
    CHECK(b.done() == lines(say(all_copied{1, whole})));
    b.machine.digests_agree(whole, b.now); // once
    CHECK(b.done().empty());
    b.hears(commit{1});
    CHECK(b.done() == lines("commit 1"));
  }
}

TEST_CASE("a receiver that finds a difference gives up and never says all_copied") {
  digest_receiver b;
  b.accepted_with_digests(1);
  b.hears(b.published_of(1, 1, 0, 0));
  b.machine.loaded(1, b.now);
  b.hears(digests_ready{1});
  b.machine.take();
  b.machine.give_up(errc::digest_mismatch, "tensor \"w\"", b.now);
  CHECK(b.done() == lines(say(abort_update{1, code(errc::digest_mismatch), "tensor \"w\""}),
                          "abort 1 (63) tensor \"w\""));
  b.machine.digests_agree(whole, b.now);
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(aborted{1})));
}

TEST_CASE("embedders that take buckets are compared when they say that all is in place") {
  digest_receiver b;
  b.greet();
  b.hears(b.ring_of(0));
  b.machine.ring_mapped(0, b.now);
  b.hears(digest_table{1, 160});
  b.begins(1, 1);
  b.machine.accept_update(b.now, true);
  b.hears(b.published_of(1, 1, 0, 0));
  b.machine.loaded(1, b.now);
  b.hears(digests_ready{1});
  b.machine.take();
  b.machine.in_place(b.now);
  CHECK(b.done() == lines("check digests 1"));
}

TEST_CASE("tables and digests that do not fit are protocol errors") {
  auto const broken = [](auto const& prepare, message const& what) {
    digest_receiver b;
    b.greet();
    prepare(b);
    b.machine.take();
    b.hears(what);
    ended_by_violation(b);
  };
  auto const fresh = [](digest_receiver&) {};
  broken(fresh, digest_table{0, 160});
  broken(fresh, digest_table{1, 0});
  broken(fresh, digest_table{1, 161});
  broken(fresh, digest_table{1, 5008}); // the limit is 5000
  broken([](auto& b) { b.hears(digest_table{2, 160}); }, digest_table{2, 160});
  broken([](auto& b) { b.hears(digest_table{2, 160}); }, digest_table{1, 160});
  broken([](auto& b) { b.begins(1, 0); }, digest_table{1, 160}); // while an update runs
  broken(fresh, digests_ready{1});
  broken([](auto& b) { b.begins(1, 0); }, digests_ready{1}); // before it was accepted
  broken(
      [](auto& b) {
        b.begins(1, 0);
        b.machine.accept_update(b.now);
      },
      digests_ready{1}); // without any
  broken(
      [](auto& b) {
        b.hears(digest_table{1, 160});
        b.begins(1, 1);
        b.machine.accept_update(b.now);
        b.hears(digests_ready{1});
      },
      digests_ready{1}); // twice
  auto with_table = receiver_bench::begin_of(1, 1);
  with_table.digests = 2;
  broken(fresh, with_table);
  broken([](auto& b) { b.hears(digest_table{1, 160}); }, with_table);
}

TEST_CASE("tables and no end are a flood") {
  digest_receiver b;
  b.greet();
  for (std::uint64_t i = 1; i <= 3 * std::uint64_t(max_idle_messages) && !b.machine.over(); ++i)
    b.hears(digest_table{i, 16});
  CHECK(b.machine.over());
}

TEST_CASE("digests_ready that crosses the receiver's abort is ignored") {
  digest_receiver b;
  b.accepted_with_digests(1);
  b.machine.give_up(errc::loader_failed, "no", b.now);
  b.machine.take();
  b.hears(digests_ready{1});
  CHECK(b.done().empty());
  b.machine.drained(b.now);
  CHECK(b.done() == lines(say(aborted{1})));
}
