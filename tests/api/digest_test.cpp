// Digests end to end: on every route and for every kind of destination both sides find the same, and what a
// faulty copy spoils is found, named, and never committed. Part of ropeway; Apache-2.0.
#include "base/digest.hpp"

#include <asio/io_context.hpp>

#include <functional>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

sender_options digesting(std::uint64_t bucket_bytes = 64 * kib) {
  auto options = quick_sender(bucket_bytes);
  options.digests(digest_choice::tensors);
  return options;
}

std::vector<tensor_info> weights() {
  return {{"embed", dtype::bf16, {700, 900}}, {"up", dtype::f32, {640, 512}},
          {"down", dtype::bf16, {512, 640}},  {"norm", dtype::f32, {333}},
          {"scale", dtype::f32, {}},          {"none", dtype::f32, {0, 3}}};
}

/// What the digest of an update is, from the bytes that must arrive.
digest128 expected(std::vector<image> const& tensors) {
  update_digest all;
  for (auto const& one : tensors)
    all.add(identity_of({one.name, one.type, one.dims}),
            digest_of_run(one.bytes.data(), 0, one.bytes.size()));
  return all.value();
}

/// Devices of one side whose copies, from the `after`-th on that write where it says, flip a bit.
struct faulty {
  std::shared_ptr<scripted_devices> devices = std::make_shared<scripted_devices>(std::make_shared<script>());
  void spoil(std::function<bool(memory::copy_op const&)> which) {
    devices->corrupt([which = std::move(which), done = false](memory::copy_op const& op) mutable {
      if (done || memory::bytes_of(op) == 0 || !which(op)) return;
      done = true;
      *op.to ^= std::byte{0x40};
    });
  }
  void heal() { devices->corrupt({}); }
};

/// Whether a copy writes within a tensor of a model.
std::function<bool(memory::copy_op const&)> writes(mutable_tensor_view const& to, std::uint64_t bytes) {
  auto const begin = to.data();
  return [begin, bytes](memory::copy_op const& op) { return op.to >= begin && op.to < begin + bytes; };
}

std::vector<setting> settings() {
  auto mapped = mapped_setting(), host = host_setting(), one_slot = host_setting(1, 1),
       forced = mapped_setting();
  host.how.way = route::host;
  one_slot.how.way = route::host;
  forced.how.choice = route_choice::host;
  forced.how.way = route::host;
  return {mapped, host, one_slot, forced};
}

/// Places for boxes of `weights()`, in memory of their own: rows, columns, a strided one, one of one element.
struct shards {
  std::vector<std::byte> rows = std::vector<std::byte>(100 * 900 * 2),
                         columns = std::vector<std::byte>(640 * 128 * 4),
                         strided = std::vector<std::byte>(512 * 640 * 2 * 2),
                         norm = std::vector<std::byte>(4);
  destinations into() {
    destinations all;
    all.add_part({333, 0}, {"embed", dtype::bf16, {100, 900}, rows.data()});
    all.add_shard(1, 2, 4, {"up", dtype::f32, {640, 128}, columns.data()});
    mutable_tensor_view gaps("down", dtype::bf16, {512, 640}, strided.data());
    gaps.strides({1280, 2});
    all.add(gaps);
    all.add_part({17}, {"norm", dtype::f32, {1}, norm.data()});
    all.allow_unplaced();
    return all;
  }
};

awaitable<load_report> load_shadow(receiver& from, shadow_destinations& to) {
  auto next = co_await announced(from);
  co_return co_await next.load_into(to);
}

} // namespace

CO_TEST("both sides find the same digest, update after update, on every route") {
  for (auto const& how : settings()) {
    CAPTURE(how.how.name);
    line over(co_await asio::this_coro::executor, how, digesting());
    co_await over.connect();
    model source(how.how.from, weights(), 1), held(host_memory(), weights(), 0);
    std::vector<destinations> into;
    into.push_back(held.into());
    std::optional<digest128> last;
    for (std::uint64_t version = 1; version <= 3; ++version) {
      source.fill(version);
      auto load = beside(over.executor(), load_next(over.receiver(), into[0]));
      auto const report = co_await over.sender().send_weights(version, source.views());
      auto const loaded = co_await load.join();
      REQUIRE_MESSAGE(loaded.ok(), loaded.said());
      CHECK(outcomes(report) == "committed");
      CHECK(of(report, "server").way == how.how.way.value());
      REQUIRE(report.digest.has_value());
      CHECK(*report.digest == expected(source.images()));
      CHECK(loaded.value->digest == report.digest);
      CHECK(report.digest != last);
      CHECK(report.stages[update_stage::digest].count() > 0);
      CHECK(loaded.value->stages[update_stage::digest].count() > 0);
      last = report.digest;
      CHECK(difference(source.images(), held) == "");
    }
    co_await over.close();
  }
}

