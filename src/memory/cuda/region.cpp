// Makes and imports shared device memory. Both sides round the size up alike, so that what is mapped is the
// whole allocation. Part of ropeway; Apache-2.0.
#include "memory/cuda/region.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "memory/cuda/virtual_memory.hpp"

namespace ropeway::memory::cuda {
namespace {

std::uint64_t rounded(gpu const& owner, std::uint64_t bytes) {
  std::uint64_t const step = page_bytes(owner);
  std::uint64_t up = 0;
  if (bytes == 0) throw transfer_error(errc::invalid_argument, "a region of zero bytes was asked for");
  if (__builtin_add_overflow(bytes, step - 1, &up))
    throw transfer_error(errc::overflow, "a region of " + std::to_string(bytes) + " bytes was asked for");
  return up / step * step;
}

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
  CUmemAllocationProp const wanted = shareable_memory(*owner);
  CUmemGenericAllocationHandle handle = 0;
  if (CUresult result = d.cuMemCreate(&handle, size, &wanted, 0); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  physical const memory(*owner, handle);
  mapping place(owner, size);
  if (CUresult result = place.map(memory.get(), size); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  if (CUresult result = place.allow(CU_MEM_ACCESS_FLAGS_PROT_READWRITE); result != CUDA_SUCCESS)
    fail_allocation(*owner, result, bytes);
  unique_fd exported = memory.share();
  return {std::make_shared<device_region>(std::move(place), bytes, false), std::move(exported)};
}

std::shared_ptr<region> import_region(std::shared_ptr<gpu> owner, unique_fd handle, std::uint64_t bytes,
                                      device_uuid const& origin) {
  check_descriptor(handle.get());
  if (origin == device_uuid{}) refuse_descriptor("said to be host memory; only host backends import that");
  scope here(*owner);
  std::uint64_t const size = rounded(*owner, bytes);
  peer_memory const from(*owner, origin);
  mapping place(owner, size);
  import_part(place, from, std::move(handle), size, bytes);
  allow_reading(place, from);
  return std::make_shared<device_region>(std::move(place), bytes, from.of_peer);
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
