// The --trace of a run. Part of ropeway; Apache-2.0.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "ropeway/trace.hpp"

namespace ropeway::cli {

/// Records if a file was named, and saves to it at the end of the run, also of one that fails.
class timeline {
 public:
  /// Throws if the file can't take a trace: that should not be found out when everything has been done.
  timeline(std::optional<std::filesystem::path> file, std::string process);
  /// Saves what save() has not, as well as that works.
  ~timeline();
  timeline(timeline const&) = delete;
  timeline& operator=(timeline const&) = delete;

  /// For `observers`; null if nothing is recorded.
  observer* watching() noexcept { return file_ ? &recorder_ : nullptr; }
  /// Throws transfer_error.
  void save();

 private:
  std::optional<std::filesystem::path> file_;
  trace_recorder recorder_;
};

} // namespace ropeway::cli
