// Two kinds of memory cross: what cuMemCreate made, as descriptors, and what cudaMalloc made, as 64 bytes
// each. Part of ropeway; Apache-2.0.
#include "memory/cuda/segments.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "memory/cuda/region.hpp"
#include "memory/cuda/virtual_memory.hpp"

namespace ropeway::memory::cuda {
namespace {

static_assert(sizeof(CUipcMemHandle) == sizeof(gpu::legacy_handle));

/// What the driver says of an address. All zero for memory that it does not know.
struct attributes {
  unsigned type = 0;
  int ordinal = -1;
  // Some of these are written as fewer bytes.
  unsigned long long identity = 0, mapped = 0, managed = 0, legacy = 0, handle_types = 0;
  CUmemoryPool pool = nullptr;
  CUdeviceptr begin = 0;
  std::size_t bytes = 0;

  bool ask(driver const& table, CUdeviceptr address) noexcept {
    std::array which{CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                     CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                     CU_POINTER_ATTRIBUTE_BUFFER_ID,
                     CU_POINTER_ATTRIBUTE_MAPPED,
                     CU_POINTER_ATTRIBUTE_IS_MANAGED,
                     CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
                     CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES,
                     CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,
                     CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
                     CU_POINTER_ATTRIBUTE_RANGE_SIZE};
    std::array<void*, which.size()> into{&type,   &ordinal,      &identity, &mapped, &managed,
                                         &legacy, &handle_types, &pool,     &begin,  &bytes};
    return table.cuPointerGetAttributes(static_cast<unsigned>(which.size()), which.data(), into.data(),
                                        address) == CUDA_SUCCESS;
  }
};

bool is_virtual(driver const& table, CUdeviceptr address) noexcept {
  CUmemGenericAllocationHandle handle = 0;
  if (table.cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(address)) != CUDA_SUCCESS)
    return false;
  (void)table.cuMemRelease(handle);
  return true;
}

/// Why memory that the driver knows, and exports in no way, is not for peers.
char const* why_not_exported(driver const& table, CUdeviceptr address) noexcept {
  if (is_virtual(table, address))
    return "virtual memory that was made without a shareable handle, or by another process";
  return "memory imported from another process, or of a device that has no interprocess handles";
}

[[noreturn]] void fail_export(allocation const& what, std::string const& why) {
  throw transfer_error(errc::not_reachable, "memory of " + std::to_string(what.bytes) + " bytes on " +
                                                to_string(what.where) + " can't be exported: " + why);
}

/// That a handle which was just taken is of the memory that was meant: it may have been freed since, and
/// other memory made at its address.
void check_still(gpu const& owner, allocation const& what) {
  allocation const now = find_allocation(owner, what.begin);
  if (what.identity == 0 || now.kind != what.kind || now.identity != what.identity ||
      now.begin != what.begin || now.bytes != what.bytes)
    fail_export(what, "it was freed in the meantime");
}

part_handle export_virtual(gpu const& owner, allocation const& what) {
  driver const& d = owner.call();
  CUmemGenericAllocationHandle handle = 0;
  if (CUresult result = d.cuMemRetainAllocationHandle(&handle, what.begin); result != CUDA_SUCCESS)
    fail_export(what, d.text(result));
  physical const memory(owner, handle);
  check_still(owner, what);
  part_handle part;
  try {
    part.fd = memory.share();
  } catch (transfer_error const& error) { fail_export(what, error.what()); }
  return part;
}

part_handle export_legacy(gpu const& owner, allocation const& what) {
  driver const& d = owner.call();
  CUcontext context = nullptr;
  CUpointer_attribute which = CU_POINTER_ATTRIBUTE_CONTEXT;
  void* into = &context;
  auto const address = reinterpret_cast<CUdeviceptr>(what.begin);
  if (d.cuPointerGetAttributes(1, &which, &into, address) != CUDA_SUCCESS || !context)
    fail_export(what, "it belongs to no context any more");
  CUipcMemHandle handle{};
  try {
    scope there(d, context, d.id_of(context));
    d.check(d.cuIpcGetMemHandle(&handle, address), "no interprocess handle");
  } catch (transfer_error const& error) { fail_export(what, error.what()); }
  check_still(owner, what);
  part_handle part;
  std::memcpy(part.legacy.data(), &handle, part.legacy.size());
  return part;
}

[[noreturn]] void bad(std::string const& why) {
  throw transfer_error(errc::bad_region, "a segment of a peer's device memory " + why);
}

/// Allocations of cuMemCreate, side by side.
class virtual_importer final : public segment_importer {
 public:
  virtual_importer(std::shared_ptr<gpu> owner, std::uint64_t bytes, std::uint32_t parts,
                   device_uuid const& origin)
      : owner_(std::move(owner))
      , from_(*owner_, origin)
      , page_(page_bytes(*owner_))
      , parts_left_(parts)
      , memory_(owner_, checked(bytes, parts)) {}

