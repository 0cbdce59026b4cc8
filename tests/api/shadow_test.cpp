// Serving one version while the next arrives: two sets of destinations, leases, and what a server is told of
// its state. Part of ropeway; Apache-2.0.
#include <asio/io_context.hpp>
#include <chrono>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib; // two layers each

std::vector<tensor_info> layers(std::size_t first = 0, std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = first; i < first + count; ++i)
    specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

/// A model's memory twice, and the destinations over both.
struct served {
  explicit served(shadow_form form, bool partly = false)
      : first(host_memory(), layers(), 0), second(host_memory(), layers(), 0) {
    auto one = first.into(), two = second.into();
    one.allow_unsent(partly);
    two.allow_unsent(partly);
    into.emplace(std::move(one), std::move(two), form);
  }
  model const& set(std::size_t index) const { return index == 0 ? first : second; }
  /// What a reader sees now, whole.
  model const& live() const {
    auto const reader = into->lease();
    if (!reader) throw std::runtime_error("nothing is live");
    return set(reader.set());
  }
  model first, second;
  std::optional<shadow_destinations> into;
};

awaitable<load_report> load_next(receiver& from, shadow_destinations& into) {
  auto next = co_await announced(from);
  load_report report = co_await next.load_into(into);
  co_return report;
}

awaitable<void> send_one(line& over, std::uint64_t version, std::vector<tensor_view> tensors,
                         served& server) {
  auto load = beside(over.executor(), load_next(over.receiver(), *server.into));
  send_report const report = co_await over.sender().send_weights(version, tensors);
  CHECK(outcomes(report) == "committed");
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
}

awaitable<void> goes_live(shadow_form form) {
  auto const setting = host_setting(1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  served server(form);
  CHECK_FALSE(bool(server.into->lease()));
  CHECK(server.into->status().what == holding::nothing);
  model source(host_memory(), layers(), 1);
  for (std::uint64_t version = 1; version <= 4; ++version) {
    source.fill(version);
    co_await send_one(over, version, source.views(), server);
    auto const reader = server.into->lease();
    CHECK(bool(reader));
    CHECK(reader.version() == version);
    CHECK(reader.set() == (form == shadow_form::swap ? (version + 1) % 2 : 0));
    CHECK(difference(source.images(), server.live()) == "");
    auto const now = server.into->status();
    CHECK(now.whole());
    CHECK(now.version == version);
    CHECK(now.from.find("process " + std::to_string(::getpid())) == 0);
  }
  co_await over.close();
}

} // namespace

CO_TEST("each version goes live whole with its commit; the sets change places") {
  co_await goes_live(shadow_form::swap);
}
CO_TEST("each version goes live whole with its commit, at the addresses of the first set") {
  co_await goes_live(shadow_form::copy_at_commit);
}

