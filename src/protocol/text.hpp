// Words for people: one line, of bounded length, out of numbers and other people's text. Part of ropeway;
// Apache-2.0.
#pragma once
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>

#include "protocol/messages.hpp"

namespace ropeway::protocol {

/// Foreign text as one line: control characters become spaces, what is longer than `most` bytes is cut
/// between two characters of UTF-8.
inline std::string one_line(std::string_view text, std::size_t most = max_text) {
  if (text.size() > most) {
    std::size_t end = most;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    text = text.substr(0, end);
  }
  std::string line(text);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return line;
}

namespace detail {
inline void add_words(std::string& line, std::string_view text) { line += text; }
inline void add_words(std::string& line, std::integral auto number) { line += std::to_string(number); }
} // namespace detail

/// words("update ", 3, " of ", name): texts and numbers behind each other.
template <class... T>
std::string words(T const&... parts) {
  std::string line;
  (detail::add_words(line, parts), ...);
  return line;
}

/// 32 hexadecimal digits: as to_string of the digest that it is.
inline std::string hex(bytes16 const& what) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (auto const byte : what) (text += digits[byte >> 4]) += digits[byte & 15];
  return text;
}

} // namespace ropeway::protocol
