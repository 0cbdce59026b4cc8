// Updates whose receivers read the sender's own tensors: which way is taken and why, memory that moves or is
// wanted back, and who waits for whom. In host memory that the sender shares. Part of ropeway; Apache-2.0.
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <thread>

#include "api/with_backends.hpp"
#include "line.hpp"
#include "support/co_test.hpp"
#include "support/leftovers.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::vector<tensor_info> layers(std::size_t count, std::uint64_t elements = 500) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i)
    specs.push_back({"layer." + std::to_string(i), dtype::f32, {elements}});
  return specs;
}

/// Mappings of shared memory in this process that are exactly so large.
std::size_t mappings_of(std::uint64_t bytes) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string text; std::getline(maps, text);) {
    if (text.find("/memfd:ropeway") == text.npos) continue;
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
      CHECK(one.text.empty());
      CHECK(one.route_reason == "1 tensor is host memory that is not shared (see sender::share)");
    }
    for (auto const& each : held) CHECK(difference(wanted, each) == "");
  }
  co_await over.close();
}

namespace {

awaitable<void> shards_read_what_is_theirs(setting how, std::size_t dimension) {
  constexpr std::uint32_t ranks = 4;
  line over(co_await asio::this_coro::executor, how);
  std::vector<tensor_info> const specs{{"w", dtype::f32, {64, 96}}, {"v", dtype::bf16, {128, 40}}};
  model source(how.how.from, specs, 1);
  for (auto const& block : how.how.from->shared()) over.sender().share(block);
  co_await over.connect();
  std::deque<model> held;
  std::vector<destinations> into(ranks);
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    auto parts = specs;
    for (auto& one : parts) {
      std::vector<std::uint64_t> extents(one.dims.extents().begin(), one.dims.extents().end());
      extents[dimension] /= ranks;
      one.dims = shape(std::span<std::uint64_t const>(extents));
    }
    auto& part = held.emplace_back(host_memory(), parts, 0);
    for (std::size_t i = 0; i < parts.size(); ++i)
      into[rank].add_shard(dimension, rank, ranks, part.target(i));
  }
  std::deque<task<load_report>> loads;
  for (std::uint32_t rank = 0; rank < ranks; ++rank)
    loads.emplace_back(over.executor(), load_next(over.receiver(rank), into[rank]));
  auto const report = co_await over.sender().send_weights(1, source.views());
  std::uint64_t copied = 0;
  std::uint32_t rank = 0;
  for (auto& load : loads) {
    auto const loaded = co_await load.join();
    REQUIRE_MESSAGE(loaded.ok(), loaded.said());
    CHECK(loaded.value->copied == report.bytes / ranks);
    CHECK(of(report, "server-" + std::to_string(rank++)).copied == loaded.value->copied);
    copied += loaded.value->copied;
  }
  CHECK(copied == report.bytes);
  for (auto const& one : report.receivers) CHECK(one.way == how.how.way.value_or(route::host));
  co_await over.close();
}

} // namespace

