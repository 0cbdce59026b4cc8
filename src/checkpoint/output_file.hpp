// A file that appears whole or not at all. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/unique_fd.hpp"

namespace ropeway {

/// Has no name until `publish` where the file system can do that, so that even a killed process leaves
/// nothing; elsewhere a temporary name in the same directory, which the destructor removes.
class output_file {
 public:
  /// Takes the space at once: a full disk is noticed here. Throws the system's error.
  output_file(std::filesystem::path path, std::uint64_t size);
  output_file(output_file const&) = delete;
  output_file& operator=(output_file const&) = delete;
  ~output_file();

  std::filesystem::path const& path() const noexcept { return path_; }
  void write(std::uint64_t offset, std::span<std::byte const> bytes);
  /// Makes the content durable and puts it in the place of whatever had the name.
  void publish();

 private:
  void open_nameless();
  void open_named();
  void reserve(std::uint64_t size);
  void give_temporary_name();

  std::filesystem::path path_, directory_, temporary_; // `temporary_` is empty while there is no name
  unique_fd fd_;
};

} // namespace ropeway