CO_TEST("boxes of every kind agree, and a spoiled byte in any of them is found, named, and not committed") {
  for (auto const& base : settings()) {
    CAPTURE(base.how.name);
    faulty server;
    auto how = base;
    how.how.into[0].devices = server.devices;
    line over(co_await asio::this_coro::executor, how, digesting());
    co_await over.connect();
    model source(how.how.from, weights(), 1);
    shards mine;
    auto into = mine.into();
    struct victim {
      char const *tensor, *box;
      std::vector<std::byte>* memory;
    };
    std::uint64_t version = 0;
    for (auto const& one : {victim{"embed", "[333+100, 0+900]", &mine.rows},
                            {"up", "[0+640, 256+128]", &mine.columns},
                            {"down", "", &mine.strided},
                            {"norm", "[17+1]", &mine.norm}}) {
      CAPTURE(one.tensor);
      auto good = beside(over.executor(), load_next(over.receiver(), into));
      auto const sent = co_await over.sender().send_weights(++version, source.views());
      auto const held = co_await good.join();
      REQUIRE_MESSAGE(held.ok(), held.said());
      CHECK(held.value->digest == sent.digest);
      CHECK_FALSE(into.torn());
      auto* const memory = one.memory;
      server.spoil([memory](memory::copy_op const& op) {
        return op.to >= memory->data() && op.to < memory->data() + memory->size();
      });
      auto bad = beside(over.executor(), load_next(over.receiver(), into));
      auto const failing = co_await try_to(over.sender().send_weights(++version, source.views()));
      auto const loaded = co_await bad.join();
      CHECK(loaded.error == errc::digest_mismatch);
      CHECK(loaded.tensor == one.tensor);
      CHECK(loaded.text.find("\"" + std::string(one.tensor) + "\"") != std::string::npos);
      CHECK(loaded.text.find(one.box) != std::string::npos);
      CHECK(into.torn());
      CHECK(over.receiver().version() == version - 1);
      REQUIRE(failing.report.has_value());
      CHECK(of(*failing.report, "server").what == outcome::failed);
      CHECK(of(*failing.report, "server").error == errc::digest_mismatch);
      CHECK(of(*failing.report, "server").text.find(one.tensor) != std::string::npos);
      server.heal();
    }
    co_await over.close();
  }
}

