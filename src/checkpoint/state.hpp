// What stands behind a `checkpoint`. Part of ropeway; Apache-2.0.
#pragma once
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/input_file.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway {

struct checkpoint::state {
  std::vector<input_file> inputs; ///< beside `files`, open
  std::vector<std::filesystem::path> files;
  std::vector<stored_tensor> tensors;
  std::unordered_map<std::string_view, std::size_t> by_name; ///< views of the names in `tensors`
  checkpoint_metadata metadata;
  std::uint64_t total = 0, largest = 0;
  std::size_t unlisted = 0;
};

} // namespace ropeway