CO_TEST("who holds a lease reads the same bytes until it ends; the load that needs the set waits for it") {
  auto const setting = host_setting(1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  served server(shadow_form::swap);
  model source(host_memory(), layers(), 1);
  co_await send_one(over, 1, source.views(), server);
  auto slow = server.into->lease();
  CHECK(slow.version() == 1);
  auto const first = source.images();
  source.fill(2);
  co_await send_one(over, 2, source.views(), server); // into the other set
  CHECK(server.into->version() == 2);
  CHECK(difference(first, server.set(slow.set())) == "");
  auto const second = source.images();
  source.fill(3);
  auto load = beside(over.executor(), load_next(over.receiver(), *server.into));
  auto send = beside(over.executor(), over.sender().send_weights(3, source.views()));
  event const offered(over.executor());
  while (over.receiver().status().phase != session_phase::offered) {
    auto turn = beside(over.executor(), offered.wait());
    offered.set();
    co_await turn.join();
  }
  for (int i = 0; i < 100; ++i) { // turns of the loop: nothing may be written meanwhile
    auto turn = beside(over.executor(), offered.wait());
    co_await turn.join();
  }
  CHECK_FALSE(load.done());
  CHECK(difference(first, server.set(slow.set())) == "");
  CHECK(difference(second, server.live()) == "");
  slow.end();
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  auto const sent = co_await send.join();
  CHECK(sent.ok());
  CHECK(server.into->version() == 3);
  CHECK(difference(source.images(), server.live()) == "");
  co_await over.close();
}

CO_TEST("readers that hold a set for too long: the sender hears not now, the live version stays") {
  auto const setting = host_setting(1);
  auto impatient = quick_receiver();
  impatient.lease_limit(milliseconds(30));
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket), impatient);
  co_await over.connect();
  served server(shadow_form::swap);
  model source(host_memory(), layers(), 1);
  co_await send_one(over, 1, source.views(), server);
  auto const first = source.images();
  auto slow = server.into->lease();
  source.fill(2);
  co_await send_one(over, 2, source.views(), server);
  auto const second = source.images();
  source.fill(3);
  auto load = beside(over.executor(), load_next(over.receiver(), *server.into));
  auto const sent = co_await try_to(over.sender().send_weights(3, source.views()));
  CHECK(sent.error == make_error_code(errc::too_few_receivers));
  CHECK(sent.report.has_value());
  if (sent.report) CHECK(outcomes(*sent.report) == "skipped");
  auto const loaded = co_await load.join();
  CHECK(loaded.error == make_error_code(errc::leased));
  CHECK(difference(first, server.set(slow.set())) == "");
  CHECK(difference(second, server.live()) == "");
  CHECK(server.into->status().whole());
  slow.end();
  co_await send_one(over, 4, source.views(), server);
  CHECK(difference(source.images(), server.live()) == "");
  co_await over.close();
}

CO_TEST("cancelling, or closing, while a load waits for leases ends it at once; nothing was written") {
  for (bool close : {false, true}) {
    INFO("close: " << close);
    auto const setting = host_setting(1);
    auto patient_one = quick_receiver();
    patient_one.lease_limit(std::chrono::hours(1)); // which must not keep the loop running
    line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket), patient_one);
    co_await over.connect();
    served server(shadow_form::swap);
    model source(host_memory(), layers(), 1);
    co_await send_one(over, 1, source.views(), server);
    auto const first = source.images();
    auto slow = server.into->lease();
    source.fill(2);
    co_await send_one(over, 2, source.views(), server);
    auto update = beside(over.executor(), announced(over.receiver()));
    auto send = beside(over.executor(), over.sender().send_weights(3, source.views()));
    auto offered = co_await update.join();
    CHECK(offered.ok());
    auto load = beside(over.executor(), offered.value->load_into(*server.into));
    if (close)
      co_await over.receiver().close();
    else
      load.cancel();
    auto const loaded = co_await load.join();
    CHECK(loaded.error == asio::error::operation_aborted);
    auto const sent = co_await send.join();
    CHECK(sent.error == make_error_code(errc::too_few_receivers));
    CHECK(difference(first, server.set(slow.set())) == "");
    slow.end();
    if (close) co_await over.receiver().connect(over.path());
    auto waited = co_await try_to(over.sender().wait_for_receivers(1, patient(5s)));
    CHECK(waited.ok());
    co_await send_one(over, 4, source.views(), server);
    CHECK(difference(source.images(), server.live()) == "");
    co_await over.close();
  }
}

