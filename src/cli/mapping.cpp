#include "cli/mapping.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "cli/quantity.hpp"
#include "ropeway/error.hpp"

namespace ropeway::cli {

mapping::mapping(std::uint64_t bytes) : size_(std::max<std::uint64_t>(bytes, 1)) {
  void* const got =
      mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED)
    throw transfer_error(errc::out_of_memory, size_text(bytes) + " of host memory are not to be had");
  data_ = static_cast<std::byte*>(got);
  // Fewer page faults; where the kernel has none to give, ordinary pages serve.
  madvise(got, size_, MADV_HUGEPAGE);
}

mapping::~mapping() {
  if (data_) munmap(data_, size_);
}

} // namespace ropeway::cli
