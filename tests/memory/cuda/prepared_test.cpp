// Lists that lie in device memory: what they cost, and what happens when the device refuses.
#include <doctest/doctest.h>

#include <cstring>

#include "../conformance.hpp"
#include "fake_gpu.hpp"
#include "kit.hpp"
#include "memory/cuda/prepared.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::copy_op;
using memory::cuda::engine_copy;

namespace {

// What was asked of the driver, and what it refuses.
memory::cuda::driver real; // NOLINT: the wrappers below are plain functions
int launches = 0, engine_copies = 0, allocated = 0;
unsigned blocks = 0;
bool fail_launch = false, fail_alloc = false, fail_upload = false;

CUresult launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                unsigned shared, CUstream on, void** parameters, void** extra) {
  if (fail_launch) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  ++launches;
  blocks = gx;
  return real.cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, on, parameters, extra);
}
CUresult engine(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream on) {
  ++engine_copies;
  return real.cuMemcpyAsync(to, from, bytes, on);
}
CUresult alloc(CUdeviceptr* at, std::size_t bytes) {
  if (fail_alloc) return CUDA_ERROR_OUT_OF_MEMORY;
  ++allocated;
  return real.cuMemAlloc(at, bytes);
}
CUresult release(CUdeviceptr at) { return --allocated, real.cuMemFree(at); }
CUresult upload(CUdeviceptr to, void const* from, std::size_t bytes, CUstream on) {
  return fail_upload ? CUDA_ERROR_INVALID_VALUE : real.cuMemcpyHtoDAsync(to, from, bytes, on);
}

std::shared_ptr<memory::backend> watched() {
  real = *kit::device(0).table;
  auto table = std::make_shared<memory::cuda::driver>(real);
  table->cuLaunchKernel = launch;
  table->cuMemcpyAsync = engine;
  table->cuMemAlloc = alloc;
  table->cuMemFree = release;
  table->cuMemcpyHtoDAsync = upload;
  launches = engine_copies = allocated = 0;
  fail_launch = fail_alloc = fail_upload = false;
  return memory::cuda::make_backend(table, 0);
}

copy_op op_of(std::byte const* from, std::byte* to, std::uint64_t bytes) {
  copy_op op;
  op.from = from, op.to = to, op.bytes = bytes;
  op.from_where = op.to_where = device::cuda(0);
  return op;
}

errc error_of(auto const& what) {
  try {
    what();
    return errc::ok;
  } catch (transfer_error const& error) {
    MESSAGE(std::string(error.what()));
    return static_cast<errc>(error.code().value());
  }
}

} // namespace

