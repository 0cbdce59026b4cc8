#include "base/digest.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/digest_math.h"

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
void add_words(std::byte const* data, std::uint64_t const* first, std::uint64_t const* second,
               std::uint64_t words, std::uint64_t& a, std::uint64_t& b) noexcept {
  for (std::uint64_t i = 0; i < words; ++i) {
    std::uint32_t word;
    std::memcpy(&word, data + i * 4, 4);
    a += first[i] * word;
    b += second[i] * word;
  }
}

} // namespace

digest128 digest_of_run(std::byte const* data, std::uint64_t image, std::uint64_t bytes) noexcept {
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
      add_words(data, first.data() + at / 4, second.data() + at / 4, words, a, b);
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
    value_.lanes[lane] =
        ropeway_digest_mix(ropeway_digest_mix(value_.lanes[lane] + identity) ^ tensor.lanes[lane]);
}

std::uint64_t identity_of(tensor_info const& tensor) {
  std::string text = tensor.name;
  text += '\0'; // which no name has
  text += name(tensor.type);
  text += to_string(tensor.dims);
  std::uint64_t state = text.size();
  for (unsigned char const byte : text) state = ropeway_digest_mix(state ^ byte);
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
