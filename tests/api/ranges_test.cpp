// The NVTX ranges of updates in host memory, as a profiler sees them: no GPU and no profiler is needed, but a
// build with the CUDA Toolkit. Part of ropeway; Apache-2.0.
#include "ranges.hpp"

#include <algorithm>
#include <asio/io_context.hpp>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <set>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;

namespace {

/// Before NVTX is called first, which is when it looks. The library that records is asked where it lies:
/// packed for another machine, that is where the loader found it.
[[maybe_unused]] bool const injected = [] {
  Dl_info library{};
  return ::dladdr(reinterpret_cast<void*>(&recorded_ranges), &library) != 0 &&
         ::setenv("NVTX_INJECTION64_PATH", library.dli_fname, 1) == 0;
}();

constexpr std::uint64_t one_layer = 4 * kib;
std::vector<tensor_info> layers(std::size_t count) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {1024}});
  return specs;
}

std::vector<recorded_range> named(std::string_view name) {
  auto all = recorded_ranges();
  std::erase_if(all, [&](auto const& one) { return one.name != name; });
  return all;
}
bool within(recorded_range const& inner, recorded_range const& outer) {
  return outer.began < inner.began && inner.ended && outer.ended && *inner.ended < *outer.ended;
}
/// "send announce, send pack", each once.
std::string names_of(std::vector<recorded_range> const& all) {
  std::set<std::string> names;
  for (auto const& one : all) names.insert(one.name);
  std::string text;
  for (auto const& one : names) text += (text.empty() ? "" : ", ") + one;
  return text;
}
std::ptrdiff_t count_of(std::vector<recorded_range> const& all, std::string_view name) {
  return std::count_if(all.begin(), all.end(), [&](auto const& one) { return one.name == name; });
}
bool has(std::vector<recorded_range> const& all, std::string_view name) { return count_of(all, name) != 0; }

/// What holds of every update that is over; gives its ranges, and forgets them.
std::vector<recorded_range> checked(std::uint64_t version) {
  auto all = recorded_ranges();
  INFO(names_of(all));
  for (std::string const verb : {"send", "receive"}) {
    INFO(verb);
    auto const whole = named(verb);
    REQUIRE(whole.size() == 1);
    CHECK(whole[0].payload == version);
    for (auto const& one : all) {
      INFO(one.name);
      CHECK(one.domain == "ropeway");
      CHECK(one.ended.has_value());
      if (one.name.starts_with(verb + " ")) CHECK(within(one, whole[0]));
    }
  }
  forget_ended_ranges();
  return all;
}

/// One of each bucket, in order, one after the other.
void check_each_bucket(std::vector<recorded_range> all, std::string_view name, std::uint32_t buckets) {
  INFO(std::string(name));
  std::erase_if(all, [&](auto const& one) { return one.name != name; });
  REQUIRE(all.size() == buckets);
  for (std::uint32_t k = 0; k < buckets; ++k) {
    CHECK(all[k].payload == k);
    if (k > 0) CHECK(*all[k - 1].ended < all[k].began);
  }
}

/// What an observer hears of is what was shown, but for stretches that took no time.
class heard_stages final : public observer {
 public:
  explicit heard_stages(std::string verb) : verb_(std::move(verb)) {}
  void stage_ended(stage_span const& what) override {
    if (what.receiver.empty()) ++count[verb_ + " " + std::string(name(what.what))];
  }
  std::map<std::string, std::ptrdiff_t> count;

 private:
  std::string verb_;
};

} // namespace

