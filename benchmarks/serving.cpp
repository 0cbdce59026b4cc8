#include "serving.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cli/mapping.hpp"
#include "gpu.hpp"

namespace ropeway::bench {

step_times times_of(std::vector<double> seconds) {
  step_times out;
  out.steps = seconds.size();
  if (seconds.empty()) return out;
  std::ranges::sort(seconds);
  // The smallest that so many of them do not exceed.
  auto const rank = [&](std::size_t percent) { return seconds[(seconds.size() * percent + 99) / 100 - 1]; };
  out.p50_s = rank(50), out.p90_s = rank(90), out.p99_s = rank(99), out.max_s = seconds.back();
  return out;
}

class serving::load {
 public:
  virtual ~load() = default;
  virtual void step() = 0;
};

namespace {

/// Reads that follow each other, each of memory of its own, as a model's layers do.
struct reads {
  std::uint64_t count, bytes;
};

class serving_gpu final : public serving::load {
 public:
  serving_gpu(device where, reads what)
      : what_(what)
      , memory_(gpu::of(where.ordinal()), what.count * what.bytes)
      , reader_(gpu::of(where.ordinal())) {
    auto& on = gpu::of(where.ordinal());
    on.fill(memory_.data(), memory_.size(), 1);
    on.wait();
  }
  void step() override {
    for (std::uint64_t i = 0; i < what_.count; ++i)
      reader_.read(memory_.data() + i * what_.bytes, what_.bytes);
    reader_.wait();
  }

 private:
  reads what_;
  device_block memory_;
  gpu::reader reader_;
};

class serving_host final : public serving::load {
 public:
  explicit serving_host(reads what) : what_(what), memory_(what.count * what.bytes) {
    std::memset(memory_.data(), 1, what.count * what.bytes);
  }
  void step() override {
    std::uint64_t sum = 0;
    for (std::uint64_t at = 0; at + 8 <= what_.count * what_.bytes; at += 8) {
      std::uint64_t value;
      std::memcpy(&value, memory_.data() + at, sizeof value);
      sum ^= value;
    }
    read_ = sum;
  }

 private:
  reads what_;
  cli::mapping memory_;
  std::atomic<std::uint64_t> read_{0}; // so that reading is not left out
};

} // namespace

serving::serving(plan const& of, device where) {
  reads const what{of.decode_reads, of.decode_bytes};
  if (where.is_cuda())
    load_ = std::make_unique<serving_gpu>(where, what);
  else
    load_ = std::make_unique<serving_host>(what);
}

serving::~serving() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

double serving::step() {
  auto const start = now();
  load_->step();
  return now() - start;
}

void serving::alone(std::uint64_t steps) {
  for (int warm_up = 0; warm_up < 20; ++warm_up) load_->step();
  for (std::uint64_t i = 0; i < steps; ++i) alone_.push_back(step());
}

void serving::begin() {
  stop_ = false;
  thread_ = std::thread([this] {
    try {
      while (!stop_) {
        std::uint64_t const before = loads_;
        double const took = step();
        // Odd while one is on its way.
        if (before % 2 == 0 && before == loads_) continue;
        beside_.push_back(took);
        seen_ += 1;
      }
    } catch (...) {
      failed_ = std::current_exception();
      broken_ = true;
    }
  });
}

void serving::end() {
  stop_ = true;
  thread_.join();
  if (failed_) std::rethrow_exception(failed_);
}

} // namespace ropeway::bench
