#include <sys/resource.h>

#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <exception>

#include "bench.hpp"
#include "cli/background.hpp"
#include "processes.hpp"
#include "ropeway/ropeway.hpp"
#include "serving.hpp"

namespace ropeway::bench {
namespace {

using work_type = std::function<void(std::atomic<bool> const&)>;

double seconds(timeval const& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

class last_copies final : public observer {
 public:
  void bucket_moved(std::uint64_t, std::uint32_t, std::uint64_t) override { at = now(); }
  double at = 0;
};

void place(plan const& of, model_memory const& held, destinations& into) {
  auto const whole = shapes(of);
  auto const views = held.mutable_views();
  for (std::size_t i = 0; i < views.size(); ++i) {
    auto const dimension = shared_dimension(whole[i], of.rank, of.ranks);
    if (dimension)
      into.add_shard(*dimension, of.rank, of.ranks, views[i]);
    else
      into.add(views[i]);
  }
}

constexpr std::uint64_t least_updates = 5;

/// Serves alone once all is mapped, then beside updates until it is enough, then alone again.
void serve(plan const& of, std::uint64_t number, serving& server, receiver_words& words) {
  if (number == of.warm_up) {
    server.alone(of.decode_steps);
    server.begin();
  }
  // One update is no rate.
  bool const enough = server.enough(of.decode_steps) && number >= of.warm_up + least_updates;
  if (!enough && number < of.warm_up + of.repeats) return;
  server.end();
  server.alone(of.decode_steps / 2);
  words.enough = true;
  words.alone = server.alone_times();
  words.beside = server.beside_times();
}

awaitable<void> follow(plan const& of, receiver& server, asio::thread_pool& pool, model_memory const& held,
                       last_copies& seen, serving* served, receiver_words words) {
  destinations into;
  place(of, held, into);
  words.held_bytes = held.total_bytes();
  co_await server.connect(of.socket);
  words.connected = now();
  std::uint64_t number = 0;
  double before = cpu_seconds();
  while (auto update = co_await server.next_update()) {
    words.announced = now();
    seen.at = 0;
    ++number;
    if (served && number > of.warm_up) served->load_began();
    load_report const loaded = co_await update->load_into(into);
    words.committed = now();
    if (served && number > of.warm_up) served->load_ended();
    words.moved = seen.at;
    words.cpu_s = cpu_seconds() - before;
    words.read_bytes = loaded.copied;
    words.stages = loaded.stages;
    work_type work = [&](std::atomic<bool> const&) {
      if (served && number >= of.warm_up) serve(of, number, *served, words);
      if (of.what == study::cold) {
        check_file(of, held);
      } else if (of.what == study::decode ? words.enough
                                          : of.check_each || number == of.warm_up + of.repeats) {
        check(of, held, data_of(of, number));
      }
    };
    co_await cli::in_background(pool, std::move(work));
    before = cpu_seconds();
    say_words(of.control, &words, sizeof words);
  }
}

} // namespace

double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

void receive(plan const& of, double entered) {
  receiver_words words;
  words.entered = entered;
  asio::io_context loop(1);
  asio::thread_pool pool(1);
  device const where = of.receivers.at(of.rank);
  // What a server has is memory of its own; nobody maps that.
  model_memory const held(held_shapes(of), where,
                          of.memory == memory_kind::segments && where.is_cuda() ? memory_kind::segments
                                                                                : memory_kind::region);
  std::unique_ptr<serving> served;
  if (of.what == study::decode) served = std::make_unique<serving>(of, where);
  words.ready = now();
  last_copies seen;
  receiver_options options;
  options.where(where).connect_limit(std::chrono::minutes(2)).name("rank " + std::to_string(of.rank));
  options.watched_by(&seen);
  if (of.ranks != 0) options.group("ranks").group_size(of.ranks);
  choose(options, of.routes.front());
  set_pace(options, of.paces.front());
  receiver server(loop.get_executor(), options);
  std::exception_ptr failed;
  asio::co_spawn(loop, follow(of, server, pool, held, seen, served.get(), words),
                 [&](std::exception_ptr error) {
                   failed = error;
                   if (failed) loop.stop(); // the session must not keep it
                 });
  loop.run();
  if (failed) std::rethrow_exception(failed);
}

} // namespace ropeway::bench
