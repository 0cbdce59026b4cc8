#include "checkpoint/text.hpp"

#include <cstddef>

namespace ropeway {
namespace {

// Cuts between code points, so that a shortened name stays readable.
std::string_view head(std::string_view text, std::size_t most) {
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80) --most;
  return text.substr(0, most);
}

std::string_view tail(std::string_view text, std::size_t most) {
  std::size_t begin = text.size() - most;
  while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
  return text.substr(begin);
}

void append(std::string& to, std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  for (char c : text) {
    auto const byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      to += "\\x";
      to += digits[byte >> 4];
      to += digits[byte & 15];
    } else {
      if (c == '"' || c == '\\') to += '\\';
      to += c;
    }
  }
}

} // namespace

std::string in_quotes(std::string_view text) {
  constexpr std::size_t most = 120, end = 40;
  std::string result = "\"";
  if (text.size() <= most) {
    append(result, text);
  } else {
    append(result, head(text, most - end));
    result += "...";
    append(result, tail(text, end));
  }
  return result + '"';
}

} // namespace ropeway
