#include <sys/resource.h>
#include <unistd.h>

#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <exception>

#include "bench.hpp"
#include "cli/background.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::bench {
namespace {

double seconds(timeval const& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

awaitable<void> follow(plan const& of, receiver& server, asio::thread_pool& pool, cli::weights const& held) {
  cli::host_window window(of.receivers[of.rank]);
  destinations into;
  auto const whole = shapes(of);
  auto const views = held.mutable_views();
  for (std::size_t i = 0; i < views.size(); ++i) {
    auto const dimension = of.sharded ? shared_dimension(whole[i], of.receivers.size()) : std::nullopt;
    if (dimension)
      into.add_shard(*dimension, of.rank, static_cast<std::uint32_t>(of.receivers.size()), views[i]);
    else
      into.add(views[i]);
  }
  co_await server.connect(of.socket);
  std::uint64_t number = 0;
  double before = cpu_seconds();
  while (auto update = co_await server.next_update()) {
    load_report const loaded = co_await update->load_into(into);
    receiver_words words;
    words.load_s = std::chrono::duration<double>(loaded.total).count();
    words.cpu_s = cpu_seconds() - before;
    ++number;
    if (of.check_each || number == of.warm_up + of.repeats) {
      std::function<void(std::atomic<bool> const&)> work = [&](std::atomic<bool> const&) {
        check(of, held, window, data_of(of, number));
      };
      co_await cli::in_background(pool, std::move(work));
    }
    before = cpu_seconds();
    if (write(of.control, &words, sizeof words) != sizeof words)
      throw transfer_error(errc::peer_gone, "the sender's process is gone");
  }
}

} // namespace

double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

void receive(plan const& of) {
  asio::io_context loop(1);
  asio::thread_pool pool(1);
  auto const tensors = held_shapes(of);
  device const where = of.receivers.at(of.rank);
  cli::weights const held(tensors, where);
  receiver_options options;
  options.where(where).connect_limit(std::chrono::minutes(2)).name("rank " + std::to_string(of.rank));
  if (of.sharded) options.group("ranks").group_size(static_cast<std::uint32_t>(of.receivers.size()));
  receiver server(loop.get_executor(), options);
  std::exception_ptr failed;
  asio::co_spawn(loop, follow(of, server, pool, held), [&](std::exception_ptr error) { failed = error; });
  loop.run();
  if (failed) std::rethrow_exception(failed);
}

} // namespace ropeway::bench
