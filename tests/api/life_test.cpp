// Updates that don't end well: sources and loaders that fail, receivers that say no, groups, torn
// destinations. After each of them the next update works. Part of ropeway; Apache-2.0.
#include <stdexcept>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib; // two layers each

std::vector<tensor_info> layers(std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

bool has(std::string const& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// Both sides must be able to go on: sends a version that every receiver must hold exactly.
awaitable<void> next_update_works(line& over, std::uint64_t version) {
  model const source(host_memory(), layers(6), version + 100);
  std::deque<model> held;
  std::vector<destinations> into;
  for (std::size_t i = 0; i < over.receivers(); ++i) held.emplace_back(host_memory(), source.specs(), 0);
  for (auto& each : held) into.push_back(each.into());
  send_report const report = co_await deliver(over, version, source.views(), into);
  CHECK(report.count(outcome::committed) == over.receivers());
  for (auto& each : held) CHECK(difference(source.images(), each) == "");
}

/// Takes `buckets` buckets of the next update, then does what `end` says.
enum class ending { throws, refuses, destroys };
awaitable<void> take_some(receiver& from, std::uint32_t buckets, ending how) {
  auto update = co_await announced(from);
  for (std::uint32_t i = 0; i < buckets; ++i) {
    auto taken = co_await update.next_bucket();
    if (!taken) throw std::runtime_error("no bucket");
    if (how == ending::throws && i + 1 == buckets)
      throw std::invalid_argument("the loader can't parse layer 7");
    taken->release();
  }
  if (how == ending::refuses) update.refuse("the loader can't parse layer 7");
}

awaitable<void> loader_fails(std::uint32_t bucket, ending how) {
  auto const setting = host_setting(2);
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  auto into = held.into();
  auto good = beside(over.executor(), load_next(over.receiver(0), into));
  auto bad = beside(over.executor(), take_some(over.receiver(1), bucket, how));
  send_report const report = co_await over.sender().send_weights(1, source.views());
  CHECK(of(report, "server-0").what == outcome::committed);
  auto const& told = of(report, "server-1");
  CHECK(told.what == outcome::failed);
  CHECK(bool(told.error));
  if (how == ending::refuses) CHECK_MESSAGE(has(told.text, "the loader can't parse layer 7"), told.text);
  CHECK_FALSE(told.text.empty());
  CHECK_MESSAGE(told.route_reason.ends_with("host memory that is not shared (see sender::share)"),
                told.route_reason);
  CHECK(told.copied == 0); // it never had all
  CHECK(of(report, "server-0").copied == report.bytes);
  co_await bad.join();
  auto const loaded = co_await good.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(source.images(), held) == "");
  co_await next_update_works(over, 2);
  co_await over.close();
}

receiver_options member(std::string name, std::string group = "tp4", std::uint32_t size = 4) {
  auto options = quick_receiver(std::move(name));
  options.group(std::move(group)).group_size(size);
  return options;
}

/// Four receivers, in one group or in none; the last one does not make it, at the stage that `take` says.
awaitable<void> one_of_four(bool grouped, std::uint32_t buckets, ending how) {
  auto const setting = host_setting(4);
  model source(host_memory(), layers(), 1);
  auto const plain = quick_receiver();
  auto const in_group = member("server");
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket),
            grouped ? in_group : plain);
  co_await over.connect();
  std::deque<model> held;
  for (int i = 0; i < 4; ++i) held.emplace_back(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  for (auto& each : held) into.push_back(each.into());
  // A good version first: the layout is known then, and an update that is aborted at once is seen by
  // everybody.
  co_await deliver(over, 1, source.views(), into);
  into.pop_back();
  source.fill(2);
  std::vector<task<load_report>> loads;
  for (std::size_t i = 0; i < 3; ++i)
    loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  auto bad = beside(over.executor(), take_some(over.receiver(3), buckets, how));
  auto const sent = co_await try_to(over.sender().send_weights(2, source.views()));
  co_await bad.join();
  CHECK(sent.ok() == !grouped);
  if (grouped) CHECK(sent.error == make_error_code(errc::too_few_receivers));
  send_report const report = sent.ok() ? *sent.value : sent.report.value_or(send_report());
  CHECK(report.receivers.size() == 4);
  CHECK(report.count(outcome::committed) == (grouped ? 0 : 3));
  CHECK(of(report, "server-3").what == (buckets == 0 ? outcome::refused : outcome::failed));
  for (std::size_t i = 0; i < 3; ++i) {
    auto const loaded = co_await loads[i].join();
    CHECK(loaded.ok() == !grouped);
    CHECK(over.receiver(i).version() == (grouped ? 1 : 2));
    if (!grouped) continue;
    CHECK((loaded.error == make_error_code(errc::peer_aborted) ||
           loaded.error == make_error_code(errc::group_incomplete)));
    CHECK(of(report, "server-" + std::to_string(i)).error == make_error_code(errc::group_incomplete));
  }
  co_await next_update_works(over, 3);
  co_await over.close();
}

} // namespace

