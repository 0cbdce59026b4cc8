// Updates whose receivers read the sender's own tensors: which way is taken and why, memory that moves or is
// wanted back, and who waits for whom. In host memory that the sender shares. Part of ropeway; Apache-2.0.
#include <cstdlib>
#include <fstream>

#include "line.hpp"
#include "support/co_test.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::vector<tensor_info> layers(std::size_t count, std::uint64_t elements = 500) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i)
    specs.push_back({"layer." + std::to_string(i), dtype::f32, {elements}});
  return specs;
}

/// Mappings of this process that are exactly so large.
std::size_t mappings_of(std::uint64_t bytes) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string text; std::getline(maps, text);) {
    char* end = nullptr;
    auto const low = std::strtoull(text.c_str(), &end, 16);
    auto const high = std::strtoull(end + 1, nullptr, 16);
    count += high - low == bytes;
  }
  return count;
}

/// A tensor of bytes in shared memory.
tensor_view bytes_at(std::string_view name, shared_memory const& where, std::uint64_t offset,
                     std::uint64_t bytes) {
  return {name, dtype::u8, {bytes}, where.data() + offset};
}

void fill(shared_memory const& memory, std::uint64_t seed) {
  auto const bytes = random_bytes(memory.size(), seed);
  std::copy(bytes.begin(), bytes.end(), memory.data());
}

constexpr std::uint64_t block_bytes = 1 * mib + 12 * kib; // nothing else here is so large

/// Whether `held` has the bytes that lie at `from`.
bool same(std::vector<std::byte> const& held, std::byte const* from) {
  return std::equal(held.begin(), held.end(), from);
}

} // namespace

CO_TEST(
    "a tensor that moves in its memory, and one that moves to other memory, are read where they are now") {
  line over(co_await asio::this_coro::executor, host_setting());
  auto const first = shared_memory::make(block_bytes), second = shared_memory::make(block_bytes);
  over.sender().share(first);
  over.sender().share(second);
  co_await over.connect();
  std::vector<std::byte> held(1000);
  std::vector<destinations> into(1);
  into[0].add({"w", dtype::u8, {1000}, held.data()});
  std::uint64_t version = 0;
  for (auto const& [memory, offset] :
       {std::pair(first, 0), {first, 0}, {first, 4096}, {second, 4096}, {first, 8}}) {
    fill(memory, ++version);
    std::vector<tensor_view> views{bytes_at("w", memory, static_cast<std::uint64_t>(offset), 1000)};
    auto const report = co_await deliver(over, version, std::move(views), into);
    CHECK(of(report, "server").way == route::mapped);
    CHECK(same(held, memory.data() + offset));
  }
  co_await over.close();
}

CO_TEST("what does not lie in shared memory comes through the ring, and the report says what and why") {
  line over(co_await asio::this_coro::executor, host_setting(2), quick_sender(4 * kib));
  auto const memory = shared_host_memory();
  model mapped(memory, layers(10), 1), elsewhere(host_memory(), layers(10), 2);
  for (auto const& block : memory->shared()) over.sender().share(block);
  co_await over.connect();
  std::vector<tensor_view> views;
  for (std::size_t i = 0; i < 10; ++i) views.push_back(i == 3 ? elsewhere.view(i) : mapped.view(i));
  std::deque<model> held;
  std::vector<destinations> into;
  for (int i = 0; i < 2; ++i) {
    held.emplace_back(host_memory(), layers(10), 0);
    into.push_back(held.back().into());
  }
  for (std::uint64_t version = 1; version <= 3; ++version) {
    mapped.fill(10 + version);
    elsewhere.fill(20 + version);
    auto wanted = mapped.images();
    wanted[3] = elsewhere.images()[3];
    auto const report = co_await deliver(over, version, views, into);
    CHECK(outcomes(report) == "committed committed");
    for (auto const& one : report.receivers) {
      CHECK(one.way == route::mapped);
      CHECK(one.text == "1 tensor is host memory that is not shared (see sender::share)");
    }
    for (auto const& each : held) CHECK(difference(wanted, each) == "");
  }
  co_await over.close();
}

