// A version that is held: who comes late is given it, on either route; what happens when a send, a release, a
// destructor or another hold comes in between. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <deque>
#include <functional>
#include <optional>

#include "api/with_backends.hpp"
#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::vector<tensor_info> layers(std::size_t count = 10) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

/// What a sender's observer hears.
class listener final : public observer {
 public:
  void update_began(std::uint64_t version, std::uint64_t, std::uint32_t) override {
    began.push_back(version);
    if (at_begin) at_begin();
  }
  void update_sent(send_report const& report) override { reports.push_back(report); }
  void update_ended(std::uint64_t, bool committed) override { ended.push_back(committed); }
  std::function<void()> at_begin;
  std::vector<std::uint64_t> began;
  std::vector<send_report> reports;
  std::vector<bool> ended;
};

sender_options heard_by(listener& who, std::uint32_t needed = 1) {
  auto options = quick_sender(4 * kib).min_receivers(needed); // two tensors a bucket
  options.watched_by(&who);
  return options;
}

/// One server, and others that come later. Copies of the sender's, and of those that come later, are done at
/// once or when the test says so.
struct late {
  late(any_io_executor executor, bool mapped, receiver_options server = quick_receiver(),
       std::uint32_t needed = 1)
      : over(executor, how(mapped), heard_by(heard, needed), server)
      , source(over.how().how.from, layers(), 1)
      , held(host_memory(), layers(), 0) {
    into.push_back(held.into());
  }
  setting how(bool mapped) {
    auto made = mapped ? mapped_setting(1) : host_setting(1);
    made.how.devices = std::make_shared<scripted_devices>(packs);
    return made;
  }
  /// Connects one more, which loads the next update into a place of its own.
  struct guest {
    explicit guest(receiver& which) : from(&which), held(host_memory(), layers(), 0), into(held.into()) {}
    receiver* from;
    model held;
    destinations into;
    task<load_report> load;
  };
  receiver& newcomer(receiver_options options) {
    return over.add_receiver(std::move(options),
                             lane{host_memory(), std::make_shared<scripted_devices>(reads)});
  }
  void loads_next(guest& one) { one.load = beside(over.executor(), load_next(*one.from, one.into)); }
  guest& joins(std::string const& name) {
    guests.emplace_back(newcomer(quick_receiver(name)));
    return guests.back();
  }
  awaitable<void> loaded(guest& one) {
    auto const end = co_await one.load.join();
    CHECK_MESSAGE(end.ok(), end.said());
    CHECK(difference(source.images(), one.held) == "");
  }
  awaitable<void> reading() {
    while (reads->in_flight() == 0) co_await settle(1);
  }
  /// One whose copies are held once it has begun to read what is held; never null.
  awaitable<guest*> joins_and_reads() {
    reads->set(script::pace::held);
    guest& joiner = joins("late");
    co_await joiner.from->connect(over.path());
    loads_next(joiner);
    co_await reading();
    co_return &joiner;
  }
  void let_them_read() {
    reads->set(script::pace::immediate);
    reads->finish_all();
  }

  listener heard;
  std::shared_ptr<script> packs = std::make_shared<script>(), reads = std::make_shared<script>();
  line over;
  model source, held;
  std::vector<destinations> into;
  std::deque<guest> guests;
};

/// A delivery of one bucket, which a late joiner is copying out of the ring: the sender reads no tensor any
/// more.
struct out_of_the_ring {
  explicit out_of_the_ring(any_io_executor executor)
      : with(executor, false)
      , views{with.source.view(0), with.source.view(1)}
      , two(host_memory(), layers(2), 0)
      , into(two.into()) {}
  awaitable<void> begins() {
    held = with.over.sender().hold(1, views);
    with.reads->set(script::pace::held);
    auto& joiner = with.newcomer(quick_receiver("late"));
    co_await joiner.connect(with.over.path());
    load = beside(with.over.executor(), load_next(joiner, into));
    co_await with.reading();
  }

  late with;
  std::vector<tensor_view> views;
  model two;
  destinations into;
  held_version held;
  task<load_report> load;
};

awaitable<void> end(held_version& what) { co_await what.release(); }

