#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cstdlib>
#include <ctime>
#include <iostream>

#include "base/unique_fd.hpp"
#include "baseline.hpp"
#include "bench.hpp"
#include "cli/background.hpp"
#include "cli/private_directory.hpp"
#include "cli/quantity.hpp"
#include "cli/table.hpp"
#include "ropeway/ropeway.hpp"

extern char** environ;

namespace ropeway::bench {
namespace {

using clock = std::chrono::steady_clock;
using cli::in_background;

/// A receiver: this program once more, started before anything here touches a device.
class receiver_process {
 public:
  receiver_process(plan const& of, std::string const& socket, std::size_t rank) {
    std::array<int, 2> ends{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
      throw std::system_error(errno, std::system_category(), "no socket pair can be made");
    control_ = unique_fd(ends[0]);
    unique_fd const other(ends[1]);
    constexpr int inherited = 3;
    std::vector<std::string> words{"ropeway-bench",
                                   "--as-receiver",
                                   socket,
                                   "--control",
                                   std::to_string(inherited),
                                   "--rank",
                                   std::to_string(rank),
                                   "--model",
                                   of.model,
                                   "--layers",
                                   std::to_string(of.layers),
                                   "--warm-up",
                                   std::to_string(of.warm_up),
                                   "--repeats",
                                   std::to_string(of.repeats),
                                   "--check",
                                   of.check_each ? "each" : "last"};
    if (of.sharded) words.emplace_back("--shards");
    for (auto const& one : of.receivers)
      for (auto word : {std::string("--receiver-device"), to_string(one)}) words.push_back(std::move(word));
    std::vector<char*> arguments;
    for (auto& one : words) arguments.push_back(one.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // dup2 onto itself clears the close-on-exec flag as well.
    posix_spawn_file_actions_adddup2(&actions, other.get(), inherited);
    int const error = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
      throw std::system_error(error, std::system_category(), "the receiver's process can't be started");
  }
  ~receiver_process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  receiver_process(receiver_process&& other) noexcept
      : control_(std::move(other.control_)), pid_(std::exchange(other.pid_, -1)) {}
  /// Until it says that it is done with a version.
  receiver_words wait_checked() const {
    receiver_words words;
    if (read(control_.get(), &words, sizeof words) != sizeof words)
      throw transfer_error(errc::peer_gone, "a receiver gave up (see above)");
    return words;
  }
  void finish() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    if (status != 0) throw transfer_error(errc::peer_gone, "the receiver ended with an error");
  }

 private:
  unique_fd control_;
  pid_t pid_ = -1;
};

struct times {
  std::vector<double> send, source_free, baseline;
  std::vector<double> sender_cpu;         ///< of a send, all threads
  std::vector<double> load, receiver_cpu; ///< of the slowest receiver, and of all together
};

double median(std::vector<double> of) {
  std::ranges::sort(of);
  auto const half = of.size() / 2;
  return of.size() % 2 == 1 ? of[half] : (of[half - 1] + of[half]) / 2;
}

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

using peers = std::vector<receiver_process>;

/// What all receivers say of a version.
receiver_words wait_checked(peers const& all) {
  receiver_words together;
  for (auto const& one : all) {
    auto const words = one.wait_checked();
    together.load_s = std::max(together.load_s, words.load_s);
    together.cpu_s += words.cpu_s;
  }
  return together;
}

awaitable<void> run(plan const& of, sender& trainer, peers const& all, asio::thread_pool& pool,
                    cli::weights const& held, baseline* compared, times& out) {
  using work_type = std::function<void(std::atomic<bool> const&)>;
  cli::host_window window(of.where);
  auto const tensors = held.views();
  std::uint64_t filled = UINT64_MAX;
  co_await trainer.wait_for_receivers(all.size(), std::chrono::minutes(2));
  for (std::uint64_t number = 1; number <= of.warm_up + of.repeats; ++number) {
    work_type work = [&](std::atomic<bool> const&) {
      if (filled != data_of(of, number)) fill(held, window, filled = data_of(of, number));
    };
    co_await in_background(pool, std::move(work));
    auto const cpu = cpu_seconds();
    auto const start = clock::now();
    send_report const report = co_await trainer.send_weights(number, tensors);
    auto const took = seconds_since(start);
    auto const cpu_took = cpu_seconds() - cpu;
    if (report.count(outcome::committed) != all.size())
      throw transfer_error(errc::too_few_receivers,
                           "not every receiver committed version " + std::to_string(number));
    double compared_took = 0;
    receiver_words words;
    work = [&](std::atomic<bool> const&) {
      words = wait_checked(all);
      if (!compared) return;
      auto const begin = clock::now();
      compared->run();
      compared_took = seconds_since(begin);
    };
    co_await in_background(pool, std::move(work));
    bool const counts = number > of.warm_up;
    std::cerr << (counts ? "repeat " : "warm-up ") << number << ": " << took << " s";
    if (compared) std::cerr << ", baseline " << compared_took << " s";
    std::cerr << std::endl;
    if (!counts) continue;
    out.send.push_back(took);
    out.source_free.push_back(std::chrono::duration<double>(report.source_free).count());
    out.sender_cpu.push_back(cpu_took);
    out.load.push_back(words.load_s);
    out.receiver_cpu.push_back(words.cpu_s);
    if (compared) out.baseline.push_back(compared_took);
  }
  co_await trainer.close();
}

boost::json::object summary(std::vector<double> const& seconds, std::uint64_t bytes) {
  boost::json::object out;
  out["median_s"] = median(seconds);
  out["min_s"] = std::ranges::min(seconds);
  out["max_s"] = std::ranges::max(seconds);
  out["median_GB_per_s"] = static_cast<double>(bytes) / median(seconds) / 1e9;
  boost::json::array all;
  for (auto const one : seconds) all.push_back(one);
  out["seconds"] = std::move(all);
  return out;
}

void report(plan const& of, cli::weights const& held, times const& taken, baseline const* compared) {
  auto const bytes = held.total_bytes();
  auto const now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  utsname kernel{};
  uname(&kernel);

  boost::json::object results;
  results["model"] = of.model;
  results["layers"] = of.layers;
  results["receivers"] = of.receivers.size();
  results["sharded"] = of.sharded;
  results["tensors"] = held.entries().size();
  results["bytes"] = bytes;
  results["bucket_bytes"] = of.bucket_bytes;
  results["slots"] = of.slots;
  results["warm_up"] = of.warm_up;
  results["bytes_checked"] = of.check_each ? "all, after each send" : "all, after the last send";
  results["send_weights"] = summary(taken.send, bytes);
  results["source_free_median_s"] = median(taken.source_free);
  results["slowest_load_median_s"] = median(taken.load);
  results["sender_cpu_median_s"] = median(taken.sender_cpu);
  results["all_receivers_cpu_median_s"] = median(taken.receiver_cpu);

  cli::table rows({"what", ">median", ">min", ">max", ">payload"});
  auto const row = [&](std::string const& what, std::vector<double> const& seconds) {
    auto const text = [](double value) {
      return cli::time_text(std::chrono::nanoseconds(static_cast<std::int64_t>(value * 1e9)));
    };
    auto const middle = std::chrono::nanoseconds(static_cast<std::int64_t>(median(seconds) * 1e9));
    rows.add({what, text(median(seconds)), text(std::ranges::min(seconds)), text(std::ranges::max(seconds)),
              cli::rate_text(bytes, middle)});
  };
  std::string to = to_string(of.receivers.front());
  if (of.receivers.size() > 1)
    to += (of.sharded ? " and others, a shard each (" : " and others (") +
          std::to_string(of.receivers.size()) + ")";
  row("send_weights, " + to_string(of.where) + " to " + to, taken.send);
  row("  until the source is free", taken.source_free);
  row("  the slowest receiver's load", taken.load);
  if (compared) {
    row(compared->what(), taken.baseline);
    results["baseline"] = summary(taken.baseline, bytes);
    results["baseline_is"] = compared->what();
    results["ratio_to_baseline"] = median(taken.baseline) / median(taken.send);
  }
  std::cout << of.model << ": " << held.entries().size() << " tensors, " << cli::size_text(bytes)
            << ", ring of " << of.slots << " x " << (of.bucket_bytes >> 20) << " MiB, " << of.repeats
            << " repeats after " << of.warm_up << "\n";
  rows.print(std::cout);
  std::cout << "CPU time a send: sender " << median(taken.sender_cpu) * 1e6 << " us, receivers together "
            << median(taken.receiver_cpu) * 1e6 << " us\n";
  if (compared) std::cout << "ratio " << median(taken.baseline) / median(taken.send) << '\n';

  boost::json::object line;
  line["device"] = device_name(of.where);
  line["receiver_device"] = device_name(of.receivers.front());
  line["kernel"] = kernel.release;
  line["date"] = date.data();
  line["command"] = of.command;
  line["results"] = std::move(results);
  std::cout << boost::json::serialize(line) << std::endl;
}

} // namespace

void measure(plan const& of) {
  cli::private_directory const place;
  auto const socket = place.file("bench.sock");
  peers all;
  for (std::size_t rank = 0; rank < of.receivers.size(); ++rank) all.emplace_back(of, socket, rank);
  asio::io_context loop(1);
  asio::thread_pool pool(1);
  auto const tensors = shapes(of);
  cli::weights const held(tensors, of.where);
  auto const compared = make_baseline(of, held);
  sender_options options;
  options.bucket_bytes(of.bucket_bytes).slots(of.slots);
  sender trainer(loop.get_executor(), socket, options);
  times taken;
  std::exception_ptr failed;
  asio::co_spawn(loop, run(of, trainer, all, pool, held, compared.get(), taken),
                 [&](std::exception_ptr error) { failed = error; });
  loop.run();
  if (failed) std::rethrow_exception(failed);
  for (auto& one : all) one.finish();
  report(of, held, taken, compared.get());
}

} // namespace ropeway::bench
