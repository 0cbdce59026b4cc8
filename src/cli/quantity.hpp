// Sizes, times and rates: read from the command line, and written for people. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ropeway::cli {

/// "65536", "512K", "64M", "64MiB", "1G", "2T": powers of 1024. Nothing if it is none of these, zero, or too
/// large.
std::optional<std::uint64_t> parse_size(std::string_view text);
/// "30", "0.5": seconds, above zero and at most a year.
std::optional<std::chrono::milliseconds> parse_seconds(std::string_view text);

/// "90.9 MB", in powers of 1000.
std::string size_text(std::uint64_t bytes);
/// "0.123 s"
std::string time_text(std::chrono::nanoseconds time);
/// "12.3 GB/s", or "-" for no time at all.
std::string rate_text(std::uint64_t bytes, std::chrono::nanoseconds time);

} // namespace ropeway::cli
