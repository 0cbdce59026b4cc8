// What segments ask of the driver, step by step, on a driver that fails where it is told to. Needs no device.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "fake_gpu.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::memory;
using testing::fake_gpu;

namespace {

constexpr std::uint64_t mib = 1 << 20;

// One GPU, as far as making a backend and carrying segments goes. Everything is counted; what is left when
// all is let go, has leaked.
struct fake {
  struct memory {
    std::uint64_t bytes, identity;
    unsigned type = CU_MEMORYTYPE_DEVICE;
    bool mapped = true, managed = false, legacy = false, is_virtual = false;
    unsigned long long types = 0;
    CUmemoryPool pool = nullptr;
    int ordinal = 0;
  };
  std::map<CUdeviceptr, memory> own;
  std::vector<std::uint64_t> imported_sizes; // of what descriptors stand for, in the order of import
  std::map<CUmemGenericAllocationHandle, std::uint64_t> handles;
  std::map<CUdeviceptr, std::uint64_t> reserved, mapped;
  std::multiset<CUdeviceptr> open;
  std::uint64_t legacy_bytes = 0; // of what a legacy handle stands for
  CUdeviceptr legacy_at = 0x700000000;
  int steps = 0, fail_at = -1; // of the calls that may fail
  CUresult failure = CUDA_ERROR_UNKNOWN;
  bool read_only_works = true;
  CUmemAccess_flags allowed = CU_MEM_ACCESS_FLAGS_PROT_NONE;
  int contexts = 0;
  CUdeviceptr next = 0x100000000;
  void (*after_retain)() = nullptr;

