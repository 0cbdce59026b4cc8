// Random numbers that repeat, and the plainest way to do what a copy_op says. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "memory/copy.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::test {

class dice {
 public:
  explicit dice(std::uint32_t seed) : engine_(seed) {}
  /// From low to high, both included.
  std::uint64_t roll(std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(engine_);
  }
  bool one_in(std::uint64_t n) { return roll(1, n) == 1; }
  template <class T, std::size_t N>
  T pick(std::array<T, N> const& from) {
    return from[roll(0, N - 1)];
  }
  std::vector<std::byte> bytes(std::size_t n) {
    std::vector<std::byte> out(n);
    for (auto& b : out) b = static_cast<std::byte>(roll(0, 255));
    return out;
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

/// Calls f(index) for every element of a box, outermost dimension slowest.
template <class F>
void for_each_index(std::span<std::uint64_t const> extent, F f) {
  std::array<std::uint64_t, max_rank> index{};
  for (auto e : extent)
    if (e == 0) return;
  for (;;) {
    f(index);
    std::size_t d = extent.size();
    while (d > 0 && ++index[d - 1] == extent[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

/// Truncates instead of rounding: only for values that bf16 can hold.
inline void convert_element(memory::conversion how, std::byte const* from, std::byte* to, std::size_t bytes) {
  std::uint32_t wide = 0;
  std::uint16_t narrow = 0;
  if (how == memory::conversion::f32_to_bf16) {
    std::memcpy(&wide, from, 4);
    narrow = static_cast<std::uint16_t>(wide >> 16);
    std::memcpy(to, &narrow, 2);
  } else if (how == memory::conversion::bf16_to_f32) {
    std::memcpy(&narrow, from, 2);
    wide = std::uint32_t{narrow} << 16;
    std::memcpy(to, &wide, 4);
  } else
    std::memcpy(to, from, bytes);
}

inline void perform(memory::copy_op const& op) {
  if (op.rank == 0) {
    std::memcpy(op.to, op.from, op.bytes);
    return;
  }
  for_each_index(std::span(op.extent).first(op.rank), [&](auto const& index) {
    auto const* from = op.from;
    auto* to = op.to;
    for (std::size_t d = 0; d < op.rank; ++d) {
      from += static_cast<std::int64_t>(index[d]) * op.from_stride[d];
      to += static_cast<std::int64_t>(index[d]) * op.to_stride[d];
    }
    convert_element(op.convert, from, to, op.to_element);
  });
}

} // namespace ropeway::test
