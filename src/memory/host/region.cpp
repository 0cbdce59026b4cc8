#include "memory/host/region.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <limits>
#include <linux/magic.h>
#include <string>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "memory/host/available.hpp"
#include "ropeway/error.hpp"

// Newer than the C library of the oldest system that we build on.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace ropeway::memory::host {
namespace {

class mapping final : public region {
 public:
  mapping(std::byte* data, std::uint64_t bytes) : region(data, bytes, device::host()) {}
  ~mapping() override { ::munmap(data_, size_); }
};

std::string reason() { return std::string(": ") + std::strerror(errno); }

[[noreturn]] void no_memory(std::uint64_t bytes, std::string const& why) {
  throw transfer_error(errc::out_of_memory, "can't make " + std::to_string(bytes) +
                                                " bytes of shared host memory" + why +
                                                "; use fewer or smaller buckets, or raise the memory limit");
}

[[noreturn]] void bad(std::string const& what) {
  throw transfer_error(errc::bad_region, "can't import a region: " + what);
}

// The file itself is reserved in steps: one large request would start over whenever a signal comes.
void reserve(int fd, std::uint64_t bytes) {
  constexpr std::uint64_t step = 64 << 20;
  for (std::uint64_t done = 0; done < bytes;) {
    std::uint64_t const now = std::min(step, bytes - done);
    if (::fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(now)) == 0) {
      done += now;
    } else if (errno != EINTR) {
      no_memory(bytes, reason());
    }
  }
}

// Null if the system refuses; errno says why.
std::shared_ptr<region> map(int fd, std::uint64_t bytes, int protection, int prefault) {
  void* const at = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return nullptr;
  auto memory = std::make_shared<mapping>(static_cast<std::byte*>(at), bytes);
  // Otherwise the first copy pays for each page: 1.5 ms per MiB measured in a virtual machine. Older kernels
  // refuse, which costs that time only. Huge pages are left to the system's policy for shared memory ("never"
  // by default).
  (void)::madvise(at, bytes, prefault);
  return memory;
}

} // namespace

backend::shared_region make_region(std::uint64_t bytes) {
  if (bytes == 0) throw transfer_error(errc::invalid_argument, "a shared region needs at least one byte");
  // Reserving more than there is would not fail but bring the kernel to kill somebody.
  std::uint64_t const available = available_memory();
  if (bytes > available || bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    no_memory(bytes, ": " + std::to_string(available) + " are available");
  }
  // The system would not refuse but send SIGXFSZ, which ends a process that does not expect it.
  rlimit largest{};
  if (::getrlimit(RLIMIT_FSIZE, &largest) == 0 && bytes > largest.rlim_cur)
    no_memory(bytes, ": RLIMIT_FSIZE allows " + std::to_string(largest.rlim_cur));
  unique_fd fd(::memfd_create("ropeway", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
  if (!fd && errno == EINVAL) fd.reset(::memfd_create("ropeway", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) {
    int const error = errno;
    std::string const ran_out = error == EMFILE ? "; raise RLIMIT_NOFILE" : "";
    throw transfer_error(std::error_code(error, std::system_category()),
                         "memfd_create for " + std::to_string(bytes) + " bytes of shared host memory" +
                             ran_out);
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) no_memory(bytes, reason());
  reserve(fd.get(), bytes);
  auto memory = map(fd.get(), bytes, PROT_READ | PROT_WRITE, MADV_POPULATE_WRITE);
  if (!memory) no_memory(bytes, reason());
  // FUTURE_WRITE also stops PUNCH_HOLE, with which a peer could zero the memory under us.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "sealing shared host memory (needs Linux 5.1)");
  }
  return {std::move(memory), std::move(fd)};
}

std::shared_ptr<region> import_region(unique_fd handle, std::uint64_t bytes) {
  struct stat about {};
  if (!handle || ::fstat(handle.get(), &about) != 0) bad("it is not open");
  struct statfs where {};
  if (!S_ISREG(about.st_mode) || ::fstatfs(handle.get(), &where) != 0 || where.f_type != TMPFS_MAGIC) {
    bad("it is no memory file");
  }
  int const seals = ::fcntl(handle.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_GROW) == 0) {
    bad("its size is not sealed (SHRINK and GROW), the peer could make reading it fatal");
  }
  if ((seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) == 0) {
    bad("writing is not sealed (FUTURE_WRITE), anybody could change it");
  }
  if (bytes == 0 || about.st_size < 0 || static_cast<std::uint64_t>(about.st_size) != bytes) {
    bad("it has " + std::to_string(about.st_size) + " bytes where " + std::to_string(bytes) +
        " were announced");
  }
  // Reading what its maker has not reserved would allocate it: on our account, and past what there is.
  if (static_cast<std::uint64_t>(about.st_blocks) * 512 < bytes) {
    bad("its " + std::to_string(bytes) + " bytes are not all there, the peer could make us pay for them");
  }
  auto memory = map(handle.get(), bytes, PROT_READ, MADV_POPULATE_READ);
  if (memory) return memory;
  if (errno != ENOMEM && errno != EAGAIN) bad("it can't be mapped for reading" + reason());
  throw transfer_error(errc::out_of_memory, "can't map " + std::to_string(bytes) +
                                                " bytes of the peer's memory" + reason() +
                                                "; raise RLIMIT_AS or vm.max_map_count");
}

} // namespace ropeway::memory::host
