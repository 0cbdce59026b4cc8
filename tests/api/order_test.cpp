// Versions one after the other, receivers that come, go, are slow or are busy, and who is told what.
// Part of ropeway; Apache-2.0.
#include "line.hpp"
#include "ropeway/watch.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "wire/listener.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::vector<tensor_info> some_layers(std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}
constexpr std::uint64_t small_bucket = 4 * kib; // two layers each

/// Takes an update bucket by bucket, and lets go of bucket k only when the other receiver can't come further
/// without this one: when it has let go of bucket k + slots - 1.
awaitable<std::vector<image>> take_late(receiver& from, memory_kind& memory, std::uint32_t slots,
                                        std::uint32_t const& others, event moved) {
  auto next = co_await announced(from);
  assembly parts(next);
  while (auto taken = co_await next.next_bucket()) {
    auto const reachable = std::min(taken->number() + slots, next.buckets());
    while (others < reachable) {
      moved.reset();
      co_await moved.wait();
    }
    // Everything that could overwrite this slot has happened.
    co_await settle();
    parts.add(*taken, memory);
    taken->release();
  }
  auto tensors = parts.finish();
  co_await next.commit();
  co_return tensors;
}

awaitable<std::vector<image>> take_eagerly(receiver& from, memory_kind& memory, std::uint32_t& released,
                                           event moved) {
  auto next = co_await announced(from);
  assembly parts(next);
  while (auto taken = co_await next.next_bucket()) {
    parts.add(*taken, memory);
    taken->release();
    ++released;
    moved.set();
  }
  auto tensors = parts.finish();
  co_await next.commit();
  co_return tensors;
}

awaitable<void> one_is_delayed(setting const& how) {
  model source(host_memory(), some_layers(), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto const wanted = source.images();
  std::uint32_t released = 0;
  event const moved(over.executor());
  auto late = beside(over.executor(), take_late(over.receiver(0), source.kind(), how.slots, released, moved));
  auto eager = beside(over.executor(), take_eagerly(over.receiver(1), source.kind(), released, moved));
  send_report const report = co_await over.sender().send_weights(1, source.views());
  CHECK(outcomes(report) == "committed committed");
  auto const late_got = co_await late.join();
  auto const eager_got = co_await eager.join();
  CHECK_MESSAGE(late_got.ok(), late_got.said());
  CHECK_MESSAGE(eager_got.ok(), eager_got.said());
  if (late_got.ok()) CHECK(difference(wanted, *late_got.value) == "");
  if (eager_got.ok()) CHECK(difference(wanted, *eager_got.value) == "");
  co_await over.close();
}

} // namespace

