// Numbers for people and for programs. Part of ropeway; Apache-2.0.
#pragma once
#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "bench.hpp"

namespace ropeway::bench {

double median(std::vector<double> of);
/// Median, least, most, spread (how far these two are apart, in medians), rate and all of them; percentiles
/// too where there are a hundred.
boost::json::object summary(std::vector<double> const& seconds, std::uint64_t bytes);
boost::json::object summary(step_times const& of);

/// "12.31 ms", "85 us"
std::string time_text(double seconds);
/// "1,234.5 GB/s", with the numbers that tell one result from the next
std::string rate_text(double bytes, double seconds);
std::string ratio_text(double ratio);

/// What every line says of where and how it came about.
boost::json::object line_of(plan const& of, device where, device to);
/// Adds a line to the file that was named, or says it on standard output.
void write_line(plan const& of, boost::json::object const& line);

} // namespace ropeway::bench