CO_TEST("one receiver maps, one takes the ring by choice, one takes buckets: all hold the version") {
  auto how = mapped_setting(1);
  line over(co_await asio::this_coro::executor, how);
  auto through_ring = quick_receiver("ring"), by_bucket = quick_receiver("bucket");
  through_ring.use_route(route_choice::staged);
  over.add_receiver(through_ring);
  over.add_receiver(by_bucket);
  co_await over.connect();
  model source(how.how.from, layers(30), 1), held(host_memory(), layers(30), 0),
      other(host_memory(), layers(30), 0);
  auto into = held.into(), into_other = other.into();
  auto first = beside(over.executor(), load_next(over.receiver(0), into));
  auto second = beside(over.executor(), load_next(over.receiver(1), into_other));
  auto third = beside(over.executor(), take_next(over.receiver(2), source.kind()));
  auto const views = source.views();
  auto const report = co_await over.sender().send_weights(7, views);
  CHECK(outcomes(report) == "committed committed committed");
  CHECK(of(report, "server").way == route::mapped);
  CHECK(of(report, "ring").way == route::host);
  CHECK(of(report, "bucket").way == route::host);
  CHECK(of(report, "bucket").text == "it takes the update through the ring by its own choice");
  auto const loaded = co_await first.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  if (loaded.ok()) CHECK(loaded.value->way == route::mapped);
  auto const staged = co_await second.join();
  CHECK_MESSAGE(staged.ok(), staged.said());
  if (staged.ok()) CHECK(staged.value->way == route::host);
  auto const taken = co_await third.join();
  CHECK_MESSAGE(taken.ok(), taken.said());
  if (taken.ok()) CHECK(difference(source.images(), *taken.value) == "");
  CHECK(difference(source.images(), held) == "");
  CHECK(difference(source.images(), other) == "");
  co_await over.close();
}

