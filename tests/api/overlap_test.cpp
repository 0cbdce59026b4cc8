// Packing one bucket while another is loaded, and waiting out the copies that were queued: on devices whose
// copies take the time that the test says, or finish when it says so. Part of ropeway; Apache-2.0.
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

std::vector<tensor_info> layers(std::size_t count = 10) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {1024}});
  return specs;
}
constexpr std::uint64_t one_layer = 4 * kib;

/// Both sides' devices on one script.
struct stage {
  std::shared_ptr<script> when = std::make_shared<script>();
  std::shared_ptr<scripted_devices> trainer = std::make_shared<scripted_devices>(when);
  std::shared_ptr<scripted_devices> server = std::make_shared<scripted_devices>(when);
  setting with(std::uint32_t slots, std::size_t receivers = 1) const {
    setting how = host_setting(receivers, slots);
    how.how.devices = trainer;
    for (auto& lane : how.how.into) lane.devices = server;
    return how;
  }
};

/// The clock's time that an update of ten buckets takes, after one that made everything that is made once.
std::chrono::nanoseconds ten_buckets(std::uint32_t slots) {
  deadline_guard const guard(patient(30s));
  stage devices;
  auto const each_takes = [](device, std::span<memory::copy_op const> ops) {
    return ops.empty() ? 0ns : std::chrono::nanoseconds(50ms);
  };
  asio::io_context io(1);
  std::optional<line> over(std::in_place, io.get_executor(), devices.with(slots), quick_sender(one_layer));
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  auto const run = [&](auto work) {
    auto running = beside(io.get_executor(), std::move(work));
    bool const ended = run_script(io, *devices.when, [&] { return running.done(); });
    CHECK(ended);
  };
  run(over->connect());
  run(deliver(*over, 1, source.views(), into));
  devices.trainer->cost(each_takes);
  devices.server->cost(each_takes);
  devices.when->set(script::pace::timed);
  auto const started = devices.when->now();
  source.fill(2);
  run(deliver(*over, 2, source.views(), into));
  auto const took = devices.when->now() - started;
  CHECK(difference(source.images(), held) == "");
  CHECK(over->receiver().version() == 2);
  devices.when->set(script::pace::immediate);
  run(over->close());
  over.reset();
  io.restart();
  io.run();
  return took;
}

/// Ends of operations are held back until their copies have finished: the memory may be freed then, not
/// earlier.
enum class ender { send_cancelled, load_cancelled, send_deadline };

void copies_are_waited_out(ender what) {
  deadline_guard const guard(patient(30s));
  stage devices;
  asio::io_context io(1);
  auto options = quick_sender(one_layer);
  std::optional<line> over(std::in_place, io.get_executor(), devices.with(2), options);
  auto source = std::make_unique<model>(host_memory(), layers(), 1);
  auto held = std::make_unique<model>(host_memory(), source->specs(), 0);
  auto into = held->into();
  auto connected = beside(io.get_executor(), over->connect());
  CHECK(run_script(io, *devices.when, [&] { return connected.done(); }));
  // A good version first: what is made once is there, and an update that is aborted at once is seen.
  std::vector<destinations> first;
  first.push_back(std::move(into));
  auto const views = source->views(); // outlives the coroutine, which only refers to it
  auto delivered = beside(io.get_executor(), deliver(*over, 1, views, first));
  CHECK(run_script(io, *devices.when, [&] { return delivered.done(); }));
  into = std::move(first[0]);
  devices.when->set(script::pace::held);
  auto load = beside(io.get_executor(), load_next(over->receiver(), into));
  auto send = beside(io.get_executor(), over->sender().send_weights(2, source->views()));

  auto const run_until = [&](auto done, std::chrono::milliseconds limit = 10s) {
    auto const end = std::chrono::steady_clock::now() + limit;
    while (!done() && std::chrono::steady_clock::now() < end) {
      io.restart();
      if (io.poll() == 0) io.run_one_for(1ms);
    }
  };
  auto const reads = [&] {
    for (std::size_t i = 0; i < source->size(); ++i)
      if (devices.when->touches(source->view(i).data(), one_layer)) return true;
    return false;
  };
  auto const writes = [&] {
    for (std::size_t i = 0; i < held->size(); ++i)
      if (devices.when->touches(held->target(i).data(), one_layer)) return true;
    return false;
  };
  run_until(reads);
  CHECK(reads());
  if (what == ender::load_cancelled) {
    // Pack the first bucket, so that the receiver starts to load it.
    while (!writes()) {
      if (!devices.when->finish_next()) break;
      run_until([&] { return writes() || devices.when->in_flight() != 0; });
    }
    CHECK(writes());
    load.cancel();
    run_until([&] { return load.done(); }, 200ms);
    CHECK_FALSE(load.done()); // its copy is still queued
    CHECK(writes());
  } else {
    send.cancel();
    run_until([&] { return send.done(); }, 200ms);
    CHECK_FALSE(send.done());
    CHECK(reads());
  }
  devices.when->finish_all();
  devices.when->set(script::pace::immediate);
  devices.when->finish_all();
  run_until([&] { return load.done() && send.done(); });
  CHECK(load.done());
  CHECK(send.done());
  CHECK_FALSE(reads());
  CHECK_FALSE(writes());
  source.reset();
  held.reset();
  auto closed = beside(io.get_executor(), over->close());
  run_until([&] { return closed.done(); });
  CHECK(closed.done());
  over.reset();
  io.restart();
  io.run();
}

} // namespace

