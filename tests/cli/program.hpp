// Runs the `ropeway` program as a person would, and keeps what it says. Part of ropeway; Apache-2.0.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"

namespace ropeway::testing {

struct ended {
  int status =
      -1; ///< its exit status; 128 and the signal's number if one killed it; -1 if it had to be killed
  std::string out, err;
  /// What it complained of: the lines of `err` that begin with the program's name.
  std::vector<std::string> complaints() const;
};

/// A running program; killed if it still runs at the end.
class program {
 public:
  /// `arguments` follow the program's name. ROPEWAY_PROGRAM says where it lies. Its standard output, or the
  /// `stream` of that number, is `terminal`, if that is given: what it says there is not kept.
  explicit program(std::vector<std::string> const& arguments, int terminal = -1, int stream = 1);
  program(program const&) = delete;
  program& operator=(program const&) = delete;
  ~program();

  void signal(int number) const;
  /// Until its standard error holds `text`; throws after `limit`, or if it ended before.
  void wait_for(std::string const& text, std::chrono::seconds limit = std::chrono::seconds(60)) const;
  /// The same of its standard output, until it holds `text` so many times.
  void wait_for_output(std::string const& text, int times = 1,
                       std::chrono::seconds limit = std::chrono::seconds(60)) const;
  /// Its end, killing it after `limit`.
  ended wait(std::chrono::seconds limit = std::chrono::seconds(60));

 private:
  bool gone(int& status) const;
  void wait_until(int in, std::string const& text, int times, std::chrono::seconds limit) const;
  unique_fd out_, err_; // memory, so that nothing can be left behind
  mutable pid_t pid_ = -1;
  mutable int status_ = 0;
};

/// Runs it to its end.
ended run(std::vector<std::string> const& arguments);

} // namespace ropeway::testing
