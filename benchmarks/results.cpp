#include "results.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>

#include "limits.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

std::string text(int decimals, double value, char const* unit) {
  std::array<char, 64> out{};
  std::snprintf(out.data(), out.size(), "%.*f%s", decimals, value, unit);
  return out.data();
}

/// To the nanosecond, as it was measured.
double rounded(double seconds) { return std::round(seconds * 1e9) / 1e9; }

} // namespace

char const* name(study what) {
  constexpr std::array names{"steady", "shards", "fan-out", "decode", "cold"};
  return names[static_cast<std::size_t>(what)];
}

std::string to_string(pace const& of) {
  if (of.blocks != 0) return "blocks:" + std::to_string(of.blocks);
  if (of.bytes_per_second != 0) return "rate:" + std::to_string(of.bytes_per_second / 1'000'000'000);
  return "unlimited";
}

std::optional<pace> parse_pace(std::string_view text) {
  pace out;
  if (text == "unlimited") return out;
  auto const colon = text.find(':');
  if (colon == text.npos) return std::nullopt;
  std::uint32_t number = 0;
  char const* const end = text.data() + text.size();
  auto const [stop, error] = std::from_chars(text.data() + colon + 1, end, number);
  if (error != std::errc() || stop != end || number == 0) return std::nullopt;
  if (text.starts_with("blocks:"))
    out.blocks = number;
  else if (text.starts_with("rate:"))
    out.bytes_per_second = std::uint64_t(number) * 1'000'000'000;
  else
    return std::nullopt;
  return out;
}

double median(std::vector<double> of) {
  if (of.empty()) return 0;
  std::ranges::sort(of);
  auto const half = of.size() / 2;
  return of.size() % 2 == 1 ? of[half] : (of[half - 1] + of[half]) / 2;
}

boost::json::object summary(std::vector<double> const& seconds, std::uint64_t bytes) {
  boost::json::object out;
  double const middle = median(seconds);
  double const least = std::ranges::min(seconds), most = std::ranges::max(seconds);
  out["median_s"] = rounded(middle);
  out["min_s"] = rounded(least);
  out["max_s"] = rounded(most);
  out["spread"] = (most - least) / middle;
  if (seconds.size() >= 100) {
    auto const times = times_of(seconds);
    out["p90_s"] = rounded(times.p90_s);
    out["p99_s"] = rounded(times.p99_s);
  }
  out["GB_per_s"] = static_cast<double>(bytes) / middle / 1e9;
  boost::json::array all;
  for (auto const one : seconds) all.push_back(rounded(one));
  out["seconds"] = std::move(all);
  return out;
}

boost::json::object summary(step_times const& of) {
  boost::json::object out;
  out["steps"] = of.steps;
  out["p50_s"] = rounded(of.p50_s);
  out["p90_s"] = rounded(of.p90_s);
  out["p99_s"] = rounded(of.p99_s);
  out["max_s"] = rounded(of.max_s);
  return out;
}

std::string time_text(double seconds) {
  if (seconds < 1e-3) return text(0, seconds * 1e6, " us");
  if (seconds < 1) return text(2, seconds * 1e3, " ms");
  return text(3, seconds, " s");
}
std::string rate_text(double bytes, double seconds) {
  return seconds > 0 ? text(1, bytes / seconds / 1e9, " GB/s") : std::string("-");
}
std::string ratio_text(double ratio) { return text(3, ratio, ""); }

boost::json::object line_of(plan const& of, device where, device to) {
  auto const time = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&time, &utc);
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  utsname kernel{};
  uname(&kernel);
  boost::json::object line;
  line["program"] = "ropeway-bench";
  line["case"] = name(of.what);
  line["model"] = of.model;
  line["layers"] = of.layers;
  line["digest"] = of.digest;
  line["from"] = to_string(where);
  line["to"] = to_string(to);
  line["device"] = device_name(where);
  line["receiver_device"] = device_name(to);
  line["kernel"] = kernel.release;
  line["date"] = date.data();
  line["command"] = of.command;
  return line;
}

void write_line(plan const& of, boost::json::object const& line) {
  if (of.json.empty()) {
    std::cout << boost::json::serialize(line) << std::endl;
    return;
  }
  std::ofstream file(of.json, std::ios::app);
  file << boost::json::serialize(line) << '\n' << std::flush;
  if (!file) throw transfer_error(errc::invalid_argument, of.json + " can't be written");
}

} // namespace ropeway::bench
