#include "program.hpp"

#include <array>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <utility>

extern char** environ;

namespace ropeway::testing {
namespace {

unique_fd memory_for(char const* what) {
  unique_fd made(::memfd_create(what, MFD_CLOEXEC));
  if (!made) throw std::runtime_error("no memory for what the program says");
  return made;
}

std::string content(int memory) {
  std::string text;
  std::array<char, 65536> part{};
  for (;;) {
    auto const got = ::pread(memory, part.data(), part.size(), static_cast<off_t>(text.size()));
    if (got <= 0) return text;
    text.append(part.data(), static_cast<std::size_t>(got));
  }
}

} // namespace

std::vector<std::string> ended::complaints() const {
  std::vector<std::string> lines;
  std::istringstream all(err);
  for (std::string line; std::getline(all, line);)
    if (line.starts_with("ropeway: ")) lines.push_back(line);
  return lines;
}

program::program(std::vector<std::string> const& arguments, int terminal, int stream)
    : out_(memory_for("out")), err_(memory_for("err")) {
  char const* const path = std::getenv("ROPEWAY_PROGRAM");
  if (!path) throw std::runtime_error("ROPEWAY_PROGRAM does not say where the program is");
  std::vector<std::string> words{"ropeway"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out_.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, err_.get(), 2);
  if (terminal >= 0) posix_spawn_file_actions_adddup2(&actions, terminal, stream);
  int const error = posix_spawn(&pid_, path, &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::runtime_error("the program can't be started");
}

program::~program() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

void program::signal(int number) const { ::kill(pid_, number); }

bool program::gone(int& status) const {
  if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
  status = status_;
  return pid_ < 0;
}

void program::wait_for(std::string const& text, std::chrono::seconds limit) const {
  wait_until(err_.get(), text, 1, limit);
}

void program::wait_for_output(std::string const& text, int times, std::chrono::seconds limit) const {
  wait_until(out_.get(), text, times, limit);
}

void program::wait_until(int in, std::string const& text, int times, std::chrono::seconds limit) const {
  auto const end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    int status = 0;
    bool const over = gone(status);
    auto const said = content(in);
    int found = 0;
    for (auto at = said.find(text); at != std::string::npos; at = said.find(text, at + text.size())) ++found;
    if (found >= times) return;
    if (over) throw std::runtime_error("it ended without saying '" + text + "' but: " + said);
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error("it never said '" + text + "': " + said);
    ::poll(nullptr, 0, 5);
  }
}

ended program::wait(std::chrono::seconds limit) {
  int status = 0;
  ended result;
  if (!gone(status)) {
    // A process is over when its pidfd can be read.
    unique_fd const process(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    pollfd over{process.get(), POLLIN, 0};
    ::poll(&over, 1, static_cast<int>(std::chrono::milliseconds(limit).count()));
  }
  bool const in_time = gone(status);
  if (!in_time) {
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  } else {
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  result.out = content(out_.get());
  result.err = content(err_.get());
  return result;
}

ended run(std::vector<std::string> const& arguments) { return program(arguments).wait(); }

} // namespace ropeway::testing