  void add(part_handle part) override {
    if (part.kind != part_kind::cuda_memory) bad("has parts of several kinds");
    if (parts_left_ == 0) bad("has more parts than were announced");
    std::uint64_t const left = memory_.bytes() - memory_.mapped();
    if (part.bytes == 0 || part.bytes % page_ != 0 || part.bytes > left)
      bad("has a part of " + std::to_string(part.bytes) + " bytes where " + std::to_string(left) +
          " are left");
    scope here(*owner_);
    import_part(memory_, from_, std::move(part.fd), part.bytes, part.bytes);
    --parts_left_;
  }

  std::shared_ptr<region> finish() override {
    if (parts_left_ != 0 || memory_.mapped() != memory_.bytes())
      bad("of " + std::to_string(memory_.bytes()) + " bytes lacks " + std::to_string(parts_left_) +
          " parts and " + std::to_string(memory_.bytes() - memory_.mapped()) + " bytes");
    scope here(*owner_);
    allow_reading(memory_, from_);
    std::uint64_t const bytes = memory_.bytes();
    return std::make_shared<device_region>(std::move(memory_), bytes, from_.of_peer);
  }

 private:
  std::uint64_t checked(std::uint64_t bytes, std::uint32_t parts) const {
    if (bytes == 0 || bytes % page_ != 0 || parts == 0 || parts > bytes / page_)
      bad("can't have " + std::to_string(bytes) + " bytes in " + std::to_string(parts) + " parts");
    return bytes;
  }

  std::shared_ptr<gpu> owner_;
  peer_memory from_;
  std::uint64_t page_;
  std::uint32_t parts_left_;
  mapping memory_;
};

/// A handle of cudaMalloc memory while it is open.
class open_handle {
 public:
  open_handle(std::shared_ptr<gpu> owner, gpu::legacy_handle const& handle, peer_memory const& from)
      : owner_(std::move(owner)), handle_(handle) {
    if (!owner_->add_handle(handle_))
      throw transfer_error(errc::not_reachable,
                           from.name + " is still mapped under the same handle, which may stand for memory "
                                       "that was freed; unmap that first");
    try {
      open(from);
    } catch (...) {
      owner_->remove_handle(handle_);
      throw;
    }
  }
  ~open_handle() {
    if (!begin_) return;
    if (scope here(*owner_, std::nothrow); here.entered()) (void)owner_->call().cuIpcCloseMemHandle(begin_);
    owner_->remove_handle(handle_);
  }
  open_handle(open_handle&& other) noexcept
      : owner_(other.owner_), handle_(other.handle_), begin_(std::exchange(other.begin_, 0)) {}
  open_handle& operator=(open_handle&&) = delete;

  CUdeviceptr begin() const noexcept { return begin_; }
  std::shared_ptr<gpu> const& owner() const noexcept { return owner_; }
  /// Whether so many bytes are really there. An allocation that shares a block of memory with others may come
  /// with the whole block.
  bool holds(std::uint64_t bytes) const {
    CUdeviceptr block = 0;
    std::size_t size = 0;
    scope here(*owner_);
    if (owner_->call().cuMemGetAddressRange(&block, &size, begin_) != CUDA_SUCCESS) return false;
    return block <= begin_ && begin_ - block <= size && bytes <= size - (begin_ - block);
  }

 private:
  void open(peer_memory const& from) {
    driver const& d = owner_->call();
    CUipcMemHandle handle{};
    std::memcpy(&handle, handle_.data(), handle_.size());
    scope here(*owner_);
    CUresult const result = d.cuIpcOpenMemHandle(&begin_, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    if (result == CUDA_SUCCESS && begin_ != 0) return;
    begin_ = 0;
    if (result == CUDA_ERROR_INVALID_CONTEXT)
      d.fail(result, (from.name + " can't be mapped in the process that made it").c_str(),
             errc::not_reachable);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
      d.fail(result, ("no room to map " + from.name).c_str(), errc::out_of_memory);
    d.fail(result,
           (from.name + " can't be mapped (freed in the meantime, of this very process, or no peer access?)")
               .c_str(),
           errc::not_reachable);
  }

  std::shared_ptr<gpu> owner_;
  gpu::legacy_handle handle_;
  CUdeviceptr begin_ = 0;
};

class legacy_region final : public region {
 public:
  legacy_region(open_handle memory, std::uint64_t bytes, bool of_peer)
      : region(reinterpret_cast<std::byte*>(memory.begin()), bytes, memory.owner()->where())
      , memory_(std::move(memory))
      , of_peer_(of_peer) {
    if (of_peer_) memory_.owner()->add_peer_memory(memory_.begin(), bytes);
  }
  ~legacy_region() override {
    if (of_peer_) memory_.owner()->remove_peer_memory(memory_.begin());
  }

 private:
  open_handle memory_;
  bool of_peer_;
};

class legacy_importer final : public segment_importer {
 public:
  legacy_importer(std::shared_ptr<gpu> owner, std::uint64_t bytes, std::uint32_t parts,
                  device_uuid const& origin)
      : owner_(std::move(owner)), from_(*owner_, origin), bytes_(bytes) {
    if (bytes == 0 || parts != 1)
      bad("made by cudaMalloc can't have " + std::to_string(bytes) + " bytes in " + std::to_string(parts) +
          " parts");
  }