static awaitable<void> partly(shadow_form form) {
  auto const setting = host_setting(1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  served server(form, true);
  model whole(host_memory(), layers(), 1);
  co_await send_one(over, 1, whole.views(), server);
  for (std::uint64_t version = 2; version <= 7; ++version) {
    // Another few layers each time, and once nothing at all.
    std::size_t const count = version == 5 ? 0 : 3;
    model part(host_memory(), layers(version * 2, 3), version);
    std::vector<tensor_view> views;
    for (std::size_t i = 0; i < count; ++i) {
      views.push_back(part.view(i));
      whole.put(version * 2 + i, part.bytes(i));
    }
    co_await send_one(over, version, views, server);
    CHECK(server.into->version() == version);
    CHECK(difference(whole.images(), server.live()) == "");
  }
  co_await over.close();
}

CO_TEST("what an update does not cover comes from the live set: every version is whole") {
  co_await partly(shadow_form::swap);
}
CO_TEST("what an update does not cover stays as it is where the addresses don't move") {
  co_await partly(shadow_form::copy_at_commit);
}

static awaitable<void> fails_half_way(shadow_form form) {
  auto const setting = host_setting(1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(kib));
  co_await over.connect();
  served server(form, true);
  model whole(host_memory(), layers(), 1);
  co_await send_one(over, 1, whole.views(), server);
  model doomed(host_memory(), layers(), 2);
  failing_source source(doomed, 7, "the optimiser has diverged");
  auto load = beside(over.executor(), load_next(over.receiver(), *server.into));
  auto const sent = co_await try_to(over.sender().send_weights(2, source));
  CHECK(sent.error == make_error_code(errc::source_failed));
  auto const loaded = co_await load.join();
  CHECK(loaded.error == make_error_code(errc::peer_aborted));
  CHECK(server.into->status().whole());
  CHECK(server.into->version() == 1);
  CHECK(difference(whole.images(), server.live()) == "");
  // What the failed update has written is not served by a later one that covers less.
  model part(host_memory(), layers(10, 2), 3);
  for (std::size_t i = 0; i < 2; ++i) whole.put(10 + i, part.bytes(i));
  co_await send_one(over, 3, part.views(), server);
  CHECK(difference(whole.images(), server.live()) == "");
  co_await over.close();
}

CO_TEST("an update that fails half way leaves the live set alone, and nothing of it is ever served") {
  co_await fails_half_way(shadow_form::swap);
}
CO_TEST("the same where the addresses don't move") { co_await fails_half_way(shadow_form::copy_at_commit); }

CO_TEST("a first update that fails, then one that covers less: nothing goes live until all is whole") {
  auto const setting = host_setting(1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(kib));
  co_await over.connect();
  served server(shadow_form::swap, true);
  model whole(host_memory(), layers(), 1);
  failing_source source(whole, 7, "the optimiser has diverged");
  auto load = beside(over.executor(), load_next(over.receiver(), *server.into));
  auto const sent = co_await try_to(over.sender().send_weights(1, source));
  CHECK_FALSE(sent.ok());
  auto const loaded = co_await load.join();
  CHECK_FALSE(loaded.ok());
  model part(host_memory(), layers(0, 2), 2);
  co_await send_one(over, 2, part.views(), server);
  CHECK_FALSE(bool(server.into->lease()));
  CHECK(server.into->status().what == holding::torn);
  co_await send_one(over, 3, whole.views(), server);
  CHECK(server.into->version() == 3);
  CHECK(difference(whole.images(), server.live()) == "");
  co_await over.close();
}

CO_TEST("sets that are not for the same places, or share memory, are refused") {
  model one(host_memory(), layers(), 0), two(host_memory(), layers(), 0),
      less(host_memory(), layers(0, 19), 0);
  auto const refused = [](destinations a, destinations b) {
    try {
      shadow_destinations(std::move(a), std::move(b));
    } catch (transfer_error const& error) { return error.code() == make_error_code(errc::invalid_argument); }
    return false;
  };
  CHECK_FALSE(refused(one.into(), two.into()));
  CHECK(refused(one.into(), less.into()));
  CHECK(refused(one.into(), one.into()));
  auto lax = two.into();
  lax.allow_unplaced();
  CHECK(refused(one.into(), std::move(lax)));
  auto const with_a_name_for = [](model& of, std::size_t index) {
    auto into = of.into();
    auto const place = of.target(index);
    into.add({"tied", place.type(), place.dims(), place.data()}).allow_tied();
    return into;
  };
  CHECK_FALSE(refused(with_a_name_for(one, 0), with_a_name_for(two, 0)));
  CHECK(refused(with_a_name_for(one, 0), with_a_name_for(two, 1)));
  destinations part;
  for (std::size_t i = 0; i + 1 < two.size(); ++i) part.add(two.target(i));
  part.add_part({0}, two.target(two.size() - 1));
  CHECK(refused(one.into(), std::move(part)));
  co_return;
}

CO_TEST("tied weights of shadow destinations, both sent or one, or none in an update of a part") {
  for (auto const form : {shadow_form::swap, shadow_form::copy_at_commit}) {
    auto const setting = host_setting(1);
    line over(co_await asio::this_coro::executor, setting, quick_sender(kib));
    co_await over.connect();
    model source(host_memory(), layers(), 1), one(host_memory(), layers(), 0),
        two(host_memory(), layers(), 0);
    auto const tied = [](model& of) {
      auto into = of.into();
      auto const place = of.target(0);
      into.add({"tied", place.type(), place.dims(), place.data()}).allow_tied().allow_unsent();
      return into;
    };
    auto first = tied(one), second = tied(two);
    shadow_destinations into(std::move(first), std::move(second), form);
    auto all = source.views();
    auto const head = all[0];
    auto both = all, other = all;
    both.emplace_back("tied", head.type(), head.dims(), head.data(), head.where());
    other[0] = both.back();
    std::vector<tensor_view> rest(all.begin() + 1, all.end());
    std::uint64_t version = 0;
    auto wanted = source.images();
    for (auto const* views : {&both, &all, &other, &rest}) {
      source.fill(++version + 1);
      auto load = beside(over.executor(), load_next(over.receiver(), into));
      co_await over.sender().send_weights(version, *views);
      auto const loaded = co_await load.join();
      CHECK_MESSAGE(loaded.ok(), loaded.said());
      auto const now = source.images();
      std::copy(now.begin() + (views == &rest), now.end(), wanted.begin() + (views == &rest));
      auto const lease = into.lease();
      CHECK(lease.version() == version);
      CHECK(difference(wanted, lease.set() == 0 ? one : two) == "");
    }
    co_await over.close();
  }
}

CO_TEST("a server is told what it holds and where its session is, since when and from whom") {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  line over(executor, setting, quick_sender(kib));
  auto& server = over.receiver();
  CHECK(server.status().phase == session_phase::closed);
  CHECK(server.status().sender == "");
  auto const before = std::chrono::system_clock::now();
  co_await over.connect();
  CHECK(server.status().phase == session_phase::idle);
  CHECK(server.status().since >= before);
  std::string const from = "process " + std::to_string(::getpid()) + " of user " +
                           std::to_string(::getuid()) + " at " + over.path();
  CHECK(server.status().sender == from);
  model whole(host_memory(), layers(), 1), held(host_memory(), layers(), 0);
  auto into = held.into();
  CHECK(into.status().what == holding::nothing);
  event const open(executor), reached(executor);
  gated_source source(whole, 7, open, reached);
  auto update = beside(executor, announced(server));
  auto send = beside(executor, over.sender().send_weights(5, source));
  auto offered = co_await update.join();
  CHECK(offered.ok());
  CHECK(server.status().phase == session_phase::offered);
  CHECK(server.status().arriving == 5);
  auto load = beside(executor, offered.value->load_into(into));
  co_await reached.wait();
  while (into.status().what == holding::nothing) { // until the first bucket is here
    auto turn = beside(executor, reached.wait());
    co_await turn.join();
  }
  CHECK(server.status().phase == session_phase::loading);
  auto const during = into.status();
  CHECK(during.what == holding::loading);
  CHECK(during.arriving == 5);
  CHECK_FALSE(during.version.has_value());
  CHECK(during.from == from);
  CHECK_FALSE(during.whole());
  CHECK(during.since >= before);
  auto const opened = std::chrono::system_clock::now();
  CHECK(during.since <= opened);
  open.set();
  auto const sent = co_await send.join();
  CHECK(sent.ok());
  auto const loaded = co_await load.join();
  CHECK(loaded.ok());
  CHECK(server.status().phase == session_phase::idle);
  CHECK_FALSE(server.status().arriving.has_value());
  CHECK(server.status().version == 5);
  auto const after = into.status();
  CHECK(after.whole());
  CHECK(after.version == 5);
  CHECK_FALSE(after.arriving.has_value());
  CHECK(after.since >= opened);
  CHECK(after.since <= std::chrono::system_clock::now());
  CHECK(after.from == from);
  failing_source doomed(whole, 7, "the optimiser has diverged");
  auto again = beside(executor, load_next(server, into));
  auto const failed = co_await try_to(over.sender().send_weights(6, doomed));
  CHECK_FALSE(failed.ok());
  auto const torn = co_await again.join();
  CHECK_FALSE(torn.ok());
  CHECK(into.status().what == holding::torn);
  CHECK(into.status().version == 5);
  CHECK(into.status().arriving == 6);
  CHECK(server.status().phase == session_phase::idle);
  CHECK(server.status().version == 5);
  co_await over.close();
  CHECK(server.status().phase == session_phase::closed);
}

// ---- on devices whose copies finish when the test says so ----

namespace {

awaitable<void> noted(awaitable<load_report> work, bool& done) {
  co_await std::move(work);
  done = true;
}

/// The last copy of `copy_at_commit`, held back: what readers and owners see of it.
struct slow_commit {
  slow_commit() {
    setting how = host_setting(1);
    how.how.devices = std::make_shared<scripted_devices>(std::make_shared<script>());
    how.how.into[0].devices = devices;
    over.emplace(io.get_executor(), how, quick_sender(small_bucket));
    auto connected = beside(io.get_executor(), over->connect());
    run([&] { return connected.done(); });
    run_send(1);
  }
  template <class Done>
  void run(Done done) {
    CHECK(run_script(io, *when, done));
  }
  void run_send(std::uint64_t version) {
    auto sent = beside(io.get_executor(), send_one(*over, version, source.views(), server));
    run([&] { return sent.done(); });
  }
  /// Version 2 on its way, up to the queued copy of the commit.
  void reach_commit() {
    source.fill(2);
    when->set(script::pace::held);
    load = beside(io.get_executor(), noted(load_next(over->receiver(), *server.into), loaded));
    send = beside(io.get_executor(), over->sender().send_weights(2, source.views()));
    auto const writes_first = [&] { return when->touches(server.first.target(0).data(), 1); };
    auto const end = std::chrono::steady_clock::now() + patient(20s);
    while (!writes_first() && std::chrono::steady_clock::now() < end) {
      io.restart();
      if (io.poll() != 0) continue;
      if (!when->finish_next()) io.run_one_for(1ms);
    }
    CHECK(writes_first());
  }
  void finish() {
    when->set(script::pace::immediate);
    when->finish_all();
  }
  void end() {
    auto closed = beside(io.get_executor(), over->close());
    run([&] { return closed.done(); });
    over.reset();
    io.restart();
    io.run();
  }

  asio::io_context io{1};
  std::shared_ptr<script> when = std::make_shared<script>();
  std::shared_ptr<scripted_devices> devices = std::make_shared<scripted_devices>(when);
  std::optional<line> over;
  served server{shadow_form::copy_at_commit};
  model source{host_memory(), layers(), 1};
  task<void> load;
  bool loaded = false; ///< without an error
  task<send_report> send;
};

awaitable<void> comes_back(line& over) {
  co_await over.receiver().close();
  co_await over.receiver().connect(over.path());
  co_await over.sender().wait_for_receivers(1, patient(milliseconds(5000)));
  auto const there = co_await over.sender().receivers();
  CHECK(there.size() == 1);
  CHECK_FALSE(there.front().holds_version);
}

} // namespace

TEST_CASE("while a commit copies, nobody is given a lease, and a cancellation comes too late") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  of.reach_commit();
  CHECK_FALSE(bool(of.server.into->lease()));
  CHECK(of.server.into->status().what == holding::loading);
  CHECK(of.over->receiver().status().phase == session_phase::committing);
  of.load.cancel();
  of.finish();
  of.run([&] { return of.load.done() && of.send.done(); });
  CHECK(of.loaded);
  CHECK(of.server.into->version() == 2);
  CHECK(difference(of.source.images(), of.server.live()) == "");
  CHECK(of.over->receiver().version() == 2);
  of.end();
}

