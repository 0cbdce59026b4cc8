#include "counting.hpp"

#include "../support/thread_sanitizer.hpp"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {
std::atomic<std::size_t> maps{0}, files{0};
} // namespace

#if !defined(__SANITIZE_ADDRESS__) && !ROPEWAY_THREAD_SANITIZER
extern "C" void* mmap(void* at, std::size_t bytes, int access, int flags, int fd, off_t offset) noexcept {
  ++maps;
  return reinterpret_cast<void*>(::syscall(SYS_mmap, at, bytes, access, flags, fd, offset));
}
extern "C" int memfd_create(char const* name, unsigned flags) noexcept {
  ++files;
  return static_cast<int>(::syscall(SYS_memfd_create, name, flags));
}
#endif

namespace ropeway::testing {

std::size_t mappings_made() noexcept { return maps; }
std::size_t memory_files_made() noexcept { return files; }

holdings holdings::now() {
  holdings held;
  for ([[maybe_unused]] auto const& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++held.descriptors;
  std::ifstream maps_now("/proc/self/maps");
  for (std::string line; std::getline(maps_now, line);) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    if (line.find("memfd:") == std::string::npos) continue; // the sanitizer maps memory of its own as it goes
#endif
    ++held.mappings;
  }
  std::ifstream pages("/proc/self/statm");
  std::size_t total = 0, resident = 0;
  pages >> total >> resident;
  held.resident_kib = resident * (static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) / 1024);
  return held;
}

} // namespace ropeway::testing
