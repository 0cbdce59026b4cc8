#include "cli/quantity.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace ropeway::cli {
namespace {

std::string formatted(int decimals, double value, char const* unit) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f %s", decimals, value, unit);
  return text.data();
}

std::string scaled(double value, std::string_view suffix) {
  constexpr std::array<char const*, 6> prefixes{"", "k", "M", "G", "T", "P"};
  std::size_t step = 0;
  while (value >= 999.95 && step + 1 < prefixes.size()) {
    value /= 1000;
    ++step;
  }
  std::string const unit = prefixes[step] + std::string(suffix);
  return formatted(step == 0 ? 0 : 1, value, unit.c_str());
}

} // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number == 0) return {};
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (unit == "B") unit = {};
  for (std::string_view const ending : {"iB", "B"})
    if (unit.size() == ending.size() + 1 && unit.ends_with(ending)) unit.remove_suffix(ending.size());
  if (unit.size() > 1) return {};
  unsigned shift = 0;
  if (!unit.empty()) {
    constexpr std::string_view upper = "KMGT", lower = "kmgt";
    auto place = upper.find(unit.front());
    if (place == upper.npos) place = lower.find(unit.front());
    if (place == lower.npos) return {};
    shift = 10 * (static_cast<unsigned>(place) + 1);
  }
  if (number > UINT64_MAX >> shift) return {};
  return number << shift;
}

std::optional<std::chrono::milliseconds> parse_seconds(std::string_view text) {
  double seconds = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  constexpr double year = 365.0 * 24 * 3600;
  if (error != std::errc() || end != text.data() + text.size()) return {};
  if (!(seconds >= 0.001) || !(seconds <= year)) return {};
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

std::string size_text(std::uint64_t bytes) { return scaled(static_cast<double>(bytes), "B"); }

std::string time_text(std::chrono::nanoseconds time) {
  return formatted(3, std::chrono::duration<double>(time).count(), "s");
}

std::string rate_text(std::uint64_t bytes, std::chrono::nanoseconds time) {
  if (time.count() <= 0) return "-";
  return scaled(static_cast<double>(bytes) / std::chrono::duration<double>(time).count(), "B/s");
}

} // namespace ropeway::cli
