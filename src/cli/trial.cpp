#include "cli/trial.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <asio/buffer.hpp>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <string_view>

#include "base/unique_fd.hpp"
#include "cli/exit_code.hpp"
#include "cli/host_window.hpp"
#include "cli/private_directory.hpp"
#include "cli/weights.hpp"
#include "ropeway/sender.hpp"

namespace ropeway::cli {
namespace {

/// `ropeway receive` as a process of its own, ended with this object, and what it complains of.
class receiving {
 public:
  receiving(asio::io_context& loop, trial const& of, std::string const& socket) : complaints_(loop) {
    std::vector<std::string> words{of.program, "receive",        "--socket", socket,
                                   "--device", to_string(of.to), "--quiet",  "--no-digest"};
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
      throw std::system_error(errno, std::system_category(), "no pipe can be made");
    // The other end is the process's alone: it is closed when that is over.
    unique_fd const theirs(ends[1]);
    complaints_.assign(ends[0]);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    ::posix_spawn_file_actions_adddup2(&files, theirs.get(), STDERR_FILENO);
    int const error = ::posix_spawn(&pid_, words[0].c_str(), &files, nullptr, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&files);
    if (error != 0)
      throw std::system_error(error, std::system_category(), "no second process can be started");
  }
  receiving(receiving const&) = delete;
  receiving& operator=(receiving const&) = delete;
  ~receiving() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  /// Completes when the process is over. Cancellation: all types.
  awaitable<void> over() {
    std::array<char, 1024> part{};
    for (;;) {
      auto const into = asio::buffer(part);
      auto const [error, size] = co_await complaints_.async_read_some(into, compat::as_tuple(use_awaitable));
      said_.append(part.data(), size);
      if (error == asio::error::operation_aborted) throw transfer_error(error, "interrupted");
      if (error) co_return;
    }
  }

  /// Its last line, without the program's name.
  std::string last_words() const {
    std::string_view rest = said_;
    while (rest.ends_with('\n')) rest.remove_suffix(1);
    rest.remove_prefix(rest.rfind('\n') + 1); // npos + 1 is 0
    if (rest.starts_with("ropeway: ")) rest.remove_prefix(9);
    return rest.empty() ? "the receiving process ended without a word" : printable(rest);
  }

 private:
  asio::posix::stream_descriptor complaints_;
  std::string said_;
  pid_t pid_ = -1;
};

/// Sixteen equal tensors, the last one with what is left.
std::vector<tensor_info> shapes(std::uint64_t bytes) {
  std::vector<tensor_info> all;
  for (std::uint64_t i = 0; i < 16; ++i) {
    std::uint64_t const part = i < 15 ? bytes / 16 : bytes - bytes / 16 * 15;
    all.push_back({"tensor." + std::to_string(i), dtype::u8, shape({part})});
  }
  return all;
}

/// Memory that was never written is not really there yet.
void fill(weights const& what) {
  host_window window(what.where());
  for (auto const& tensor : what.entries())
    window.change(tensor.data, tensor.bytes, [](std::span<std::byte> piece, std::uint64_t offset) {
      std::memset(piece.data(), static_cast<int>(offset / 251 & 0xff), piece.size());
    });
}

awaitable<void> send_all(trial const& what, sender& from, weights const& held, trial_result& result) {
  auto const views = held.views();
  auto const prepared = from.prepare(views);
  co_await from.wait_for_receivers(1, std::chrono::seconds(30));
  for (std::uint64_t version = 1; version <= what.repeats + std::uint64_t(1); ++version) {
    send_report const report = co_await from.send_weights(version, prepared);
    result.way = report.receivers.front().way;
    result.why = report.receivers.front().route_reason;
    if (version > 1) result.times.push_back(report.total);
    what.sent(version);
  }
}

awaitable<void> caught(awaitable<void> body, std::exception_ptr& error) {
  try {
    co_await std::move(body);
  } catch (...) { error = std::current_exception(); }
}

awaitable<void> pause(std::chrono::milliseconds time) {
  auto const executor = co_await asio::this_coro::executor;
  asio::steady_timer timer(executor, time);
  co_await timer.async_wait(use_awaitable);
}

/// Until all is sent, or that can't be because the process is over.
awaitable<void> send_while_it_lives(trial const& what, sender& from, weights const& held, receiving& other,
                                    trial_result& result) {
  using namespace compat::awaitable_operators;
  std::exception_ptr failed;
  auto sends = caught(send_all(what, from, held, result), failed);
  auto const first = co_await (std::move(sends) || other.over());
  bool ended = first.index() == 1;
  if (!ended && failed && judge(failed).code == exit_code::peer) {
    // It may be about to say why.
    auto const second = co_await (other.over() || pause(std::chrono::seconds(2)));
    ended = second.index() == 0;
  }
  if (ended) result.error = other.last_words();
  co_await from.close();
  if (failed && !ended) std::rethrow_exception(failed);
}

} // namespace

nanoseconds trial_result::median() const {
  auto sorted = times;
  std::ranges::sort(sorted);
  return sorted.empty() ? nanoseconds() : sorted[sorted.size() / 2];
}

trial_result try_out(trial const& what) {
  trial_result result;
  std::exception_ptr failed;
  try {
    private_directory const place;
    auto const socket = place.file("trial.sock");
    auto const tensors = shapes(what.bytes);
    weights const held(tensors, what.from, what.shared);
    fill(held);
    sender_options options;
    options.bucket_bytes(what.bucket_bytes).slots(what.slots).use_route(what.route);
    asio::io_context loop(1);
    sender from(loop.get_executor(), socket, options);
    for (auto const& memory : held.shared()) from.share(memory);
    receiving other(loop, what, socket);
    asio::co_spawn(loop, send_while_it_lives(what, from, held, other, result),
                   [&](std::exception_ptr error) { failed = error; });
    loop.run();
    if (failed) std::rethrow_exception(failed);
  } catch (...) { result.error = judge(std::current_exception()).line; }
  return result;
}

} // namespace ropeway::cli
