// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace ropeway {

/// How many bytes the character at the start of `text` has; 0 if there is none.
constexpr std::size_t utf8_length(std::string_view text) noexcept {
  auto const at = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
  if (text.empty()) return 0;
  unsigned const lead = at(0);
  if (lead < 0x80) return 1;
  // How many bytes follow, and between which bounds the first of them must lie.
  std::size_t follow = 0;
  unsigned low = 0x80, high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf)
    follow = 1;
  else if (lead >= 0xe0 && lead <= 0xef) {
    follow = 2;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    follow = 3;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else
    return 0;
  if (text.size() <= follow) return 0;
  if (at(1) < low || at(1) > high) return 0;
  for (std::size_t k = 2; k <= follow; ++k)
    if (at(k) < 0x80 || at(k) > 0xbf) return 0;
  return follow + 1;
}

constexpr bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    auto const length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

/// The text with every byte that belongs to no character replaced by U+FFFD.
inline std::string as_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    auto const length = utf8_length(text);
    out += length == 0 ? std::string_view("\xef\xbf\xbd") : text.substr(0, length);
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

} // namespace ropeway