TEST_CASE("who comes back after the copy of its commit has failed says that it holds nothing") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  of.reach_commit();
  of.devices->fail_queues(device::host(), errc::device_failed);
  of.finish();
  of.run([&] { return of.load.done() && of.send.done(); });
  CHECK_FALSE(of.loaded);
  CHECK_FALSE(bool(of.server.into->lease()));
  auto again = beside(of.io.get_executor(), comes_back(*of.over));
  of.run([&] { return again.done(); });
  of.end();
}

TEST_CASE("a receiver that is closed while its commit copies commits first, and then says goodbye") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  of.reach_commit();
  auto closed = beside(of.io.get_executor(), of.over->receiver().close());
  of.io.restart();
  of.io.poll();
  CHECK_FALSE(closed.done());
  of.finish();
  of.run([&] { return closed.done() && of.load.done() && of.send.done(); });
  CHECK(of.loaded);
  CHECK(of.server.into->version() == 2);
  auto ended = beside(of.io.get_executor(), try_to(of.over->sender().wait_for_receivers(0, 1s)));
  of.run([&] { return ended.done(); });
  CHECK(of.over->receiver().status().phase == session_phase::closed);
  of.end();
}

TEST_CASE("a sender that is gone while a commit copies: what it ordered is done") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  of.reach_commit();
  auto closed = beside(of.io.get_executor(), of.over->sender().close());
  of.io.restart();
  of.io.poll();
  of.finish();
  of.run([&] { return closed.done() && of.load.done() && of.send.done(); });
  CHECK(of.loaded);
  CHECK(of.server.into->version() == 2);
  CHECK(difference(of.source.images(), of.server.live()) == "");
  CHECK(of.over->receiver().version() == 2);
  of.end();
}

