#include "memory/host/available.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

namespace ropeway::memory::host {
namespace {

constexpr std::uint64_t unknown = std::numeric_limits<std::uint64_t>::max();

// The number behind the first word of a line that is exactly `key`.
std::optional<std::uint64_t> field(std::string const& file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word;
    std::uint64_t value = 0;
    if (words >> word && word == key && words >> value) return value;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> number(std::string const& file) {
  std::ifstream in(file);
  std::uint64_t value = 0;
  if (in >> value) return value;
  return std::nullopt; // also "max"
}

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
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
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