CO_TEST("each of four shards reads its own bytes and no others, be they rows or columns") {
  co_await shards_read_what_is_theirs(mapped_setting(4), 0);
  co_await shards_read_what_is_theirs(mapped_setting(4), 1);
  co_await shards_read_what_is_theirs(host_setting(4), 1); // of the ring they read the same
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
  CHECK(of(report, "server").route_reason.empty()); // none is faster
  CHECK(of(report, "bucket").route_reason == "it takes the update through the ring by its own choice");
  for (auto const& one : report.receivers) CHECK(one.copied == report.bytes);
  auto const loaded = co_await first.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  if (loaded.ok()) CHECK(loaded.value->way == route::mapped);
  if (loaded.ok()) CHECK(loaded.value->route_reason.empty());
  auto const staged = co_await second.join();
  CHECK_MESSAGE(staged.ok(), staged.said());
  if (staged.ok()) CHECK(staged.value->way == route::host);
  if (staged.ok()) CHECK(staged.value->route_reason == of(report, "ring").route_reason);
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

namespace {

/// One update into `held` from `memory`; what the receiver says of it.
awaitable<load_report> mapped_update(line& over, std::uint64_t version, shared_memory const& memory,
                                     std::vector<std::byte>& held, destinations& into) {
  fill(memory, version);
  auto loading = beside(over.executor(), load_next(over.receiver(), into));
  std::vector<tensor_view> const views{bytes_at("w", memory, 0, held.size())};
  auto const report = co_await over.sender().send_weights(version, views);
  CHECK(of(report, "server").way == route::mapped);
  auto const loaded = co_await loading.join();
  REQUIRE_MESSAGE(loaded.ok(), loaded.said());
  CHECK(same(held, memory.data()));
  co_return *loaded.value;
}

} // namespace

CO_TEST("what no update uses for a while is unmapped, and the next update maps it anew and says so") {
  auto options = quick_receiver();
  options.idle_mapping_limit(milliseconds(5));
  line over(co_await asio::this_coro::executor, host_setting(), quick_sender(), options);
  auto const memory = shared_memory::make(block_bytes);
  over.sender().share(memory);
  co_await over.connect();
  std::vector<std::byte> held(3000);
  destinations into;
  into.add({"w", dtype::u8, {held.size()}, held.data()});
  for (std::uint64_t version = 1; version <= 4; ++version) {
    auto const report = co_await mapped_update(over, version, memory, held, into);
    CHECK(report.stages[update_stage::map].count() > 0);
    while (mappings_of(block_bytes) != 1) co_await settle(1);
  }
  co_await over.sender().release_memory(); // what is gone already is answered for all the same
  over.sender().share(memory);
  co_await mapped_update(over, 5, memory, held, into);
  co_await over.close();
}

CO_TEST("what updates use is not unmapped: by default for minutes, and for ever if that is said") {
  for (bool const for_ever : {false, true}) {
    auto options = quick_receiver();
    if (for_ever) options.idle_mapping_limit(milliseconds::max());
    line over(co_await asio::this_coro::executor, host_setting(), quick_sender(), options);
    auto const memory = shared_memory::make(block_bytes);
    over.sender().share(memory);
    co_await over.connect();
    std::vector<std::byte> held(3000);
    destinations into;
    into.add({"w", dtype::u8, {held.size()}, held.data()});
    for (std::uint64_t version = 1; version <= 3; ++version) {
      auto const report = co_await mapped_update(over, version, memory, held, into);
      CHECK((report.stages[update_stage::map].count() > 0) == (version == 1));
      CHECK(mappings_of(block_bytes) == 2);
    }
    co_await over.close();
  }
  auto const refused = [](milliseconds limit) {
    try {
      asio::io_context io;
      auto options = quick_receiver();
      options.idle_mapping_limit(limit);
      receiver const made(io.get_executor(), options);
    } catch (transfer_error const& error) { return error.code(); }
    return std::error_code();
  };
  CHECK(refused(milliseconds(0)) == errc::invalid_argument);
  CHECK(refused(milliseconds(-1)) == errc::invalid_argument);
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

CO_TEST("layouts that take turns have a placement each, which is told once") {
  line over(co_await asio::this_coro::executor, host_setting());
  auto const memory = shared_memory::make(block_bytes);
  over.sender().share(memory);
  co_await over.connect();
  std::vector<std::byte> held[2] = {std::vector<std::byte>(3000), std::vector<std::byte>(2000)};
  std::vector<destinations> into[2];
  for (std::size_t i = 0; i < 2; ++i)
    into[i].emplace_back().add({"w", dtype::u8, {held[i].size()}, held[i].data()});
  std::size_t first = 0;
  for (std::uint64_t version = 1; version <= 12; ++version) {
    fill(memory, version);
    auto const which = version % 2;
    std::vector<tensor_view> views{bytes_at("w", memory, 64 * which, held[which].size())};
    auto const report = co_await deliver(over, version, std::move(views), into[which]);
    CHECK(of(report, "server").way == route::mapped);
    CHECK(same(held[which], memory.data() + 64 * which));
    auto const open = open_fds().size();
    if (version == 2) first = open;
    if (version > 2) CHECK(open <= first); // each that is told lies in memory of its own
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

// ---- while somebody maps or reads ----

namespace {

/// Two receivers that map; the copies of the second wait for the test.
struct late_reader {
  setting how() {
    auto made = mapped_setting(2);
    made.how.into[1].devices = std::make_shared<scripted_devices>(copies);
    return made;
  }
  explicit late_reader(any_io_executor executor, receiver_options options = quick_receiver())
      : over(executor, how(), quick_sender(), options), source(over.how().how.from, layers(10), 1) {
    for (int i = 0; i < 2; ++i) {
      held.emplace_back(host_memory(), layers(10), 0);
      into.push_back(held.back().into());
    }
  }
  std::vector<task<load_report>> load_both() {
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < 2; ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
    return loads;
  }
  awaitable<void> second_reads() {
    while (copies->in_flight() == 0) co_await settle(1);
    co_await settle();
  }
  /// One more update, without anything held.
  awaitable<void> next_is_exact(std::uint64_t version) {
    copies->set(script::pace::immediate);
    source.fill(version);
    auto const report = co_await deliver(over, version, source.views(), into);
    CHECK(outcomes(report) == "committed committed");
    for (auto const& one : report.receivers) CHECK(one.way == route::mapped);
    for (auto const& each : held) CHECK(difference(source.images(), each) == "");
    for (auto const& each : into) CHECK_FALSE(each.torn());
    co_await over.close();
  }

  std::shared_ptr<script> copies = std::make_shared<script>(script::pace::held);
  line over;
  model source;
  std::deque<model> held;
  std::vector<destinations> into;
};

awaitable<load_report> load_this(update what, destinations& into) {
  load_report report = co_await what.load_into(into);
  co_return report;
}

awaitable<void> overwrite_when_free(sending& begun, model& source, bool& free) {
  co_await begun.source_free();
  free = true;
  source.fill(1000);
}

/// A mapping that waits until the test opens it.
class held_imports final : public memory::backends {
 public:
  std::shared_ptr<memory::backend> get(device where) override {
    return std::make_shared<gated>(real_->get(where), *this);
  }
  std::vector<memory::device_uuid> cuda_devices() override { return {}; }
  void hold(bool on) {
    std::scoped_lock const lock(mutex_);
    held_ = on;
    came_ = came_ && on;
    changed_.notify_all();
  }
  bool came() {
    std::scoped_lock const lock(mutex_);
    return came_;
  }

 private:
  class gated final : public memory::backend {
   public:
    gated(std::shared_ptr<memory::backend> real, held_imports& gate) : real_(std::move(real)), gate_(gate) {}
    device where() const noexcept override { return real_->where(); }
    memory::device_uuid uuid() const noexcept override { return real_->uuid(); }
    shared_region make_region(std::uint64_t bytes) override { return real_->make_region(bytes); }
    std::shared_ptr<memory::region> import_region(unique_fd handle, std::uint64_t bytes,
                                                  memory::device_uuid const& origin) override {
      return real_->import_region(std::move(handle), bytes, origin);
    }
    bool can_reach(memory::device_uuid const& origin) const noexcept override {
      return real_->can_reach(origin);
    }
    std::shared_ptr<void> register_host(std::shared_ptr<memory::region> memory) override {
      return real_->register_host(std::move(memory));
    }
    std::unique_ptr<memory::queue> make_queue() override { return real_->make_queue(); }
    std::shared_ptr<memory::prepared_digests> prepare_digests(std::span<memory::digest_op const> ops,
                                                              std::uint32_t sums) override {
      return real_->prepare_digests(ops, sums);
    }
    std::unique_ptr<memory::segment_importer> start_import(memory::part_kind kind, std::uint64_t bytes,
                                                           std::uint32_t parts,
                                                           memory::device_uuid const& origin) override {
      gate_.wait();
      return real_->start_import(kind, bytes, parts, origin);
    }

   private:
    std::shared_ptr<memory::backend> real_;
    held_imports& gate_;
  };
  void wait() {
    std::unique_lock lock(mutex_);
    came_ = true;
    changed_.wait(lock, [&] { return !held_; });
  }

  std::shared_ptr<memory::backends> real_ = memory::system_backends();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = true, came_ = false;
};

int stream_memory = 0;
CUstream_st* const stream = reinterpret_cast<CUstream_st*>(&stream_memory);

/// A sender that knows of a scripted device, whose stream the tensors wait for, and a receiver that maps.
struct waits_for_stream {
  setting how() {
    auto made = mapped_setting(1);
    made.how.devices = devices;
    return made;
  }
  explicit waits_for_stream(any_io_executor executor)
      : over(executor, how())
      , source(over.how().how.from, layers(10), 1)
      , held(host_memory(), layers(10), 0) {
    into.push_back(held.into());
  }
  std::shared_ptr<script> when = std::make_shared<script>();
  std::shared_ptr<scripted_devices> devices = std::make_shared<scripted_devices>(when, 1);
  line over;
  model source, held;
  std::vector<destinations> into;
};

} // namespace

CO_TEST(
    "the tensors may be overwritten the moment the source is free: whoever is late has read them by then") {
  late_reader with(co_await asio::this_coro::executor);
  co_await with.over.connect();
  auto loads = with.load_both();
  auto const wanted = with.source.images();
  auto const views = with.source.views();
  auto begun = co_await with.over.sender().start(1, views);
  bool free = false;
  auto overwriting = beside(with.over.executor(), overwrite_when_free(begun, with.source, free));
  auto const first = co_await loads[0].join();
  CHECK_MESSAGE(first.ok(), first.said());
  co_await with.second_reads();
  CHECK_FALSE(free);
  while (!loads[1].done()) {
    with.copies->finish_next();
    co_await settle(1);
  }
  auto const second = co_await loads[1].join();
  CHECK_MESSAGE(second.ok(), second.said());
  auto const overwritten = co_await overwriting.join();
  CHECK_MESSAGE(overwritten.ok(), overwritten.said());
  auto const report = co_await begun.done();
  CHECK(outcomes(report) == "committed committed");
  for (auto const& each : with.held) CHECK(difference(wanted, each) == "");
  co_await with.next_is_exact(2);
}

CO_TEST("a send that is cancelled while a receiver reads ends when that one has stopped, and it is torn") {
  late_reader with(co_await asio::this_coro::executor);
  co_await with.over.connect();
  auto loads = with.load_both();
  auto const views = with.source.views();
  auto send = beside(with.over.executor(), with.over.sender().send_weights(1, views));
  auto const first = co_await loads[0].join();
  CHECK_MESSAGE(first.ok(), first.said());
  co_await with.second_reads();
  send.cancel();
  co_await settle();
  CHECK_FALSE(send.done());
  CHECK_FALSE(loads[1].done());
  with.copies->finish_all();
  auto const sent = co_await send.join();
  CHECK(sent.error == asio::error::operation_aborted);
  auto const second = co_await loads[1].join();
  CHECK(second.error == errc::peer_aborted);
  CHECK(with.into[1].torn());
  co_await with.next_is_exact(2);
}

namespace {

/// A receiver with a loop and a thread of its own, whose copies end when the test says so.
class server_apart {
 public:
  explicit server_apart(std::string path)
      : path_(std::move(path))
      , from_(detail::make_receiver(io_.get_executor(), quick_receiver(),
                                    std::make_shared<scripted_devices>(copies_)))
      , held_(block_bytes) {
    into_.add({"w", dtype::u8, {block_bytes}, held_.data()});
    asio::co_spawn(io_, serve(), [](std::exception_ptr) {});
    thread_ = std::thread([this] { io_.run(); });
  }
  ~server_apart() {
    if (thread_.joinable()) end();
  }
  server_apart(server_apart const&) = delete;
  server_apart& operator=(server_apart const&) = delete;
  bool reads() const { return copies_->in_flight() != 0; }
  /// Its copies end. What became of its load, once it has ended as well.
  attempt<load_report> const& end() {
    copies_->set(script::pace::immediate);
    copies_->finish_all();
    thread_.join();
    return loaded_;
  }
  destinations const& into() const { return into_; }
  std::vector<std::byte> const& held() const { return held_; }

 private:
  awaitable<void> serve() {
    co_await from_.connect(path_);
    loaded_ = co_await try_to(load_next(from_, into_));
    co_await from_.close();
  }
  std::shared_ptr<script> copies_ = std::make_shared<script>(script::pace::held);
  asio::io_context io_{1};
  std::string path_;
  receiver from_;
  std::vector<std::byte> held_;
  destinations into_;
  attempt<load_report> loaded_;
  std::thread thread_;
};

} // namespace

// Who commits by itself needs no turn of the sender's loop for that.
TEST_CASE(
    "a sender that is destroyed while a receiver reads: that one commits nothing of what comes after it") {
  scratch const directory;
  asio::io_context io(1);
  auto const memory = shared_memory::make(block_bytes);
  fill(memory, 1);
  std::optional<sender> to(std::in_place, io.get_executor(), directory.file("s"), quick_sender());
  to->share(memory);
  server_apart server(directory.file("s"));
  std::optional<std::error_code> sent;
  std::vector<tensor_view> const views{bytes_at("w", memory, 0, block_bytes)};
  to->wait_for_receivers(1, patient(milliseconds(5000)), [&](std::error_code, std::size_t) {
    to->send_weights(1, views, [&](std::error_code error, send_report const&) { sent = error; });
  });
  while (!server.reads()) io.run_one_for(milliseconds(1));
  REQUIRE_FALSE(sent);
  SUBCASE("destroyed") {
    to.reset();
    fill(memory, 2);
    auto const& loaded = server.end(); // while our loop stands still
    CHECK_MESSAGE(loaded.error == errc::peer_gone, loaded.said());
    CHECK(server.into().torn());
    io.run();
    CHECK(sent == asio::error::operation_aborted);
  }
  SUBCASE("and kept: it commits, whether our loop turns or not") {
    auto const& loaded = server.end();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    CHECK(same(server.held(), memory.data()));
    while (!sent) io.run_one_for(milliseconds(10));
    CHECK(*sent == std::error_code());
  }
}

CO_TEST("a load that is cancelled while it reads ends when its copies have, and the other one commits") {
  late_reader with(co_await asio::this_coro::executor);
  co_await with.over.connect();
  auto loads = with.load_both();
  auto const views = with.source.views();
  auto send = beside(with.over.executor(), with.over.sender().send_weights(1, views));
  co_await with.second_reads();
  loads[1].cancel();
  co_await settle();
  CHECK_FALSE(loads[1].done());
  CHECK_FALSE(send.done()); // the tensors are still read
  with.copies->finish_all();
  auto const second = co_await loads[1].join();
  CHECK(second.error == asio::error::operation_aborted);
  CHECK(with.into[1].torn());
  auto const sent = co_await send.join();
  REQUIRE(sent.ok());
  CHECK(outcomes(*sent.value) == "committed failed");
  co_await with.next_is_exact(2);
}

CO_TEST("a load that is cancelled while it waits for its pace ends at once") {
  auto options = quick_receiver();
  copy_pace slow;
  slow.bytes_per_second(1);
  options.pace(slow);
  line over(co_await asio::this_coro::executor, mapped_setting(1), quick_sender(), options);
  co_await over.connect();
  model source(over.how().how.from, layers(10), 1), held(host_memory(), layers(10), 0);
  auto into = held.into();
  auto loading = beside(over.executor(), load_next(over.receiver(), into));
  auto const views = source.views();
  auto send = beside(over.executor(), over.sender().send_weights(1, views));
  while (!into.torn()) co_await settle(1);
  co_await settle();
  CHECK_FALSE(loading.done());
  loading.cancel();
  auto const loaded = co_await loading.join();
  CHECK(loaded.error == asio::error::operation_aborted);
  CHECK(into.torn());
  auto const sent = co_await send.join();
  REQUIRE(sent.report);
  CHECK(outcomes(*sent.report) == "failed");
  co_await over.close();
}

CO_TEST("a load that is cancelled while it maps ends at once, whole; its memory comes back all the same") {
  auto how = host_setting(1);
  auto const imports = std::make_shared<held_imports>();
  how.how.into[0].devices = imports;
  line over(co_await asio::this_coro::executor, how);
  auto const memory = shared_memory::make(block_bytes);
  over.sender().share(memory);
  fill(memory, 1);
  co_await over.connect();
  std::vector<std::byte> held(3000);
  std::vector<destinations> into(1);
  into[0].add({"w", dtype::u8, {3000}, held.data()});
  auto loading = beside(over.executor(), load_next(over.receiver(), into[0]));
  std::vector<tensor_view> const views{bytes_at("w", memory, 0, 3000)};
  auto send = beside(over.executor(), over.sender().send_weights(1, views));
  while (!imports->came()) co_await settle(1);
  loading.cancel();
  auto const loaded = co_await loading.join();
  CHECK(loaded.error == asio::error::operation_aborted);
  CHECK_FALSE(into[0].torn());
  auto const sent = co_await send.join();
  REQUIRE(sent.report);
  CHECK(outcomes(*sent.report) == "refused");
  auto releasing = beside(over.executor(), over.sender().release_memory());
  co_await settle();
  CHECK_FALSE(releasing.done()); // it is being mapped
  imports->hold(false);
  auto const released = co_await releasing.join();
  CHECK_MESSAGE(released.ok(), released.said());
  CHECK(mappings_of(block_bytes) == 1);
  over.sender().share(memory);
  auto const report = co_await deliver(over, 2, views, into);
  CHECK(of(report, "server").way == route::mapped);
  CHECK(same(held, memory.data()));
  co_await over.close();
}

CO_TEST("what was mapped is not let go of while a load that needs it maps the rest") {
  auto how = host_setting(1);
  auto const imports = std::make_shared<held_imports>();
  imports->hold(false);
  how.how.into[0].devices = imports;
  auto options = quick_receiver();
  options.idle_mapping_limit(milliseconds(100)); // most likely it passes while the second segment is mapped
  line over(co_await asio::this_coro::executor, how, quick_sender(), options);
  auto first = shared_memory::make(block_bytes), second = shared_memory::make(block_bytes);
  if (first.data() > second.data()) std::swap(first, second); // they are mapped in this order
  over.sender().share(first);
  over.sender().share(second);
  co_await over.connect();
  std::vector<std::byte> held(3000), other(3000);
  destinations one, both;
  one.add({"w", dtype::u8, {held.size()}, held.data()});
  co_await mapped_update(over, 1, first, held, one);
  imports->hold(true);
  fill(second, 2);
  both.add({"w", dtype::u8, {held.size()}, held.data()});
  both.add({"v", dtype::u8, {other.size()}, other.data()});
  auto loading = beside(over.executor(), load_next(over.receiver(), both));
  std::vector<tensor_view> const views{bytes_at("w", first, 0, 3000), bytes_at("v", second, 0, 3000)};
  auto send = beside(over.executor(), over.sender().send_weights(2, views));
  while (!imports->came()) co_await settle(1);
  auto const begun = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begun < milliseconds(250)) co_await settle(1);
  imports->hold(false);
  auto const loaded = co_await loading.join();
  REQUIRE_MESSAGE(loaded.ok(), loaded.said());
  CHECK(loaded.value->way == route::mapped);
  CHECK(same(other, second.data()));
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  while (mappings_of(block_bytes) != 2) co_await settle(1); // they are, once it is over
  co_await over.close();
}

CO_TEST("cancelled by either side after any number of turns: the session lives, and the memory comes back") {
  line over(co_await asio::this_coro::executor, host_setting());
  auto const memory = shared_memory::make(block_bytes);
  co_await over.connect();
  std::vector<std::byte> held(3000);
  std::vector<destinations> into(1);
  into[0].add({"w", dtype::u8, {3000}, held.data()});
  std::vector<tensor_view> const views{bytes_at("w", memory, 0, 3000)};
  std::uint64_t version = 0;
  for (bool const by_sender : {false, true})
    for (int turns = 0; turns < 60; ++turns) {
      over.sender().share(memory);
      fill(memory, ++version);
      auto send = beside(over.executor(), over.sender().send_weights(version, views));
      auto offered = co_await announced(over.receiver());
      auto loading = beside(over.executor(), load_this(std::move(offered), into[0]));
      co_await settle(turns);
      by_sender ? send.cancel() : loading.cancel();
      auto const sent = co_await send.join();
      auto const loaded = co_await loading.join();
      auto const told = sent.ok()     ? outcomes(*sent.value)
                        : sent.report ? outcomes(*sent.report)
                                      : sent.said();
      // Given up after the order to commit, it may have been carried out.
      if (told != "unconfirmed")
        CHECK_MESSAGE(loaded.ok() == (told == "committed"), by_sender, " ", turns, ": ", told, " | ",
                      loaded.said());
      if (loaded.ok()) CHECK(same(held, memory.data()));
      co_await over.sender().release_memory();
      CHECK(mappings_of(block_bytes) == 1);
      REQUIRE(over.receiver().status().phase == session_phase::idle);
    }
  over.sender().share(memory);
  fill(memory, ++version);
  auto const report = co_await deliver(over, version, views, into);
  CHECK(of(report, "server").way == route::mapped);
  CHECK(same(held, memory.data()));
  co_await over.close();
}

CO_TEST("members of a group that map read when all have decided; if one refuses, nobody has written a byte") {
  auto options = quick_receiver("rank");
  options.group("ranks").group_size(2);
  late_reader with(co_await asio::this_coro::executor, options);
  with.copies->set(script::pace::immediate);
  co_await with.over.connect();
  auto const views = with.source.views();
  auto send = beside(with.over.executor(), with.over.sender().send_weights(1, views));
  auto first = co_await announced(with.over.receiver(0));
  auto second = co_await announced(with.over.receiver(1));
  auto loading = beside(with.over.executor(), load_this(std::move(first), with.into[0]));
  co_await settle();
  CHECK(with.held[0].untouched());
  second.refuse("it does not want it");
  auto const loaded = co_await loading.join();
  CHECK(loaded.error == errc::group_incomplete);
  CHECK(with.held[0].untouched());
  CHECK_FALSE(with.into[0].torn());
  auto const sent = co_await send.join();
  CHECK_FALSE(sent.ok());
  co_await with.next_is_exact(2);
}

CO_TEST("no byte is read before the stream that the tensors wait for has come so far") {
  waits_for_stream with(co_await asio::this_coro::executor);
  co_await with.over.connect();
  auto loading = beside(with.over.executor(), load_next(with.over.receiver(), with.into[0]));
  auto const views = with.source.views();
  auto send = beside(with.over.executor(), with.over.sender().send_weights(1, views, after(stream)));
  while (with.devices->count().waits == 0) co_await settle(1);
  co_await settle();
  CHECK(with.held.untouched());
  with.source.fill(7); // what the stream does
  with.when->signal(stream);
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  auto const loaded = co_await loading.join();
  REQUIRE(loaded.ok());
  CHECK(loaded.value->way == route::mapped);
  CHECK(difference(with.source.images(), with.held) == "");
  co_await with.over.close();
}

CO_TEST("a stream that can't be waited for fails the update and no more") {
  waits_for_stream with(co_await asio::this_coro::executor);
  co_await with.over.connect();
  for (std::uint64_t version = 1; version <= 2; ++version) {
    with.devices->fail(scripted_devices::call::make_queue, errc::device_failed);
    auto loading = beside(with.over.executor(), load_next(with.over.receiver(), with.into[0]));
    auto const views = with.source.views();
    auto const sent = co_await try_to(with.over.sender().send_weights(version, views, after(stream)));
    CHECK(sent.error == errc::device_failed);
    auto const loaded = co_await loading.join();
    CHECK(loaded.error == errc::peer_aborted);
    CHECK(with.held.untouched());
  }
  auto const report = co_await deliver(with.over, 3, with.source.views(), with.into);
  CHECK(of(report, "server").way == route::mapped);
  CHECK(difference(with.source.images(), with.held) == "");
  co_await with.over.close();
}