TEST_CASE("packing overlaps loading: two slots need less than 0.65 of the time of one") {
  auto const one = ten_buckets(1), two = ten_buckets(2), three = ten_buckets(3);
  INFO("one " << one.count() << " two " << two.count() << " three " << three.count());
  CHECK(one >= 10 * 100ms);
  CHECK(double(two.count()) < 0.65 * double(one.count()));
  CHECK(three <= two);
  CHECK(two >= 10 * 50ms);
}

TEST_CASE("a cancelled operation ends only after the copies that it queued") {
  for (auto what : {ender::send_cancelled, ender::load_cancelled}) {
    INFO("way " << int(what));
    copies_are_waited_out(what);
  }
}

static awaitable<void> device_fails(setting how, std::shared_ptr<scripted_devices> where, bool trainers) {
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, how, quick_sender(one_layer));
  co_await over.connect();
  auto into = held.into();
  // After the first copies of the update.
  where->fail(scripted_devices::call::copy, errc::device_failed, 3);
  auto load = beside(over.executor(), load_next(over.receiver(), into));
  auto const sent = co_await try_to(over.sender().send_weights(1, source.views()));
  auto const loaded = co_await load.join();
  CHECK_FALSE(loaded.ok());
  CHECK(into.torn());
  if (trainers) {
    CHECK(sent.error == make_error_code(errc::device_failed));
    CHECK(loaded.error == make_error_code(errc::peer_aborted));
  } else {
    CHECK(sent.error == make_error_code(errc::too_few_receivers));
    if (sent.report) CHECK(outcomes(*sent.report) == "failed");
    CHECK(loaded.error == make_error_code(errc::device_failed));
  }
  std::vector<destinations> again;
  again.push_back(std::move(into));
  send_report const second = co_await deliver(over, 2, source.views(), again);
  CHECK(outcomes(second) == "committed");
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
}

TEST_CASE("a copy that the device refuses: that side says so, the other hears it, the next update works") {
  for (bool trainers : {true, false}) {
    INFO(std::string(trainers ? "the trainer's device" : "the server's device"));
    stage const devices;
    auto const how = devices.with(2);
    run_to_end([&] { return device_fails(how, trainers ? devices.trainer : devices.server, trainers); });
  }
}

