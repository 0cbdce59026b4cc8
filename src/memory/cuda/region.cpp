// Makes and imports shared device memory. Both sides round the size up alike, so that what is mapped is the
// whole allocation. Part of ropeway; Apache-2.0.
#include "memory/cuda/region.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

namespace ropeway::memory::cuda {
namespace {

CUmemAllocationProp properties(gpu const& owner) {
  CUmemAllocationProp wanted{};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  wanted.location.id = owner.id();
  return wanted;
}

std::uint64_t rounded(gpu const& owner, std::uint64_t bytes) {
  // The same for all devices that have smaller pages, so that importer and exporter agree.
  constexpr std::uint64_t page = std::uint64_t{2} << 20;
  CUmemAllocationProp const wanted = properties(owner);
  std::size_t granularity = 0;
  owner.call().check(
      owner.call().cuMemGetAllocationGranularity(&granularity, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
      "this device can't share memory");
  std::uint64_t const step = std::max<std::uint64_t>(granularity, page);
  std::uint64_t up = 0;
  if (bytes == 0) throw transfer_error(errc::invalid_argument, "a region of zero bytes was asked for");
  if (__builtin_add_overflow(bytes, step - 1, &up))
    throw transfer_error(errc::overflow, "a region of " + std::to_string(bytes) + " bytes was asked for");
  return up / step * step;
}

/// Holds a physical allocation; mappings keep it alive by themselves.
class allocation {
 public:
  allocation(gpu const& owner, CUmemGenericAllocationHandle handle) : owner_(owner), handle_(handle) {}
  ~allocation() { (void)owner_.call().cuMemRelease(handle_); }
  allocation(allocation const&) = delete;
  allocation& operator=(allocation const&) = delete;
  CUmemGenericAllocationHandle get() const noexcept { return handle_; }

 private:
  gpu const& owner_;
  CUmemGenericAllocationHandle handle_;
};

/// An address range with an allocation mapped into it.
class mapping {
 public:
  mapping(std::shared_ptr<gpu> owner, std::uint64_t bytes) : owner_(std::move(owner)), bytes_(bytes) {
    driver const& d = owner_->call();
    if (CUresult result = d.cuMemAddressReserve(&begin_, bytes_, 0, 0, 0); result != CUDA_SUCCESS)
      d.fail(result, ("no addresses for a region of " + std::to_string(bytes_) + " bytes").c_str(),
             errc::out_of_memory);
  }
  ~mapping() {
    if (!begin_) return;
    driver const& d = owner_->call();
    scope here(*owner_, std::nothrow);
    // Also when the context is gone: this memory does not belong to it and would stay.
    if (mapped_) (void)d.cuMemUnmap(begin_, bytes_);
    (void)d.cuMemAddressFree(begin_, bytes_);
  }
  mapping(mapping&& other) noexcept
      : owner_(other.owner_)
      , begin_(std::exchange(other.begin_, 0))
      , bytes_(other.bytes_)
      , mapped_(other.mapped_) {}
  mapping& operator=(mapping&&) = delete;

  CUresult map(CUmemGenericAllocationHandle handle) {
    CUresult const result = owner_->call().cuMemMap(begin_, bytes_, 0, handle, 0);
    mapped_ = result == CUDA_SUCCESS;
    return result;
  }
  CUresult allow(CUmemAccess_flags how) {
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = owner_->id();
    access.flags = how;
    return owner_->call().cuMemSetAccess(begin_, bytes_, &access, 1);
  }
  CUdeviceptr begin() const noexcept { return begin_; }
  std::shared_ptr<gpu> const& owner() const noexcept { return owner_; }

 private:
  std::shared_ptr<gpu> owner_;
  CUdeviceptr begin_ = 0;
  std::uint64_t bytes_;
  bool mapped_ = false;
};

class device_region final : public region {
 public:
  device_region(mapping memory, std::uint64_t bytes, bool of_peer)
      : region(reinterpret_cast<std::byte*>(memory.begin()), bytes, memory.owner()->where())
      , memory_(std::move(memory))
      , of_peer_(of_peer) {
    if (of_peer_) memory_.owner()->add_peer_memory(memory_.begin(), bytes);
  }
  ~device_region() override {
    if (of_peer_) memory_.owner()->remove_peer_memory(memory_.begin());
  }

 private:
  mapping memory_;
  bool of_peer_;
};

[[noreturn]] void fail_allocation(gpu const& owner, CUresult result, std::uint64_t bytes) {
  driver const& d = owner.call();
  std::size_t free = 0, total = 0;
  (void)d.cuMemGetInfo(&free, &total);
  // Sizes that no device has get other errors from some drivers.
  if (result != CUDA_ERROR_OUT_OF_MEMORY && bytes <= total)
    d.fail(result, ("a shared region of " + std::to_string(bytes) + " bytes can't be made").c_str(),
           errc::device_failed);
  throw transfer_error(errc::out_of_memory, to_string(owner.where()) + " has no " + std::to_string(bytes) +
                                                " bytes for a shared region: " + std::to_string(free) +
                                                " of " + std::to_string(total) +
                                                " are free; use fewer or smaller slots");
}

[[noreturn]] void refuse(std::string const& why) {
  throw transfer_error(errc::bad_region, "a descriptor that should be CUDA memory is " + why);
}

/// As far as it can be checked from outside: the driver's descriptors are open character devices of its own.
void check_descriptor(int fd) {
  struct stat seen {};
  if (::fstat(fd, &seen) != 0) refuse(std::string("not open: ") + std::strerror(errno));
  if (S_ISREG(seen.st_mode)) refuse("a file or host memory; the peer named the wrong device");
  constexpr unsigned kernel_memory = 1; // the major number of null, zero, random and so on
  if (!S_ISCHR(seen.st_mode) || major(seen.st_rdev) == kernel_memory) refuse("something else entirely");
}

std::optional<int> visible_ordinal(driver const& table, device_uuid const& wanted) {
  auto const found = list_devices(table);
  auto const at = std::find(found.begin(), found.end(), wanted);
  if (at == found.end()) return std::nullopt;
  return static_cast<int>(at - found.begin());
}

} // namespace

backend::shared_region make_region(std::shared_ptr<gpu> owner, std::uint64_t bytes) {
  scope here(*owner);
  driver const& d = owner->call();
  std::uint64_t const size = rounded(*owner, bytes);
  CUmemAllocationProp const wanted = properties(*owner);
  CUmemGenericAllocationHandle handle = 0;
  if (CUresult result = d.cuMemCreate(&handle, size, &wanted, 0); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  allocation memory(*owner, handle);
  mapping place(owner, size);
  if (CUresult result = place.map(memory.get()); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  if (CUresult result = place.allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  int fd = -1;
  d.check(d.cuMemExportToShareableHandle(&fd, memory.get(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
          "device memory can't be exported");
  unique_fd exported(fd);
  return {std::make_shared<device_region>(std::move(place), bytes, false), std::move(exported)};
}

std::shared_ptr<region> import_region(std::shared_ptr<gpu> owner, unique_fd handle, std::uint64_t bytes,
                                      device_uuid const& origin) {
  check_descriptor(handle.get());
  if (origin == device_uuid{}) refuse("said to be host memory; only host backends import that");
  scope here(*owner);
  driver const& d = owner->call();
  std::uint64_t const size = rounded(*owner, bytes);
  bool const of_peer = origin != owner->uuid();
  std::string const name = "memory of " + to_string(origin);
  std::string const reach = name + " can't be reached from " + to_string(owner->uuid()) +
                            " (no peer access?); another route is needed";
  CUmemGenericAllocationHandle imported = 0;
  // The driver wants the descriptor's number in place of a pointer.
  CUresult result = d.cuMemImportFromShareableHandle(
      &imported, reinterpret_cast<void*>(static_cast<std::intptr_t>(handle.get())),
      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  bool const not_memory = result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_INVALID_HANDLE;
  if (result != CUDA_SUCCESS && of_peer && !not_memory) d.fail(result, reach.c_str(), errc::not_reachable);
  if (result != CUDA_SUCCESS) d.fail(result, (name + " can't be imported").c_str(), errc::bad_region);
  allocation memory(*owner, imported);
  mapping place(owner, size);
  result = place.map(memory.get());
  if (result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_NOT_SUPPORTED)
    d.fail(result, (name + " has not the announced size of " + std::to_string(bytes) + " bytes").c_str(),
           errc::bad_region);
  if (result != CUDA_SUCCESS) d.fail(result, reach.c_str(), errc::not_reachable);
  result = place.allow(CU_MEM_ACCESS_FLAGS_PROT_READ);
  if (result != CUDA_SUCCESS) result = place.allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  if (result != CUDA_SUCCESS) d.fail(result, reach.c_str(), errc::not_reachable);
  return std::make_shared<device_region>(std::move(place), bytes, of_peer);
}

bool can_reach(gpu const& owner, device_uuid const& origin) noexcept {
  if (origin == owner.uuid()) return true;
  if (origin == device_uuid{}) return false;
  try {
    driver const& d = owner.call();
    std::optional<int> const ordinal = visible_ordinal(d, origin);
    // A device that this process does not see may still be a peer: the import decides.
    if (!ordinal) return true;
    CUdevice other = 0;
    int possible = 0;
    if (d.cuDeviceGet(&other, *ordinal) != CUDA_SUCCESS) return false;
    return d.cuDeviceCanAccessPeer(&possible, owner.id(), other) == CUDA_SUCCESS && possible != 0;
  } catch (...) { return false; }
}

std::shared_ptr<void> register_host(std::shared_ptr<gpu> owner, std::shared_ptr<region> memory) {
  if (!memory || memory->where().is_cuda() || memory->size() == 0) return nullptr;
  struct registration {
    std::shared_ptr<gpu> owner;
    std::shared_ptr<region> memory;
    bool registered = false;
    ~registration() {
      if (!registered) return;
      scope here(*owner, std::nothrow);
      if (here.entered()) (void)owner->call().cuMemHostUnregister(memory->data());
    }
  };
  auto pinned = std::make_shared<registration>();
  pinned->owner = owner;
  pinned->memory = memory;
  scope here(*owner);
  driver const& d = owner->call();
  constexpr unsigned everywhere = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
  CUresult result = d.cuMemHostRegister(memory->data(), memory->size(), everywhere);
  // A peer's ring is mapped for reading only, and pinning it for writing fails.
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)
    result = d.cuMemHostRegister(memory->data(), memory->size(), everywhere | CU_MEMHOSTREGISTER_READ_ONLY);
  // Registered for another device already: that serves this one too.
  if (result != CUDA_SUCCESS) return nullptr;
  pinned->registered = true;
  return pinned;
}

} // namespace ropeway::memory::cuda
