// This program once more, as a receiver or a trainer. Part of ropeway; Apache-2.0.
#pragma once
#include <sys/types.h>

#include <string>
#include <utility>

#include "base/unique_fd.hpp"
#include "bench.hpp"

namespace ropeway::bench {

/// Started before anything here touches a device; killed if it still runs at the end.
class process {
 public:
  /// As `--as-receiver` or `--as-trainer` of `of`, with its socket and rank.
  process(plan const& of, char const* role);
  process(process&& other) noexcept
      : control_(std::move(other.control_)), pid_(std::exchange(other.pid_, -1)) {}
  ~process();
  /// Until it says something. Throws `errc::peer_gone` if it ends instead.
  template <class Words>
  Words wait_words() const {
    Words words;
    wait(&words, sizeof words);
    return words;
  }
  /// Throws `errc::peer_gone` if it has ended.
  void still_there() const;
  /// Until it ends well.
  void finish();

 private:
  void wait(void* words, std::size_t bytes) const;
  unique_fd control_;
  pid_t pid_ = -1;
};

/// The other end of `wait_words`.
void say_words(int control, void const* words, std::size_t bytes);

} // namespace ropeway::bench