  void add(part_handle part) override {
    if (part.kind != part_kind::cuda_legacy) bad("has parts of several kinds");
    if (memory_) bad("has more parts than were announced");
    if (part.bytes != bytes_)
      bad("has a part of " + std::to_string(part.bytes) + " bytes where " + std::to_string(bytes_) +
          " are left");
    open_handle memory(owner_, part.legacy, from_);
    if (!memory.holds(bytes_)) bad("has not the announced size of " + std::to_string(bytes_) + " bytes");
    memory_ = std::make_shared<legacy_region>(std::move(memory), bytes_, from_.of_peer);
  }

  std::shared_ptr<region> finish() override {
    if (!memory_) bad("of " + std::to_string(bytes_) + " bytes lacks its only part");
    return std::move(memory_);
  }

 private:
  std::shared_ptr<gpu> owner_;
  peer_memory from_;
  std::uint64_t bytes_;
  std::shared_ptr<region> memory_;
};

} // namespace

allocation find_allocation(gpu const& owner, std::byte const* address) noexcept {
  allocation found;
  driver const& d = owner.call();
  scope here(owner, std::nothrow);
  attributes seen;
  auto const at = reinterpret_cast<CUdeviceptr>(address);
  found.why_not = "memory of a device that can't be asked any more";
  if (!here.entered()) return found;
  found.why_not = "ordinary host memory";
  if (!seen.ask(d, at) || seen.type == 0) return found;
  if (seen.ordinal >= 0) found.where = device::cuda(seen.ordinal);
  found.why_not = "managed memory";
  if (seen.managed != 0) return found;
  found.why_not = "host memory";
  if (seen.type != CU_MEMORYTYPE_DEVICE) {
    found.where = device::host();
    return found;
  }
  found.why_not = "memory of a pool (cudaMallocAsync)";
  if (seen.pool) return found;
  found.why_not = "memory of no single device";
  if (seen.ordinal < 0) return found;
  // Its allocation is found, and exported, in a context of its own device only.
  found.why_not = "memory of another GPU";
  if (seen.ordinal != owner.ordinal()) return found;
  found.why_not = "a reserved address that nothing is mapped to";
  if (seen.mapped == 0 || seen.identity == 0) return found;
  if (seen.legacy == 0) {
    if ((seen.handle_types & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0) {
      found.why_not = why_not_exported(d, at);
      return found;
    }
    // The attributes know the whole reservation; this knows the one allocation in it.
    found.why_not = "memory whose allocation can't be found";
    if (d.cuMemGetAddressRange(&seen.begin, &seen.bytes, at) != CUDA_SUCCESS) return found;
  }
  if (at < seen.begin || at - seen.begin >= seen.bytes) return found;
  found.kind = seen.legacy != 0 ? part_kind::cuda_legacy : part_kind::cuda_memory;
  found.why_not = "";
  found.begin = reinterpret_cast<std::byte*>(seen.begin);
  found.bytes = seen.bytes;
  found.identity = seen.identity;
  return found;
}

bool are_there(gpu const& owner, std::span<allocation const> known) noexcept {
  scope here(owner, std::nothrow);
  if (!here.entered()) return false;
  driver const& d = owner.call();
  // Asking for all that find_allocation() wants to know takes 2 us each, and 13 us where there are thousands.
  CUpointer_attribute which = CU_POINTER_ATTRIBUTE_BUFFER_ID;
  return std::ranges::all_of(known, [&](allocation const& one) {
    unsigned long long identity = 0;
    void* into = &identity;
    return d.cuPointerGetAttributes(1, &which, &into, reinterpret_cast<CUdeviceptr>(one.begin)) ==
               CUDA_SUCCESS &&
           identity == one.identity;
  });
}

part_handle export_allocation(gpu const& owner, allocation const& what) {
  scope here(owner);
  part_handle part;
  switch (what.kind) {
  case part_kind::cuda_memory: part = export_virtual(owner, what); break;
  case part_kind::cuda_legacy: part = export_legacy(owner, what); break;
  default: fail_export(what, std::string("it is ") + what.why_not);
  }
  part.kind = what.kind;
  part.bytes = what.bytes;
  return part;
}

std::unique_ptr<segment_importer> start_import(std::shared_ptr<gpu> owner, part_kind kind,
                                               std::uint64_t bytes, std::uint32_t parts,
                                               device_uuid const& origin) {
  if (!can_reach(*owner, origin))
    throw transfer_error(errc::not_reachable, "memory of " + to_string(origin) + " can't be reached from " +
                                                  to_string(owner->uuid()) + "; another route is needed");
  scope here(*owner);
  switch (kind) {
  case part_kind::cuda_memory: return std::make_unique<virtual_importer>(owner, bytes, parts, origin);
  case part_kind::cuda_legacy: return std::make_unique<legacy_importer>(owner, bytes, parts, origin);
  default: break;
  }
  throw transfer_error(errc::not_reachable, "memory of this kind can't be mapped into " +
                                                to_string(owner->where()) + "; another route is needed");
}

} // namespace ropeway::memory::cuda
