// A function in a process of its own, made by fork. Part of ropeway; Apache-2.0.
//
// Fork before anything that does not survive it: CUDA, and event loops that the child is to use. A child
// never outlives the test: it is killed with the test's process, and by the destructor.
#pragma once
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <poll.h>
#include <stdexcept>
#include <string>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include "base/unique_fd.hpp"
#include "leftovers.hpp"

namespace ropeway::testing {

/// What processes tell each other between "before fork" and "after fork": `pass` in one lets `wait` return in
/// the other. Counts; make one for each thing to wait for.
class baton {
 public:
  baton() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)) {
    if (!fd_) throw std::runtime_error("eventfd");
  }
  void pass() const noexcept { ::eventfd_write(fd_.get(), 1); }
  /// False if nobody passed it in time.
  bool wait(std::chrono::milliseconds limit = std::chrono::seconds(20)) const noexcept {
    pollfd waiting{fd_.get(), POLLIN, 0};
    int ready = 0;
    do ready = ::poll(&waiting, 1, static_cast<int>(limit.count()));
    while (ready < 0 && errno == EINTR);
    std::uint64_t one = 0;
    return ready == 1 && ::eventfd_read(fd_.get(), &one) == 0;
  }

 private:
  unique_fd fd_;
};

/// A child process.
class fork_child {
 public:
  /// What `wait` returns for a child that threw, and for one that left descriptors, mappings or memory
  /// behind; the message is on stderr.
  static constexpr int threw = 99, littered = 98;

  /// Runs `body` in the child; what it returns is the exit status. The child ends without destructors of the
  /// parent's, and so without the look that LeakSanitizer takes at a program's end: it is taken here.
  explicit fork_child(std::function<int()> const& body) {
    pid_t const parent = ::getpid();
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(threw);
    int status = threw;
    try {
      leftovers const before;
      (void)left_on_purpose(); // what the parent had said
      status = body();
      std::string found = left_on_purpose() ? "" : before.left_behind();
      if (lost_memory()) found += "lost: memory, see above\n";
      if (!found.empty()) {
        std::fprintf(stderr, "child: did not clean up:\n%s", found.c_str());
        status = littered;
      }
    } catch (std::exception const& error) { std::fprintf(stderr, "child: %s\n", error.what()); } catch (...) {
      std::fprintf(stderr, "child: unknown exception\n");
    }
    std::fflush(nullptr);
    ::_exit(status);
  }
  fork_child(fork_child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  fork_child& operator=(fork_child&&) = delete;
  ~fork_child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::kill(pid_, SIGCONT);
    (void)wait();
  }

  pid_t pid() const noexcept { return pid_; }
  void signal(int number) const noexcept { ::kill(pid_, number); }
  void stop() const noexcept {
    ::kill(pid_, SIGSTOP);
    int status = 0;
    ::waitpid(pid_, &status, WUNTRACED);
  }
  void resume() const noexcept { ::kill(pid_, SIGCONT); }
  /// Kills it and waits until it is gone.
  void kill() {
    ::kill(pid_, SIGKILL);
    (void)wait();
  }
  /// The exit status, or minus the number of the signal that ended it. Blocks until it has ended.
  int wait() {
    int status = 0;
    pid_t got = -1;
    do got = ::waitpid(pid_, &status, 0);
    while (got < 0 && errno == EINTR);
    pid_ = -1;
    if (got < 0) return threw;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
};

} // namespace ropeway::testing
