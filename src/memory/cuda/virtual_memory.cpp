// Part of ropeway; Apache-2.0.
#include "memory/cuda/virtual_memory.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ropeway::memory::cuda {

CUmemAllocationProp shareable_memory(gpu const& owner) noexcept {
  CUmemAllocationProp wanted{};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  wanted.location.id = owner.id();
  return wanted;
}

std::uint64_t page_bytes(gpu const& owner) {
  constexpr std::uint64_t page = std::uint64_t{2} << 20; // some devices have smaller ones
  CUmemAllocationProp const wanted = shareable_memory(owner);
  std::size_t granularity = 0;
  owner.call().check(
      owner.call().cuMemGetAllocationGranularity(&granularity, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
      "this device can't share memory");
  return std::max<std::uint64_t>(granularity, page);
}

unique_fd physical::share() const {
  driver const& d = owner_.call();
  int fd = -1;
  d.check(d.cuMemExportToShareableHandle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
          "device memory can't be exported");
  return unique_fd(fd);
}

mapping::mapping(std::shared_ptr<gpu> owner, std::uint64_t bytes) : owner_(std::move(owner)), bytes_(bytes) {
  driver const& d = owner_->call();
  if (CUresult result = d.cuMemAddressReserve(&begin_, bytes_, 0, 0, 0); result != CUDA_SUCCESS)
    d.fail(result, ("no addresses for a region of " + std::to_string(bytes_) + " bytes").c_str(),
           errc::out_of_memory);
}

mapping::~mapping() {
  if (!begin_) return;
  driver const& d = owner_->call();
  scope here(*owner_, std::nothrow);
  // Also when the context is gone: this memory does not belong to it and would stay.
  CUdeviceptr at = begin_;
  for (std::uint64_t const bytes : parts_) {
    (void)d.cuMemUnmap(at, bytes);
    at += bytes;
  }
  (void)d.cuMemAddressFree(begin_, bytes_);
}

mapping::mapping(mapping&& other) noexcept
    : owner_(other.owner_)
    , begin_(std::exchange(other.begin_, 0))
    , bytes_(other.bytes_)
    , mapped_(std::exchange(other.mapped_, 0))
    , parts_(std::move(other.parts_)) {}

CUresult mapping::map(CUmemGenericAllocationHandle handle, std::uint64_t bytes) {
  if (bytes > bytes_ - mapped_) return CUDA_ERROR_INVALID_VALUE;
  parts_.push_back(bytes);
  CUresult const result = owner_->call().cuMemMap(begin_ + mapped_, bytes, 0, handle, 0);
  if (result == CUDA_SUCCESS)
    mapped_ += bytes;
  else
    parts_.pop_back();
  return result;
}

CUresult mapping::allow(CUmemAccess_flags how) const {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = owner_->id();
  access.flags = how;
  return owner_->call().cuMemSetAccess(begin_, bytes_, &access, 1);
}

peer_memory::peer_memory(gpu const& owner, device_uuid const& made_on)
    : origin(made_on)
    , of_peer(made_on != owner.uuid())
    , name("memory of " + to_string(made_on))
    , reach(name + " can't be reached from " + to_string(owner.uuid()) +
            " (no peer access?); another route is needed") {}

void import_part(mapping& into, peer_memory const& from, unique_fd handle, std::uint64_t bytes,
                 std::uint64_t announced) {
  check_descriptor(handle.get());
  driver const& d = into.owner()->call();
  CUmemGenericAllocationHandle imported = 0;
  // The driver wants the descriptor's number in place of a pointer.
  CUresult result = d.cuMemImportFromShareableHandle(
      &imported, reinterpret_cast<void*>(static_cast<std::intptr_t>(handle.get())),
      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  bool const not_memory = result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_INVALID_HANDLE;
  if (result != CUDA_SUCCESS && from.of_peer && !not_memory)
    d.fail(result, from.reach.c_str(), errc::not_reachable);
  if (result != CUDA_SUCCESS) d.fail(result, (from.name + " can't be imported").c_str(), errc::bad_region);
  physical const memory(*into.owner(), imported);
  result = into.map(memory.get(), bytes);
  if (result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_NOT_SUPPORTED)
    d.fail(result,
           (from.name + " has not the announced size of " + std::to_string(announced) + " bytes").c_str(),
           errc::bad_region);
  if (result != CUDA_SUCCESS) d.fail(result, from.reach.c_str(), errc::not_reachable);
}

void allow_reading(mapping const& whole, peer_memory const& from) {
  CUresult result = whole.allow(CU_MEM_ACCESS_FLAGS_PROT_READ);
  if (result != CUDA_SUCCESS) result = whole.allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  whole.owner()->call().check(result, from.reach.c_str(), errc::not_reachable);
}

void refuse_descriptor(std::string const& why) {
  throw transfer_error(errc::bad_region, "a descriptor that should be CUDA memory is " + why);
}

void check_descriptor(int fd) {
  struct stat seen {};
  if (::fstat(fd, &seen) != 0) refuse_descriptor(std::string("not open: ") + std::strerror(errno));
  if (S_ISREG(seen.st_mode)) refuse_descriptor("a file or host memory; the peer named the wrong device");
  // The driver's descriptors are open character devices of its own.
  constexpr unsigned kernel_memory = 1; // the major number of null, zero, random and so on
  if (!S_ISCHR(seen.st_mode) || major(seen.st_rdev) == kernel_memory)
    refuse_descriptor("something else entirely");
}

device_region::device_region(mapping memory, std::uint64_t bytes, bool of_peer)
    : region(reinterpret_cast<std::byte*>(memory.begin()), bytes, memory.owner()->where())
    , memory_(std::move(memory))
    , of_peer_(of_peer) {
  if (of_peer_) memory_.owner()->add_peer_memory(memory_.begin(), bytes);
}

device_region::~device_region() {
  if (of_peer_) memory_.owner()->remove_peer_memory(memory_.begin());
}

} // namespace ropeway::memory::cuda