  bool step() { return steps++ != fail_at; }
  bool clean() const {
    return handles.empty() && reserved.empty() && mapped.empty() && open.empty() && contexts == 0;
  }
} now;

fake::memory const* at(CUdeviceptr address, CUdeviceptr& begin) {
  auto next = now.own.upper_bound(address);
  if (next == now.own.begin()) return nullptr;
  --next;
  begin = next->first;
  return address - begin < next->second.bytes ? &next->second : nullptr;
}

template <class T>
void put(void* to, T value) {
  *static_cast<T*>(to) = value;
}

CUresult attributes(unsigned count, CUpointer_attribute* which, void** into, CUdeviceptr address) {
  CUdeviceptr begin = 0;
  fake::memory const* const m = at(address, begin);
  for (unsigned i = 0; i < count; ++i) {
    void* const to = into[i];
    switch (which[i]) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: put(to, m ? m->type : 0U); break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: put(to, m ? m->ordinal : -2); break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: put<unsigned long long>(to, m ? m->identity : 0); break;
    case CU_POINTER_ATTRIBUTE_MAPPED: put(to, m && m->mapped); break; // one byte, as the driver writes it
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: put(to, m && m->managed); break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: put(to, m && m->legacy); break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: put<unsigned long long>(to, m ? m->types : 0); break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: put(to, m ? m->pool : nullptr); break;
    // The whole reservation, for virtual memory.
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: put<CUdeviceptr>(to, m && m->is_virtual ? 64 : begin); break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      put<std::size_t>(to, m && m->is_virtual ? std::size_t{1} << 40 : m ? m->bytes : 0);
      break;
    case CU_POINTER_ATTRIBUTE_CONTEXT: put(to, m ? reinterpret_cast<CUcontext>(16) : nullptr); break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return CUDA_SUCCESS;
}

std::shared_ptr<cuda::driver const> fake_driver() {
  static_assert(sizeof(bool) == 1);
  auto d = fake_gpu();
  d->cuCtxPushCurrent = [](CUcontext) { return ++now.contexts, CUDA_SUCCESS; };
  d->cuCtxPopCurrent = [](CUcontext*) { return --now.contexts, CUDA_SUCCESS; };
  d->cuPointerGetAttributes = attributes;
  d->cuMemGetAllocationGranularity = [](std::size_t* out, CUmemAllocationProp const*,
                                        CUmemAllocationGranularity_flags) {
    return *out = 2 * mib, now.step() ? CUDA_SUCCESS : now.failure;
  };
  d->cuMemGetAddressRange = [](CUdeviceptr* begin, std::size_t* bytes, CUdeviceptr address) {
    if (!now.step()) return now.failure;
    if (address == now.legacy_at) return *begin = address, *bytes = now.legacy_bytes, CUDA_SUCCESS;
    fake::memory const* const m = at(address, *begin);
    return m ? (*bytes = m->bytes, CUDA_SUCCESS) : CUDA_ERROR_NOT_FOUND;
  };
  d->cuMemRetainAllocationHandle = [](CUmemGenericAllocationHandle* out, void* address) {
    CUdeviceptr begin = 0;
    fake::memory const* const m = at(reinterpret_cast<CUdeviceptr>(address), begin);
    if (!m || !m->is_virtual || !now.step()) return CUDA_ERROR_INVALID_VALUE;
    now.handles[*out = ++now.next] = m->bytes;
    if (now.after_retain) now.after_retain();
    return CUDA_SUCCESS;
  };
  d->cuMemRelease = [](CUmemGenericAllocationHandle handle) {
    return now.handles.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  d->cuMemExportToShareableHandle = [](void* out, CUmemGenericAllocationHandle, CUmemAllocationHandleType,
                                       unsigned long long) {
    if (!now.step()) return now.failure;
    return put(out, ::open("/dev/null", O_RDWR | O_CLOEXEC)), CUDA_SUCCESS;
  };
  d->cuMemImportFromShareableHandle = [](CUmemGenericAllocationHandle* out, void*,
                                         CUmemAllocationHandleType) {
    if (!now.step() || now.imported_sizes.empty()) return now.failure;
    now.handles[*out = ++now.next] = now.imported_sizes.front();
    now.imported_sizes.erase(now.imported_sizes.begin());
    return CUDA_SUCCESS;
  };
  d->cuMemAddressReserve = [](CUdeviceptr* out, std::size_t bytes, std::size_t, CUdeviceptr,
                              unsigned long long) {
    if (bytes > std::uint64_t{1} << 48) return CUDA_ERROR_OUT_OF_MEMORY;
    if (!now.step()) return now.failure;
    now.next += std::uint64_t{1} << 32;
    now.reserved[*out = now.next] = bytes;
    return CUDA_SUCCESS;
  };
  d->cuMemAddressFree = [](CUdeviceptr begin, std::size_t bytes) {
    auto const found = now.reserved.find(begin);
    if (found == now.reserved.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
    return now.reserved.erase(found), CUDA_SUCCESS;
  };
  d->cuMemMap = [](CUdeviceptr begin, std::size_t bytes, std::size_t, CUmemGenericAllocationHandle handle,
                   unsigned long long) {
    if (now.handles.at(handle) != bytes) return CUDA_ERROR_INVALID_VALUE;
    if (!now.step()) return now.failure;
    return now.mapped[begin] = bytes, CUDA_SUCCESS;
  };
  d->cuMemUnmap = [](CUdeviceptr begin, std::size_t bytes) {
    auto const found = now.mapped.find(begin);
    if (found == now.mapped.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
    return now.mapped.erase(found), CUDA_SUCCESS;
  };
  d->cuMemSetAccess = [](CUdeviceptr, std::size_t, CUmemAccessDesc const* how, std::size_t) {
    if (how->flags == CU_MEM_ACCESS_FLAGS_PROT_READ && !now.read_only_works) return CUDA_ERROR_NOT_SUPPORTED;
    if (!now.step()) return now.failure;
    return now.allowed = how->flags, CUDA_SUCCESS;
  };
  d->cuIpcGetMemHandle = [](CUipcMemHandle* out, CUdeviceptr address) {
    if (!now.step()) return now.failure;
    out->reserved[0] = static_cast<char>(address >> 20);
    return CUDA_SUCCESS;
  };
  d->cuIpcOpenMemHandle = [](CUdeviceptr* out, CUipcMemHandle, unsigned) {
    if (!now.step()) return now.failure;
    now.open.insert(*out = now.legacy_at);
    return CUDA_SUCCESS;
  };
  d->cuIpcCloseMemHandle = [](CUdeviceptr begin) {
    auto const found = now.open.find(begin);
    if (found == now.open.end()) return CUDA_ERROR_INVALID_VALUE;
    return now.open.erase(found), CUDA_SUCCESS;
  };
  return d;
}

std::shared_ptr<backend> fresh() {
  now = {};
  return cuda::make_backend(fake_driver(), 0);
}

fake::memory chunk(std::uint64_t bytes, std::uint64_t identity) {
  fake::memory m{bytes, identity};
  m.is_virtual = true;
  m.types = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return m;
}
fake::memory plain(std::uint64_t bytes, std::uint64_t identity) {
  fake::memory m{bytes, identity};
  m.legacy = true;
  return m;
}

std::byte* address(CUdeviceptr at) { return reinterpret_cast<std::byte*>(at); }

// A character device that is not the kernel's own: as far as it can be told from outside, the driver's.
part_handle virtual_part(std::uint64_t bytes) {
  part_handle part;
  part.kind = part_kind::cuda_memory;
  part.bytes = bytes;
  part.fd.reset(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(part.fd);
  return part;
}
part_handle legacy_part(std::uint64_t bytes, std::uint8_t name = 1) {
  part_handle part;
  part.kind = part_kind::cuda_legacy;
  part.bytes = bytes;
  part.legacy.fill(name);
  return part;
}

std::shared_ptr<region> import_chunks(backend& gpu) {
  now.imported_sizes = {4 * mib, 2 * mib};
  auto importer = gpu.start_import(part_kind::cuda_memory, 6 * mib, 2, gpu.uuid());
  importer->add(virtual_part(4 * mib));
  importer->add(virtual_part(2 * mib));
  return importer->finish();
}
std::shared_ptr<region> import_legacy(backend& gpu, std::uint64_t bytes = mib) {
  auto importer = gpu.start_import(part_kind::cuda_legacy, bytes, 1, gpu.uuid());
  importer->add(legacy_part(bytes));
  return importer->finish();
}

template <class Do>
errc error_of(Do const& what) {
  try {
    what();
    return errc::ok;
  } catch (transfer_error const& error) {
    INFO(error.what());
    return static_cast<errc>(error.code().value());
  }
}

// Runs it again and again, each time with another step of the driver's failing, until none does.
template <class Do>
int fail_every_step(CUresult how, Do const& what) {
  for (int step = 0;; ++step) {
    CAPTURE(step);
    now.steps = 0;
    now.fail_at = step;
    now.failure = how;
    bool const failed = error_of(what) != errc::ok;
    now.fail_at = -1;
    CHECK(now.clean());
    if (now.steps <= step) {
      CHECK_FALSE(failed);
      return step;
    }
    CHECK(failed);
  }
}

} // namespace

TEST_SUITE("pure") {
  TEST_CASE("what the driver says of an address decides how it crosses") {
    auto const gpu = fresh();
    now.own[0x1000000] = chunk(20 * mib, 7);
    now.own[0x1000000 + 20 * mib] = chunk(20 * mib, 9);
    now.own[0x9000000] = plain(1000, 11);
    auto const second = gpu->find_allocation(address(0x1000000 + 25 * mib));
    CHECK(second.kind == part_kind::cuda_memory);
    CHECK(second.begin == address(0x1000000 + 20 * mib));
    CHECK(second.bytes == 20 * mib);
    CHECK(second.identity == 9);
    auto const small = gpu->find_allocation(address(0x9000000 + 999));
    CHECK(small.kind == part_kind::cuda_legacy);
    CHECK(small.begin == address(0x9000000));
    CHECK(small.bytes == 1000);
    CHECK(small.where == device::cuda(0));
    auto why = [&](auto const& change) {
      fake::memory m = plain(mib, 13);
      m.legacy = false;
      change(m);
      now.own[0x20000000] = m;
      auto const found = gpu->find_allocation(address(0x20000000 + 5));
      CHECK(found.kind == part_kind::none);
      CHECK(found.identity == 0);
      CHECK(now.clean());
      return std::string(found.why_not);
    };
    using m = fake::memory;
    CHECK(why([](m& x) { x.pool = reinterpret_cast<CUmemoryPool>(8); }) ==
          "memory of a pool (cudaMallocAsync)");
    CHECK(why([](m& x) { x.pool = reinterpret_cast<CUmemoryPool>(8), x.types = 1; }) ==
          "memory of a pool (cudaMallocAsync)");
    CHECK(why([](m& x) { x.managed = true; }) == "managed memory");
    CHECK(why([](m& x) { x.type = CU_MEMORYTYPE_HOST; }) == "host memory");
    CHECK(why([](m& x) { x.is_virtual = true; }).find("without a shareable handle") != std::string::npos);
    CHECK(why([](m&) {}).find("another process") != std::string::npos);
    CHECK(why([](m& x) { x.mapped = false, x.types = 1; }).find("nothing is mapped") != std::string::npos);
    CHECK(why([](m& x) { x.identity = 0, x.types = 1; }) != "");
    CHECK(why([](m& x) { x.ordinal = -2, x.types = 1; }) == "memory of no single device");
    CHECK(std::string(gpu->find_allocation(address(0x55)).why_not) == "ordinary host memory");
  }

  TEST_CASE("an allocation that is freed while it is being exported is not exported") {
    auto const gpu = fresh();
    now.own[0x1000000] = chunk(4 * mib, 7);
    now.own[0x9000000] = plain(1000, 11);
    auto const found = gpu->find_allocation(address(0x1000000)),
               small = gpu->find_allocation(address(0x9000000));
    {
      auto const part = gpu->export_allocation(found);
      CHECK(part.kind == part_kind::cuda_memory);
      CHECK(part.bytes == 4 * mib);
      CHECK(part.fd);
      auto const other = gpu->export_allocation(small);
      CHECK(other.kind == part_kind::cuda_legacy);
      CHECK(other.bytes == 1000);
      CHECK(other.legacy[0] == 0x90);
    }
    CHECK(now.clean());
    now.after_retain = [] { now.own[0x1000000].identity = 8; };
    CHECK(error_of([&] { (void)gpu->export_allocation(found); }) == errc::not_reachable);
    now.after_retain = nullptr;
    auto const anew = gpu->find_allocation(address(0x1000000));
    CHECK(error_of([&] { (void)gpu->export_allocation(found); }) == errc::not_reachable);
    CHECK(error_of([&] { (void)gpu->export_allocation(anew); }) == errc::ok);
    now.own[0x9000000].identity = 12;
    CHECK(error_of([&] { (void)gpu->export_allocation(small); }) == errc::not_reachable);
    now.own.erase(0x9000000);
    CHECK(error_of([&] { (void)gpu->export_allocation(small); }) == errc::not_reachable);
    CHECK(error_of([&] { (void)gpu->export_allocation({}); }) == errc::not_reachable);
    CHECK(now.clean());
    CHECK(fail_every_step(CUDA_ERROR_UNKNOWN, [&] { (void)gpu->export_allocation(anew); }) == 3);
  }

  TEST_CASE("chunks are mapped side by side for reading, and unmapped as they were mapped") {
    auto const gpu = fresh();
    {
      auto const seen = import_chunks(*gpu);
      CHECK(seen->size() == 6 * mib);
      CHECK(seen->where() == device::cuda(0));
      auto const begin = reinterpret_cast<CUdeviceptr>(seen->data());
      CHECK(now.mapped == std::map<CUdeviceptr, std::uint64_t>{{begin, 4 * mib}, {begin + 4 * mib, 2 * mib}});
      CHECK(now.allowed == CU_MEM_ACCESS_FLAGS_PROT_READ);
      CHECK(now.handles.empty()); // the mapping keeps the memory
      now.read_only_works = false;
      auto const again = import_chunks(*gpu);
      CHECK(now.allowed == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    }
    CHECK(now.clean());
    for (CUresult how : {CUDA_ERROR_UNKNOWN, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY})
      CHECK(fail_every_step(how, [&] { (void)import_chunks(*gpu); }) == 7);
  }

  TEST_CASE("a segment whose numbers do not fit is refused before or while it is mapped") {
    auto const gpu = fresh();
    auto start = [&](std::uint64_t bytes, std::uint32_t parts) {
      return error_of([&] { (void)gpu->start_import(part_kind::cuda_memory, bytes, parts, gpu->uuid()); });
    };
    CHECK(start(6 * mib, 2) == errc::ok);
    CHECK(start(6 * mib, 3) == errc::ok);
    CHECK(start(6 * mib, 4) == errc::bad_region);
    CHECK(start(0, 1) == errc::bad_region);
    CHECK(start(6 * mib, 0) == errc::bad_region);
    CHECK(start(6 * mib + 4096, 1) == errc::bad_region);
    CHECK(start(~std::uint64_t{0}, 1) == errc::bad_region);
    CHECK(start(std::uint64_t{1} << 62, 1) == errc::out_of_memory);
    CHECK(error_of([&] { (void)gpu->start_import(part_kind::cuda_memory, 6 * mib, 1, {}); }) ==
          errc::not_reachable);
    auto import = [&](std::uint64_t bytes, std::uint32_t parts, std::vector<std::uint64_t> real,
                      std::vector<std::uint64_t> said) {
      now.imported_sizes = std::move(real);
      errc const came = error_of([&] {
        auto importer = gpu->start_import(part_kind::cuda_memory, bytes, parts, gpu->uuid());
        for (std::uint64_t size : said) importer->add(virtual_part(size));
        (void)importer->finish();
        CHECK(error_of([&] { (void)importer->finish(); }) == errc::bad_region);
        CHECK(error_of([&] { importer->add(virtual_part(2 * mib)); }) == errc::bad_region);
      });
      CHECK(now.clean());
      return came;
    };
    {
      now.imported_sizes = {4 * mib, 2 * mib};
      auto importer = gpu->start_import(part_kind::cuda_memory, 6 * mib, 1, gpu->uuid());
      importer->add(virtual_part(4 * mib));
      CHECK(error_of([&] { importer->add(virtual_part(2 * mib)); }) == errc::bad_region);
      CHECK(now.imported_sizes.size() == 1); // not even looked at
    }
    using list = std::vector<std::uint64_t>;
    list const both{4 * mib, 2 * mib};
    CHECK(import(6 * mib, 2, both, both) == errc::ok);
    CHECK(import(6 * mib, 2, both, {2 * mib, 4 * mib}) == errc::bad_region); // the driver sees it
    CHECK(import(6 * mib, 1, both, both) == errc::bad_region);
    CHECK(import(6 * mib, 3, both, both) == errc::bad_region);
    CHECK(import(8 * mib, 2, both, both) == errc::bad_region);
    CHECK(import(4 * mib, 2, both, both) == errc::bad_region);
    CHECK(import(6 * mib, 2, both, {4 * mib}) == errc::bad_region);
    CHECK(import(6 * mib, 2, both, {}) == errc::bad_region);
    CHECK(import(6 * mib, 2, both, {6 * mib, 0}) == errc::bad_region);
    CHECK(import(6 * mib, 2, both, {4 * mib, ~std::uint64_t{0} - 2 * mib + 1}) == errc::bad_region);
  }

  TEST_CASE("a legacy handle is open once at a time, and holds what was announced") {
    auto const gpu = fresh();
    now.legacy_bytes = mib;
    {
      auto const seen = import_legacy(*gpu);
      CHECK(reinterpret_cast<CUdeviceptr>(seen->data()) == now.legacy_at);
      CHECK(seen->size() == mib);
      CHECK(error_of([&] { (void)import_legacy(*gpu); }) == errc::not_reachable);
      CHECK(now.open.size() == 1);
    }
    CHECK(now.clean());
    CHECK(error_of([&] { (void)import_legacy(*gpu); }) == errc::ok);
    CHECK(error_of([&] { (void)import_legacy(*gpu, mib + 1); }) == errc::bad_region);
    CHECK(error_of([&] { (void)import_legacy(*gpu, ~std::uint64_t{0}); }) == errc::bad_region);
    CHECK(error_of([&] { (void)import_legacy(*gpu, 0); }) == errc::bad_region);
    CHECK(error_of([&] { (void)gpu->start_import(part_kind::cuda_legacy, mib, 2, gpu->uuid()); }) ==
          errc::bad_region);
    {
      auto importer = gpu->start_import(part_kind::cuda_legacy, mib, 1, gpu->uuid());
      CHECK(error_of([&] { (void)importer->finish(); }) == errc::bad_region);
      CHECK(error_of([&] { importer->add(virtual_part(mib)); }) == errc::bad_region);
      CHECK(error_of([&] { importer->add(legacy_part(mib - 1)); }) == errc::bad_region);
      importer->add(legacy_part(mib));
      CHECK(error_of([&] { importer->add(legacy_part(mib, 2)); }) == errc::bad_region);
    }
    CHECK(now.clean());
    CHECK(fail_every_step(CUDA_ERROR_MAP_FAILED, [&] { (void)import_legacy(*gpu); }) == 2);
    now.fail_at = now.steps;
    now.failure = CUDA_ERROR_OUT_OF_MEMORY;
    CHECK(error_of([&] { (void)import_legacy(*gpu); }) == errc::out_of_memory);
    now.fail_at = -1;
    CHECK(error_of([&] { (void)import_legacy(*gpu); }) == errc::ok); // and it is not held for open
  }
}