namespace {

/// A device that fails at one step of an update: it refuses a copy, or fails while the copy runs; and then
/// works again, or fails the next update as well.
struct breakdown {
  bool trainers = true, relayed = false;
  enum class how { refuses, fails, stays_broken } what = how::refuses;
  int step = 0;
  std::string words() const {
    static constexpr char const* ways[] = {"refuses a copy", "fails", "fails and stays broken"};
    return std::string(trainers ? "the trainer's device " : "the server's device ") + ways[int(what)] +
           (relayed ? ", relayed," : "") + " at step " + std::to_string(step);
  }
};

class counting_observer final : public observer {
 public:
  int ended = 0, committed = 0, left = 0;
  void receiver_left(std::string_view, std::string_view) override { ++left; }
  void update_ended(std::uint64_t, bool whole) override { ++ended, committed += whole; }
};

std::vector<tensor_view> lying_on(model const& whole, device where) {
  std::vector<tensor_view> views;
  for (auto const& view : whole.views())
    views.emplace_back(view.name(), view.type(), view.dims(), view.data(), where);
  return views;
}

awaitable<void> break_down(breakdown how) {
  auto const executor = co_await asio::this_coro::executor;
  auto const sends = std::make_shared<script>(), receives = std::make_shared<script>();
  auto const trainer = std::make_shared<scripted_devices>(sends, how.relayed ? 1 : 0);
  auto const server = std::make_shared<scripted_devices>(receives);
  device const where = how.relayed ? device::cuda(0) : device::host();
  setting over_these = host_setting(2, 2);
  over_these.how.devices = trainer;
  over_these.how.into[0].devices = server; // the other one's works
  counting_observer trainers_log;
  auto options = quick_sender(one_layer);
  options.watched_by(&trainers_log);
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  model others(host_memory(), source.specs(), 0);
  auto const views = lying_on(source, where);
  line over(executor, over_these, options);
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  into.push_back(others.into());
  // A good version first: with the layout known, everybody hears of the next at once.
  co_await deliver(over, 1, views, into);

  auto& devices = how.trainers ? *trainer : *server;
  auto& when = how.trainers ? *sends : *receives;
  if (how.what == breakdown::how::refuses)
    devices.fail(scripted_devices::call::copy, errc::device_failed, how.step);
  else
    when.set(script::pace::held);
  source.fill(2);
  auto load = beside(executor, load_next(over.receiver(0), into[0]));
  auto beside_it = beside(executor, load_next(over.receiver(1), into[1]));
  auto send = beside(executor, over.sender().send_weights(2, views));
  if (how.what != breakdown::how::refuses) {
    for (int i = 0; i < how.step; ++i)
      while (!when.finish_next()) co_await settle(1);
    while (when.in_flight() == 0) co_await settle(1);
    devices.fail_queues(device::host(), errc::device_failed);
    devices.fail_queues(where, errc::device_failed);
    when.set(script::pace::immediate);
  }
  auto const sent = co_await send.join();
  auto const loaded = co_await load.join();
  auto const loaded_beside = co_await beside_it.join();
  CHECK(trainers_log.ended == 2); // each once
  CHECK_FALSE(loaded.ok());
  CHECK(over.receiver(0).version() == 1);
  if (how.trainers) {
    CHECK(sent.error == make_error_code(errc::device_failed));
    CHECK(loaded.error == make_error_code(errc::peer_aborted));
    CHECK_FALSE(loaded.words.empty());
    CHECK(loaded_beside.error == make_error_code(errc::peer_aborted));
    if (sent.report) CHECK(outcomes(*sent.report) == "skipped skipped");
  } else {
    CHECK_MESSAGE(sent.ok(), sent.said());
    CHECK(loaded.error == make_error_code(errc::device_failed));
    CHECK_MESSAGE(loaded_beside.ok(), loaded_beside.said());
    if (sent.ok()) {
      auto const& told = of(*sent.value, "server-0");
      CHECK(told.what == outcome::failed);
      CHECK(told.error == make_error_code(errc::device_failed));
      CHECK_FALSE(told.text.empty());
    }
  }

  source.fill(3);
  std::uint64_t version = 3;
  if (how.what == breakdown::how::stays_broken) {
    // The next fails at once, with the same error.
    devices.fail(scripted_devices::call::make_queue, errc::device_failed);
    auto once_more = beside(executor, load_next(over.receiver(0), into[0]));
    auto good = beside(executor, load_next(over.receiver(1), into[1]));
    auto const failed = co_await try_to(over.sender().send_weights(version++, views));
    if (how.trainers) {
      CHECK(failed.error == make_error_code(errc::device_failed));
      once_more.cancel(); // if nobody was told of it
      good.cancel();
    } else if (failed.ok()) {
      auto const& told = of(*failed.value, "server-0");
      CHECK(told.what == outcome::refused);
      CHECK(told.error == make_error_code(errc::device_failed));
    }
    auto const first = co_await once_more.join();
    CHECK_FALSE(first.ok());
    if (!how.trainers) CHECK(first.error == make_error_code(errc::device_failed));
    auto const second = co_await good.join();
    CHECK(second.ok() == !how.trainers);
  }
  send_report const last = co_await deliver(over, version, views, into);
  CHECK(outcomes(last) == "committed committed");
  CHECK((last.stages[update_stage::relay].count() > 0) == how.relayed);
  CHECK(difference(source.images(), held) == "");
  CHECK(difference(source.images(), others) == "");
  co_await over.close();
}

} // namespace

