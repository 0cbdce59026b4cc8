// What a digest finds, and that its parts add up.
#include "base/digest.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "base/digest_math.h"

using namespace ropeway;

namespace {

std::vector<std::byte> noise(std::size_t bytes, std::uint32_t seed) {
  std::mt19937 dice(seed);
  std::vector<std::byte> out(bytes);
  for (auto& one : out) one = static_cast<std::byte>(dice());
  return out;
}

digest128 of(std::vector<std::byte> const& bytes, std::uint64_t image = 0) {
  return digest_of_run(bytes.data(), image, bytes.size());
}

std::uint64_t coefficient(std::uint64_t word, std::uint32_t lane) {
  return ropeway_digest_row(word / ropeway_digest_columns, lane) *
         ropeway_digest_column(static_cast<std::uint32_t>(word % ropeway_digest_columns), lane);
}

} // namespace

TEST_CASE("a digest is what it always was: other builds, and devices, compute the same") {
  std::vector<std::byte> bytes(10'000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  CHECK(to_string(of(bytes)) == "7320b3e62027facc5c0c16affb556710");
  CHECK(to_string(digest128()) == std::string(32, '0'));
}

TEST_CASE("however a run is cut in two or three, its parts add up to it") {
  for (std::size_t const size :
       {std::size_t(1), std::size_t(3), std::size_t(4), std::size_t(9), std::size_t(40)}) {
    auto const bytes = noise(size, 1);
    for (std::uint64_t const image : std::initializer_list<std::uint64_t>{0, 1, 2, 3, 4090, 4096}) {
      auto const whole = of(bytes, image);
      for (std::size_t i = 0; i <= size; ++i)
        for (std::size_t k = i; k <= size; ++k) {
          auto sum = digest_of_run(bytes.data() + k, image + k, size - k); // in whatever order
          sum += digest_of_run(bytes.data(), image, i);
          sum += digest_of_run(bytes.data() + i, image + i, k - i);
          CHECK(sum == whole);
        }
    }
  }
  auto const bytes = noise(20'000, 2);
  digest128 sum;
  for (std::size_t i = 0; i < bytes.size(); ++i) sum += digest_of_run(bytes.data() + i, i, 1);
  CHECK(sum == of(bytes));
}

TEST_CASE("each flipped bit changes both lanes") {
  auto bytes = noise(9000, 3);
  auto const before = of(bytes);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (unsigned bit = 0; bit < 8; ++bit) {
      bytes[i] ^= static_cast<std::byte>(1u << bit);
      // What changed alone: the rest adds up to the same.
      auto const now = digest_of_run(&bytes[i], i, 1);
      bytes[i] ^= static_cast<std::byte>(1u << bit);
      auto const then = digest_of_run(&bytes[i], i, 1);
      CHECK((now.lanes[0] != then.lanes[0] && now.lanes[1] != then.lanes[1]));
    }
  CHECK(of(bytes) == before);
}

TEST_CASE("two words of a chunk that change places are found, also if they differ in the top bit alone") {
  // Their change is (c(i) - c(k)) * difference, and the top bit alone is the hardest: 31 powers of 2.
  constexpr std::size_t words = 1 << 18;
  for (std::uint32_t lane = 0; lane < 2; ++lane) {
    // That is 0 exactly if two coefficients agree in their lower 33 bits; both lanes must miss it.
    std::vector<std::pair<std::uint64_t, std::uint32_t>> low(words);
    for (std::uint32_t i = 0; i < words; ++i) low[i] = {coefficient(i, lane) & 0x1'ffff'ffff, i};
    std::sort(low.begin(), low.end());
    for (std::size_t i = 1; i < words; ++i)
      if (low[i].first == low[i - 1].first) {
        auto const other = coefficient(low[i].second, 1 - lane) - coefficient(low[i - 1].second, 1 - lane);
        CHECK((other & 0x1'ffff'ffff) != 0);
      }
  }
}

TEST_CASE("pieces that change places are found, of whatever size, wherever") {
  auto const bytes = noise(64 << 10, 4);
  auto const before = of(bytes);
  std::mt19937 dice(5);
  for (int i = 0; i < 2000; ++i) {
    std::size_t const size = std::size_t(1) << dice() % 14;
    std::size_t const places = bytes.size() / size, one = dice() % places, two = dice() % places;
    auto swapped = bytes;
    std::swap_ranges(swapped.begin() + static_cast<std::ptrdiff_t>(one * size),
                     swapped.begin() + static_cast<std::ptrdiff_t>((one + 1) * size),
                     swapped.begin() + static_cast<std::ptrdiff_t>(two * size));
    CHECK((of(swapped) == before) == (swapped == bytes));
  }
}

TEST_CASE("changes that a plain sum would miss are found: shifts, transposes, moved zeros, swapped columns") {
  std::vector<std::byte> bytes(64 << 10);
  for (std::size_t i = 0; i < bytes.size(); i += 4) { // small numbers, as in a matrix of few values
    auto const value = static_cast<std::uint32_t>(i / 4 % 97);
    std::memcpy(&bytes[i], &value, 4);
  }
  std::set<std::string> seen{to_string(of(bytes))};
  auto const look = [&](auto const& change) {
    auto changed = bytes;
    change(changed);
    REQUIRE(changed != bytes);
    CHECK(seen.insert(to_string(of(changed))).second);
  };
  for (std::ptrdiff_t const by : {1, 4, 16, 4096, 32768})
    look([&](auto& b) { std::rotate(b.begin(), b.begin() + by, b.end()); });
  look([](auto& b) { std::reverse(b.begin(), b.end()); });
  look([](auto& b) { // 128 x 128 words
    auto* const w = reinterpret_cast<std::uint32_t*>(b.data());
    for (std::size_t i = 0; i < 128; ++i)
      for (std::size_t k = 0; k < i; ++k) std::swap(w[i * 128 + k], w[k * 128 + i]);
  });
  for (std::size_t const width : {128u, 1024u, 2048u})
    look([&](auto& b) { // two columns, in every row
      auto* const w = reinterpret_cast<std::uint32_t*>(b.data());
      for (std::size_t row = 0; row < b.size() / 4 / width; ++row)
        std::swap(w[row * width], w[row * width + 1]);
    });
  look([](auto& b) { // the top bit of every word
    for (std::size_t i = 3; i < b.size(); i += 4) b[i] ^= std::byte{0x80};
  });
  look([](auto& b) { std::fill(b.begin(), b.begin() + 4096, std::byte{}); });
}

TEST_CASE("what nearly is the same update is another, but for the order of its tensors") {
  auto const a = of(noise(100, 6)), b = of(noise(100, 7));
  auto const one = identity_of({"one", dtype::u8, {100}}), two = identity_of({"two", dtype::u8, {100}});
  std::set<std::string> seen;
  auto const add = [&](std::vector<std::pair<std::uint64_t, digest128>> const& tensors) {
    update_digest all;
    for (auto const& [identity, sum] : tensors) all.add(identity, sum);
    CHECK(seen.insert(to_string(all.value())).second);
  };
  add({});
  add({{one, a}});
  add({{two, a}});
  add({{one, b}});
  add({{one, a}, {two, b}});
  add({{one, b}, {two, a}});
  add({{one, a}, {two, {}}});
  add({{one, a}, {two, b}, {one, {}}});
  update_digest there, back;
  there.add(one, a), there.add(two, b);
  back.add(two, b), back.add(one, a);
  CHECK(there.value() == back.value());
  CHECK(identity_of({"ab", dtype::u8, {1}}) != identity_of({"ba", dtype::u8, {1}}));
  CHECK(identity_of({"a", dtype::u8, {1}}) != identity_of({"a", dtype::i8, {1}}));
  CHECK(identity_of({"a", dtype::u8, {1, 2}}) != identity_of({"a", dtype::u8, {2, 1}}));
}
