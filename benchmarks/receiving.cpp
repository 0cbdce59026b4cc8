#include <unistd.h>

#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <exception>

#include "bench.hpp"
#include "cli/background.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::bench {
namespace {

awaitable<void> follow(plan const& of, receiver& server, asio::thread_pool& pool, cli::weights const& held) {
  cli::host_window window(of.receiver_where);
  destinations into;
  for (auto const& view : held.mutable_views()) into.add(view);
  co_await server.connect(of.socket);
  std::uint64_t number = 0;
  while (auto update = co_await server.next_update()) {
    co_await update->load_into(into);
    ++number;
    if (of.check_each || number == of.warm_up + of.repeats) {
      std::function<void(std::atomic<bool> const&)> work = [&](std::atomic<bool> const&) {
        check(held, window, data_of(of, number));
      };
      co_await cli::in_background(pool, std::move(work));
    }
    if (write(of.control, "k", 1) != 1) throw transfer_error(errc::peer_gone, "the sender's process is gone");
  }
}

} // namespace

void receive(plan const& of) {
  asio::io_context loop(1);
  asio::thread_pool pool(1);
  auto const tensors = shapes(of);
  cli::weights const held(tensors, of.receiver_where);
  receiver_options options;
  options.where(of.receiver_where).connect_limit(std::chrono::minutes(2));
  receiver server(loop.get_executor(), options);
  std::exception_ptr failed;
  asio::co_spawn(loop, follow(of, server, pool, held), [&](std::exception_ptr error) { failed = error; });
  loop.run();
  if (failed) std::rethrow_exception(failed);
}

} // namespace ropeway::bench
