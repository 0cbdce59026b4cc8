// Files for the checkpoint tests. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ropeway/checkpoint.hpp"

namespace ropeway::test {

/// An empty directory below the working directory (a disk, more likely than /tmp), gone with the object.
class scratch {
 public:
  scratch();
  ~scratch();
  scratch(scratch const&) = delete;
  scratch& operator=(scratch const&) = delete;
  std::filesystem::path const& path() const noexcept { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  /// The names in it, hidden ones too.
  std::vector<std::string> names() const;

 private:
  std::filesystem::path path_;
};

void write_file(std::filesystem::path const& path, std::string_view content);
std::string read_file(std::filesystem::path const& path);

/// Size field, header, `data` zero bytes.
std::string raw_file(std::string_view header, std::size_t data);

/// Bytes that tell their tensor and their place.
std::byte pattern(std::size_t tensor, std::uint64_t offset);
std::vector<std::byte> pattern_bytes(std::size_t tensor, std::uint64_t size);
/// Of `bytes`, which begin at `offset` of the tensor.
bool holds_pattern(std::span<std::byte const> bytes, std::size_t tensor, std::uint64_t offset);

/// Writes a checkpoint full of patterns, in the order given.
void write_pattern(std::filesystem::path const& path, std::span<tensor_info const> tensors);

/// What `call` throws as a transfer_error: its text, or a sentence that it threw nothing.
template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (transfer_error const& error) { return error.what(); }
  return "(nothing was thrown)";
}
template <class Call>
std::error_code code_of(Call call) {
  try {
    call();
  } catch (transfer_error const& error) { return error.code(); }
  return {};
}
inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

} // namespace ropeway::test