CO_TEST("a sender that allows the mapped route only refuses tensors elsewhere, by name of the reason") {
  auto how = mapped_setting(1);
  how.how.choice = route_choice::mapped;
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  model elsewhere(host_memory(), layers(3), 1);
  auto const views = elsewhere.views();
  auto const refused = co_await try_to(over.sender().send_weights(1, views));
  CHECK(refused.error == errc::not_reachable);
  CHECK(refused.text.find("3 tensors are host memory that is not shared") != std::string::npos);
  model source(how.how.from, layers(3), 1), held(host_memory(), layers(3), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  auto const report = co_await deliver(over, 2, source.views(), into);
  CHECK(of(report, "server").way == route::mapped);
  CHECK(difference(source.images(), held) == "");
  co_await over.close();
}

CO_TEST("a sender that allows the mapped route only refuses receivers that take the ring") {
  auto how = mapped_setting(1);
  how.how.choice = route_choice::mapped;
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  model source(how.how.from, layers(3), 1);
  auto taking = beside(over.executor(), take_next(over.receiver(), source.kind()));
  auto const views = source.views();
  auto const sent = co_await try_to(over.sender().send_weights(1, views));
  CHECK(sent.error == errc::too_few_receivers);
  REQUIRE(sent.report);
  CHECK(of(*sent.report, "server").what == outcome::refused);
  CHECK(of(*sent.report, "server").text.find("mapped route only") != std::string::npos);
  auto const taken = co_await taking.join();
  CHECK(taken.error == errc::peer_aborted);
  co_await over.close();
}

CO_TEST(
    "a receiver that allows the mapped route only refuses what can't come so, and its memory is untouched") {
  auto options = quick_receiver();
  options.use_route(route_choice::mapped);
  line over(co_await asio::this_coro::executor, host_setting(), quick_sender(), options);
  co_await over.connect();
  model source(host_memory(), layers(3), 1), held(host_memory(), layers(3), 0);
  auto into = held.into();
  auto loading = beside(over.executor(), load_next(over.receiver(), into));
  auto const views = source.views();
  auto const sent = co_await try_to(over.sender().send_weights(1, views));
  REQUIRE(sent.report);
  CHECK(of(*sent.report, "server").what == outcome::refused);
  auto const loaded = co_await loading.join();
  CHECK(loaded.error == errc::not_reachable);
  CHECK(held.untouched());
  auto taking = beside(over.executor(), take_next(over.receiver(), source.kind()));
  auto const again = co_await try_to(over.sender().send_weights(2, views));
  CHECK(again.error == errc::too_few_receivers);
  auto const taken = co_await taking.join();
  CHECK(taken.error == errc::not_reachable);
  co_await over.close();
}

CO_TEST("release_memory: every receiver has unmapped the trainer's memory, and the next update maps anew") {
  line over(co_await asio::this_coro::executor, host_setting(2));
  co_await over.connect();
  std::vector<std::vector<std::byte>> held(2, std::vector<std::byte>(3000));
  std::vector<destinations> into(2);
  for (std::size_t i = 0; i < 2; ++i) into[i].add({"w", dtype::u8, {3000}, held[i].data()});
  for (std::uint64_t round = 1; round <= 3; ++round) {
    {
      auto const memory = shared_memory::make(block_bytes);
      over.sender().share(memory);
      fill(memory, round);
      std::vector<tensor_view> views{bytes_at("w", memory, 100, 3000)};
      auto const report = co_await deliver(over, round, std::move(views), into);
      for (auto const& one : report.receivers) CHECK(one.way == route::mapped);
      for (auto const& each : held) CHECK(same(each, memory.data() + 100));
      CHECK(mappings_of(block_bytes) == 3);
      co_await over.sender().release_memory();
      CHECK(mappings_of(block_bytes) == 1);
    }
    CHECK(mappings_of(block_bytes) == 0);
  }
  co_await over.close();
}

CO_TEST("release_memory while a send runs is refused; without receivers, or with nothing mapped, it is done "
        "at once") {
  line over(co_await asio::this_coro::executor, host_setting());
  co_await over.sender().release_memory();
  co_await over.connect();
  co_await over.sender().release_memory();
  model source(host_memory(), layers(3), 1);
  auto const views = source.views();
  auto sending = co_await over.sender().start(1, views);
  auto const busy = co_await try_to(over.sender().release_memory());
  CHECK(busy.error == errc::busy);
  co_await over.close();
  auto const closed = co_await try_to(over.sender().release_memory());
  CHECK(closed.error == errc::not_open);
}

CO_TEST("a session that ends lets go of what it had mapped, and the receiver that comes back maps it again") {
  line over(co_await asio::this_coro::executor, host_setting());
  auto const memory = shared_memory::make(block_bytes);
  over.sender().share(memory);
  std::vector<std::byte> held(3000);
  std::vector<destinations> into(1);
  into[0].add({"w", dtype::u8, {3000}, held.data()});
  co_await over.connect();
  for (std::uint64_t version = 1; version <= 3; ++version) {
    fill(memory, version);
    std::vector<tensor_view> views{bytes_at("w", memory, 0, 3000)};
    auto const report = co_await deliver(over, version, std::move(views), into);
    CHECK(of(report, "server").way == route::mapped);
    CHECK(same(held, memory.data()));
    CHECK(mappings_of(block_bytes) == 2);
    co_await over.receiver().close();
    co_await over.receiver().connect(over.path());
    co_await over.sender().wait_for_receivers(1, patient(milliseconds(5000)));
  }
  co_await over.close();
}

CO_TEST("a paced update is exact, and so is the next one without a pace") {
  auto options = quick_receiver();
  copy_pace slow;
  slow.bytes_per_second(200 * mib).most_blocks(8);
  options.pace(slow);
  auto how = mapped_setting(1);
  line over(co_await asio::this_coro::executor, how, quick_sender(), options);
  co_await over.connect();
  model source(how.how.from, layers(40, 10'000), 1), held(host_memory(), layers(40, 10'000), 0);
  std::vector<destinations> into;
  into.push_back(held.into());
  for (std::uint64_t version = 1; version <= 2; ++version) {
    source.fill(version);
    auto const report = co_await deliver(over, version, source.views(), into);
    CHECK(of(report, "server").way == route::mapped);
    CHECK(difference(source.images(), held) == "");
  }
  co_await over.close();
}

CO_TEST("a receiver of a part of the tensors maps only the memory that they lie in") {
  line over(co_await asio::this_coro::executor, host_setting());
  auto const wanted = shared_memory::make(block_bytes),
             unwanted = shared_memory::make(block_bytes + 64 * kib);
  over.sender().share(wanted);
  over.sender().share(unwanted);
  co_await over.connect();
  fill(wanted, 1);
  fill(unwanted, 2);
  std::vector<std::byte> held(3000);
  std::vector<destinations> into(1);
  into[0].add({"w", dtype::u8, {3000}, held.data()}).allow_unplaced();
  std::vector<tensor_view> views{bytes_at("w", wanted, 0, 3000), bytes_at("x", unwanted, 0, 3000)};
  auto const report = co_await deliver(over, 1, std::move(views), into);
  CHECK(of(report, "server").way == route::mapped);
  CHECK(same(held, wanted.data()));
  CHECK(mappings_of(block_bytes) == 2);
  CHECK(mappings_of(block_bytes + 64 * kib) == 1);
  co_await over.close();
}