awaitable<void> late_joiner_is_given_it(bool mapped) {
  late with(co_await asio::this_coro::executor, mapped);
  auto& over = with.over;
  co_await over.connect();
  auto const views = with.source.views();
  co_await deliver(over, 7, views, with.into);
  auto held = over.sender().hold(7, views);
  CHECK(held.version() == 7);
  auto other = beside(over.executor(), load_next(over.receiver(), with.into[0]));
  auto& joiner = with.joins("late");
  co_await over.connect();
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  while (with.heard.ended.size() < 2) co_await settle(1);
  CHECK_FALSE(other.done()); // nobody else takes part
  CHECK(with.heard.began == std::vector<std::uint64_t>{7, 7});
  CHECK(with.heard.ended == std::vector<bool>{true, true});
  auto const& report = with.heard.reports.back();
  CHECK(report.receivers.size() == 1);
  CHECK(outcomes(report) == "committed");
  CHECK(of(report, "late").way == (mapped ? route::mapped : route::host));
  // Who comes back and has it is given nothing; who was killed and comes back without it is.
  co_await joiner.from->close();
  co_await joiner.from->connect(over.path());
  co_await over.sender().wait_for_receivers(2, patient(milliseconds(5000)));
  co_await settle();
  CHECK(with.heard.began.size() == 2);
  co_await joiner.from->close();
  auto& reborn = with.joins("late");
  co_await reborn.from->connect(over.path());
  with.loads_next(reborn);
  co_await with.loaded(reborn);
  co_await held.release();
  co_await held.release(); // once more means nothing
  auto& too_late = with.joins("too late");
  co_await too_late.from->connect(over.path());
  with.loads_next(too_late);
  co_await over.sender().wait_for_receivers(3, patient(milliseconds(5000)));
  co_await settle();
  CHECK_FALSE(too_late.load.done());
  other.cancel();
  too_late.load.cancel();
  co_await over.close();
}

} // namespace

CO_TEST("who joins late, or comes back without it, is given what is held, through the ring") {
  co_await late_joiner_is_given_it(false);
}
CO_TEST("who joins late, or comes back without it, is given what is held, from the tensors themselves") {
  co_await late_joiner_is_given_it(true);
}

CO_TEST("a version that is held before anybody is there needs no send, and prepared tensors do") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const prepared = over.sender().prepare(with.source.views());
  auto held = over.sender().hold(1, prepared);
  co_await over.connect();
  auto load = beside(over.executor(), load_next(over.receiver(), with.into[0]));
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(with.source.images(), with.held) == "");
  auto const busy = co_await try_to(over.sender().release_memory());
  CHECK(busy.error == errc::busy);
  co_await held.release();
  co_await over.sender().release_memory();
  co_await over.close();
}

CO_TEST("how many receivers a send needs is nothing to a delivery") {
  late with(co_await asio::this_coro::executor, true, quick_receiver(), 2);
  auto& over = with.over;
  auto const held = over.sender().hold(1, with.source.views());
  auto& joiner = with.joins("late");
  co_await joiner.from->connect(over.path());
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  while (with.heard.ended.empty()) co_await settle(1);
  CHECK(with.heard.ended == std::vector<bool>{true});
  co_await over.close();
}

CO_TEST("who joins while another one is given it has its turn next") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const views = with.source.views();
  auto const held = over.sender().hold(1, views);
  with.reads->set(script::pace::held);
  auto& first = with.joins("first");
  co_await first.from->connect(over.path());
  with.loads_next(first);
  co_await with.reading();
  auto& second = with.joins("second");
  co_await second.from->connect(over.path());
  with.loads_next(second);
  co_await settle();
  CHECK(with.heard.began.size() == 1);
  with.let_them_read();
  co_await with.loaded(first);
  co_await with.loaded(second);
  while (with.heard.reports.size() < 2) co_await settle(1);
  CHECK(of(with.heard.reports[0], "first").what == outcome::committed);
  CHECK(of(with.heard.reports[1], "second").what == outcome::committed);
  CHECK(with.heard.reports[1].receivers.size() == 1);
  co_await over.close();
}