TEST_SUITE("pure") {
  TEST_CASE("copies that continue each other become one, and long ones are cut into what goes on") {
    std::vector<engine_copy> copies{
        {3000, 13000, 1000}, {1000, 11000, 1000}, {2000, 12000, 1000}, {9000, 500, 10}, {4000, 99000, 5}};
    auto is = [](engine_copy const& one, std::uint64_t from, std::uint64_t to, std::uint64_t bytes, bool on) {
      return one.from == from && one.to == to && one.bytes == bytes && one.goes_on == on;
    };
    memory::cuda::join(copies);
    REQUIRE(copies.size() == 3);
    CHECK(is(copies[0], 1000, 11000, 3000, false));
    memory::cuda::cut(copies, 2500);
    REQUIRE(copies.size() == 4);
    CHECK(is(copies[0], 1000, 11000, 2500, true));
    CHECK(is(copies[1], 3500, 13500, 500, false));
    CHECK(is(copies[2], 4000, 99000, 5, false));
    CHECK(is(copies[3], 9000, 500, 10, false));
    copies.clear();
    memory::cuda::join(copies);
    memory::cuda::cut(copies, 1);
    CHECK(copies.empty());
  }

  TEST_CASE("over a link, the engine copies what is long when joined, and the kernel all that is short") {
    static constexpr std::uint64_t far = 0x100000000, here = 0x200000000, mib = 1 << 20;
    static std::uint64_t border = 0; // between two allocations that lie side by side on this side
    auto table = fake_gpu();
    table->cuMemGetAddressRange = [](CUdeviceptr* begin, std::size_t* bytes, CUdeviceptr at) {
      *begin = at < here ? far : at < border ? here : std::max(border, here);
      *bytes = at >= here && at < border ? border - here : 512 * mib;
      return CUDA_SUCCESS;
    };
    auto const owner = std::make_shared<memory::cuda::gpu>(table, 0);
    owner->add_peer_memory(far, 512 * mib);
    auto const op = [](std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
      return op_of(reinterpret_cast<std::byte*>(from), reinterpret_cast<std::byte*>(to), bytes);
    };
    std::vector<copy_op> ops;
    for (std::uint64_t i = 20; i > 0; --i) // side by side on both sides, in any order
      ops.push_back(op(far + (i - 1) * 2 * mib, here + (i - 1) * 2 * mib, 2 * mib));
    for (std::uint64_t i = 0; i < 20; ++i) // side by side there, but not here
      ops.push_back(op(far + (40 + 2 * i) * mib, here + (100 + 3 * i) * mib, 2 * mib));
    ops.push_back(op(far + 100 * mib, here + 200 * mib, 32 * mib));
    ops.push_back(op(far + 200 * mib, here + 300 * mib, 32 * mib - 1));
    ops.push_back(op(here, here + 400 * mib, 64 * mib)); // not over the link
    memory::cuda::sorting sorted(owner);
    for (int again = 0; again < 2; ++again) {
      CHECK_FALSE(sorted.sort(ops));
      REQUIRE(sorted.engine().size() == 2);
      CHECK(sorted.engine()[0].from == far);
      CHECK(sorted.engine()[0].to == here);
      CHECK(sorted.engine()[0].bytes == 40 * mib);
      CHECK(sorted.engine()[1].from == far + 100 * mib);
      std::uint64_t bytes = 0;
      for (auto const& chunk : sorted.lists().cut(64 << 10).chunks) bytes += chunk.count;
      CHECK(bytes == 40 * mib + 32 * mib - 1 + 64 * mib);
    }
    // What is nothing but one run here is a plain copy, where nobody paces it.
    ops = {op(here + mib, here + 101 * mib, mib), op(here, here + 100 * mib, mib)};
    CHECK_FALSE(sorted.sort(ops));
    CHECK(sorted.engine().empty());
    CHECK_FALSE(sorted.sort(ops, true));
    REQUIRE(sorted.engine().size() == 1);
    CHECK(sorted.engine()[0].bytes == 2 * mib);
    CHECK(sorted.lists().empty());
    // But not across the end of an allocation, which the driver refuses to copy over.
    border = here + 101 * mib;
    CHECK_FALSE(sorted.sort(ops, true));
    CHECK(sorted.engine().empty());
    CHECK_FALSE(sorted.lists().empty());
    border = here + 40 * mib;
    ops = {op(far, here, 100 * mib)};
    CHECK_FALSE(sorted.sort(ops));
    REQUIRE(sorted.engine().size() == 2);
    CHECK(sorted.engine()[0].bytes == 40 * mib);
    CHECK(sorted.engine()[1].to == border);
    CHECK(sorted.engine()[1].bytes == 60 * mib);
    border = here + 80 * mib;
    CHECK_FALSE(sorted.sort(ops));
    REQUIRE(sorted.engine().size() == 1);
    CHECK(sorted.engine()[0].bytes == 80 * mib);
    CHECK_FALSE(sorted.lists().empty());
    border = 0;
    ops = {op(here + mib, here + 101 * mib, mib), op(here, here + 100 * mib, mib)};
    ops.push_back(op(here + 4 * mib, here + 200 * mib, mib));
    CHECK_FALSE(sorted.sort(ops, true));
    CHECK(sorted.engine().empty());
    CHECK_FALSE(sorted.lists().empty());
  }

  TEST_CASE(
      "a list is put on the device whole, and its portions take each unit once, whichever way it goes") {
    // The device's memory is the host's here; what is in the second half of `buffer` is pinned.
    static std::vector<std::byte> const buffer(8 << 20);
    static bool refuse = false;
    auto table = fake_gpu();
    table->cuMemAlloc = [](CUdeviceptr* at, std::size_t bytes) {
      return *at = reinterpret_cast<CUdeviceptr>(new std::byte[bytes]), ++allocated, CUDA_SUCCESS;
    };
    table->cuMemFree = [](CUdeviceptr at) {
      return delete[] reinterpret_cast<std::byte*>(at), --allocated, CUDA_SUCCESS;
    };
    table->cuMemcpyHtoDAsync = [](CUdeviceptr to, void const* from, std::size_t bytes, CUstream) {
      if (refuse) return CUDA_ERROR_INVALID_VALUE;
      return std::memcpy(reinterpret_cast<void*>(to), from, bytes), CUDA_SUCCESS;
    };
    table->cuPointerGetAttributes = [](unsigned, CUpointer_attribute*, void** into, CUdeviceptr address) {
      auto const middle = reinterpret_cast<CUdeviceptr>(buffer.data()) + (4 << 20);
      if (address < middle || address >= middle + (4 << 20)) return CUDA_SUCCESS;
      *static_cast<unsigned*>(into[0]) = CU_MEMORYTYPE_HOST;
      *static_cast<CUdeviceptr*>(into[1]) = address;
      *static_cast<CUdeviceptr*>(into[2]) = middle;
      *static_cast<std::size_t*>(into[3]) = 4 << 20;
      return CUDA_SUCCESS;
    };
    allocated = 0;
    auto const owner = std::make_shared<memory::cuda::gpu>(table, 0);
    auto const device_at = [](std::uint64_t at) { return reinterpret_cast<std::byte*>(0x100000000 + at); };
    std::vector<copy_op> ops;
    for (std::uint64_t i = 0; i < 20; ++i)
      ops.push_back(op_of(device_at(i * 1'000'000), device_at((40 - i) * 1'000'000), 100'000 + i));
    copy_op box = ops[0]; // 20,000 units of two bytes
    box.rank = 2, box.from_element = box.to_element = 2;
    box.extent = {200, 100}, box.from_stride = {2, 400}, box.to_stride = {200, 2};
    ops.push_back(box);
    auto from_host = [&](std::uint64_t at, std::uint64_t bytes) {
      auto op = op_of(buffer.data() + at, device_at(at), bytes);
      op.from_where = device::host();
      ops.push_back(op);
    };
    from_host(0, 1000);          // pageable: through the worker
    from_host(5 << 20, 2 << 20); // the copy engine
    from_host(4 << 20, 1 << 10); // pinned, but too small for the engine
    from_host(100'000, 1000);    // pageable
    ops.push_back(op_of(device_at(0), device_at(1), 0));
    {
      memory::cuda::prepared const list(owner, ops, {64 << 10, 4});
      CHECK(allocated == 1);
      // Twenty pieces in two chunks each, the box in two, and the small one.
      std::uint64_t const chunks = 20 * 2 + 2 + 1;
      CHECK(list.units() == chunks + 1 + 2);
      auto const all = list.of({});
      CHECK(all.list.first == 0);
      CHECK(all.list.count == chunks);
      CHECK(all.blocks == 16);
      CHECK(all.kernel == memory::cuda::copy_lists::kernel::prepared_boxes);
      auto const* const entries = reinterpret_cast<ropeway_chunk const*>(all.list.chunks);
      std::uint64_t bytes = 0;
      for (std::uint64_t i = 0; i < chunks; ++i) bytes += entries[i].box != 0 ? 0 : entries[i].count;
      CHECK(bytes == 20 * 100'000 + 190 + 1024);
      CHECK(entries[chunks - 1].box == 1);
      auto const& there = *reinterpret_cast<ropeway_box const*>(all.list.boxes);
      CHECK(there.units == 20'000);
      CHECK(reinterpret_cast<ropeway_dim const*>(all.list.dims)[there.rank - 1].extent == 100);
      for (std::uint64_t step = 1; step < chunks + 6; ++step) {
        std::uint64_t next = 0, engine = 0, staged = 0;
        for (std::uint64_t first = 0; first < list.units(); first += step) {
          auto const some = list.of({first, step, 3});
          CHECK_FALSE(some.empty());
          CHECK(some.blocks == std::min<std::uint64_t>(3, some.list.count));
          if (some.blocks > 0) CHECK(some.list.first == next);
          next += some.list.count;
          // In this order.
          if (!some.engine.empty()) CHECK(next == chunks);
          if (!some.staged.empty()) CHECK(engine + some.engine.size() == 1);
          engine += some.engine.size();
          staged += some.staged.size();
        }
        CHECK(next == chunks);
        CHECK(engine == 1);
        CHECK(staged == 2);
      }
      CHECK(list.of({list.units(), 1, 0}).empty());
      CHECK(list.of({~std::uint64_t{0}, ~std::uint64_t{0}, 0}).empty());
      CHECK(list.of({3, 0, 0}).empty());
      memory::cuda::prepared const each(owner, ops, {64 << 10, 0});
      CHECK(each.of({}).blocks == chunks);
    }
    CHECK(allocated == 0);
    refuse = true;
    CHECK(error_of([&] { memory::cuda::prepared const list(owner, ops); }) == errc::device_failed);
    CHECK(allocated == 0);
    ops.back().convert = memory::conversion::f32_to_f16;
    CHECK(error_of([&] { memory::cuda::prepared const list(owner, ops); }) == errc::invalid_argument);
  }
}

TEST_CASE("a list of pieces and boxes is one launch, whatever its length, and so is a portion of it") {
  auto const backend = watched();
  kit& g = kit::device(0);
  constexpr std::uint64_t count = 8000, bytes = 4096;
  auto const content = pattern(count * bytes, 50);
  auto const from = g.allocate(count * bytes), to = g.allocate(count * bytes);
  g.write(from.get(), content);
  g.write(to.get(), std::vector<std::byte>(count * bytes));
  std::vector<copy_op> ops;
  std::vector<std::byte> expected(count * bytes);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t const at = i * 7919 % count * bytes;
    copy_op op = op_of(from.get() + at, to.get() + i * bytes, bytes);
    std::memcpy(expected.data() + i * bytes, content.data() + at, bytes);
    if (i % 5 == 4) { // every second element of a shorter row
      op.rank = 1;
      op.from_element = op.to_element = 2;
      op.extent = {bytes / 2};
      op.from_stride = {2};
      op.to_stride = {2};
      op.extent[0] = bytes / 4;
      op.from_stride[0] = 4;
      std::memset(expected.data() + i * bytes, 0, bytes);
      for (std::uint64_t k = 0; k < bytes / 4; ++k)
        std::memcpy(expected.data() + i * bytes + 2 * k, content.data() + at + 4 * k, 2);
    }
    ops.push_back(op);
  }
  auto const list = backend->prepare(ops);
  auto const queue = backend->make_queue();
  launches = 0;
  queue->repeat(*list);
  CHECK(launches == 1);
  REQUIRE(reaches(*queue, queue->mark()));
  std::vector<std::byte> seen(count * bytes);
  g.read(seen, to.get());
  CHECK(seen == expected);
  queue->repeat(*list, {100, 5000, 8});
  CHECK(launches == 2);
  CHECK(blocks == 8);
  queue->repeat(*list, {100, 3, 8});
  CHECK(launches == 3);
  CHECK(blocks == 3);
  queue->repeat(*list, {list->units(), 3, 8});
  CHECK(launches == 3);
  REQUIRE(reaches(*queue, queue->mark()));
}

TEST_CASE("what goes by the copy engine comes after the kernel's units, in parts of a bounded size") {
  auto const backend = watched();
  kit& g = kit::device(0);
  std::uint64_t const bytes = 150 << 20;
  auto const content = pattern(bytes, 51);
  auto const pinned = g.allocate_pinned(bytes), to = g.allocate(bytes + 4096);
  std::memcpy(pinned.get(), content.data(), bytes);
  g.write(to.get(), std::vector<std::byte>(bytes + 4096));
  auto op = op_of(pinned.get(), to.get(), bytes);
  op.from_where = device::host();
  copy_op const ops[] = {op, op_of(to.get() + bytes, to.get() + bytes + 100, 50)};
  auto const list = backend->prepare(ops);
  REQUIRE(list->units() == 4);
  auto const queue = backend->make_queue();
  launches = engine_copies = 0;
  queue->repeat(*list, {0, 2});
  CHECK(launches == 1);
  CHECK(engine_copies == 1);
  queue->repeat(*list, {2, 2});
  CHECK(launches == 1);
  CHECK(engine_copies == 2); // what was cut and comes at once is one copy again
  REQUIRE(reaches(*queue, queue->mark()));
  std::vector<std::byte> seen(bytes);
  g.read(seen, to.get());
  CHECK(seen == content);
}

TEST_CASE("a list gives its memory back, also when it could not be made") {
  auto const backend = watched();
  kit& g = kit::device(0);
  auto const a = g.allocate(1 << 20), b = g.allocate(1 << 20);
  copy_op const op = op_of(a.get(), b.get(), 1 << 20);
  auto prepare = [&] { (void)backend->prepare({&op, 1}); };
  for (int i = 0; i < 20; ++i) prepare();
  CHECK(allocated == 0);
  fail_alloc = true;
  CHECK(error_of(prepare) == errc::out_of_memory);
  fail_alloc = false;
  fail_upload = true;
  CHECK(error_of(prepare) == errc::device_failed);
  fail_upload = false;
  CHECK(allocated == 0);
  auto const list = backend->prepare({&op, 1});
  CHECK(allocated == 1);
  auto const queue = backend->make_queue();
  queue->repeat(*list);
  REQUIRE(reaches(*queue, queue->mark()));
}

TEST_CASE("a list that fails half way leaves the queue failed") {
  auto const backend = watched();
  kit& g = kit::device(0);
  auto const a = g.allocate(1 << 20), b = g.allocate(1 << 20);
  copy_op const op = op_of(a.get(), b.get(), 1 << 20);
  auto const list = backend->prepare({&op, 1});
  auto const queue = backend->make_queue();
  auto repeat = [&] { queue->repeat(*list); };
  fail_launch = true;
  CHECK(error_of(repeat) == errc::device_failed);
  fail_launch = false;
  CHECK(error_of(repeat) == errc::device_failed);
  CHECK(queue->poll().error == errc::device_failed);
  auto const another = backend->make_queue();
  another->repeat(*list);
  CHECK(reaches(*another, another->mark()));
}

TEST_CASE("a list of another backend is refused, and the queue goes on") {
  auto const one = memory::cuda::make_backend(0), two = memory::cuda::make_backend(0);
  kit& g = kit::device(0);
  auto const a = g.allocate(4096), b = g.allocate(4096);
  copy_op const op = op_of(a.get(), b.get(), 4096);
  auto const list = one->prepare({&op, 1});
  auto const queue = two->make_queue();
  CHECK(error_of([&] { queue->repeat(*list); }) == errc::invalid_argument);
  queue->repeat(*two->prepare({}));
  CHECK(reaches(*queue, queue->mark()));
}
