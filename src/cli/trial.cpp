#include "cli/trial.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <asio/io_context.hpp>
#include <csignal>
#include <cstring>
#include <exception>

#include "cli/exit_code.hpp"
#include "cli/host_window.hpp"
#include "cli/private_directory.hpp"
#include "cli/weights.hpp"
#include "ropeway/sender.hpp"

namespace ropeway::cli {
namespace {

/// `ropeway receive` as a process of its own, ended with this object.
class receiving {
 public:
  receiving(trial const& of, std::string const& socket) {
    std::vector<std::string> words{"/proc/self/exe", "receive",        "--socket", socket,
                                   "--device",       to_string(of.to), "--quiet",  "--no-digest"};
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
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

 private:
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
    result.why = report.receivers.front().text;
    if (version > 1) result.times.push_back(report.total);
  }
  co_await from.close();
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
    receiving const other(what, socket);
    asio::co_spawn(loop, send_all(what, from, held, result),
                   [&](std::exception_ptr error) { failed = error; });
    loop.run();
    if (failed) std::rethrow_exception(failed);
  } catch (...) { result.error = judge(std::current_exception()).line; }
  return result;
}

} // namespace ropeway::cli