namespace {

awaitable<void> send_gets_through(bool mapped) {
  late with(co_await asio::this_coro::executor, mapped);
  auto& over = with.over;
  co_await over.connect();
  auto const views = with.source.views();
  co_await deliver(over, 1, views, with.into);
  auto const held = over.sender().hold(1, views);
  auto& joiner = *co_await with.joins_and_reads();
  model newer(host_memory(), layers(), 2);
  auto const next = newer.views();
  auto sending = beside(over.executor(), over.sender().send_weights(2, next));
  auto const again = co_await try_to(over.sender().send_weights(3, next));
  CHECK(again.error == errc::busy);
  co_await settle();
  CHECK_FALSE(sending.done());
  with.let_them_read();
  auto const given_up = co_await joiner.load.join();
  CHECK(given_up.error == errc::peer_aborted);
  CHECK(joiner.into.torn());
  with.loads_next(joiner);
  auto other = beside(over.executor(), load_next(over.receiver(), with.into[0]));
  auto const sent = co_await sending.join();
  REQUIRE_MESSAGE(sent.ok(), sent.said());
  CHECK(outcomes(*sent.value) == "committed committed");
  co_await other.join();
  auto const loaded = co_await joiner.load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(newer.images(), joiner.held) == "");
  CHECK_FALSE(joiner.into.torn());
  co_await settle();
  CHECK(with.heard.began == std::vector<std::uint64_t>{1, 1, 2}); // nobody is taken back
  CHECK(with.heard.ended == std::vector<bool>{true, false, true});
  co_await over.close();
}

} // namespace

CO_TEST("a send during a delivery goes first, to those that it went to as well: through the ring") {
  co_await send_gets_through(false);
}
CO_TEST("a send during a delivery goes first, to those that it went to as well: from the tensors") {
  co_await send_gets_through(true);
}

CO_TEST("who fails a send, or is torn when one that came between is cancelled, is given what is held") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const views = with.source.views();
  auto const held = over.sender().hold(1, views);
  auto& joiner = *co_await with.joins_and_reads();
  auto sending = beside(over.executor(), over.sender().send_weights(2, views));
  co_await settle();
  sending.cancel(); // while it waits for the delivery to end
  auto const sent = co_await sending.join();
  CHECK(sent.error == asio::error::operation_aborted);
  with.let_them_read();
  co_await joiner.load.join();
  CHECK(joiner.into.torn());
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  CHECK(joiner.into.version() == 1);
  // The receiver's own failure.
  with.reads->set(script::pace::held);
  with.loads_next(joiner);
  sending = beside(over.executor(), over.sender().send_weights(2, views));
  co_await with.reading();
  joiner.load.cancel();
  with.let_them_read();
  auto const failed = co_await sending.join();
  REQUIRE(failed.report);
  CHECK(outcomes(*failed.report) == "failed");
  co_await joiner.load.join();
  CHECK(joiner.into.torn());
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  CHECK_FALSE(joiner.into.torn());
  // And who comes back torn says that it holds nothing.
  with.reads->set(script::pace::held);
  with.loads_next(joiner);
  sending = beside(over.executor(), over.sender().send_weights(2, views));
  co_await with.reading();
  joiner.load.cancel();
  with.let_them_read();
  co_await sending.join();
  co_await joiner.load.join();
  co_await joiner.from->close();
  CHECK(joiner.into.torn());
  co_await joiner.from->connect(over.path());
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  CHECK_FALSE(joiner.into.torn());
  co_await over.close();
}

CO_TEST("release gives up what runs, and waits for who reads the tensors") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const views = with.source.views();
  auto held = over.sender().hold(1, views);
  auto& joiner = *co_await with.joins_and_reads();
  auto releasing = beside(over.executor(), end(held));
  auto impatient = beside(over.executor(), end(held));
  co_await settle();
  CHECK_FALSE(releasing.done());
  impatient.cancel();
  auto const cancelled = co_await impatient.join();
  CHECK(cancelled.error == asio::error::operation_aborted);
  CHECK(with.reads->in_flight() != 0);
  with.let_them_read();
  auto const released = co_await releasing.join();
  CHECK_MESSAGE(released.ok(), released.said());
  auto const loaded = co_await joiner.load.join();
  CHECK(loaded.error == errc::peer_aborted);
  CHECK(joiner.into.torn());
  co_await settle();
  CHECK(with.heard.began.size() == 1);
  co_await over.close();
}

CO_TEST("release leaves a delivery alone that no longer reads the tensors") {
  out_of_the_ring of(co_await asio::this_coro::executor);
  auto const wanted = of.with.source.images(of.views);
  co_await of.begins();
  co_await of.held.release();
  of.with.source.fill(99);
  of.with.let_them_read();
  auto const loaded = co_await of.load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(wanted, of.two) == "");
  co_await of.with.over.close();
}