CO_TEST("a source that fails after the third tensor: everybody hears why, and the next update works") {
  auto const setting = host_setting(2);
  model whole(host_memory(), layers(), 1);
  failing_source source(whole, 3, "the optimiser has diverged");
  line over(co_await asio::this_coro::executor, setting, quick_sender(kib));
  co_await over.connect();
  std::deque<model> held;
  std::deque<destinations> into;
  std::vector<task<load_report>> loads;
  for (std::size_t i = 0; i < 2; ++i) {
    held.emplace_back(host_memory(), whole.specs(), 0);
    into.push_back(held[i].into());
    loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  }
  auto const sent = co_await try_to(over.sender().send_weights(1, source));
  CHECK(sent.error == make_error_code(errc::source_failed));
  CHECK_MESSAGE(has(sent.text, "the optimiser has diverged"), sent.text);
  CHECK(sent.report.has_value());
  if (sent.report) CHECK(sent.report->count(outcome::committed) == 0);
  for (std::size_t i = 0; i < 2; ++i) {
    auto const loaded = co_await loads[i].join();
    CHECK(loaded.error == make_error_code(errc::peer_aborted));
    CHECK_MESSAGE(has(loaded.said(), "the optimiser has diverged"), loaded.said());
    CHECK(into[i].torn()); // one layer is two buckets here, so some were written
  }
  co_await next_update_works(over, 2);
  // The same source, when it doesn't fail: whole again.
  failing_source recovered(whole, 1000, "");
  std::vector<task<load_report>> again;
  for (std::size_t i = 0; i < 2; ++i)
    again.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  send_report const third = co_await over.sender().send_weights(3, recovered);
  CHECK(third.count(outcome::committed) == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    auto const loaded = co_await again[i].join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    CHECK_FALSE(into[i].torn());
    CHECK(difference(whole.images(), held[i]) == "");
  }
  co_await over.close();
}