CO_TEST("an update through a ring has a range of each side, and in it one of each stage and bucket") {
  heard_stages trainer("send"), server("receive");
  auto sends = quick_sender(one_layer);
  sends.watched_by(&trainer);
  auto receives = quick_receiver();
  receives.watched_by(&server);
  line over(co_await asio::this_coro::executor, host_setting(), sends, receives);
  co_await over.connect();
  model source(host_memory(), layers(6), 1), held(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  CHECK(recorded_ranges().empty());
  for (std::uint64_t version = 7; version < 9; ++version) {
    trainer.count.clear();
    server.count.clear();
    co_await deliver(over, version, source.views(), into);
    auto const all = checked(version);
    check_each_bucket(all, "send pack", 6);
    check_each_bucket(all, "receive load", 6);
    for (auto const* const name : {"send announce", "receive announce", "receive decide", "receive commit"}) {
      INFO(name);
      CHECK(count_of(all, name) == 1);
    }
    for (auto const* const heard : {&trainer.count, &server.count})
      for (auto const& [stage, count] : *heard) {
        INFO(stage);
        CHECK(count_of(all, stage) >= count);
      }
    for (auto const& one : all) {
      INFO(one.name);
      bool const of_bucket = one.name == "send pack" || one.name == "receive load";
      bool const whole = one.name == "send" || one.name == "receive";
      CHECK(one.payload.has_value() == (of_bucket || whole));
    }
  }
  co_await over.close();
}

CO_TEST("tensors that are mapped are loaded in one range, and digests have theirs") {
  setting how = mapped_setting();
  how.how.digests = true;
  line over(co_await asio::this_coro::executor, how, quick_sender(one_layer));
  co_await over.connect();
  model source(how.how.from, layers(6), 1), held(host_memory(), source.specs(), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  auto const report = co_await deliver(over, 3, source.views(), into);
  CHECK(of(report, "server").way == route::mapped);
  auto const all = checked(3);
  CHECK(names_of(all) == "receive, receive announce, receive commit, receive decide, receive digest, "
                         "receive load, receive map, receive wait, send, send announce, send digest");
  for (auto const* const name : {"receive map", "receive load", "receive digest", "send digest"}) {
    INFO(name);
    CHECK(count_of(all, name) == 1);
  }
  co_await over.close();
}

CO_TEST("what a source makes and what an embedder has in hand are ranges, and those of slots their digests") {
  auto const executor = co_await asio::this_coro::executor;
  setting how = host_setting();
  how.how.digests = true;
  line over(executor, how, quick_sender(one_layer));
  co_await over.connect();
  model whole(host_memory(), layers(4), 1);
  event const open(executor), reached(executor);
  gated_source source(whole, 2, open, reached);
  auto const memory = host_memory();
  auto take = beside(executor, take_next(over.receiver(), *memory));
  auto send = beside(executor, over.sender().send_weights(4, source));
  co_await reached.wait();
  auto const making = named("send source");
  CHECK(making.size() == 3);
  CHECK(std::count_if(making.begin(), making.end(), [](auto const& one) { return !one.ended; }) == 1);
  open.set();
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  auto const taken = co_await take.join();
  CHECK_MESSAGE(taken.ok(), taken.said());
  auto const all = checked(4);
  check_each_bucket(all, "send source", 4);
  check_each_bucket(all, "send pack", 4);
  check_each_bucket(all, "send digest", 4);
  check_each_bucket(all, "receive load", 4);
  CHECK(has(all, "receive digest"));
  co_await over.close();
}

CO_TEST("an update that fails or is refused leaves no range open") {
  auto const executor = co_await asio::this_coro::executor;
  line over(executor, host_setting(), quick_sender(one_layer));
  co_await over.connect();
  model whole(host_memory(), layers(4), 1), held(host_memory(), whole.specs(), 0);
  auto into = held.into();

  failing_source source(whole, 2, "out of ideas");
  auto load = beside(executor, load_next(over.receiver(), into));
  auto const failed = co_await try_to(over.sender().send_weights(5, source));
  CHECK(failed.error == make_error_code(errc::source_failed));
  auto const not_loaded = co_await load.join();
  CHECK_FALSE(not_loaded.ok());
  checked(5);

  auto offer = beside(executor, announced(over.receiver()));
  auto started = beside(executor, over.sender().start(6, whole.views()));
  auto offered = co_await offer.join();
  REQUIRE(offered.ok());
  offered.value->refuse("asleep");
  auto begun = co_await started.join();
  REQUIRE(begun.ok());
  auto const refused = co_await try_to(begun.value->done());
  CHECK_FALSE(refused.ok());
  checked(6); // although both sides still have the update in hand
  co_await over.close();
}

TEST_CASE("a range begins when its stage does: while a copy runs, its range is open, and no later one") {
  deadline_guard const guard(patient(30s));
  auto const when = std::make_shared<script>(script::pace::immediate);
  auto const trainer = std::make_shared<scripted_devices>(when);
  auto const server = std::make_shared<scripted_devices>(when);
  setting how = host_setting();
  how.how.devices = trainer;
  how.how.into[0].devices = server;
  asio::io_context io(1);
  std::optional<line> over(std::in_place, io.get_executor(), how, quick_sender(one_layer));
  model source(host_memory(), layers(4), 1), held(host_memory(), source.specs(), 0);
  auto into = held.into();
  auto const views = source.views();
  auto connected = beside(io.get_executor(), over->connect());
  CHECK(run_script(io, *when, [&] { return connected.done(); }));
  when->set(script::pace::held);
  auto load = beside(io.get_executor(), load_next(over->receiver(), into));
  auto send = beside(io.get_executor(), over->sender().send_weights(1, views));
  auto const run_until = [&](auto done) {
    while (!done()) {
      io.restart();
      if (io.poll() == 0) io.run_one_for(1ms);
    }
  };
  auto const open_ones = [] {
    auto all = recorded_ranges();
    std::erase_if(all, [](auto const& one) { return one.ended.has_value(); });
    return all;
  };
  // Both slots are queued; the device is at the first.
  run_until([&] { return when->in_flight() == 2; });
  auto packing = named("send pack");
  REQUIRE(packing.size() == 1);
  CHECK_FALSE(packing[0].ended);
  CHECK(packing[0].payload == 0);
  CHECK(has(open_ones(), "send"));
  CHECK(has(open_ones(), "send announce"));

  CHECK(when->finish_next());
  run_until([&] { return named("send pack").size() == 2; });
  packing = named("send pack");
  CHECK(packing[0].ended);
  CHECK_FALSE(packing[1].ended);
  // The first is loaded, once the receiver has decided.
  run_until([&] { return when->in_flight() == 2; });
  auto const loading = named("receive load");
  REQUIRE(loading.size() == 1);
  CHECK_FALSE(loading[0].ended);
  CHECK(loading[0].payload == 0);
  CHECK_FALSE(has(open_ones(), "send announce"));
  CHECK_FALSE(has(open_ones(), "receive decide"));
  CHECK_FALSE(has(open_ones(), "receive wait"));

  // Both slots are taken, one packed and one loaded: the sender waits.
  CHECK(when->finish_next());
  run_until([&] { return has(open_ones(), "send wait"); });
  CHECK_FALSE(has(open_ones(), "send pack"));

  when->set(script::pace::immediate);
  when->finish_all();
  run_until([&] {
    when->finish_all();
    return load.done() && send.done();
  });
  auto const all = checked(1);
  check_each_bucket(all, "send pack", 4);
  check_each_bucket(all, "receive load", 4);
  auto closed = beside(io.get_executor(), over->close());
  run_until([&] { return closed.done(); });
  over.reset();
  io.restart();
  io.run();
}
