#include "memory/host/available.hpp"

#include <algorithm>
#include <charconv>
#include <fcntl.h>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unistd.h>

#include "base/unique_fd.hpp"

namespace ropeway::memory::host {
namespace {

constexpr std::uint64_t unknown = std::numeric_limits<std::uint64_t>::max();

// No streams: what those take for a number depends on a locale that is the program's, and in an extension of
// an interpreter perhaps on which of several C++ libraries that locale is of.

/// As far as it can be read.
std::string contents(std::string const& file) {
  std::string read;
  unique_fd const from(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return read;
  constexpr std::size_t step = 4096;
  for (;;) {
    auto const before = read.size();
    read.resize(before + step);
    auto const got = ::read(from.get(), read.data() + before, step);
    read.resize(before + static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    if (got <= 0) return read;
  }
}

/// Takes the first line off `text`.
std::string_view next_line(std::string_view& text) {
  auto const line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(text.size(), line.size() + 1));
  return line;
}

std::optional<std::uint64_t> number_in(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::uint64_t value = 0;
  auto const end = std::from_chars(text.data(), text.data() + text.size(), value);
  return end.ec == std::errc() ? std::optional(value) : std::nullopt; // none is also "max"
}

// The number behind the first word of a line that is exactly `key`.
std::optional<std::uint64_t> field(std::string const& file, std::string_view key) {
  std::string const all = contents(file);
  for (std::string_view rest = all; !rest.empty();) {
    auto const line = next_line(rest);
    if (line.starts_with(key) && line.size() > key.size() &&
        (line[key.size()] == ' ' || line[key.size()] == '\t'))
      return number_in(line.substr(key.size()));
  }
  return std::nullopt;
}

std::optional<std::uint64_t> number(std::string const& file) { return number_in(contents(file)); }

std::uint64_t of_machine() {
  auto const free = field("/proc/meminfo", "MemAvailable:");
  if (!free) return unknown;
  return (*free + field("/proc/meminfo", "SwapFree:").value_or(0)) * 1024;
}

// The names of the same things in the two versions of control groups.
struct files {
  char const* root;
  char const* limit;
  char const* used;
  char const* inactive;
  char const* active;
};
constexpr files version_1{"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                          "total_inactive_file", "total_active_file"};
constexpr files version_2{"/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file", "active_file"};

std::uint64_t of_group(files const& names, std::string group) {
  std::uint64_t least = unknown;
  for (;; group.erase(group.rfind('/'))) {
    std::string const directory = names.root + group;
    auto const limit = number(directory + names.limit);
    auto const used = number(directory + names.used);
    if (limit && used) {
      std::string const stat = directory + "/memory.stat";
      // File pages are given back before anything is refused.
      std::uint64_t const reclaimable =
          field(stat, names.inactive).value_or(0) + field(stat, names.active).value_or(0);
      std::uint64_t const held = *used - std::min(*used, reclaimable);
      least = std::min(least, *limit - std::min(*limit, held));
    }
    if (group.rfind('/') == std::string::npos) return least;
  }
}

} // namespace

std::uint64_t available_memory() {
  std::uint64_t least = of_machine();
  std::string const groups = contents("/proc/self/cgroup");
  for (std::string_view rest = groups; !rest.empty();) {
    std::string const line(next_line(rest));
    // "hierarchy:controllers:/group"
    auto const first = line.find(':');
    auto const second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string const controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    if (controllers == ",,") least = std::min(least, of_group(version_2, group));
    if (controllers.find(",memory,") != std::string::npos)
      least = std::min(least, of_group(version_1, group));
  }
  return least;
}

} // namespace ropeway::memory::host
