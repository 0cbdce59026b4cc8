#include "limits.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <thread>

#include "cli/mapping.hpp"
#include "gpu.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

std::string times_text(std::size_t copies) {
  return copies == 1 ? std::string() : ", " + std::to_string(copies) + " times";
}

class chained_memcpys final : public limit {
 public:
  chained_memcpys(plan const& of, model_memory const& from, std::size_t copies)
      : from_(from), to_(shapes(of), device::host()), bucket_bytes_(of.bucket_bytes), copies_(copies) {
    for (std::uint32_t i = 0; i < of.slots; ++i) slots_.emplace_back(bucket_bytes_);
  }

  void run() override {
    std::size_t slot = 0;
    std::uint64_t used = 0;
    for (std::size_t i = 0; i < from_.entries().size(); ++i) {
      auto const& tensor = from_.entries()[i];
      for (std::uint64_t at = 0; at < tensor.bytes;) {
        auto const part = std::min(bucket_bytes_ - used, tensor.bytes - at);
        std::byte* const place = slots_[slot].data() + used;
        std::memcpy(place, tensor.data + at, part);
        pieces_.push_back({to_.entries()[i].data + at, place, part});
        at += part;
        used = std::min(bucket_bytes_, (used + part + 255) / 256 * 256);
        if (used == bucket_bytes_) {
          unload();
          used = 0;
          slot = (slot + 1) % slots_.size();
        }
      }
    }
    unload();
  }
  std::string what() const override {
    return "two chained memcpys, one thread" +
           (copies_ == 1 ? std::string() : ", the second " + std::to_string(copies_) + " times");
  }

 private:
  struct piece {
    std::byte* to;
    std::byte const* from;
    std::uint64_t bytes;
  };
  void unload() {
    for (std::size_t i = 0; i < copies_; ++i)
      for (auto const& one : pieces_) std::memcpy(one.to, one.from, one.bytes);
    pieces_.clear();
  }

  model_memory const& from_;
  cli::weights to_;
  std::uint64_t bucket_bytes_;
  std::size_t copies_;
  std::vector<cli::mapping> slots_;
  std::vector<piece> pieces_;
};

class one_memcpy final : public limit {
 public:
  one_memcpy(plan const& of, model_memory const& from, std::size_t copies)
      : from_(from), to_(shapes(of), device::host()), copies_(copies) {}
  void run() override {
    for (std::size_t n = 0; n < copies_; ++n)
      for (std::size_t i = 0; i < from_.entries().size(); ++i)
        std::memcpy(to_.entries()[i].data, from_.entries()[i].data, from_.entries()[i].bytes);
  }
  std::string what() const override { return "memcpy of the same bytes, one thread" + times_text(copies_); }

 private:
  model_memory const& from_;
  cli::weights to_;
  std::size_t copies_;
};

/// Copies between two ranges of device memory, in one piece each.
class driver_copies : public limit {
 public:
  driver_copies(plan const& of, model_memory const& from, device to, std::size_t copies, limit_memory& memory)
      : on_(gpu::of(of.where.ordinal()))
      , from_(from.whole())
      , copies_(copies)
      , peer_(to != of.where)
      , source_(memory.source)
      , to_(memory.targets[to.ordinal()]) {
    if (from_.empty()) {
      if (!source_) {
        source_ = memory.source = std::make_shared<device_block>(on_, from.total_bytes());
        if (gpu::has_kernels()) on_.fill(source_->data(), source_->size(), 1);
        on_.wait();
      }
      from_ = {source_->data(), source_->size()};
    }
    auto& target = gpu::of(to.ordinal());
    if (peer_) on_.reach(target);
    if (!to_) to_ = memory.targets[to.ordinal()] = std::make_shared<device_block>(target, from_.size());
  }

 protected:
  gpu& on_;
  std::span<std::byte> from_;
  std::size_t copies_;
  bool peer_;
  std::shared_ptr<device_block> source_, to_;
};

class one_copy final : public driver_copies {
 public:
  using driver_copies::driver_copies;
  void run() override {
    for (std::size_t i = 0; i < copies_; ++i) on_.copy(to_->data(), from_.data(), from_.size());
    on_.wait();
  }
  std::string what() const override {
    return (peer_ ? "one copy between the GPUs" : "one cudaMemcpy") + std::string(" of the same bytes") +
           times_text(copies_);
  }
};

class two_copies final : public driver_copies {
 public:
  two_copies(plan const& of, model_memory const& from, device to, std::size_t copies, limit_memory& memory)
      : driver_copies(of, from, to, copies, memory)
      , bucket_bytes_(of.bucket_bytes)
      , slots_(of.slots)
      , ring_(on_, bucket_bytes_ * slots_) {}
  void run() override {
    std::uint64_t slot = 0;
    for (std::uint64_t at = 0; at < from_.size(); at += bucket_bytes_) {
      auto const part = std::min<std::uint64_t>(bucket_bytes_, from_.size() - at);
      std::byte* const place = ring_.data() + slot * bucket_bytes_;
      on_.copy(place, from_.data() + at, part);
      for (std::size_t i = 0; i < copies_; ++i) on_.copy(to_->data() + at, place, part);
      slot = (slot + 1) % slots_;
    }
    on_.wait();
  }
  std::string what() const override {
    return "cudaMemcpy into a ring and out of it" +
           (copies_ == 1 ? std::string() : ", out " + std::to_string(copies_) + " times");
  }

 private:
  std::uint64_t bucket_bytes_;
  std::uint32_t slots_;
  device_block ring_;
};

} // namespace

std::unique_ptr<limit> make_limit(plan const& of, way by, model_memory const& from, device to,
                                  std::size_t copies, limit_memory& memory) {
  if (of.where.is_cuda() && to.is_cuda()) {
    if (by == way::staged && to == of.where)
      return std::make_unique<two_copies>(of, from, to, copies, memory);
    if (by != way::host) return std::make_unique<one_copy>(of, from, to, copies, memory);
    return nullptr;
  }
  if (of.where.is_cuda() || to.is_cuda()) return nullptr;
  if (by == way::mapped) return std::make_unique<one_memcpy>(of, from, copies);
  return std::make_unique<chained_memcpys>(of, from, copies);
}

std::string device_name(device where) {
  if (where.is_cuda()) return gpu::of(where.ordinal()).name();
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name"))
      return line.substr(line.find(':') + 2) + ", " + std::to_string(std::thread::hardware_concurrency()) +
             " cores";
  return "unknown processor";
}

} // namespace ropeway::bench
