#include "memory/shared_block.hpp"

#include <fcntl.h>

#include <cerrno>
#include <system_error>

#include "memory/host/region.hpp"
#include "ropeway/error.hpp"
#include "ropeway/shared_memory.hpp"

namespace ropeway::memory {
namespace {

backend::shared_region made_of(std::uint64_t bytes) {
  if (bytes == 0) throw transfer_error(errc::invalid_argument, "shared memory of 0 bytes was asked for");
  return host::make_region(bytes);
}

} // namespace

shared_block::shared_block(std::uint64_t bytes) : made_(made_of(bytes)) {}

part_handle shared_block::handle() const {
  part_handle part;
  part.kind = part_kind::host_memory;
  part.bytes = size();
  part.fd = unique_fd(::fcntl(made_.handle.get(), F_DUPFD_CLOEXEC, 0));
  if (!part.fd)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no descriptor for shared memory; raise RLIMIT_NOFILE");
  return part;
}

} // namespace ropeway::memory

namespace ropeway {

shared_memory shared_memory::make(std::uint64_t bytes) {
  return shared_memory(std::make_shared<memory::shared_block const>(bytes));
}
std::byte* shared_memory::data() const noexcept { return block_ ? block_->data() : nullptr; }
std::uint64_t shared_memory::size() const noexcept { return block_ ? block_->size() : 0; }

} // namespace ropeway