CO_TEST("the same source is sent twice, and the versions arrive in order") {
  auto const how = host_setting(2);
  model source(host_memory(), some_layers(), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  std::deque<model> held;
  for (int i = 0; i < 2; ++i) held.emplace_back(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  for (auto& each : held) into.push_back(each.into());
  for (std::uint64_t version : {1u, 2u}) {
    source.fill(version);
    send_report const report = co_await deliver(over, version, source.views(), into);
    CHECK(outcomes(report) == "committed committed");
    for (auto& each : held) CHECK(difference(source.images(), each) == "");
    CHECK(over.receiver(1).version() == version);
  }
  // A version is a label: lower and equal ones are valid.
  for (std::uint64_t version : {1u, 1u, 0u}) {
    source.fill(version + 10);
    send_report const report = co_await deliver(over, version, source.views(), into);
    CHECK(outcomes(report) == "committed committed");
    for (auto& each : held) CHECK(difference(source.images(), each) == "");
  }
  co_await over.close();
}

awaitable<void> changes_arrive(setting const& how) {
  std::vector<tensor_info> specs;
  for (int i = 0; i < 5; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {10, 50}});
  model const source(how.how.from, specs, 1), elsewhere(how.how.from, specs, 2);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto const all = source.views();
  auto const with = [&](tensor_view other) {
    auto views = all;
    views[2] = other;
    return views;
  };
  tensor_view const third = all[2];
  auto const renamed = "layer.X"; // as long as the name before
  tensor_view strided("layer.2", dtype::f32, {50, 10}, third.data(), third.where());
  tensor_view other_strides = strided;
  strided.strides({1, 50});
  other_strides.strides({0, 1});
  tensor_view const turned("layer.2", dtype::f32, {50, 10}, third.data(), third.where()),
      retyped("layer.2", dtype::i32, {10, 50}, third.data(), third.where()),
      other_name(renamed, dtype::f32, {10, 50}, third.data(), third.where());
  std::vector<std::vector<tensor_view>> sends{
      all,
      all,
      with(turned),
      with(strided),
      with(other_strides),
      with(retyped),
      with(other_name),
      with(elsewhere.view(2)),
      {all.begin(), all.end() - 1},
      all,
      elsewhere.views(),
      {all[1], all[0], all[2], all[3], all[4]},
      {},
      all,
  };
  std::uint64_t version = 0;
  for (auto const& views : sends) {
    auto taking = beside(over.executor(), take_next(over.receiver(), source.kind()));
    send_report const report = co_await over.sender().send_weights(++version, views);
    CHECK(outcomes(report) == "committed");
    auto const got = co_await taking.join();
    REQUIRE_MESSAGE(got.ok(), got.said());
    std::vector<image> wanted; // each of the model in whose memory it lies
    for (auto const& view : views) {
      bool const other = std::ranges::any_of(
          elsewhere.views(), [&](tensor_view const& one) { return one.data() == view.data(); });
      wanted.push_back((other ? elsewhere : source).images({&view, 1}).front());
    }
    CHECK_MESSAGE(difference(wanted, *got.value) == "", "send " << version);
  }
  // Also where the tensors don't lie side by side; what is refused is not remembered; types count, in memory
  // and on the wire.
  auto const refused = co_await try_to(over.sender().send_weights(++version, with(all[1])));
  CHECK(refused.error == make_error_code(errc::duplicate_name));
  tensor_view widened("layer.2", dtype::bf16, {10, 50}, third.data(), third.where());
  widened.sent_as(dtype::f32);
  tensor_view narrowed = third;
  narrowed.sent_as(dtype::bf16);
  for (auto const& sent : {third, widened, narrowed}) {
    std::deque<tensor_view> views(all.begin(), all.end());
    views[2] = sent;
    auto taking = beside(over.executor(), take_next(over.receiver(), source.kind()));
    (void)co_await over.sender().send_weights(++version, views);
    auto const got = co_await taking.join();
    REQUIRE_MESSAGE(got.ok(), got.said());
    bool const as_it_is = sent.type() == sent.wire_type();
    CHECK((difference(source.images(), *got.value) == "") == as_it_is);
    CHECK((*got.value)[2].type == sent.wire_type());
  }
  co_await over.close();
}

CO_TEST("updates of the same tensors have the same layout, and others another") {
  model const source(host_memory(), some_layers(4), 1), elsewhere(host_memory(), some_layers(4), 2);
  line over(co_await asio::this_coro::executor, host_setting(), quick_sender().min_receivers(0));
  co_await over.connect();
  auto renamed = source.views();
  renamed[1].name("another name");
  std::vector<std::array<std::uint8_t, 16>> layouts;
  for (auto const& views : {source.views(), elsewhere.views(), renamed, source.views()}) {
    auto sending = beside(over.executor(), over.sender().send_weights(1, views));
    auto next = co_await announced(over.receiver());
    layouts.push_back(next.layout());
    next.refuse("it was only looked at");
    CHECK((co_await sending.join()).ok());
  }
  CHECK(layouts[1] == layouts[0]);
  CHECK(layouts[2] != layouts[0]);
  CHECK(layouts[3] == layouts[0]);
  co_await over.close();
}

CO_TEST("whatever a send changes against the last one arrives") { co_await changes_arrive(host_setting()); }

TEST_CASE("a slot is overwritten only when the slowest receiver has let go of it") {
  for (std::uint32_t slots : {1u, 2u, 3u}) {
    INFO("a ring of " << slots);
    auto const how = host_setting(2, slots);
    run_to_end([&] { return one_is_delayed(how); });
  }
}

CO_TEST("who joins while an update runs waits for the next one") {
  auto const how = host_setting(1);
  model source(host_memory(), some_layers(), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto sending = beside(over.executor(), over.sender().send_weights(1, source.views()));
  auto first = co_await announced(over.receiver());
  over.add_receiver(quick_receiver("late"));
  co_await over.connect();
  model held(host_memory(), source.specs(), 0), late(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  into.push_back(late.into());
  co_await first.load_into(into[0]);
  auto const sent = co_await sending.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  if (sent.ok()) CHECK(outcomes(*sent.value) == "committed");
  CHECK(late.untouched());
  send_report const second = co_await deliver(over, 2, source.views(), into);
  CHECK(outcomes(second) == "committed committed");
  CHECK(difference(source.images(), late) == "");
  co_await over.close();
}

CO_TEST("a receiver leaves and comes back under the same name") {
  auto const how = host_setting(1);
  model source(host_memory(), some_layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  co_await deliver(over, 1, source.views(), into);
  co_await over.receiver().close();
  // Nobody is there now: told at once.
  auto const nobody = co_await try_to(over.sender().send_weights(2, source.views()));
  CHECK(nobody.error == make_error_code(errc::too_few_receivers));
  CHECK(nobody.report.has_value());

  co_await over.receiver().connect(over.path());
  co_await over.sender().wait_for_receivers(1, milliseconds(5000));
  auto const there = co_await over.sender().receivers();
  CHECK(there.size() == 1);
  if (there.size() == 1) {
    CHECK(there[0].name.starts_with("server"));
    CHECK(there[0].holds_version);
    CHECK(there[0].version == 1);
  }
  source.fill(3);
  send_report const third = co_await deliver(over, 3, source.views(), into);
  CHECK(outcomes(third) == "committed");
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
}

CO_TEST("a second receiver with the same name is another receiver") {
  auto const how = host_setting(1);
  model source(host_memory(), some_layers(2), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  over.add_receiver(quick_receiver());
  co_await over.connect();
  model one(host_memory(), source.specs(), 0), two(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(one.into());
  into.push_back(two.into());
  send_report const report = co_await deliver(over, 1, source.views(), into);
  CHECK(outcomes(report) == "committed committed");
  co_await over.close();
}

CO_TEST("two jobs on one host don't hear each other") {
  auto const how = host_setting(1);
  auto const executor = co_await asio::this_coro::executor;
  model first_source(host_memory(), some_layers(7), 1), second_source(host_memory(), some_layers(11), 2);
  model first_held(host_memory(), first_source.specs(), 0),
      second_held(host_memory(), second_source.specs(), 0);
  line first(executor, how, quick_sender(small_bucket)),
      second(executor, how, quick_sender(2 * small_bucket));
  co_await first.connect();
  co_await second.connect();
  auto first_into = first_held.into(), second_into = second_held.into();
  auto first_load = beside(executor, load_next(first.receiver(), first_into));
  auto second_load = beside(executor, load_next(second.receiver(), second_into));
  auto first_send = beside(executor, first.sender().send_weights(7, first_source.views()));
  auto second_send = beside(executor, second.sender().send_weights(8, second_source.views()));
  auto const first_sent = co_await first_send.join();
  auto const second_sent = co_await second_send.join();
  CHECK_MESSAGE(first_sent.ok(), first_sent.said());
  CHECK_MESSAGE(second_sent.ok(), second_sent.said());
  co_await first_load.join();
  co_await second_load.join();
  CHECK(first.receiver().version() == 7);
  CHECK(second.receiver().version() == 8);
  CHECK(difference(first_source.images(), first_held) == "");
  CHECK(difference(second_source.images(), second_held) == "");
  co_await first.close();
  co_await second.close();
}

CO_TEST("one send at a time, one wait at a time, one load at a time") {
  auto const how = host_setting(1);
  model source(host_memory(), some_layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto waiting = beside(over.executor(), announced(over.receiver()));
  co_await settle();
  auto const second_wait = co_await try_to(over.receiver().next_update());
  CHECK(second_wait.error == make_error_code(errc::busy));
  auto const second_connect = co_await try_to(over.receiver().connect(over.path()));
  CHECK(second_connect.error == make_error_code(errc::busy));

  auto first_send = beside(over.executor(), over.sender().send_weights(1, source.views()));
  auto taken = co_await waiting.join();
  CHECK_MESSAGE(taken.ok(), taken.said());
  auto const second_send = co_await try_to(over.sender().send_weights(2, source.views()));
  CHECK(second_send.error == make_error_code(errc::busy));

  auto bucket = co_await taken.value->next_bucket();
  auto into = held.into();
  auto const load_too = co_await try_to(taken.value->load_into(into));
  CHECK_FALSE(load_too.ok());
  CHECK(held.untouched());
  bucket->release();
  while (auto more = co_await taken.value->next_bucket()) more->release();
  co_await taken.value->commit();
  auto const sent = co_await first_send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  CHECK(over.receiver().version() == 1);
  co_await over.close();
}

CO_TEST("too few receivers: the send fails, and the report says who committed") {
  auto const how = host_setting(2);
  auto options = quick_sender(small_bucket);
  options.min_receivers(2);
  model source(host_memory(), some_layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, how, options);
  co_await over.connect();
  auto into = held.into();
  auto load = beside(over.executor(), load_next(over.receiver(0), into));
  auto other = beside(over.executor(), announced(over.receiver(1)));
  auto send = beside(over.executor(), over.sender().send_weights(1, source.views()));
  auto no = co_await other.join();
  CHECK_MESSAGE(no.ok(), no.said());
  no.value->refuse("weights are unmapped (asleep)");
  auto const sent = co_await send.join();
  CHECK(sent.error == make_error_code(errc::too_few_receivers));
  CHECK(sent.report.has_value());
  if (sent.report) {
    CHECK(sent.report->count(outcome::committed) == 1);
    CHECK(of(*sent.report, "server-1").what == outcome::refused);
    CHECK(of(*sent.report, "server-1").text.find("weights are unmapped (asleep)") != std::string::npos);
    CHECK(bool(of(*sent.report, "server-1").error));
  }
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  co_await over.close();
}

CO_TEST("no receiver is needed: the send succeeds with an empty report") {
  auto const how = host_setting(0);
  auto options = quick_sender(small_bucket);
  options.min_receivers(0);
  model source(host_memory(), some_layers(), 1);
  line over(co_await asio::this_coro::executor, how, options);
  send_report const report = co_await over.sender().send_weights(1, source.views());
  CHECK(report.receivers.empty());
  CHECK(report.version == 1);
  auto const nobody = co_await try_to(over.sender().wait_for_receivers(1, milliseconds(20)));
  CHECK(nobody.error == make_error_code(errc::too_few_receivers));
  co_await over.close();
}

CO_TEST("start: the source is free before the slowest receiver is done") {
  auto const how = host_setting(1, 3);
  model source(host_memory(), some_layers(4), 1); // two buckets: both fit into the ring
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  sending started = co_await over.sender().start(5, source.views());
  CHECK(started.version() == 5);
  auto update = co_await announced(over.receiver());
  auto first = co_await update.next_bucket();
  co_await started.source_free();
  auto const wanted = source.images();
  source.fill(99); // the trainer goes on
  assembly parts(update);
  parts.add(*first, source.kind());
  first->release();
  while (auto more = co_await update.next_bucket()) parts.add(*more, source.kind());
  auto done = beside(over.executor(), started.done());
  co_await settle();
  CHECK_FALSE(done.done());
  co_await update.commit();
  auto const report = co_await done.join();
  CHECK_MESSAGE(report.ok(), report.said());
  if (report.ok()) {
    CHECK(outcomes(*report.value) == "committed");
    CHECK(report.value->source_free < report.value->total);
  }
  CHECK(difference(wanted, parts.finish()) == "");
  co_await over.close();
}

CO_TEST("a started version that is dropped is given up") {
  auto const how = host_setting(1);
  model source(host_memory(), some_layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto into = held.into();
  update told;
  {
    sending const dropped = co_await over.sender().start(1, source.views());
    told = co_await announced(over.receiver());
  }
  auto const loaded = co_await try_to(told.load_into(into));
  CHECK(loaded.error == make_error_code(errc::peer_aborted));
  CHECK_FALSE(over.receiver().version().has_value());
  std::vector<destinations> again;
  again.push_back(held.into());
  // Until the dropped version has wound down, a send says that one is running.
  auto sent = co_await try_to(deliver(over, 2, source.views(), again));
  while (sent.error == make_error_code(errc::busy))
    sent = co_await try_to(deliver(over, 2, source.views(), again));
  CHECK_MESSAGE(sent.ok(), sent.said());
  if (sent.ok()) CHECK(outcomes(*sent.value) == "committed");
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
}

namespace {
/// Writes down what it is told.
class notes final : public observer {
 public:
  void receiver_joined(std::string_view name) override { said("joined " + std::string(name.substr(0, 6))); }
  void receiver_left(std::string_view name, std::string_view why) override {
    said("left " + std::string(name.substr(0, 6)) + (why.empty() ? " without a reason" : ""));
  }
  void update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t buckets) override {
    said("began " + std::to_string(version) + " " + std::to_string(bytes) + " " + std::to_string(buckets));
    last_bytes = 0;
    running = true;
  }
  void bucket_moved(std::uint64_t, std::uint32_t, std::uint64_t bytes) override {
    ++buckets_moved;
    rising = rising && bytes > last_bytes;
    last_bytes = bytes;
  }
  void update_ended(std::uint64_t version, bool committed) override {
    running = false;
    said("ended " + std::to_string(version) + (committed ? " committed" : " not committed"));
  }
  std::string text;
  void stage_ended(stage_span const& what) override {
    CHECK(running);
    CHECK(what.began >= born);
  }
  std::chrono::steady_clock::time_point const born = std::chrono::steady_clock::now();
  bool running = false;
  std::uint32_t buckets_moved = 0;
  std::uint64_t last_bytes = 0;
  bool rising = true;

 private:
  void said(std::string const& line) { text += line + "; "; }
};
} // namespace

CO_TEST("an observer hears who joins and leaves, and how updates go, on either side") {
  auto const executor = co_await asio::this_coro::executor;
  auto const how = host_setting(1);
  notes trainer, server;
  auto sends = quick_sender(small_bucket);
  sends.watched_by(&trainer).min_receivers(0);
  auto receives = quick_receiver();
  receives.watched_by(&server);
  model source(host_memory(), some_layers(6), 1), held(host_memory(), source.specs(), 0);
  line over(executor, how, sends, receives);
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  co_await deliver(over, 1, source.views(), into);
  auto send = beside(executor, over.sender().send_weights(2, source.views()));
  std::optional<bucket> late;
  {
    auto update = co_await announced(over.receiver());
    late = co_await update.next_bucket();
    while (trainer.buckets_moved < 5) co_await settle(1); // the next one came, and is not taken
    co_await settle();
  }
  co_await send.join();
  late.reset();
  co_await settle();
  co_await over.receiver().close();
  co_await settle();
  co_await over.close();
  CHECK(trainer.text.starts_with(
      "joined server; began 1 12000 3; ended 1 committed; began 2 12000 3; ended 2 "));
  CHECK(trainer.text.find("left server; ") != std::string::npos);
  CHECK(server.text == "began 1 12000 3; ended 1 committed; began 2 12000 3; ended 2 not committed; ");
  CHECK(trainer.rising);
  CHECK(server.rising);
  CHECK(trainer.buckets_moved >= 4);
  CHECK(server.buckets_moved >= 3);
}

namespace {

struct kept_span {
  stage_span span;
  std::string receiver;
};
class spans final : public observer {
 public:
  void stage_ended(stage_span const& what) override {
    all.push_back({what, std::string(what.receiver)});
    CHECK(what.began < what.ended);
  }
  void update_sent(send_report const& report) override { sent.push_back(report); }
  void update_loaded(load_report const& report) override { loaded.push_back(report); }
  void update_ended(std::uint64_t, bool) override { ++ended; }

  /// Of one version's stage, this side's own.
  std::vector<stage_span> of(std::uint64_t version, update_stage what) const {
    std::vector<stage_span> found;
    for (auto const& one : all)
      if (one.span.version == version && one.span.what == what && one.receiver.empty())
        found.push_back(one.span);
    return found;
  }
  nanoseconds sum(std::uint64_t version, update_stage what) const {
    nanoseconds time{};
    for (auto const& one : of(version, what)) time += one.ended - one.began;
    return time;
  }
  std::vector<kept_span> all;
  std::vector<send_report> sent;
  std::vector<load_report> loaded;
  int ended = 0;
};

/// What looks at a range of tensors takes its time, which is the send's.
awaitable<void> counted_from_the_call() {
  line over(co_await asio::this_coro::executor, host_setting(), quick_sender().min_receivers(0));
  model source(host_memory(), some_layers(3), 1);
  auto const all = source.views();
  using clock = std::chrono::steady_clock;
  auto const turn = milliseconds(20);
  clock::time_point first{};
  auto const slow = all | std::views::transform([&first, turn](tensor_view const& one) {
                      if (first == clock::time_point()) first = clock::now();
                      while (clock::now() - first < turn) continue;
                      return one;
                    });
  send_report const report = co_await over.sender().send_weights(1, slow);
  CHECK(report.total >= turn);
  co_await over.close();
}

awaitable<void> stages_of_an_update(std::uint32_t slots) {
  auto const executor = co_await asio::this_coro::executor;
  auto const how = host_setting(1, slots);
  spans trainer, server;
  auto sends = quick_sender(small_bucket);
  sends.watched_by(&trainer);
  auto receives = quick_receiver();
  receives.watched_by(&server);
  model source(host_memory(), some_layers(12), 1), held(host_memory(), source.specs(), 0);
  line over(executor, how, sends, receives);
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  co_await deliver(over, 1, source.views(), into);
  send_report const report = co_await deliver(over, 2, source.views(), into);
  co_await over.close();

  REQUIRE(report.buckets == 6);
  REQUIRE(trainer.sent.size() == 2);
  REQUIRE(server.loaded.size() == 2);
  CHECK(trainer.ended == 2);
  CHECK(server.ended == 2);
  auto const& loaded = server.loaded[1];
  CHECK(trainer.sent[1].total == report.total);
  for (update_stage const one :
       {update_stage::announce, update_stage::pack, update_stage::publish, update_stage::wait}) {
    INFO(std::string(name(one)));
    CHECK(trainer.sum(2, one) == report.stages[one]);
    // A second slot may always be there in time.
    if (one != update_stage::wait || slots == 1) CHECK((report.stages[one].count() > 0));
    CHECK(report.stages[one] < report.total);
  }
  for (update_stage const one : {update_stage::announce, update_stage::decide, update_stage::load,
                                 update_stage::wait, update_stage::commit}) {
    INFO(std::string(name(one)));
    // What is loaded is told from when it was queued, and counted from when that began.
    CHECK(server.sum(2, one) <= loaded.stages[one]);
    if (one != update_stage::load) CHECK(server.sum(2, one) == loaded.stages[one]);
    CHECK((loaded.stages[one].count() > 0));
  }
  CHECK(loaded.stages[update_stage::load] + loaded.stages[update_stage::wait] +
            loaded.stages[update_stage::commit] <=
        loaded.total);
  CHECK(loaded.copied == 12 * 2000);

  auto const& told = report.receivers.at(0);
  CHECK(told.stages[update_stage::announce] + told.stages[update_stage::load] +
            told.stages[update_stage::wait] + told.stages[update_stage::commit] ==
        told.after);
  CHECK((told.stages[update_stage::load].count() > 0));
  CHECK(told.copied == loaded.copied);
  CHECK(told.route_reason == "12 tensors are host memory that is not shared (see sender::share)");
  CHECK(loaded.route_reason == told.route_reason);
  for (auto const& one : trainer.all)
    if (one.receiver == told.name)
      CHECK(one.span.bytes == (one.span.what == update_stage::load ? told.copied : 0));
  CHECK(std::count_if(trainer.all.begin(), trainer.all.end(),
                      [](auto const& one) { return one.receiver.starts_with("server"); }) >= 6);

  // Both sides' times are of one clock.
  auto const packs = trainer.of(2, update_stage::pack), loads = server.of(2, update_stage::load);
  REQUIRE(packs.size() == 6);
  REQUIRE(loads.size() == 6);
  for (std::uint32_t k = 0; k < 6; ++k) {
    INFO(k);
    CHECK(packs[k].bucket == k);
    CHECK(loads[k].bucket == k);
    CHECK(packs[k].bytes == 4000);
    CHECK(loads[k].bytes == 4000);
    CHECK(packs[k].ended <= loads[k].began);
    if (k >= slots) CHECK(packs[k].began >= loads[k - slots].ended);
    if (k > 0) CHECK(packs[k].began >= packs[k - 1].ended);
  }
  // The second slot is packed while the first is loaded.
  if (slots > 1) CHECK(packs[1].began < loads[0].ended);
}

} // namespace

CO_TEST("reports and observers tell what the time went into, with one slot") {
  co_await stages_of_an_update(1);
}

CO_TEST("reports and observers tell what the time went into, with two slots") {
  co_await stages_of_an_update(2);
}

CO_TEST("a send's time counts from its call, with the look at its tensors") {
  co_await counted_from_the_call();
}

CO_TEST("what tensors on the fly and buckets in hand cost stands in the reports") {
  auto const executor = co_await asio::this_coro::executor;
  spans server;
  auto receives = quick_receiver();
  receives.watched_by(&server);
  model whole(host_memory(), some_layers(8), 1);
  event open(executor), reached(executor);
  gated_source source(whole, 5, open, reached);
  line over(executor, host_setting(1), quick_sender(small_bucket), receives);
  co_await over.connect();
  auto send = beside(executor, over.sender().send_weights(1, source));
  auto update = co_await announced(over.receiver());
  nanoseconds in_hand{}, source_took{};
  while (auto taken = co_await update.next_bucket()) {
    auto const began = std::chrono::steady_clock::now();
    co_await settle();
    in_hand += std::chrono::steady_clock::now() - began;
    taken->release();
    if (taken->number() != 1) continue;
    co_await reached.wait();
    auto const asked = std::chrono::steady_clock::now();
    co_await settle();
    source_took = std::chrono::steady_clock::now() - asked;
    open.set();
  }
  auto const loaded = co_await update.commit();
  auto const sent = co_await send.join();
  REQUIRE_MESSAGE(sent.ok(), sent.said());
  CHECK((source_took.count() > 0));
  CHECK(sent.value->stages[update_stage::source] >= source_took);
  CHECK(loaded.stages[update_stage::load] >= in_hand);
  CHECK(loaded.copied == 8 * 2000);
  CHECK(server.of(1, update_stage::load).size() == 4);
  co_await over.close();
}

CO_TEST("a watcher sees who is there and what runs, and takes no part in it") {
  auto const executor = co_await asio::this_coro::executor;
  model source(host_memory(), some_layers(), 1), held(host_memory(), source.specs(), 0);
  line over(executor, host_setting(1), quick_sender(small_bucket));
  watcher watches(executor, quick_receiver());
  auto const early = co_await try_to(watches.look());
  CHECK(early.error == make_error_code(errc::not_open));
  co_await watches.connect(over.path());
  auto const second = co_await try_to(watches.connect(over.path()));
  CHECK(second.error == make_error_code(errc::busy));
  auto const empty = co_await watches.look();
  CHECK(empty.id.size() == 32);
  CHECK(empty.receivers.empty());
  CHECK_FALSE(empty.updating);

  co_await over.connect();
  auto const idle = co_await watches.look();
  REQUIRE(idle.receivers.size() == 1);
  CHECK(idle.receivers[0].name.starts_with("server"));
  CHECK_FALSE(idle.receivers[0].version);

  auto send = beside(executor, over.sender().send_weights(7, source.views()));
  auto update = co_await announced(over.receiver());
  auto const running = co_await watches.look();
  REQUIRE(running.updating);
  CHECK(running.updating->version == 7);
  CHECK(running.updating->tensors == 20);
  CHECK(running.updating->bytes == update.total_bytes());
  CHECK(running.receivers.at(0).doing == receiver_activity::deciding);
  auto into = held.into();
  co_await update.load_into(into);
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  auto const after = co_await watches.look();
  CHECK_FALSE(after.updating);
  CHECK(after.id == empty.id);
  auto const& one = after.receivers.at(0);
  CHECK(one.version == 7);
  CHECK(one.doing == receiver_activity::idle);
  CHECK(one.last_bytes == update.total_bytes());
  CHECK((one.last_took.count() > 0));
  CHECK(one.last_error.empty());
  auto const known = co_await over.sender().receivers();
  CHECK(known.size() == 1);

  // One that looks when the sender closes hears so, and can start again with the next.
  auto last = beside(executor, watches.look());
  co_await settle();
  co_await over.close();
  co_await last.join();
  auto const gone = co_await try_to(watches.look());
  CHECK_FALSE(gone.ok());
  auto const closed = co_await try_to(watches.look());
  CHECK(closed.error == make_error_code(errc::not_open));
  line next(executor, host_setting(0));
  co_await watches.connect(next.path());
  auto const other = co_await watches.look();
  CHECK(other.id != empty.id);
  watches.close();
  co_await settle();
  auto const ended = co_await try_to(watches.look());
  CHECK(ended.error == make_error_code(errc::not_open));
  co_await next.close();
}

CO_TEST("a watcher can be cancelled, and gives up on a sender that does not answer or is not there") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const place;
  auto options = quick_receiver();
  options.connect_limit(milliseconds(30));
  watcher watches(executor, options);
  auto const nobody = co_await try_to(watches.connect(place.file("nobody")));
  CHECK(nobody.error == make_error_code(errc::connect_timeout));
  options.connect_limit(std::chrono::minutes(10));
  watches = watcher(executor, options);
  auto connecting = beside(executor, watches.connect(place.file("nobody")));
  co_await settle();
  connecting.cancel();
  auto const cancelled = co_await connecting.join();
  CHECK(cancelled.error == asio::error::operation_aborted);

  // Somebody listens, and never says a word.
  wire::listener silent(wire::make_strand(executor), place.file("silent"), {});
  options.handshake_limit(milliseconds(30));
  watches = watcher(executor, options);
  co_await watches.connect(place.file("silent"));
  auto const unanswered = co_await try_to(watches.look());
  CHECK(unanswered.error == make_error_code(errc::peer_silent));
  options.handshake_limit(std::chrono::minutes(10));
  watches = watcher(executor, options);
  co_await watches.connect(place.file("silent"));
  auto looking = beside(executor, watches.look());
  auto const twice = co_await try_to(watches.look());
  CHECK(twice.error == make_error_code(errc::busy));
  looking.cancel();
  auto const stopped = co_await looking.join();
  CHECK(stopped.error == asio::error::operation_aborted);
  options.connect_limit(milliseconds(0));
  auto const refuses = [&] { watcher never(executor, options); };
  CHECK_THROWS_AS(refuses(), transfer_error);
}

CO_TEST("closing tells the receivers, and ends what runs") {
  auto const how = host_setting(2);
  model source(host_memory(), some_layers(), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto idle = beside(over.executor(), over.receiver(0).next_update());
  auto send = beside(over.executor(), over.sender().send_weights(1, source.views()));
  auto asked = co_await idle.join();
  CHECK(asked.ok());
  auto bucket_wait = beside(over.executor(), asked.value->value().next_bucket());
  co_await settle();
  co_await over.sender().close();
  auto const sent = co_await send.join();
  CHECK_FALSE(sent.ok());
  auto const bucket = co_await bucket_wait.join();
  CHECK_FALSE((bucket.ok() && !bucket.value->has_value()));
  auto const gone = co_await try_to(over.receiver(1).next_update());
  if (gone.ok() && gone.value->has_value()) { // the update that was announced first
    auto const after = co_await try_to(over.receiver(1).next_update());
    CHECK_FALSE((after.ok() && after.value->has_value()));
  }
  auto const late = co_await try_to(over.sender().send_weights(2, source.views()));
  CHECK(late.error == make_error_code(errc::not_open));
  CHECK(over.directory().entries().empty());
}

CO_TEST("an idle receiver hears that the sender has closed, and may wait for the next sender at the path") {
  auto const how = host_setting(1);
  auto const executor = co_await asio::this_coro::executor;
  model source(host_memory(), some_layers(3), 1), held(host_memory(), source.specs(), 0);
  line over(executor, how, quick_sender(small_bucket));
  co_await over.connect();
  auto idle = beside(executor, over.receiver().next_update());
  co_await settle();
  co_await over.sender().close();
  auto const end = co_await idle.join();
  CHECK_MESSAGE(end.ok(), end.said());
  if (end.ok()) CHECK_FALSE(end.value->has_value());

  auto connecting = beside(executor, over.receiver().connect(over.path()));
  co_await settle();
  sender next(executor, over.path(), quick_sender(small_bucket));
  auto const connected = co_await connecting.join();
  CHECK_MESSAGE(connected.ok(), connected.said());
  co_await next.wait_for_receivers(1, milliseconds(5000));
  auto into = held.into();
  auto load = beside(executor, load_next(over.receiver(), into));
  send_report const report = co_await next.send_weights(1, source.views());
  CHECK(outcomes(report) == "committed");
  co_await load.join();
  co_await over.receiver().close();
  co_await next.close();
}
