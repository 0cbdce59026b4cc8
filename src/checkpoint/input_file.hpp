// A regular file that is read, through the page cache or past it. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/unique_fd.hpp"
#include "ropeway/error.hpp"

namespace ropeway {

/// "PATH", as it stands at the beginning of our messages.
std::string label(std::filesystem::path const& path);

/// The system's error `number` about `path`, as an exception to throw.
transfer_error system_failure(int number, std::filesystem::path const& path, std::string const& what);

/// A second descriptor of a file, for reads past the page cache.
struct direct_file {
  unique_fd fd;
  std::uint32_t offset_alignment = 0; ///< 0: the file system can't do it
  std::uint32_t memory_alignment = 0;
};

class input_file {
 public:
  /// Throws the system's error, or `errc::bad_checkpoint` for what is no regular file.
  explicit input_file(std::filesystem::path path);

  std::filesystem::path const& path() const noexcept { return path_; }
  int fd() const noexcept { return fd_.get(); }
  /// When it was opened.
  std::uint64_t size() const noexcept { return size_; }
  /// Exactly these bytes, through the page cache; throws if the file ends before.
  void read_exactly(std::uint64_t offset, std::span<char> into) const;
  direct_file open_direct() const;

 private:
  std::filesystem::path path_, absolute_;
  unique_fd fd_;
  std::uint64_t size_ = 0;
};

} // namespace ropeway