TEST_CASE(
    "a device that fails at any step, on either side: one end with its error, words for the other side, "
    "and the next update works or fails with the same error") {
  int const buckets = int(layers().size());
  for (bool const relayed : {false, true})
    for (bool const trainers : {true, false})
      for (auto const what : {breakdown::how::refuses, breakdown::how::fails, breakdown::how::stays_broken})
        for (int step = 0; step < (trainers && relayed ? 2 * buckets : buckets); ++step) {
          breakdown const how{trainers, relayed, what, step};
          INFO(how.words());
          run_to_end([&] { return break_down(how); });
        }
}

static awaitable<void> no_memory(setting how, std::shared_ptr<scripted_devices> where) {
  model source(host_memory(), layers(), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(one_layer));
  co_await over.connect();
  where->fail(scripted_devices::call::make_region, errc::out_of_memory);
  auto load = beside(over.executor(), announced(over.receiver()));
  auto const sent = co_await try_to(over.sender().send_weights(1, source.views()));
  CHECK(sent.error == make_error_code(errc::out_of_memory));
  load.cancel();
  co_await load.join();
  model held(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  send_report const second = co_await deliver(over, 2, source.views(), into);
  CHECK(outcomes(second) == "committed");
  co_await over.close();
}

TEST_CASE("no memory for the ring: the send says how it is, and works once there is memory") {
  stage const devices;
  auto const how = devices.with(2);
  run_to_end([&] { return no_memory(how, devices.trainer); });
}

CO_TEST(
    "slots of a device are packed with a part of it while somebody reads them on another, and nobody here") {
  auto const executor = co_await asio::this_coro::executor;
  auto const devices = std::make_shared<scripted_devices>(std::make_shared<script>(), 2);
  auto const on = [&](int ordinal) {
    return lane{device_memory(devices->get(device::cuda(ordinal))), devices};
  };
  pairing how{"staged", on(0).memory, devices, {on(1), on(0)}};
  how.choice = route_choice::staged;
  counting_observer trainers_log;
  auto options = quick_sender(one_layer);
  options.watched_by(&trainers_log);
  line over(executor, {how, 2}, options);
  model source(how.from, layers(), 1);
  std::deque<model> held;
  std::vector<destinations> into;
  for (auto const& each : how.into) into.push_back(held.emplace_back(each.memory, layers(), 0).into());
  co_await over.connect();
  auto const both = co_await deliver(over, 1, source.views(), into);
  CHECK(outcomes(both) == "committed committed");
  CHECK(devices->count().lists_beside_link == 0);
  co_await over.receiver(1).close();
  while (trainers_log.left == 0) co_await settle(1);
  into.pop_back();
  auto const before = devices->count().lists;
  auto const one = co_await deliver(over, 2, source.views(), into);
  CHECK(outcomes(one) == "committed");
  auto const after = devices->count();
  CHECK(after.lists_beside_link > 0);
  CHECK(after.lists_beside_link <= layers().size() - 2); // not the first two, nor what the receiver copies
  CHECK(after.lists == before + 2 * layers().size());
  CHECK(difference(source.images(), held[0]) == "");
  co_await over.close();
}

// What is large enough, and on a GPU, is worth that receivers look out for it before it is announced.
CO_TEST("a large model on a device: each send of it is exact, also one that another's end begins") {
  auto const executor = co_await asio::this_coro::executor;
  auto const devices = std::make_shared<scripted_devices>(std::make_shared<script>(), 1);
  setting how = host_setting();
  how.how.devices = devices;
  std::vector<tensor_info> const specs{{"w", dtype::u8, {64 * mib}}};
  model const source(host_memory(), specs, 1);
  model held(host_memory(), specs, 0);
  auto const views = lying_on(source, device::cuda(0));
  line over(executor, how, quick_sender(16 * mib));
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  for (std::uint64_t version : {1u, 2u}) {
    auto const report = co_await deliver(over, version, views, into);
    CHECK(outcomes(report) == "committed");
  }
  event second(executor);
  std::error_code failed;
  auto loads = beside(executor, load_next(over.receiver(), into[0]));
  auto next = [&](std::error_code error, send_report const&) {
    failed = error;
    second.set();
  };
  auto first = [&](std::error_code error, send_report const&) {
    failed = error;
    over.sender().send_weights(4, views, next);
  };
  over.sender().send_weights(3, views, first);
  CHECK((co_await loads.join()).ok());
  CHECK((co_await beside(executor, load_next(over.receiver(), into[0])).join()).ok());
  co_await second.wait();
  CHECK_FALSE(failed);
  CHECK(over.receiver().version() == 4);
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
}
