// Lists that lie in device memory: what they cost, and what happens when the device refuses.
#include <doctest/doctest.h>

#include <cstring>

#include "../conformance.hpp"
#include "kit.hpp"
#include "memory/cuda/prepared.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::copy_op;
using memory::cuda::engine_copy;
using memory::cuda::even_out;

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
  TEST_CASE("engine copies that continue each other become one, and long ones are cut") {
    std::vector<engine_copy> copies{
        {3000, 13000, 1000}, {1000, 11000, 1000}, {2000, 12000, 1000}, {9000, 500, 10}, {4000, 99000, 5}};
    even_out(copies, 2500);
    REQUIRE(copies.size() == 4);
    auto is = [](engine_copy const& one, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
      return one.from == from && one.to == to && one.bytes == bytes;
    };
    CHECK(is(copies[0], 1000, 11000, 2500));
    CHECK(is(copies[1], 3500, 13500, 500));
    CHECK(is(copies[2], 4000, 99000, 5));
    CHECK(is(copies[3], 9000, 500, 10));
    copies.clear();
    even_out(copies, 1);
    CHECK(copies.empty());
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
  CHECK(engine_copies == 3);
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