TEST_CASE("a device that fails while a commit copies leaves the live set torn, until a load of all of it") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  of.reach_commit();
  of.devices->fail_queues(device::host(), errc::device_failed);
  of.run([&] { return of.load.done() && of.send.done(); });
  CHECK_FALSE(of.loaded);
  CHECK_FALSE(bool(of.server.into->lease()));
  CHECK(of.server.into->status().what == holding::torn);
  CHECK(of.server.into->status().arriving == 2);
  of.finish();
  of.run_send(3);
  CHECK(difference(of.source.images(), of.server.live()) == "");
  of.end();
}

TEST_CASE("a commit that must copy waits for readers, and fails without harm when they take too long") {
  deadline_guard const guard(patient(30s));
  slow_commit of;
  auto const first = of.source.images();
  auto slow = of.server.into->lease();
  of.source.fill(2);
  SUBCASE("in time") {
    auto load = beside(of.io.get_executor(), load_next(of.over->receiver(), *of.server.into));
    auto send = beside(of.io.get_executor(), of.over->sender().send_weights(2, of.source.views()));
    of.run([&] { return of.over->receiver().status().phase == session_phase::committing; });
    of.io.restart();
    of.io.poll();
    CHECK_FALSE(load.done());
    CHECK(difference(first, of.server.first) == "");
    CHECK_FALSE(bool(of.server.into->lease())); // or the commit would wait for ever
    slow.end();
    of.run([&] { return load.done() && send.done(); });
    CHECK(of.server.into->version() == 2);
  }
  SUBCASE("too late") {
    auto impatient = quick_receiver();
    impatient.lease_limit(milliseconds(20)).name("impatient");
    lane where{host_memory(), of.devices};
    auto& other = of.over->add_receiver(impatient, where);
    auto connected = beside(of.io.get_executor(), other.connect(of.over->path()));
    of.run([&] { return connected.done(); });
    model held(host_memory(), layers(), 0);
    auto aside = held.into();
    auto first_load = beside(of.io.get_executor(), ropeway::testing::load_next(of.over->receiver(), aside));
    auto load = beside(of.io.get_executor(), load_next(other, *of.server.into));
    auto send = beside(of.io.get_executor(), of.over->sender().send_weights(2, of.source.views()));
    of.run([&] { return load.done() && first_load.done() && send.done(); });
    CHECK(difference(first, of.server.first) == "");
    CHECK(slow.version() == 1);
    CHECK(of.server.into->status().whole());
    CHECK(of.server.into->version() == 1);
    CHECK_FALSE(other.version().has_value());
    slow.end();
    CHECK(of.server.into->lease().version() == 1);
    auto closed = beside(of.io.get_executor(), other.close());
    of.run([&] { return closed.done(); });
  }
  of.end();
}
