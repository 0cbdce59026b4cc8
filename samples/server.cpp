// An async server: answers requests from one set of weights while the next version arrives in another.
//
//   server SOCKET NAME [ANSWERS]
//
// Follows the trainer at SOCKET until it says goodbye, and prints `version N digest D` for every version that
// it holds. At ANSWERS it listens for clients: each line that one sends is answered with the version that is
// being served and a digest of the weights, computed for that request.
//
// How it never serves torn weights: a load writes in place, so while one runs, and after one that failed, its
// destinations hold parts of two versions. This server therefore has two sets. Requests lease the one that
// was committed last; updates go into the other, and only when no request holds a lease on it any more. A
// server without memory for two sets loads into the one it has, and answers "not now" from the begin of a
// load until `destinations::torn()` is false again. A sample of ropeway; Apache-2.0.
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/read_until.hpp>
#include <asio/steady_timer.hpp>
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

/// A model and where updates are loaded: two views of the same memory.
struct weight_set {
  explicit weight_set(std::span<ropeway::tensor_info const> infos) : weights(infos) {
    for (auto const& view : weights.mutable_views()) into.add(view);
  }
  model weights;
  ropeway::destinations into;
};

struct server {
  std::string name;
  asio::thread_pool& pool;
  std::shared_ptr<weight_set> served, spare; // served: committed, complete, not written to
};

// Runs on the pool, so that neither updates nor other requests wait for it.
awaitable<std::string> digest(std::shared_ptr<weight_set const> leased) {
  co_return leased->weights.digest();
}

awaitable<void> follow(server& self, ropeway::receiver& receiver, std::string path) {
  co_await receiver.connect(path);
  asio::steady_timer pause(receiver.get_executor());
  while (auto update = co_await receiver.next_update()) {
    if (!self.spare) self.spare = std::make_shared<weight_set>(update->tensors());
    while (self.spare.use_count() > 1) { // a slow request still reads the version before last
      pause.expires_after(std::chrono::milliseconds(1));
      co_await pause.async_wait(use_awaitable);
    }
    ropeway::load_report const report = co_await update->load_into(self.spare->into);
    std::swap(self.served, self.spare); // from here on requests see the new version, whole
    auto const hash = co_await asio::co_spawn(self.pool, digest(self.served), use_awaitable);
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
    if (auto const leased = self.served) { // the lease: this set stays as it is while we hold it
      auto const version = leased->into.version().value();
      auto const hash = co_await asio::co_spawn(self.pool, digest(leased), use_awaitable);
      reply = self.name + " serves version " + std::to_string(version) + " digest " + hash + "\n";
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
  server self{argv[2], pool, nullptr, nullptr};
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
