// Numbers on a command line. Part of ropeway's samples; Apache-2.0.
#pragma once
#include <charconv>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

/// Throws std::invalid_argument, which names `what`, if `text` is none.
inline std::uint64_t number(char const* what, char const* text) {
  std::uint64_t value = 0;
  auto const* const end = text + std::strlen(text);
  auto const [at, error] = std::from_chars(text, end, value);
  if (error != std::errc() || at != end)
    throw std::invalid_argument(std::string(what) + " is a number, not '" + text + "'");
  return value;
}
