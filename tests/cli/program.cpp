#include "program.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "base/unique_fd.hpp"

extern char** environ;

namespace ropeway::testing {
namespace {

std::string file_for(char const* what) {
  std::string name = std::string("/tmp/ropeway-test-") + what + "-XXXXXX";
  unique_fd const made(mkstemp(name.data()));
  if (!made) throw std::runtime_error("no temporary file can be made");
  return name;
}

std::string content(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

} // namespace

std::vector<std::string> ended::complaints() const {
  std::vector<std::string> lines;
  std::istringstream all(err);
  for (std::string line; std::getline(all, line);)
    if (line.starts_with("ropeway: ")) lines.push_back(line);
  return lines;
}

program::program(std::vector<std::string> const& arguments) : out_(file_for("out")), err_(file_for("err")) {
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
  posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY, 0);
  int const error = posix_spawn(&pid_, path, &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw std::runtime_error("the program can't be started");
}

program::program(program&& other) noexcept
    : out_(std::exchange(other.out_, {}))
    , err_(std::exchange(other.err_, {}))
    , pid_(std::exchange(other.pid_, -1))
    , status_(other.status_) {}

program::~program() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (!out_.empty()) ::unlink(out_.c_str());
  if (!err_.empty()) ::unlink(err_.c_str());
}

void program::signal(int number) const { ::kill(pid_, number); }

bool program::gone(int& status) const {
  if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
  status = status_;
  return pid_ < 0;
}

void program::wait_for(std::string const& text, std::chrono::seconds limit) const {
  auto const end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    int status = 0;
    bool const over = gone(status);
    if (content(err_).find(text) != std::string::npos) return;
    if (over) throw std::runtime_error("it ended without saying '" + text + "' but: " + content(err_));
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error("it never said '" + text + "': " + content(err_));
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
  result.out = content(out_);
  result.err = content(err_);
  return result;
}

ended run(std::vector<std::string> const& arguments) { return program(arguments).wait(); }

} // namespace ropeway::testing