CO_TEST("a source that announces and delivers nothing, or something else, is an error and no success") {
  auto const setting = host_setting(1);
  model whole(host_memory(), layers(), 1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  // The layout is known from a good version, so that every update is seen.
  model good(host_memory(), whole.specs(), 0);
  std::vector<destinations> good_into;
  good_into.push_back(good.into());
  co_await deliver(over, 1, whole.views(), good_into);
  std::uint64_t version = 1;
  for (auto const what : {wrong_source::kind::nothing, wrong_source::kind::other_name,
                          wrong_source::kind::other_shape, wrong_source::kind::other_dtype,
                          wrong_source::kind::throws_in_manifest, wrong_source::kind::null_memory}) {
    INFO("kind " << int(what));
    model held(host_memory(), whole.specs(), 0);
    auto into = held.into();
    auto load = beside(over.executor(), load_next(over.receiver(), into));
    wrong_source source(whole, what);
    auto const sent = co_await try_to(over.sender().send_weights(++version, source));
    CHECK(sent.error == make_error_code(errc::source_failed));
    // One whose manifest throws was never announced.
    if (what == wrong_source::kind::throws_in_manifest) load.cancel();
    auto const loaded = co_await load.join();
    CHECK_FALSE(loaded.ok());
    CHECK(over.receiver().version() == 1);
  }
  co_await next_update_works(over, ++version);
  co_await over.close();
}

CO_TEST("a source that takes too long for one tensor is given up") {
  auto const setting = host_setting(1);
  auto options = quick_sender(small_bucket);
  options.source_limit(milliseconds(50));
  model whole(host_memory(), layers(), 1);
  auto const executor = co_await asio::this_coro::executor;
  event const never(executor);
  gated_source source(whole, 5, never);
  line over(executor, setting, options);
  co_await over.connect();
  model held(host_memory(), whole.specs(), 0);
  auto into = held.into();
  auto load = beside(executor, load_next(over.receiver(), into));
  auto const sent = co_await try_to(over.sender().send_weights(1, source));
  CHECK(sent.error == make_error_code(errc::source_failed));
  CHECK(source.cancelled());
  auto const loaded = co_await load.join();
  CHECK(loaded.error == make_error_code(errc::peer_aborted));
  co_await next_update_works(over, 2);
  co_await over.close();
}

CO_TEST("a writer that fails: everybody hears why, and the next update works") {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  model whole(host_memory(), layers(), 1);
  event const never(executor);
  gated_writer writer(whole, 2, never, "the merge has failed");
  line over(executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  model held(host_memory(), whole.specs(), 0);
  auto into = held.into();
  auto load = beside(executor, load_next(over.receiver(), into));
  auto const sent = co_await try_to(over.sender().send_weights(1, writer));
  CHECK(sent.error == make_error_code(errc::source_failed));
  CHECK_MESSAGE(has(sent.text, "the merge has failed"), sent.text);
  auto const loaded = co_await load.join();
  CHECK(loaded.error == make_error_code(errc::peer_aborted));
  CHECK_MESSAGE(has(loaded.said(), "the merge has failed"), loaded.said());
  co_await next_update_works(over, 2);
  co_await over.close();
}

CO_TEST(
    "a writer that is cancelled, or too slow, is waited for: its slot is not used again while it writes") {
  auto const executor = co_await asio::this_coro::executor;
  for (bool slow : {false, true}) {
    INFO("too slow: " << slow);
    auto const setting = host_setting(1);
    auto options = quick_sender(small_bucket);
    if (slow) options.source_limit(milliseconds(50));
    model whole(host_memory(), layers(), 1);
    event const never(executor), reached(executor);
    gated_writer writer(whole, 2, never, reached);
    line over(executor, setting, options);
    co_await over.connect();
    model held(host_memory(), whole.specs(), 0);
    auto into = held.into();
    auto load = beside(executor, load_next(over.receiver(), into));
    auto send = beside(executor, over.sender().send_weights(1, writer));
    co_await reached.wait();
    if (!slow) send.cancel();
    auto const sent = co_await send.join();
    CHECK(writer.cancelled());
    CHECK(writer.ended()); // before the send was said to be over
    if (slow)
      CHECK(sent.error == make_error_code(errc::source_failed));
    else
      CHECK(sent.error == asio::error::operation_aborted);
    auto const loaded = co_await load.join();
    CHECK(loaded.error == make_error_code(errc::peer_aborted));
    co_await next_update_works(over, 2);
    co_await over.close();
  }
}

CO_TEST("a sender that is destroyed while its writer writes: the slots live until the writer has ended") {
  auto const executor = co_await asio::this_coro::executor;
  model whole(host_memory(), layers(), 1);
  event const never(executor), reached(executor);
  gated_writer writer(whole, 1, never, reached);
  scratch const directory;
  std::optional<sender> to(std::in_place, executor, directory.file("s"), quick_sender(small_bucket));
  receiver from(executor, quick_receiver());
  co_await from.connect(directory.file("s"));
  co_await to->wait_for_receivers(1, milliseconds(5000));
  model held(host_memory(), whole.specs(), 0);
  auto into = held.into();
  auto load = beside(executor, load_next(from, into));
  auto send = beside(executor, to->send_weights(1, writer));
  co_await reached.wait();
  to.reset();
  auto const sent = co_await send.join();
  CHECK_FALSE(sent.ok());
  CHECK(writer.ended());
  auto const loaded = co_await load.join();
  CHECK_FALSE(loaded.ok());
  co_await from.close();
}

namespace {

/// Lets the source stand at its gate for as long as `pause`, and waits as long again before it commits.
awaitable<std::vector<image>> load_slowly(receiver& from, model const& whole, event open, event reached,
                                          milliseconds pause) {
  auto update = co_await announced(from);
  assembly parts(update);
  auto first = co_await update.next_bucket();
  co_await reached.wait();
  asio::steady_timer slow(co_await asio::this_coro::executor, pause);
  co_await slow.async_wait(use_awaitable);
  open.set();
  parts.add(*first, whole.kind());
  first->release();
  while (auto taken = co_await update.next_bucket()) parts.add(*taken, whole.kind());
  slow.expires_after(pause);
  co_await slow.async_wait(use_awaitable);
  co_await update.commit();
  std::vector<image> taken = parts.finish();
  co_return taken;
}

/// What was not as it should be.
awaitable<std::string> slow_is_not_silent(milliseconds limit) {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  auto sends = quick_sender(small_bucket);
  sends.silence_limit(limit);
  auto receives = quick_receiver();
  receives.silence_limit(limit);
  model whole(host_memory(), layers(), 1);
  line over(executor, setting, sends, receives);
  co_await over.connect();
  event const open(executor), reached(executor);
  gated_source source(whole, 3, open, reached); // in the second bucket
  auto send = beside(executor, over.sender().send_weights(1, source));
  auto const loaded = co_await try_to(load_slowly(over.receiver(), whole, open, reached, limit * 2));
  open.set();
  auto const sent = co_await send.join();
  co_await over.close();
  if (!loaded.ok()) co_return loaded.said();
  if (!sent.ok()) co_return sent.said();
  co_return difference(whole.images(), *loaded.value);
}

} // namespace

CO_TEST("a slow source and a slow loader are not silent: nobody is dropped while the other side works") {
  // With a longer limit again: one that is dropped for being slow is dropped at any, and what else stands
  // still for so long is the machine.
  std::string wrong;
  for (int longer : {1, 4, 16}) {
    wrong = co_await slow_is_not_silent(longer * patient(milliseconds(400)));
    if (wrong.empty()) break;
  }
  CHECK(wrong == "");
}

TEST_CASE("a loader that fails on the first or a later bucket: the sender's report names it and carries its "
          "words") {
  for (std::uint32_t bucket : {1u, 4u})
    for (auto how : {ending::throws, ending::refuses, ending::destroys}) {
      INFO("at bucket " << bucket << ", way " << int(how));
      run_to_end([=] { return loader_fails(bucket, how); });
    }
}

CO_TEST("a receiver says no, not now, or drops the update unanswered") {
  auto const setting = host_setting(3);
  auto options = quick_sender(small_bucket);
  options.min_receivers(0);
  model source(host_memory(), layers(), 1);
  line over(co_await asio::this_coro::executor, setting, options);
  co_await over.connect();
  auto send = beside(over.executor(), over.sender().send_weights(1, source.views()));
  {
    auto no = co_await announced(over.receiver(0));
    CHECK(no.version() == 1);
    CHECK(no.total_bytes() == 20 * 2000);
    CHECK(no.tensors().size() == 20);
    no.refuse("weights are unmapped (asleep)");
    auto later = co_await announced(over.receiver(1));
    later.not_now(milliseconds(200), "in the middle of a batch");
    auto const dropped = co_await announced(over.receiver(2));
  }
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  if (sent.ok()) {
    CHECK(outcomes(*sent.value) == "refused skipped refused");
    CHECK(has(of(*sent.value, "server-0").text, "weights are unmapped (asleep)"));
    CHECK(has(of(*sent.value, "server-1").text, "in the middle of a batch"));
    for (auto const& each : sent.value->receivers) CHECK(bool(each.error));
  }
  co_await next_update_works(over, 2);
  co_await over.close();
}

CO_TEST("who does not answer in time is passed over, and told so") {
  auto const setting = host_setting(2);
  auto options = quick_sender(small_bucket);
  options.decide_limit(patient(milliseconds(1500)));
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, setting, options);
  co_await over.connect();
  auto into = held.into();
  auto load = beside(over.executor(), load_next(over.receiver(0), into));
  auto idle = beside(over.executor(), announced(over.receiver(1)));
  send_report const report = co_await over.sender().send_weights(1, source.views());
  CHECK(outcomes(report) == "committed skipped");
  co_await load.join();
  auto late = co_await idle.join();
  CHECK_MESSAGE(late.ok(), late.said());
  auto const too_late = co_await try_to(late.value->load_into(into));
  CHECK_FALSE(too_late.ok());
  CHECK_FALSE(over.receiver(1).version().has_value());
  CHECK_FALSE(into.torn());
  late.value.reset();
  co_await next_update_works(over, 2);
  co_await over.close();
}

CO_TEST("awaiting a bucket while every slot is held fails at once instead of waiting for ever") {
  for (std::uint32_t slots : {1u, 2u, 3u}) {
    auto const setting = host_setting(1, slots);
    model source(host_memory(), layers(), 1);
    line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
    co_await over.connect();
    auto send = beside(over.executor(), over.sender().send_weights(1, source.views()));
    auto update = co_await announced(over.receiver());
    assembly parts(update);
    std::deque<bucket> held;
    for (std::uint32_t i = 0; i < slots; ++i) {
      auto taken = co_await update.next_bucket();
      held.push_back(std::move(*taken));
    }
    auto const stuck = co_await try_to(update.next_bucket());
    CHECK(stuck.error == make_error_code(errc::slots_held));
    // Nothing is lost: with a slot free it goes on.
    for (auto& each : held) {
      parts.add(each, source.kind());
      each.release();
      each.release(); // does nothing the second time
    }
    held.clear();
    while (auto more = co_await update.next_bucket()) parts.add(*more, source.kind());
    CHECK(difference(source.images(), parts.finish()) == "");
    co_await update.commit();
    auto const sent = co_await send.join();
    CHECK_MESSAGE(sent.ok(), sent.said());
    co_await over.close();
  }
}

CO_TEST("commit before every bucket was taken and released is refused") {
  auto const setting = host_setting(1);
  model source(host_memory(), layers(4), 1);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  auto send = beside(over.executor(), over.sender().send_weights(1, source.views()));
  auto update = co_await announced(over.receiver());
  auto first = co_await update.next_bucket();
  auto const early = co_await try_to(update.commit());
  CHECK(early.error == make_error_code(errc::invalid_argument));
  first->release();
  auto last = co_await update.next_bucket();
  auto const held = co_await try_to(update.commit());
  CHECK(held.error == make_error_code(errc::invalid_argument));
  last->release();
  co_await update.commit();
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  co_await over.close();
}

TEST_CASE("one of four fails at each step: a group holds together, without a group the others commit") {
  for (bool grouped : {true, false})
    for (std::uint32_t buckets : {0u, 1u, 5u, 10u})
      for (auto how : {ending::refuses, ending::destroys}) {
        INFO((grouped ? "a group of four" : "four alone")
             << ", after " << buckets << " buckets, way " << int(how));
        run_to_end([=] { return one_of_four(grouped, buckets, how); });
      }
}

CO_TEST("a group that is not complete is not served, others are") {
  auto const setting = host_setting(0);
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0),
      lone(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  over.add_receiver(member("half", "pair", 2));
  over.add_receiver(quick_receiver("lone"));
  co_await over.connect();
  auto into = held.into(), lone_into = lone.into();
  auto half_load = beside(over.executor(), load_next(over.receiver(0), into));
  auto lone_load = beside(over.executor(), load_next(over.receiver(1), lone_into));
  send_report const report = co_await over.sender().send_weights(1, source.views());
  CHECK(of(report, "lone").what == outcome::committed);
  CHECK(of(report, "half").what == outcome::skipped);
  CHECK(of(report, "half").error == make_error_code(errc::group_incomplete));
  co_await lone_load.join();
  half_load.cancel();
  auto const half = co_await half_load.join();
  CHECK_FALSE(half.ok());
  CHECK(held.untouched());
  over.add_receiver(member("other half", "pair", 2));
  co_await over.connect();
  co_await next_update_works(over, 2);
  co_await over.close();
}

CO_TEST("a full update dies half-way, then a smaller one commits: the others are still torn") {
  auto const setting = host_setting(1);
  model whole(host_memory(), layers(), 1), held(host_memory(), whole.specs(), 0);
  line over(co_await asio::this_coro::executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  std::vector<destinations> into;
  into.push_back(held.into());
  into[0].allow_unsent();
  co_await deliver(over, 1, whole.views(), into);
  CHECK_FALSE(into[0].torn());
  CHECK(into[0].torn_tensors().empty());

  failing_source dying(whole, 10, "half-way");
  auto load = beside(over.executor(), load_next(over.receiver(), into[0]));
  auto const died = co_await try_to(over.sender().send_weights(2, dying));
  CHECK(died.error == make_error_code(errc::source_failed));
  auto const failed = co_await load.join();
  CHECK_FALSE(failed.ok());
  CHECK(into[0].torn());
  CHECK(into[0].torn_tensors().size() == 20);

  std::vector<tensor_view> const some{whole.view(0), whole.view(3)};
  co_await deliver(over, 3, some, into);
  CHECK(into[0].torn());
  auto const still = into[0].torn_tensors();
  CHECK(still.size() == 18);
  CHECK(std::count(still.begin(), still.end(), "layer.0") == 0);
  CHECK(std::count(still.begin(), still.end(), "layer.3") == 0);
  CHECK(std::count(still.begin(), still.end(), "layer.19") == 1);
  CHECK(into[0].version() == 3);

  co_await deliver(over, 4, whole.views(), into);
  CHECK_FALSE(into[0].torn());
  CHECK(difference(whole.images(), held) == "");
  co_await over.close();
}

CO_TEST("that a send is near can be said at any time") {
  // Of what is large and on a device, for else nobody is roused.
  auto const devices = std::make_shared<scripted_devices>(std::make_shared<script>(), 1);
  auto setting = host_setting(1);
  setting.how.devices = devices;
  setting.how.from = device_memory(devices->get(device::cuda(0)));
  model source(setting.how.from, {{"w", dtype::u8, {64 * mib}}}, 1), held(host_memory(), source.specs(), 0);
  line over(co_await asio::this_coro::executor, setting, quick_sender(64 * mib));
  auto& to = over.sender();
  to.rouse();
  co_await over.connect();
  to.rouse();
  std::vector<destinations> into;
  into.push_back(held.into());
  for (std::uint64_t version = 1; version <= 3; ++version) {
    auto load = beside(over.executor(), load_next(over.receiver(), into[0]));
    auto send = beside(over.executor(), to.send_weights(version, source.views()));
    to.rouse();
    auto const sent = co_await send.join();
    CHECK_MESSAGE(sent.ok(), sent.said());
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    to.rouse();
  }
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
  to.rouse();
}