CO_TEST("what the sender's own copies spoil is found, by destinations and by who takes buckets") {
  for (bool const by_hand : {false, true}) {
    CAPTURE(by_hand);
    faulty trainer;
    auto how = host_setting();
    how.how.devices = trainer.devices;
    line over(co_await asio::this_coro::executor, how, digesting());
    co_await over.connect();
    model source(host_memory(), weights(), 1), held(host_memory(), weights(), 0);
    auto into = held.into();
    for (bool const spoiled : {false, true, false}) {
      if (spoiled) trainer.spoil([](memory::copy_op const& op) { return op.bytes > 60'000; });
      attempt<send_report> sent;
      if (by_hand) {
        auto taken = beside(over.executor(), take_next(over.receiver(), source.kind()));
        sent = co_await try_to(over.sender().send_weights(1, source.views()));
        auto const end = co_await taken.join();
        CHECK(end.ok() == !spoiled);
        if (spoiled) CHECK(end.error == errc::digest_mismatch);
      } else {
        auto load = beside(over.executor(), load_next(over.receiver(), into));
        sent = co_await try_to(over.sender().send_weights(1, source.views()));
        auto const end = co_await load.join();
        CHECK(end.ok() == !spoiled);
        if (spoiled) CHECK(end.error == errc::digest_mismatch);
      }
      CHECK(sent.ok() == !spoiled);
    }
    co_await over.close();
  }
}

CO_TEST("tensors of a source and of a slot writer have the digest that they would have had") {
  for (std::uint32_t const slots : {1u, 2u}) {
    line over(co_await asio::this_coro::executor, host_setting(2, slots), digesting());
    co_await over.connect();
    model source(host_memory(), weights(), 1), held(host_memory(), weights(), 0);
    auto into = held.into();
    event open(over.executor()), reached(over.executor());
    gated_source by_source(source, 1000, open);
    gated_writer by_writer(source, 1000, open, reached);
    std::uint64_t version = 0;
    for (int turn = 0; turn < 4; ++turn) {
      source.fill(static_cast<std::uint64_t>(10 + turn));
      auto load = beside(over.executor(), load_next(over.receiver(0), into));
      auto taken = beside(over.executor(), take_next(over.receiver(1), source.kind()));
      send_report report;
      if (turn % 2 == 0)
        report = co_await over.sender().send_weights(++version, by_source);
      else
        report = co_await over.sender().send_weights(++version, by_writer);
      auto const loaded = co_await load.join();
      auto const by_bucket = co_await taken.join();
      REQUIRE_MESSAGE(loaded.ok(), loaded.said());
      REQUIRE_MESSAGE(by_bucket.ok(), by_bucket.said());
      CHECK(outcomes(report) == "committed committed");
      CHECK(report.digest == expected(source.images()));
      CHECK(loaded.value->digest == report.digest);
    }
    co_await over.close();
  }
}

CO_TEST("digests are of what is delivered: a tensor that is converted has those of its new type") {
  for (auto const& how : settings()) {
    line over(co_await asio::this_coro::executor, how, digesting());
    co_await over.connect();
    std::vector<tensor_info> const wide{{"w", dtype::f32, {300, 2000}}},
        narrow{{"w", dtype::bf16, {300, 2000}}};
    model source(how.how.from, wide, 1), held(host_memory(), narrow, 0);
    auto into = held.into();
    auto load = beside(over.executor(), load_next(over.receiver(), into));
    auto views = source.views();
    views[0].sent_as(dtype::bf16);
    auto const report = co_await over.sender().send_weights(1, views);
    auto const loaded = co_await load.join();
    REQUIRE_MESSAGE(loaded.ok(), loaded.said());
    CHECK(report.digest == expected(held.current()));
    CHECK(loaded.value->digest == report.digest);
    co_await over.close();
  }
}

CO_TEST("nobody of a group commits what one member found to be spoiled") {
  for (auto const& base : {mapped_setting(2), host_setting(2)}) {
    faulty server;
    auto how = base;
    how.how.into[1].devices = server.devices;
    line over(co_await asio::this_coro::executor, how, digesting(),
              quick_receiver("rank").group("tp").group_size(2));
    co_await over.connect();
    model source(how.how.from, weights(), 1), one(host_memory(), weights(), 0),
        two(host_memory(), weights(), 0);
    std::vector<destinations> into;
    into.push_back(one.into());
    into.push_back(two.into());
    co_await deliver(over, 1, source.views(), into);
    server.spoil(writes(two.target(1), 640 * 512 * 4));
    auto first = beside(over.executor(), load_next(over.receiver(0), into[0]));
    auto second = beside(over.executor(), load_next(over.receiver(1), into[1]));
    auto const sent = co_await try_to(over.sender().send_weights(2, source.views()));
    auto const end_one = co_await first.join();
    auto const end_two = co_await second.join();
    CHECK(end_one.error == errc::group_incomplete);
    CHECK(end_two.error == errc::digest_mismatch);
    REQUIRE(sent.report.has_value());
    CHECK(outcomes(*sent.report) == "skipped failed");
    CHECK(over.receiver(0).version() == 1);
    CHECK(over.receiver(1).version() == 1);
    server.heal();
    co_await deliver(over, 3, source.views(), into);
    co_await over.close();
  }
}

CO_TEST("a shadow set that was spoiled never goes live") {
  faulty server;
  auto how = mapped_setting();
  how.how.into[0].devices = server.devices;
  line over(co_await asio::this_coro::executor, how, digesting());
  co_await over.connect();
  model source(how.how.from, weights(), 1), one(host_memory(), weights(), 0),
      two(host_memory(), weights(), 0);
  shadow_destinations into(one.into(), two.into());
  auto good = beside(over.executor(), load_shadow(over.receiver(), into));
  co_await over.sender().send_weights(1, source.views());
  CHECK((co_await good.join()).ok());
  server.spoil([](memory::copy_op const&) { return true; });
  auto bad = beside(over.executor(), load_shadow(over.receiver(), into));
  auto const sent = co_await try_to(over.sender().send_weights(2, source.views()));
  CHECK((co_await bad.join()).error == errc::digest_mismatch);
  CHECK_FALSE(sent.ok());
  CHECK(into.version() == 1);
  server.heal();
  auto again = beside(over.executor(), load_shadow(over.receiver(), into));
  co_await over.sender().send_weights(3, source.views());
  CHECK((co_await again.join()).ok());
  CHECK(into.version() == 3);
  co_await over.close();
}

CO_TEST("layouts that change, updates of nothing, and tensors that move have digests as well") {
  for (auto const& how : {mapped_setting(), host_setting()}) {
    line over(co_await asio::this_coro::executor, how, digesting());
    co_await over.connect();
    std::uint64_t version = 0;
    for (std::size_t const count : {6u, 2u, 6u, 0u, 1u, 0u, 6u}) {
      auto specs = weights();
      specs.resize(count);
      model source(how.how.from, specs, ++version), held(host_memory(), specs, 0);
      auto into = held.into();
      auto load = beside(over.executor(), load_next(over.receiver(), into));
      auto const report = co_await over.sender().send_weights(version, source.views());
      auto const loaded = co_await load.join();
      REQUIRE_MESSAGE(loaded.ok(), loaded.said());
      CHECK(report.digest == expected(source.images()));
      CHECK(loaded.value->digest == report.digest);
      auto taken = beside(over.executor(), take_next(over.receiver(), source.kind()));
      co_await over.sender().send_weights(++version, source.views());
      auto const by_hand = co_await taken.join();
      REQUIRE_MESSAGE(by_hand.ok(), by_hand.said());
    }
    co_await over.close();
  }
}

CO_TEST("who demands digests refuses an update without, in whichever way it would be loaded") {
  for (bool const by_hand : {false, true}) {
    line over(co_await asio::this_coro::executor, host_setting(), quick_sender(),
              quick_receiver().demand_digests(true));
    co_await over.connect();
    model source(host_memory(), weights(), 1), held(host_memory(), weights(), 0);
    auto into = held.into();
    attempt<send_report> sent;
    std::error_code error;
    if (by_hand) {
      auto taken = beside(over.executor(), take_next(over.receiver(), source.kind()));
      sent = co_await try_to(over.sender().send_weights(1, source.views()));
      error = (co_await taken.join()).error;
    } else {
      auto load = beside(over.executor(), load_next(over.receiver(), into));
      sent = co_await try_to(over.sender().send_weights(1, source.views()));
      error = (co_await load.join()).error;
    }
    CHECK(error == errc::digest_missing);
    REQUIRE(sent.report.has_value());
    CHECK(of(*sent.report, "server").what == outcome::refused);
    CHECK(of(*sent.report, "server").error == errc::digest_missing);
    CHECK_FALSE(sent.report->digest.has_value());
    CHECK(held.untouched());
    co_await over.close();
  }
}

CO_TEST("a device that can't digest fails the update, on either side, and the next one works") {
  for (bool const trainers : {false, true})
    for (auto const call : {scripted_devices::call::prepare_digests, scripted_devices::call::digest}) {
      CAPTURE(trainers);
      faulty side;
      auto how = mapped_setting();
      (trainers ? how.how.devices : how.how.into[0].devices) = side.devices;
      line over(co_await asio::this_coro::executor, how, digesting());
      co_await over.connect();
      model source(how.how.from, weights(), 1), held(host_memory(), weights(), 0);
      std::vector<destinations> into;
      into.push_back(held.into());
      side.devices->fail(call, errc::device_failed);
      auto load = beside(over.executor(), load_next(over.receiver(), into[0]));
      auto const sent = co_await try_to(over.sender().send_weights(1, source.views()));
      auto const end = co_await load.join();
      CHECK_FALSE(sent.ok());
      CHECK_FALSE(end.ok());
      if (trainers) CHECK(sent.error == errc::device_failed);
      if (!trainers) CHECK(end.error == errc::device_failed);
      co_await deliver(over, 2, source.views(), into);
      co_await over.close();
    }
}