CO_TEST("memory is wanted back when the promise has ended, while a delivery of it is on its way out") {
  out_of_the_ring of(co_await asio::this_coro::executor);
  auto& over = of.with.over;
  co_await of.begins();
  auto const busy = co_await try_to(over.sender().release_memory());
  CHECK(busy.error == errc::busy); // it is held
  co_await of.held.release();      // nobody reads the tensors, only the ring
  auto const released = co_await try_to(over.sender().release_memory());
  CHECK_MESSAGE(released.ok(), released.said());
  of.with.let_them_read();
  auto const loaded = co_await of.load.join();
  CHECK(loaded.error == errc::peer_aborted);
  co_await over.close();
}

CO_TEST("what begins before receivers were asked for the memory is told to who wants it back") {
  for (bool const hold_again : {false, true}) {
    late with(co_await asio::this_coro::executor, true);
    auto& over = with.over;
    auto const views = with.source.views();
    std::optional<held_version> held = over.sender().hold(1, views);
    auto& joiner = *co_await with.joins_and_reads();
    auto ended = beside(over.executor(), end(*held));
    auto releasing = beside(over.executor(), over.sender().release_memory());
    co_await settle();
    CHECK_FALSE(releasing.done());
    task<send_report> sending;
    std::optional<held_version> other;
    if (hold_again)
      other = over.sender().hold(2, views);
    else
      sending = beside(over.executor(), over.sender().send_weights(2, views));
    co_await settle();
    with.let_them_read();
    auto const refused = co_await releasing.join();
    CHECK(refused.error == errc::busy);
    co_await joiner.load.join();
    with.loads_next(joiner);
    auto const next = co_await joiner.load.join();
    CHECK_MESSAGE(next.ok(), next.said());
    if (!hold_again) co_await sending.join();
    co_await ended.join();
    co_await over.close();
  }
}

CO_TEST("who joins in the last moment of a send that fails is given what is held") {
  late with(co_await asio::this_coro::executor, false); // a ring of one slot
  auto& over = with.over;
  co_await over.connect();
  auto const views = with.source.views();
  auto const held = over.sender().hold(1, views);
  co_await load_next(over.receiver(), with.into[0]);
  failing_source made(with.source, 1000, "never");
  auto sending = beside(over.executor(), over.sender().send_weights(2, made));
  {
    auto update = co_await over.receiver().next_update();
    auto const bucket = co_await update->next_bucket();
    co_await settle(); // the source's packer waits for the slot
    auto& joiner = with.joins("late");
    co_await joiner.from->connect(over.path());
    with.loads_next(joiner);
    co_await settle();
    CHECK_FALSE(joiner.load.done());
    co_await over.receiver().close();
  }
  auto const sent = co_await sending.join();
  CHECK(sent.error == errc::too_few_receivers);
  co_await with.loaded(with.guests.back());
  co_await over.close();
}

CO_TEST(
    "a destroyed promise: no copy of the sender's reads the tensors any more when its destructor returns") {
  late with(co_await asio::this_coro::executor, false);
  auto& over = with.over;
  auto const views = with.source.views();
  with.packs->set(script::pace::held);
  std::optional<held_version> held = over.sender().hold(1, views);
  auto& joiner = with.joins("late");
  co_await joiner.from->connect(over.path());
  with.loads_next(joiner);
  auto const touched = [&] {
    for (auto const& view : views)
      if (with.packs->touches(view.data(), 4 * 500)) return true;
    return false;
  };
  while (!touched() || joiner.from->status().phase != session_phase::loading) co_await settle(1);
  held.reset();
  CHECK_FALSE(touched());
  with.source.fill(99);
  co_await settle();
  CHECK_FALSE(touched());
  with.packs->set(script::pace::immediate);
  auto const loaded = co_await joiner.load.join();
  CHECK(loaded.error == errc::peer_aborted);
  CHECK_FALSE(joiner.into.version());
  // Of one that was never delivered, or is empty, nothing is waited for.
  { auto const unused = over.sender().hold(2, views); }
  held_version empty;
  CHECK(empty.version() == 0);
  auto moved = over.sender().hold(3, views);
  empty = std::move(moved);
  CHECK(empty.version() == 3);
  co_await empty.release();
  co_await over.close();
}

