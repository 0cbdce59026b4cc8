// An async trainer: changes its weights every step, and sends every step's weights to the servers on this
// host.
//
//   trainer SOCKET VERSIONS RECEIVERS [CHECKPOINT [OTHER...]]
//
// Starts from a safetensors checkpoint, or from a small model of its own. With OTHER checkpoints, of the same
// tensors, it does not train but sends all of them in turn, for who wants to know what each version holds. It
// waits for so many receivers, and prints `version N digest D` for every version: what the servers must hold.
// STEP_MS in the environment makes a step take at least so many milliseconds. A sample of ropeway;
// Apache-2.0.
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/thread_pool.hpp>
#include <cstdlib>
#include <iostream>
#include <ropeway/ropeway.hpp>

#include "model.hpp"
#include "number.hpp"

namespace {

using ropeway::awaitable;
using std::chrono::seconds;

model load(char const* path) {
  if (!path) {
    std::vector<ropeway::tensor_info> infos;
    for (int layer = 0; layer < 8; ++layer)
      infos.push_back({"layers." + std::to_string(layer) + ".weight", ropeway::dtype::f32, {512, 1024}});
    model fresh(infos);
    for (auto const& view : fresh.mutable_views())
      std::fill_n(view.data(), 512 * 1024 * sizeof(float), std::byte());
    return fresh;
  }
  auto const stored = ropeway::checkpoint::open(path);
  std::vector<ropeway::tensor_info> infos;
  for (auto const& tensor : stored.tensors()) infos.push_back(tensor.info);
  model loaded(infos);
  ropeway::read_into(stored, loaded.mutable_views());
  return loaded;
}

// These two run on a pool: a real trainer's step runs on a GPU, and its loop is free meanwhile as well.
awaitable<void> step(model& trained, std::uint64_t number) {
  trained.step(number);
  co_return;
}
awaitable<std::string> digest(model const& trained) { co_return trained.digest(); }

awaitable<void> train(ropeway::sender& sender, asio::thread_pool& pool, std::vector<model> models,
                      std::uint64_t versions, std::size_t receivers, std::chrono::milliseconds pace) {
  // Looked at once: every later send only reads the memory.
  std::vector<ropeway::prepared_tensors> tensors;
  for (auto const& each : models) tensors.push_back(sender.prepare(each.views()));
  co_await sender.wait_for_receivers(receivers, seconds(60));

  asio::steady_timer step_time(co_await asio::this_coro::executor);
  for (std::uint64_t version = 1; version <= versions; ++version) {
    step_time.expires_after(pace);
    auto const which = (version - 1) % models.size();
    model& trained = models[which];
    ropeway::sending sending = co_await sender.start(version, tensors[which]);
    auto const hash = co_await asio::co_spawn(pool, digest(trained), ropeway::use_awaitable);
    std::cout << "version " << version << " digest " << hash << std::endl;

    // From here on nobody reads the weights: the next step may change them while the servers still load.
    co_await sending.source_free();
    if (models.size() == 1) co_await asio::co_spawn(pool, step(trained, version), ropeway::use_awaitable);

    // By now the servers may have finished long ago; what came of each stands in the report.
    ropeway::send_report const report = co_await sending.done();
    std::cerr << "trainer: version " << version << " to " << report.count(ropeway::outcome::committed)
              << " of " << report.receivers.size() << " servers, " << static_cast<double>(report.bytes) / 1e6
              << " MB in " << std::chrono::duration<double, std::milli>(report.total).count() << " ms"
              << std::endl;
    co_await step_time.async_wait(ropeway::use_awaitable);
  }
  co_await sender.close();
}

} // namespace

int main(int argc, char** argv) try {
  if (argc < 4)
    throw std::invalid_argument("usage: trainer SOCKET VERSIONS RECEIVERS [CHECKPOINT [OTHER...]]");
  auto const versions = number("VERSIONS", argv[2]), receivers = number("RECEIVERS", argv[3]);
  char const* const step_ms = std::getenv("STEP_MS");
  std::chrono::milliseconds const pace(step_ms ? number("STEP_MS", step_ms) : 0);
  std::vector<model> models; // before the sender listens: peers want an answer soon
  models.push_back(load(argc >= 5 ? argv[4] : nullptr));
  for (int i = 5; i < argc; ++i) models.push_back(load(argv[i]));
  asio::io_context loop;
  asio::thread_pool pool(1); // after the loop, so that it ends before: what runs on it completes on the loop
  ropeway::sender_options options;
  options.min_receivers(static_cast<std::uint32_t>(receivers)); // a version that not all took is an error
  ropeway::sender sender(loop.get_executor(), argv[1], options);
  asio::co_spawn(loop, train(sender, pool, std::move(models), versions, receivers, pace),
                 [](std::exception_ptr error) {
                   if (error) std::rethrow_exception(error);
                 });
  loop.run();
} catch (std::exception const& error) {
  std::cerr << "trainer: " << error.what() << '\n';
  return 1;
}
