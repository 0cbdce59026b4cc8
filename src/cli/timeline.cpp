#include "cli/timeline.hpp"

#include <utility>

namespace ropeway::cli {

timeline::timeline(std::optional<std::filesystem::path> file, std::string process)
    : file_(std::move(file)), recorder_(std::move(process)) {
  save();
}

timeline::~timeline() {
  try {
    if (recorder_.size() != 0) save();
  } catch (std::exception const&) {
    // The run has failed already, and says why.
  }
}

void timeline::save() {
  if (file_) recorder_.save(*file_);
}

} // namespace ropeway::cli