CO_TEST("a destroyed promise: nothing that reads the tensors is queued by a delivery that is about to") {
  late with(co_await asio::this_coro::executor, false);
  auto& over = with.over;
  co_await over.connect();
  auto const views = with.source.views();
  co_await deliver(over, 1, views, with.into); // makes the ring
  with.packs->set(script::pace::held);
  auto const devices = std::static_pointer_cast<scripted_devices>(over.how().how.devices);
  auto const waits = devices->count().waits;
  int stream = 0;
  std::optional<held_version> held;
  bool gone = false;
  with.heard.at_begin = [&] { // as if from another thread, between the delivery's begin and its first copy
    held.reset();
    gone = true;
  };
  held = over.sender().hold(2, views, after(reinterpret_cast<CUstream_st*>(&stream)));
  while (!gone) co_await settle(1);
  co_await settle();
  CHECK(with.packs->in_flight() == 0);
  CHECK(devices->count().waits == waits); // nor is the stream asked for, which may be gone as well
  CHECK(with.heard.ended == std::vector<bool>{true, false});
  co_await over.close();
}

CO_TEST("a destroyed promise: who reads the tensors himself commits nothing of what comes after it") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const views = with.source.views();
  with.reads->set(script::pace::held);
  std::optional<held_version> held = over.sender().hold(1, views);
  auto& joiner = with.joins("late");
  co_await joiner.from->connect(over.path());
  with.loads_next(joiner);
  co_await with.reading();
  held.reset();
  with.source.fill(99);
  with.let_them_read(); // before the loop has turned
  auto const loaded = co_await joiner.load.join();
  CHECK(loaded.error == errc::peer_aborted);
  CHECK(joiner.into.torn());
  co_await over.close();
}

CO_TEST("a later hold takes the place of the one before, whose promise may then end") {
  late with(co_await asio::this_coro::executor, true);
  auto& over = with.over;
  auto const views = with.source.views();
  auto first = over.sender().hold(1, views);
  auto& joiner = *co_await with.joins_and_reads();
  model newer(host_memory(), layers(), 2);
  auto const next = newer.views();
  auto const second = over.sender().hold(2, next);
  auto releasing = beside(over.executor(), end(first));
  co_await settle();
  CHECK_FALSE(releasing.done());
  with.let_them_read();
  auto const released = co_await releasing.join();
  CHECK_MESSAGE(released.ok(), released.said());
  co_await joiner.load.join();
  with.loads_next(joiner);
  auto const loaded = co_await joiner.load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(newer.images(), joiner.held) == "");
  CHECK(joiner.into.version() == 2);
  co_await over.close();
}

namespace {

awaitable<void> refuse_next(receiver& from) {
  auto next = co_await announced(from);
  next.refuse("no room");
}
awaitable<void> not_now(receiver& from) {
  auto next = co_await announced(from);
  next.not_now(milliseconds(20), "serving");
}

} // namespace

CO_TEST("who refuses what is held is not asked again; who says not now is, when that time is over") {
  late with(co_await asio::this_coro::executor, false);
  auto& over = with.over;
  auto const views = with.source.views();
  auto const held = over.sender().hold(1, views);
  co_await over.connect();
  auto refusing = beside(over.executor(), refuse_next(over.receiver()));
  co_await refusing.join();
  while (with.heard.reports.empty()) co_await settle(1);
  CHECK(outcomes(with.heard.reports[0]) == "refused");
  CHECK_FALSE(with.heard.ended[0]);
  auto& joiner = with.joins("busy");
  co_await joiner.from->connect(over.path());
  auto putting_off = beside(over.executor(), not_now(*joiner.from));
  co_await putting_off.join();
  with.loads_next(joiner);
  co_await with.loaded(joiner);
  while (with.heard.reports.size() < 3) co_await settle(1);
  for (std::size_t i = 1; i < 3; ++i) CHECK(with.heard.reports[i].receivers.size() == 1); // not the first
  CHECK(outcomes(with.heard.reports[1]) == "skipped");
  CHECK(outcomes(with.heard.reports[2]) == "committed");
  co_await over.close();
}

