// What is going on, on standard error: a bar on a terminal, lines elsewhere. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "ropeway/observer.hpp"

namespace ropeway::cli {

/// May be told things from several threads.
class progress final : public observer {
 public:
  /// Quiet: says nothing at all.
  explicit progress(bool quiet);
  ~progress() override;

  /// A whole line, above the bar.
  void line(std::string_view text);
  /// Draws the bar: `done` of `total` bytes of `what`. On a terminal only; at most ten times a second.
  void bar(std::string_view what, std::uint64_t done, std::uint64_t total);
  /// Takes the bar away.
  void end_bar();

  void receiver_joined(std::string_view name) override;
  void receiver_left(std::string_view name, std::string_view why) override;
  void update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t buckets) override;
  void bucket_moved(std::uint64_t version, std::uint32_t buckets, std::uint64_t bytes) override;
  void update_ended(std::uint64_t version, bool committed) override;

 private:
  using clock = std::chrono::steady_clock;
  void clear();

  std::mutex mutex_;
  bool const quiet_, terminal_;
  bool drawn_ = false;
  clock::time_point last_draw_, began_;
  std::string what_;
  std::uint64_t update_bytes_ = 0;
};

} // namespace ropeway::cli
