// Whether bytes are UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <string_view>

namespace ropeway::plan {

constexpr bool is_utf8(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    auto const at = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
    unsigned const lead = at(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
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
      return false;
    if (text.size() - i <= follow) return false;
    if (at(i + 1) < low || at(i + 1) > high) return false;
    for (std::size_t k = 2; k <= follow; ++k)
      if (at(i + k) < 0x80 || at(i + k) > 0xbf) return false;
    i += follow + 1;
  }
  return true;
}

} // namespace ropeway::plan
