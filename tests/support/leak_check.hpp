// Sees that descriptors and shared mappings are back to where they were. Part of ropeway; Apache-2.0.
#pragma once
#include <algorithm>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

namespace ropeway::testing {

/// Declare it first in a scope: what is opened or mapped in the scope must be gone at its end. Looks at the
/// whole process, so nothing else may run meanwhile.
class leak_check {
 public:
  leak_check() : fds_(open_fds()), mappings_(shared_mappings()) {}
  leak_check(leak_check const&) = delete;
  leak_check& operator=(leak_check const&) = delete;
  ~leak_check() {
    CHECK_MESSAGE(added(fds_, open_fds()) == "", "descriptors left open or lost");
    CHECK_MESSAGE(added(mappings_, shared_mappings()) == "", "shared mappings left behind or lost");
  }

  /// What every descriptor of the process leads to, in order.
  static std::vector<std::string> open_fds() {
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
  /// The memory files that are mapped.
  static std::vector<std::string> shared_mappings() {
    std::vector<std::string> out;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:") != std::string::npos) out.push_back(line);
    }
    std::sort(out.begin(), out.end());
    return out;
  }

 private:
  static std::string added(std::vector<std::string> const& before, std::vector<std::string> const& now) {
    std::vector<std::string> differences;
    std::set_symmetric_difference(before.begin(), before.end(), now.begin(), now.end(),
                                  std::back_inserter(differences));
    std::string text;
    for (auto const& line : differences) text += line + "\n";
    return text;
  }
  std::vector<std::string> fds_, mappings_;
};

} // namespace ropeway::testing
