// The index of a sharded checkpoint: which tensor is in which file. Part of ropeway; Apache-2.0.
#pragma once
#include <map>
#include <string>
#include <unordered_map>

namespace ropeway {

class input_file;

struct shard_index {
  /// The files by name, each with the number of tensors that should be in it.
  std::map<std::string, std::size_t> files;
  /// Tensor to file name.
  std::unordered_map<std::string, std::string const*> where;
};

/// Reads and checks `*.safetensors.index.json`. File names must be plain: the index may not lead elsewhere.
shard_index read_index(input_file const& file);

} // namespace ropeway
