// An async server: answers requests from one set of weights while the next version arrives in another.
//
//   server SOCKET NAME [ANSWERS]
//
// Follows the trainer at SOCKET until it says goodbye, and prints `version N digest D` for every version that
// it holds. At ANSWERS it listens for clients: each line that one sends is answered with the version that is
// being served and a digest of the weights, computed for that request.
//
// It never serves torn weights: updates arrive in a shadow set of destinations, which goes live, whole, when
// the sender commits. A request reads under a lease, and the set that it reads is not written until the lease
// ends. (Where there is no memory for two sets, load into plain `destinations`, and answer "not now" unless
// their `status().whole()`: a load writes in place.) A sample of ropeway; Apache-2.0.
#include <array>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/read_until.hpp>
#include <asio/thread_pool.hpp>
#include <asio/write.hpp>
#include <filesystem>
#include <iostream>
#include <optional>
#include <ropeway/ropeway.hpp>

#include "model.hpp"

namespace {

using ropeway::awaitable;
using ropeway::use_awaitable;
using answers = asio::local::stream_protocol;

/// Both sets of a model's memory, and where updates go.
struct weights {
  explicit weights(std::span<ropeway::tensor_info const> infos)
      : sets{model(infos), model(infos)}, into(places_in(sets[0]), places_in(sets[1])) {}
  static ropeway::destinations places_in(model& of) {
    ropeway::destinations places;
    for (auto const& view : of.mutable_views()) places.add(view);
    return places;
  }
  std::array<model, 2> sets;
  ropeway::shadow_destinations into;
};

struct server {
  std::string name;
  asio::thread_pool& pool;
  std::shared_ptr<weights> held; // made when the first update says what there is
};

// Runs on the pool, so that neither updates nor other requests wait for it.
awaitable<std::string> digest(model const& leased) { co_return leased.digest(); }

awaitable<void> follow(server& self, ropeway::receiver& receiver, std::string path) {
  co_await receiver.connect(path);
  while (auto update = co_await receiver.next_update()) {
    if (!self.held) self.held = std::make_shared<weights>(update->tensors());
    ropeway::load_report const report = co_await update->load_into(self.held->into);
    auto const lease = self.held->into.lease(); // from here on requests see the new version
    auto const hash = co_await asio::co_spawn(self.pool, digest(self.held->sets[lease.set()]), use_awaitable);
    std::cout << "version " << report.version << " digest " << hash << std::endl;
  }
}

awaitable<void> answer(server& self, answers::socket client) {
  std::string line;
  for (;;) {
    auto [error, size] = co_await asio::async_read_until(client, asio::dynamic_buffer(line, 4096), '\n',
                                                         ropeway::compat::as_result);
    if (error) co_return; // the client is gone
    line.erase(0, size);
    std::string reply = self.name + " serves nothing yet\n";
    if (auto const held = self.held) {
      if (auto const lease = held->into.lease()) { // the set that it names stays as it is while we hold it
        auto const hash = co_await asio::co_spawn(self.pool, digest(held->sets[lease.set()]), use_awaitable);
        reply = self.name + " serves version " + std::to_string(lease.version()) + " digest " + hash + "\n";
      }
    }
    auto [failed, written] =
        co_await asio::async_write(client, asio::buffer(reply), ropeway::compat::as_result);
    if (failed) co_return;
  }
}

awaitable<void> accept(server& self, answers::acceptor acceptor) {
  for (;;) {
    auto client = co_await acceptor.async_accept(use_awaitable);
    asio::co_spawn(acceptor.get_executor(), answer(self, std::move(client)), [](std::exception_ptr) {});
  }
}

} // namespace

int main(int argc, char** argv) try {
  if (argc < 3 || argc > 4) throw std::invalid_argument("usage: server SOCKET NAME [ANSWERS]");
  asio::io_context loop;
  asio::thread_pool pool(1); // after the loop, so that it ends before: what runs on it completes on the loop
  server self{argv[2], pool, nullptr};
  ropeway::receiver_options options;
  options.name(self.name).connect_limit(std::chrono::seconds(60)); // the trainer may have much to load
  ropeway::receiver receiver(loop.get_executor(), options);
  if (argc == 4)
    asio::co_spawn(loop, accept(self, answers::acceptor(loop, answers::endpoint(argv[3]))),
                   [](std::exception_ptr) {});
  std::exception_ptr failed;
  asio::co_spawn(loop, follow(self, receiver, argv[1]), [&](std::exception_ptr error) {
    failed = error;
    loop.stop(); // with the trainer's goodbye this server's work is done as well
  });
  loop.run();
  if (argc == 4) std::filesystem::remove(argv[3]);
  if (failed) std::rethrow_exception(failed);
} catch (std::exception const& error) {
  std::cerr << "server: " << error.what() << '\n';
  return 1;
}
