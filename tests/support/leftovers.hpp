// What a test left behind in its process: descriptors, shared mappings, memory. Part of ropeway; Apache-2.0.
#pragma once
#include <string>
#include <vector>

namespace ropeway::testing {

/// What every descriptor of the process leads to, in order.
std::vector<std::string> open_fds();
/// The memory files that are mapped.
std::vector<std::string> shared_mappings();

/// Remembers what the process holds open and maps. Looks at the whole process, so nothing else may run at its
/// two ends.
class leftovers {
 public:
  leftovers();

  /// What came since and is there still, a line each; empty if there is nothing.
  std::string left_behind() const;
  /// What was there and is not.
  std::string lost() const;

 private:
  std::vector<std::string> fds_, mappings_;
};

/// Said in a test case or a child that leaves descriptors or mappings behind on purpose, as everyone does who
/// is the first of a process to call a GPU's driver.
void leaves_things_behind() noexcept;
/// Whether it was said since it was asked the last time.
bool left_on_purpose() noexcept;

/// Whether there is memory that nothing leads to, about which LeakSanitizer has then printed its report.
/// Takes a tenth of a second; false where the program is built without it.
bool lost_memory();
/// For a process in which no thread can be started any more: `lost_memory` needs one and would end the
/// process.
void look_for_lost_memory_no_more() noexcept;

} // namespace ropeway::testing