CO_TEST("a member that replaces another one is given what its group holds, alone") {
  auto options = quick_receiver("rank");
  options.group("tp").group_size(2);
  auto how = mapped_setting(2);
  listener heard;
  line over(co_await asio::this_coro::executor, how, heard_by(heard), options);
  model source(how.how.from, layers(), 1);
  std::deque<model> held;
  std::vector<destinations> into;
  for (int i = 0; i < 3; ++i) into.push_back(held.emplace_back(host_memory(), layers(), 0).into());
  auto const views = source.views();
  auto const promise = over.sender().hold(1, views);
  co_await over.receiver(0).connect(over.path());
  auto first = beside(over.executor(), load_next(over.receiver(0), into[0]));
  co_await over.sender().wait_for_receivers(1, patient(milliseconds(5000)));
  co_await settle();
  CHECK(heard.began.empty()); // it is not complete
  co_await over.receiver(1).connect(over.path());
  auto second = beside(over.executor(), load_next(over.receiver(1), into[1]));
  auto const one = co_await first.join();
  CHECK_MESSAGE(one.ok(), one.said());
  auto const two = co_await second.join();
  CHECK_MESSAGE(two.ok(), two.said());
  co_await over.receiver(1).close();
  auto& next = over.add_receiver(options, {host_memory(), {}});
  auto other = beside(over.executor(), load_next(over.receiver(0), into[0]));
  while (true) { // its place is free when the sender has heard the goodbye
    auto const connected = co_await try_to(next.connect(over.path()));
    if (connected.ok()) break;
  }
  auto third = beside(over.executor(), load_next(next, into[2]));
  auto const three = co_await third.join();
  CHECK_MESSAGE(three.ok(), three.said());
  CHECK(difference(source.images(), held[2]) == "");
  CHECK_FALSE(other.done());
  other.cancel();
  while (heard.reports.size() < 2) co_await settle(1);
  CHECK(outcomes(heard.reports[0]) == "committed committed");
  CHECK(outcomes(heard.reports[1]) == "committed");
  co_await over.close();
}

CO_TEST(
    "a sender that is closed or destroyed during a delivery ends the promise; what is left of it may stay") {
  for (bool const closes : {true, false}) {
    auto const executor = co_await asio::this_coro::executor;
    scratch directory;
    auto const path = directory.file("s");
    auto const packs = std::make_shared<script>(script::pace::held);
    std::optional<sender> to =
        detail::make_sender(executor, path, quick_sender(4 * kib), std::make_shared<scripted_devices>(packs));
    receiver from(executor, quick_receiver());
    model source(host_memory(), layers(), 1), held(host_memory(), layers(), 0);
    auto into = held.into();
    auto const views = source.views();
    auto promise = to->hold(1, views);
    co_await from.connect(path);
    auto load = beside(executor, load_next(from, into));
    while (packs->in_flight() == 0) co_await settle(1);
    if (closes) {
      auto closing = beside(executor, to->close());
      auto releasing = beside(executor, end(promise));
      co_await settle();
      CHECK_FALSE(releasing.done()); // the copies run
      packs->set(script::pace::immediate);
      packs->finish_all();
      auto const released = co_await releasing.join();
      CHECK_MESSAGE(released.ok(), released.said());
      co_await closing.join();
    } else {
      to.reset();
      CHECK(packs->in_flight() == 0);
      co_await promise.release();
    }
    co_await load.join();
    CHECK_FALSE(into.version());
    co_await from.close();
  }
}

CO_TEST("what can't be held is refused at once") {
  auto const executor = co_await asio::this_coro::executor;
  late with(executor, false);
  auto& over = with.over;
  auto const refused = [&](auto const& tensors) {
    try {
      auto const held = over.sender().hold(1, tensors);
    } catch (transfer_error const& error) { return error.code(); }
    return std::error_code();
  };
  std::vector<tensor_view> const twice{with.source.view(0), with.source.view(0)};
  CHECK(refused(twice) == errc::duplicate_name);
  CHECK(refused(prepared_tensors()) == errc::invalid_argument);
  scratch directory;
  sender other(executor, directory.file("s"), quick_sender());
  auto const foreign = other.prepare(with.source.views());
  CHECK(refused(foreign) == errc::invalid_argument);
  co_await other.close();
  co_await over.close();
}

CO_TEST("a delivery that can't begin is heard of by observers, and tried again after a while") {
  listener heard;
  auto options = heard_by(heard);
  options.use_route(route_choice::mapped).decide_limit(milliseconds(20));
  line over(co_await asio::this_coro::executor, host_setting(1), options);
  model source(host_memory(), layers(), 1); // in no memory that can be mapped
  auto const views = source.views();
  auto held = over.sender().hold(1, views);
  co_await over.connect();
  while (heard.ended.size() < 3) co_await settle(1);
  CHECK(std::count(heard.ended.begin(), heard.ended.end(), true) == 0);
  CHECK(heard.reports[0].version == 1);
  co_await held.release();
  co_await over.close();
}
