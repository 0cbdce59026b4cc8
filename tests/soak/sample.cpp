#include "sample.hpp"
#include "support/sanitized.hpp"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

namespace ropeway::soak {
namespace {

/// Reads a file of /proc piece by piece: without the heap, which is what is measured.
template <class Each>
void read_pieces(char const* path, Each&& each) {
  int const file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  std::array<char, 4096> buffer;
  for (;;) {
    ssize_t const got = ::read(file, buffer.data(), buffer.size());
    if (got <= 0) break;
    each(std::string_view(buffer.data(), static_cast<std::size_t>(got)));
  }
  ::close(file);
}

std::uint64_t number_after(std::string_view text, std::string_view key) {
  auto const at = text.find(key);
  if (at == std::string_view::npos) return 0;
  return std::strtoull(text.data() + at + key.size(), nullptr, 10);
}

/// Through the driver's own names: this program has no CUDA headers and may have no driver.
std::uint64_t device_memory_in_use(int ordinal) {
  static void* const library = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return 0;
  using get_device = int (*)(int*, int);
  using retain = int (*)(void**, int);
  using change = int (*)(void*);
  using pop = int (*)(void**);
  using release = int (*)(int);
  using info = int (*)(std::size_t*, std::size_t*);
  auto const find = [](char const* name) { return ::dlsym(library, name); };
  auto const device_get = reinterpret_cast<get_device>(find("cuDeviceGet"));
  auto const context_of = reinterpret_cast<retain>(find("cuDevicePrimaryCtxRetain"));
  auto const enter = reinterpret_cast<change>(find("cuCtxPushCurrent_v2"));
  auto const leave = reinterpret_cast<pop>(find("cuCtxPopCurrent_v2"));
  auto const let_go = reinterpret_cast<release>(find("cuDevicePrimaryCtxRelease_v2"));
  auto const memory = reinterpret_cast<info>(find("cuMemGetInfo_v2"));
  if (!device_get || !context_of || !enter || !leave || !let_go || !memory) return 0;
  int device = 0;
  void *context = nullptr, *left = nullptr;
  std::size_t free = 0, total = 0;
  if (device_get(&device, ordinal) != 0 || context_of(&context, device) != 0) return 0;
  if (enter(context) == 0) {
    if (memory(&free, &total) != 0) free = total = 0;
    leave(&left);
  }
  let_go(device);
  return (total - free) >> 20;
}

} // namespace

figures sample_now(int cuda_ordinal) {
  figures now;
  if (cuda_ordinal >= 0) now.device_mib = device_memory_in_use(cuda_ordinal); // first: it may open files
  if (!testing::sanitized) {
    struct mallinfo2 const heap = ::mallinfo2();
    now.heap_bytes = heap.uordblks + heap.hblkhd;
  }
  read_pieces("/proc/self/maps", [&](std::string_view piece) {
    for (char const c : piece) now.mappings += c == '\n';
  });
  // Small enough to come in one piece.
  read_pieces("/proc/self/status", [&](std::string_view piece) {
    now.anon_kib += number_after(piece, "RssAnon:");
    now.shared_kib += number_after(piece, "RssShmem:");
    now.threads += number_after(piece, "Threads:");
  });
  if (DIR* const folder = ::opendir("/proc/self/fd")) {
    while (dirent const* entry = ::readdir(folder)) now.fds += entry->d_name[0] != '.';
    ::closedir(folder);
    --now.fds; // the one that the listing itself used
  }
  return now;
}

void give_back_free_memory() { ::malloc_trim(0); }

} // namespace ropeway::soak
