#include "base/digest.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/digest_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ropeway {
namespace {

static_assert(std::endian::native == std::endian::little, "words are little-endian, as tensors' bytes are");

using factors = std::array<std::uint64_t, ropeway_digest_columns>;

/// 16 KiB, so that it stays in the nearest cache beside what is read.
struct table {
  std::array<factors, 2> columns;
  table() noexcept {
    for (std::uint32_t lane = 0; lane < 2; ++lane)
      for (std::uint32_t column = 0; column < ropeway_digest_columns; ++column)
        columns[lane][column] = ropeway_digest_column(column, lane);
  }
};

table const& coefficients() noexcept {
  static table const made;
  return made;
}

/// Some of a row's words, before its factor.
using adder = void (*)(std::byte const* data, std::uint64_t const* first, std::uint64_t const* second,
                       std::uint64_t words, std::uint64_t& a, std::uint64_t& b) noexcept;

void add_words(std::byte const* data, std::uint64_t const* first, std::uint64_t const* second,
               std::uint64_t words, std::uint64_t& a, std::uint64_t& b) noexcept {
  for (std::uint64_t i = 0; i < words; ++i) {
    std::uint32_t word;
    std::memcpy(&word, data + i * 4, 4);
    a += first[i] * word;
    b += second[i] * word;
  }
}

#if defined(__x86_64__)
/// Four words at a time. There is no multiplication of 64 bits: the halves of a coefficient are summed up
/// apart.
__attribute__((target("avx2"))) void add_words_avx2(std::byte const* data, std::uint64_t const* first,
                                                    std::uint64_t const* second, std::uint64_t words,
                                                    std::uint64_t& a, std::uint64_t& b) noexcept {
  // No functions of our own in here: only this one is compiled for what it uses.
  __m256i low_a = _mm256_setzero_si256(), high_a = low_a, low_b = low_a, high_b = low_a;
  std::uint64_t i = 0;
  for (; i + 4 <= words; i += 4) {
    __m256i const word =
        _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<__m128i const*>(data + i * 4)));
    __m256i const ka = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(first + i));
    __m256i const kb = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(second + i));
    low_a = _mm256_add_epi64(low_a, _mm256_mul_epu32(word, ka));
    high_a = _mm256_add_epi64(high_a, _mm256_mul_epu32(word, _mm256_srli_epi64(ka, 32)));
    low_b = _mm256_add_epi64(low_b, _mm256_mul_epu32(word, kb));
    high_b = _mm256_add_epi64(high_b, _mm256_mul_epu32(word, _mm256_srli_epi64(kb, 32)));
  }
  std::array<std::uint64_t, 4> of_a, of_b;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(of_a.data()),
                      _mm256_add_epi64(low_a, _mm256_slli_epi64(high_a, 32)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(of_b.data()),
                      _mm256_add_epi64(low_b, _mm256_slli_epi64(high_b, 32)));
  a += of_a[0] + of_a[1] + of_a[2] + of_a[3];
  b += of_b[0] + of_b[1] + of_b[2] + of_b[3];
  add_words(data + i * 4, first + i, second + i, words - i, a, b);
}

adder best_adder() noexcept { return __builtin_cpu_supports("avx2") ? add_words_avx2 : add_words; }
#else
adder best_adder() noexcept { return add_words; }
#endif

} // namespace

digest128 digest_of_run(std::byte const* data, std::uint64_t image, std::uint64_t bytes) noexcept {
  static adder const add = best_adder();
  auto const& [first, second] = coefficients().columns;
  digest128 sum;
  while (bytes != 0) {
    std::uint64_t const row = image / ropeway_digest_row_bytes, within = image % ropeway_digest_row_bytes;
    std::uint64_t const here = std::min(bytes, ropeway_digest_row_bytes - within);
    std::uint64_t a = 0, b = 0, at = within, left = here;
    auto const part = [&](std::uint64_t count) { // of one word
      std::uint32_t word = 0;
      std::memcpy(reinterpret_cast<std::byte*>(&word) + at % 4, data, count);
      a += first[at / 4] * word;
      b += second[at / 4] * word;
      data += count;
      at += count;
      left -= count;
    };
    if (at % 4 != 0) part(std::min(left, 4 - at % 4));
    if (std::uint64_t const words = left / 4; words != 0) {
      add(data, first.data() + at / 4, second.data() + at / 4, words, a, b);
      data += words * 4;
      at += words * 4;
      left -= words * 4;
    }
    if (left != 0) part(left);
    sum.lanes[0] += a * ropeway_digest_row(row, 0);
    sum.lanes[1] += b * ropeway_digest_row(row, 1);
    image += here;
    bytes -= here;
  }
  return sum;
}

void update_digest::add(std::uint64_t identity, digest128 const& tensor) noexcept {
  for (std::size_t lane = 0; lane < 2; ++lane)
    value_.lanes[lane] += ropeway_digest_mix(ropeway_digest_mix(identity + lane) ^ tensor.lanes[lane]);
}

std::uint64_t identity_of(tensor_info const& tensor) {
  std::string text = tensor.name;
  text += '\0'; // which no name has
  text += name(tensor.type);
  text += to_string(tensor.dims);
  std::uint64_t state = text.size();
  for (char const c : text) state = ropeway_digest_mix(state ^ static_cast<unsigned char>(c));
  return state;
}

std::string to_string(digest128 const& what) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (auto const lane : what.lanes)
    for (unsigned shift = 64; shift != 0; shift -= 4) text += digits[lane >> (shift - 4) & 15];
  return text;
}

} // namespace ropeway
