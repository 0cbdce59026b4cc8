#include "ropeway/checkpoint.hpp"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "checkpoint/header.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/state.hpp"
#include "checkpoint/text.hpp"

namespace ropeway {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view index_suffix = ".safetensors.index.json";

[[noreturn]] void refuse(fs::path const& path, std::string const& why) {
  throw transfer_error(errc::bad_checkpoint, label(path) + ": " + why);
}

// The file that stands for a directory.
fs::path choose(fs::path const& directory) {
  for (char const* usual : {"model.safetensors", "model.safetensors.index.json"}) {
    std::error_code ignored;
    if (fs::exists(directory / usual, ignored)) return directory / usual;
  }
  std::vector<fs::path> single, index;
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (at->path().native().ends_with(index_suffix))
      index.push_back(at->path());
    else if (at->path().extension() == ".safetensors")
      single.push_back(at->path());
  }
  if (error) throw system_failure(error.value(), directory, "can't list the directory");
  if (index.size() == 1) return index.front(); // its shards are the single ones
  if (index.empty() && single.size() == 1) return single.front();
  if (index.empty() && single.empty()) refuse(directory, "the directory holds no safetensors file");
  refuse(directory, "the directory holds " + std::to_string(single.size()) + " safetensors files and " +
                        std::to_string(index.size()) + " indexes; name the one to open");
}

void add_file(checkpoint::state& to, fs::path const& path, shard_index const* index) {
  std::string const shard = path.filename().native();
  to.inputs.emplace_back(path);
  file_header header = read_header(to.inputs.back());
  auto const number = static_cast<std::uint32_t>(to.files.size());
  to.files.push_back(path);
  to.metadata.merge(header.metadata);
  std::size_t listed = 0;
  for (auto& tensor : header.tensors) {
    if (index) {
      auto const entry = index->where.find(tensor.info.name);
      if (entry == index->where.end()) {
        ++to.unlisted;
        continue;
      }
      if (*entry->second != shard)
        refuse(path, "holds tensor " + in_quotes(tensor.info.name) + ", which the index places in " +
                         in_quotes(*entry->second) + "; two copies can't both be right");
      ++listed;
    }
    tensor.file = number;
    if (__builtin_add_overflow(to.total, tensor.bytes, &to.total))
      throw transfer_error(errc::overflow, label(path) + ": the tensors of all shards overflow 64 bits");
    to.largest = std::max(to.largest, tensor.bytes);
    to.tensors.push_back(std::move(tensor));
  }
  if (!index || listed == index->files.at(shard)) return;
  // Names in a file are unique, so fewer than expected means that one is missing: say which.
  std::unordered_set<std::string_view> here;
  for (auto const& tensor : to.tensors)
    if (tensor.file == number) here.insert(tensor.info.name);
  for (auto const& [name, file] : index->where)
    if (*file == shard && !here.contains(name))
      refuse(path, "tensor " + in_quotes(name) + " is missing, although the index places it here");
}

void add_shards(checkpoint::state& to, fs::path const& path) {
  shard_index const index = read_index(input_file(path));
  for (auto const& [file, count] : index.files) {
    try {
      add_file(to, path.parent_path() / file, &index);
    } catch (transfer_error const& error) {
      if (error.code() != std::errc::no_such_file_or_directory) throw;
      throw transfer_error(error.code(), label(path) + ": shard " + in_quotes(file) + " (" +
                                             std::to_string(count) + " tensors) is missing");
    }
  }
}

} // namespace

checkpoint checkpoint::open(fs::path const& path) {
  auto result = std::make_shared<state>();
  std::error_code ignored;
  fs::path const chosen = fs::is_directory(path, ignored) ? choose(path) : path;
  if (chosen.extension() == ".json")
    add_shards(*result, chosen);
  else
    add_file(*result, chosen, nullptr);
  result->by_name.reserve(result->tensors.size());
  for (std::size_t i = 0; i < result->tensors.size(); ++i)
    result->by_name.emplace(result->tensors[i].info.name, i);
  return checkpoint(std::move(result));
}

std::span<stored_tensor const> checkpoint::tensors() const& noexcept { return state_->tensors; }
std::uint64_t checkpoint::total_bytes() const noexcept { return state_->total; }
std::uint64_t checkpoint::largest_tensor() const noexcept { return state_->largest; }
checkpoint_metadata const& checkpoint::metadata() const& noexcept { return state_->metadata; }
std::span<fs::path const> checkpoint::files() const& noexcept { return state_->files; }
std::size_t checkpoint::unlisted() const noexcept { return state_->unlisted; }

std::optional<std::size_t> checkpoint::find(std::string_view name) const {
  auto const at = state_->by_name.find(name);
  if (at == state_->by_name.end()) return {};
  return at->second;
}

} // namespace ropeway
