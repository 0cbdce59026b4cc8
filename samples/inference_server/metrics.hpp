// Counters and histograms in Prometheus' text format. Not thread-safe. A sample of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ropeway/report.hpp"

class histogram {
 public:
  void add(std::chrono::nanoseconds took);
  /// Lines of a Prometheus histogram; `labels` are written as they are ("endpoint=\"/embed\"").
  void write(std::string& into, std::string_view name, std::string_view labels) const;

 private:
  static constexpr std::array<double, 14> bounds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                 0.25,  0.5,    1,     2.5,  5,     10,   30};
  std::array<std::uint64_t, bounds.size() + 1> counts_{};
  double seconds_ = 0;
  std::uint64_t count_ = 0;
};

class metrics {
 public:
  /// `endpoint` must come from a fixed list: each makes a series of its own.
  void request(std::string_view endpoint, unsigned status, std::chrono::nanoseconds took);
  void update(std::string_view outcome) { ++updates_[std::string(outcome)]; }
  /// A version went live.
  void swap(ropeway::load_report const& loaded);

  /// What is known only when somebody asks.
  struct moment {
    std::optional<std::uint64_t> version;
    std::string_view phase;
    std::size_t connections = 0, running = 0, waiting = 0;
    bool paused = false, asleep = false;
  };
  std::string text(moment const& now) const;

 private:
  std::map<std::pair<std::string, unsigned>, std::uint64_t> requests_;
  std::map<std::string, histogram> latencies_;
  std::map<std::string, std::uint64_t> updates_{
      {"committed", 0}, {"failed", 0}, {"not_now", 0}, {"refused", 0}};
  std::uint64_t swaps_ = 0;
  histogram swap_seconds_;
  double last_swap_ = 0;
  ropeway::stage_times stages_; // of all swaps together
  std::uint64_t bytes_ = 0;
  std::map<std::string, std::uint64_t> routes_{{"mapped", 0}, {"staged", 0}, {"host", 0}}; // of swaps
};
