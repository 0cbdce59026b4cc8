// Everything that must arrive, between GPUs and host memory in all pairs; the order on the GPU; two
// processes. Part of ropeway; Apache-2.0.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>

#include "content_suite.hpp"
#include "cuda_pairs.hpp"
#include "memory/cuda/kit.hpp"
#include "support/co_test.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

void run_on_all_pairs(behaviour what) {
  for (auto const& pair : cuda_pairings()) run_at_every_depth(what, pair);
}

/// A model's tensors in turn from a GPU and from the host.
awaitable<void> mixed_sources(setting const& how) {
  auto const specs = many(30, "layer", dtype::f32, {701});
  model on_gpu(cuda_memory(0), specs, 1), on_host(host_memory(), specs, 1);
  std::vector<tensor_view> views;
  for (std::size_t i = 0; i < specs.size(); ++i) views.push_back(i % 2 ? on_host.view(i) : on_gpu.view(i));
  line over(co_await asio::this_coro::executor, how, quick_sender(4 * kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  auto into = into_all(held);
  co_await deliver(over, 1, views, into);
  for (auto& each : held) CHECK(difference(on_gpu.images(), each) == "");
  co_await over.close();
}

constexpr std::uint64_t slow = 50'000'000; // nanoseconds
constexpr std::uint32_t words_each = 1024;

std::vector<std::byte> filled_with(std::uint32_t value) {
  std::vector<std::byte> bytes(words_each * sizeof value);
  for (std::size_t i = 0; i < bytes.size(); i += sizeof value)
    std::memcpy(bytes.data() + i, &value, sizeof value);
  return bytes;
}

/// Weights that a slow kernel writes on the caller's stream just before the send.
awaitable<void> written_just_before(setting const& how) {
  auto& gpu = kit::device(0);
  auto const stream = gpu.make_stream();
  auto const specs = many(8, "layer", dtype::u32, {words_each});
  model source(cuda_memory(0), specs, 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(8 * kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  auto into = into_all(held);
  for (std::uint32_t version = 1; version <= 3; ++version) {
    for (std::size_t i = 0; i < specs.size(); ++i)
      gpu.slow_fill(stream, const_cast<std::byte*>(source.view(i).data()), version * 100 + std::uint32_t(i),
                    words_each, i == 0 ? slow : 0);
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < into.size(); ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
    co_await over.sender().send_weights(version, source.views(), after(stream, device::cuda(0)));
    for (auto& load : loads) {
      auto const loaded = co_await load.join();
      CHECK_MESSAGE(loaded.ok(), loaded.said());
    }
    for (auto& each : held)
      for (std::size_t i = 0; i < specs.size(); ++i)
        CHECK(each.bytes(i) == filled_with(version * 100 + std::uint32_t(i)));
  }
  co_await over.close();
}

/// A slow reader of the destinations on the serving stream: it sees the old bytes, all of them.
awaitable<void> read_while_an_update_arrives(setting const& how) {
  auto& gpu = kit::device(0);
  auto const serving = gpu.make_stream();
  auto const specs = many(4, "layer", dtype::u32, {words_each});
  model source(how.how.from, specs, 1);
  model held(cuda_memory(0), specs, 0);
  auto const scratch_words = gpu.allocate(4);
  auto const seen = gpu.allocate_pinned(4 * words_each * 4);
  auto into = held.into();
  line over(co_await asio::this_coro::executor, how, quick_sender(8 * kib));
  co_await over.connect();
  auto wanted = held.current();
  for (std::uint64_t version = 1; version <= 3; ++version) {
    source.fill(version);
    auto send = beside(over.executor(), over.sender().send_weights(version, source.views()));
    auto update = co_await announced(over.receiver());
    {
      current const here(gpu);
      gpu.slow_fill(serving, scratch_words.get(), 1, 1, slow);
      for (std::size_t i = 0; i < specs.size(); ++i)
        gpu.check(gpu.more.cuMemcpyDtoHAsync(seen.get() + i * words_each * 4,
                                             reinterpret_cast<CUdeviceptr>(held.target(i).data()),
                                             words_each * 4, serving),
                  "reading the destinations");
    }
    co_await update.load_into(into, after(serving, device::cuda(0)));
    auto const sent = co_await send.join();
    CHECK_MESSAGE(sent.ok(), sent.said());
    {
      current const here(gpu);
      gpu.check(gpu.more.cuStreamSynchronize(serving), "waiting for the reader");
    }
    for (std::size_t i = 0; i < specs.size(); ++i)
      CHECK(std::memcmp(seen.get() + i * words_each * 4, wanted[i].bytes.data(), words_each * 4) == 0);
    CHECK(difference(source.images(), held) == "");
    wanted = held.current();
  }
  co_await over.close();
}

awaitable<void> serve_peer(std::string path, int ordinal, bool maps) {
  sender to(co_await asio::this_coro::executor, path, quick_sender(64 * kib));
  auto const kind = ordinal < 0 ? host_memory() : cuda_memory(ordinal);
  model source(kind, peer_layers(), 1);
  co_await to.wait_for_receivers(1, std::chrono::seconds(30));
  for (std::uint64_t version = 1; version <= 5; ++version) {
    source.fill(version);
    send_report const report = co_await to.send_weights(version, source.views());
    CHECK(outcomes(report) == "committed");
    if (maps) CHECK_MESSAGE(of(report, "peer").way == route::mapped, of(report, "peer").route_reason);
  }
  co_await to.close();
}

awaitable<void> follow_peer(std::string path, int ordinal) {
  auto options = quick_receiver();
  options.where(ordinal < 0 ? device::host() : device::cuda(ordinal)).connect_limit(std::chrono::seconds(30));
  receiver from(co_await asio::this_coro::executor, options);
  co_await from.connect(path);
  auto const kind = ordinal < 0 ? host_memory() : cuda_memory(ordinal);
  model held(kind, peer_layers(), 0);
  auto into = held.into();
  while (auto next = co_await from.next_update()) {
    load_report const report = co_await next->load_into(into);
    model const wanted(host_memory(), peer_layers(), report.version);
    CHECK(difference(wanted.images(), held) == "");
  }
  CHECK(from.version() == 5);
  co_await from.close();
}

/// The other receiver's context breaks in version 2, and stays broken.
awaitable<void> outlive_a_receivers_context(std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, path, quick_sender(64 * kib));
  auto options = quick_receiver("own");
  options.where(device::cuda(0));
  receiver from(executor, options);
  co_await from.connect(path);
  co_await to.wait_for_receivers(2, std::chrono::seconds(30));
  model source(cuda_memory(0), peer_layers(), 1), held(cuda_memory(0), peer_layers(), 0);
  auto into = held.into();
  for (std::uint64_t version = 1; version <= 3; ++version) {
    source.fill(version);
    auto load = beside(executor, load_next(from, into));
    send_report const report = co_await to.send_weights(version, source.views());
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    CHECK(difference(source.images(), held) == "");
    auto const& peer = of(report, "peer");
    if (version == 1) {
      CHECK(peer.what == outcome::committed);
    } else {
      // It says no if its device is known to be broken before anything is written.
      CHECK((peer.what == outcome::failed || peer.what == outcome::refused));
      CHECK(peer.error == make_error_code(errc::device_failed));
    }
  }
  co_await to.close();
  co_await from.close();
}

/// The sender's context breaks before version 2: it may still announce it, and then aborts it.
awaitable<void> outlive_a_senders_context(std::string path) {
  auto options = quick_receiver();
  options.where(device::cuda(0)).connect_limit(std::chrono::seconds(30));
  receiver from(co_await asio::this_coro::executor, options);
  co_await from.connect(path);
  model held(cuda_memory(0), peer_layers(), 0);
  auto into = held.into();
  co_await load_next(from, into);
  while (auto next = co_await from.next_update()) {
    auto const end = co_await try_to(next->load_into(into));
    CHECK(end.error == make_error_code(errc::peer_aborted));
  }
  CHECK(from.version() == 1);
  co_await from.close();
}

} // namespace

#define ROPEWAY_CUDA_TEST(function, sentence)                                                                \
  TEST_CASE("cuda: " sentence) { run_on_all_pairs(function); }
ROPEWAY_CONTENT_SUITE(ROPEWAY_CUDA_TEST)

// Everything once more, compared before each commit by digests that the devices compute.
#define ROPEWAY_CUDA_DIGEST_TEST(function, sentence)                                                         \
  TEST_CASE("cuda, with digests: " sentence) {                                                               \
    for (auto const& pair : cuda_pairings()) run_at_every_depth(function, digested(pair));                   \
  }
ROPEWAY_CONTENT_SUITE(ROPEWAY_CUDA_DIGEST_TEST)

TEST_CASE("cuda, with digests: host tensors among device tensors, and what a slow kernel writes") {
  for (auto const& pair : cuda_pairings()) {
    run_at_every_depth(mixed_sources, digested(pair));
    if (pair.from->where().is_cuda()) run_at_every_depth(written_just_before, digested(pair));
  }
}

TEST_CASE("cuda: host tensors among device tensors") { run_on_all_pairs(mixed_sources); }

TEST_CASE("cuda: weights written by a slow kernel just before the send are never the old ones") {
  for (auto const& pair : cuda_pairings())
    if (pair.from->where().is_cuda()) run_at_every_depth(written_just_before, pair);
}

TEST_CASE("cuda: a slow reader on the serving stream sees only old bytes") {
  auto const zero = cuda_memory(0);
  run_at_every_depth(read_while_an_update_arrives, {"same GPU", zero, {}, {{zero, {}}}});
  run_at_every_depth(read_while_an_update_arrives, {"CPU to GPU", host_memory(), {}, {{zero, {}}}});
}

TEST_CASE("cuda: five versions between two processes, to and from a GPU") {
  struct sides {
    int here, there;
  };
  auto const count = memory::system_backends()->cuda_devices().size();
  std::vector<sides> pairs{{0, 0}, {0, -1}, {-1, 0}};
  if (count > 1) pairs.insert(pairs.end(), {{0, 1}, {1, 0}});
  for (auto const pair : pairs) {
    INFO("from " << pair.here << " to " << pair.there);
    scratch const directory;
    auto const path = directory.file("s");
    int const server = start_peer("receive:" + path + ":" + std::to_string(pair.there), "");
    bool const maps = pair.here >= 0 && pair.there >= 0;
    run_to_end([&] { return serve_peer(path, pair.here, maps); }, std::chrono::seconds(60));
    CHECK(end_of_peer(server) == 0);
    int const trainer = start_peer("send:" + path + ":" + std::to_string(pair.here), "");
    run_to_end([&] { return follow_peer(path, pair.there); }, std::chrono::seconds(60));
    CHECK(end_of_peer(trainer) == 0);
  }
  if (count > 1) {
    // Each process sees only its own GPU: both call it cuda:0.
    scratch const directory;
    int const server = start_peer("receive:" + directory.file("s") + ":0", "1");
    run_to_end([&] { return serve_peer(directory.file("s"), 0, false); }, std::chrono::seconds(60));
    CHECK(end_of_peer(server) == 0);
  }
}

TEST_CASE("cuda: a context that a kernel breaks, of a receiver or a sender, fails its own updates and nobody "
          "else's") {
  scratch const directory;
  auto const path = directory.file("s");
  int const server = start_peer("receive and break:" + path + ":0", "");
  run_to_end([&] { return outlive_a_receivers_context(path); }, std::chrono::seconds(60));
  CHECK(end_of_peer(server) == 0);
  int const broken = start_peer("send and break:" + path + ":0", "");
  run_to_end([&] { return outlive_a_senders_context(path); }, std::chrono::seconds(60));
  CHECK(end_of_peer(broken) == 0);
  int const trainer = start_peer("send:" + path + ":0", ""); // our own device still works
  run_to_end([&] { return follow_peer(path, 0); }, std::chrono::seconds(60));
  CHECK(end_of_peer(trainer) == 0);
}

TEST_CASE("cuda: a device that does not exist is a clear error") {
  asio::io_context io(1);
  scratch const directory;
  auto options = quick_receiver();
  options.where(device::cuda(99));
  sender to(io.get_executor(), directory.file("s"), quick_sender());
  receiver from(io.get_executor(), options);
  std::error_code seen;
  from.connect(directory.file("s"), [&](std::error_code error) { seen = error; });
  while (!seen) io.run_one();
  CHECK(seen == make_error_code(errc::no_device));
}

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i)
    if (std::strncmp(arguments[i], "--peer=", 7) == 0) return play_peer(arguments[i] + 7);
  if (auto const reason = no_device(); !reason.empty()) {
    std::printf("SKIPPED: no CUDA device (%s)\n", reason.c_str());
    return 77;
  }
  for (auto const& line : missing_pairings()) std::printf("%s\n", line.c_str());
  doctest::Context context(count, arguments);
  return context.run();
}
