// The fuzzer's bytes as choices: whatever is asked for is there, zeros at the end. Part of ropeway;
// Apache-2.0.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "targets.hpp"

namespace ropeway::fuzz {

class choices {
 public:
  explicit choices(input bytes) : left_(bytes) {}

  bool empty() const noexcept { return left_.empty(); }
  std::uint8_t byte() noexcept {
    if (left_.empty()) return 0;
    auto const first = left_.front();
    left_ = left_.subspan(1);
    return first;
  }
  /// From 0 to n - 1; n is at most 256.
  unsigned below(unsigned n) noexcept { return byte() % n; }
  bool flip() noexcept { return (byte() & 1) != 0; }
  /// Mostly small, sometimes near a power of two, sometimes absurd: one or two bytes.
  std::uint64_t number() noexcept {
    auto const first = byte();
    if (first < 192) return first % 24;
    auto const second = byte();
    if (first < 224) return (std::uint64_t{1} << (second & 63)) - (second >> 7);
    if (first < 250) return std::uint64_t{second} * first;
    return ~std::uint64_t{0} - (first & 1 ? second : 0);
  }
  input take(std::size_t n) noexcept {
    auto const part = left_.first(std::min(n, left_.size()));
    left_ = left_.subspan(part.size());
    return part;
  }
  input rest() noexcept { return take(left_.size()); }
  std::string text(std::size_t n) {
    auto const part = take(n);
    return {part.begin(), part.end()};
  }

 private:
  input left_;
};

} // namespace ropeway::fuzz
