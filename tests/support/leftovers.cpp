#include "leftovers.hpp"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

// Part of LeakSanitizer's interface; in no program without it.
extern "C" [[gnu::weak]] int __lsan_do_recoverable_leak_check();

namespace ropeway::testing {
namespace {

std::atomic<bool> looks_for_memory{true}, on_purpose{false};

/// What stands in one list and not in the other.
std::string only_in(std::vector<std::string> const& one, std::vector<std::string> const& other,
                    char const* what) {
  std::vector<std::string> only;
  std::set_difference(one.begin(), one.end(), other.begin(), other.end(), std::back_inserter(only));
  std::string text;
  for (auto const& line : only) text += what + line + "\n";
  return text;
}

} // namespace

std::vector<std::string> open_fds() {
  std::vector<std::string> out;
  std::vector<std::filesystem::path> names;
  for (auto const& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    names.push_back(entry.path());
  for (auto const& name : names) {
    std::error_code gone; // the one that the listing itself used
    auto const target = std::filesystem::read_symlink(name, gone);
    if (!gone) out.push_back(name.filename().string() + " -> " + target.string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::string> shared_mappings() {
  std::vector<std::string> out;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:") != std::string::npos) out.push_back(line);
  }
  std::sort(out.begin(), out.end());
  return out;
}

leftovers::leftovers() : fds_(open_fds()), mappings_(shared_mappings()) {}

std::string leftovers::left_behind() const {
  return only_in(open_fds(), fds_, "left behind: descriptor ") +
         only_in(shared_mappings(), mappings_, "left behind: mapping ");
}

std::string leftovers::lost() const {
  return only_in(fds_, open_fds(), "lost: descriptor ") +
         only_in(mappings_, shared_mappings(), "lost: mapping ");
}

void leaves_things_behind() noexcept { on_purpose = true; }
bool left_on_purpose() noexcept { return on_purpose.exchange(false); }

bool lost_memory() {
  return __lsan_do_recoverable_leak_check && looks_for_memory && __lsan_do_recoverable_leak_check() != 0;
}

void look_for_lost_memory_no_more() noexcept { looks_for_memory = false; }

} // namespace ropeway::testing
