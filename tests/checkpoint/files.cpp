#include "files.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "ropeway/checkpoint_writer.hpp"

namespace ropeway::test {

scratch::scratch() {
  std::string name = (std::filesystem::current_path() / "checkpoint-test-XXXXXX").native();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no directory for the test");
  path_ = name;
}

scratch::~scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> scratch::names() const {
  std::vector<std::string> result;
  for (auto const& entry : std::filesystem::directory_iterator(path_))
    result.push_back(entry.path().filename().native());
  std::sort(result.begin(), result.end());
  return result;
}

void write_file(std::filesystem::path const& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw std::runtime_error("can't write a file for the test");
}

std::string read_file(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string raw_file(std::string_view header, std::size_t data) {
  std::string result;
  for (int i = 0; i < 8; ++i) result += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  result += header;
  result.append(data, '\0');
  return result;
}

std::byte pattern(std::size_t tensor, std::uint64_t offset) {
  std::uint64_t const mixed = (offset + 1) * 0x9E3779B97F4A7C15u + tensor * 0xC2B2AE3D27D4EB4Fu;
  return static_cast<std::byte>(mixed >> 56 ^ mixed >> 29);
}

std::vector<std::byte> pattern_bytes(std::size_t tensor, std::uint64_t size) {
  std::vector<std::byte> result(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = pattern(tensor, i);
  return result;
}

bool holds_pattern(std::span<std::byte const> bytes, std::size_t tensor, std::uint64_t offset) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (bytes[i] != pattern(tensor, offset + i)) return false;
  return true;
}

void write_pattern(std::filesystem::path const& path, std::span<tensor_info const> tensors) {
  checkpoint_writer writer(path, tensors, {}, checkpoint_writer::layout::as_given);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto const size = byte_size(tensors[i].type, tensors[i].dims);
    writer.write(i, 0, pattern_bytes(i, size.value()));
  }
  writer.commit();
}

} // namespace ropeway::test
