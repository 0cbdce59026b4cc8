#include "counting.hpp"

#include "../support/thread_sanitizer.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {
std::atomic<std::size_t> blocks{0}, maps{0}, files{0};
} // namespace

#if !ROPEWAY_THREAD_SANITIZER
namespace {
void* counted(std::size_t bytes) {
  ++blocks;
  return std::malloc(bytes != 0 ? bytes : 1);
}
void* counted(std::size_t bytes, std::align_val_t align) {
  ++blocks;
  auto const unit = static_cast<std::size_t>(align);
  return std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}
} // namespace

void* operator new(std::size_t bytes) {
  if (void* p = counted(bytes)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  if (void* p = counted(bytes, align)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept { return counted(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

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

std::size_t heap_blocks() noexcept { return blocks; }
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
