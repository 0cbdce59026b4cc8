#include "processes.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <system_error>

#include "ropeway/error.hpp"

extern char** environ;

namespace ropeway::bench {
namespace {

constexpr int inherited = 3;

std::vector<std::string> arguments_of(plan const& of, char const* role) {
  std::vector<std::string> words{"ropeway-bench"};
  auto const add = [&](char const* option, std::string value) {
    words.emplace_back(option);
    words.push_back(std::move(value));
  };
  add(role, of.socket);
  add("--control", std::to_string(inherited));
  add("--rank", std::to_string(of.rank));
  add("--ranks", std::to_string(of.ranks));
  add("--study", name(of.what));
  add("--model", of.model);
  add("--layers", std::to_string(of.layers));
  add("--bucket", std::to_string(of.bucket_bytes));
  add("--slots", std::to_string(of.slots));
  add("--warm-up", std::to_string(of.warm_up));
  add("--repeats", std::to_string(of.repeats));
  add("--check", of.check_each ? "each" : "last");
  add("--route", name(of.routes.front()));
  add("--memory", name(of.memory));
  add("--pace", to_string(of.paces.front()));
  if (of.digest) words.emplace_back("--digest");
  add("--decode-steps", std::to_string(of.decode_steps));
  add("--decode-reads", std::to_string(of.decode_reads));
  add("--decode-bytes", std::to_string(of.decode_bytes));
  add("--device", to_string(of.where));
  add("--receivers", std::to_string(of.receivers.size()));
  for (auto const& one : of.receivers) add("--receiver-device", to_string(one));
  return words;
}

} // namespace

process::process(plan const& of, char const* role) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    throw std::system_error(errno, std::system_category(), "no socket pair can be made");
  control_ = unique_fd(ends[0]);
  unique_fd const other(ends[1]);
  auto words = arguments_of(of, role);
  std::vector<char*> arguments;
  for (auto& one : words) arguments.push_back(one.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  // dup2 onto itself clears the close-on-exec flag as well.
  posix_spawn_file_actions_adddup2(&actions, other.get(), inherited);
  int const error = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::system_error(error, std::system_category(), "a process can't be started");
}

process::~process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void process::wait(void* words, std::size_t bytes) const {
  if (read(control_.get(), words, bytes) != static_cast<ssize_t>(bytes))
    throw transfer_error(errc::peer_gone, "a process gave up (see above)");
}

void process::still_there() const {
  siginfo_t how{};
  // It stays to be waited for.
  if (waitid(P_PID, static_cast<id_t>(pid_), &how, WEXITED | WNOHANG | WNOWAIT) == 0 && how.si_pid != 0)
    throw transfer_error(errc::peer_gone, "a process gave up (see above)");
}

void process::finish() {
  int status = 0;
  waitpid(std::exchange(pid_, -1), &status, 0);
  if (status != 0) throw transfer_error(errc::peer_gone, "a process ended with an error");
}

void say_words(int control, void const* words, std::size_t bytes) {
  if (write(control, words, bytes) != static_cast<ssize_t>(bytes))
    throw transfer_error(errc::peer_gone, "the process that started this one is gone");
}

} // namespace ropeway::bench
