// A file in memory, for readers that want a file. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

#include "base/unique_fd.hpp"
#include "targets.hpp"

namespace ropeway::fuzz {

class file_in_memory {
 public:
  file_in_memory() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) { promise(static_cast<bool>(fd_), "a memfd"); }

  /// Makes the file these bytes and zeros up to `size`.
  void fill(std::span<std::uint8_t const> bytes, std::uint64_t size) {
    promise(::ftruncate(fd_.get(), 0) == 0 && ::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0,
            "resize");
    promise(::pwrite(fd_.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
            "write");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }

 private:
  unique_fd fd_;
};

} // namespace ropeway::fuzz
