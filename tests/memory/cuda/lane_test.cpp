// How a list goes to a stream: which launches, of how many blocks. Needs no device.
#include <doctest/doctest.h>

#include <vector>

#include "fake_gpu.hpp"
#include "memory/cuda/lane.hpp"
#include "memory/cuda/queue.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::copy_op;
using memory::effort;

namespace {

std::vector<unsigned> grids;
int driver_copies = 0;

/// A GPU of many multiprocessors that notes what it is asked for, and copies nothing.
std::shared_ptr<memory::cuda::gpu> noting_gpu() {
  grids.clear();
  driver_copies = 0;
  auto table = fake_gpu();
  table->cuDeviceGetAttribute = [](int* out, CUdevice_attribute, CUdevice) {
    return *out = 50, CUDA_SUCCESS;
  };
  table->cuLaunchKernel = [](CUfunction, unsigned blocks, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void**,
                             void**) { return grids.push_back(blocks), CUDA_SUCCESS; };
  table->cuMemcpyAsync = [](CUdeviceptr, CUdeviceptr, std::size_t, CUstream) {
    return ++driver_copies, CUDA_SUCCESS;
  };
  table->cuMemGetAddressRange = [](CUdeviceptr* begin, std::size_t* bytes, CUdeviceptr) {
    return *begin = 0, *bytes = std::size_t{1} << 40, CUDA_SUCCESS;
  };
  table->cuStreamQuery = [](CUstream) { return CUDA_SUCCESS; };
  return std::make_shared<memory::cuda::gpu>(table, 0);
}

copy_op run(std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  copy_op op;
  op.from = reinterpret_cast<std::byte const*>(from);
  op.to = reinterpret_cast<std::byte*>(to);
  op.from_where = op.to_where = device::cuda(0);
  op.bytes = bytes;
  return op;
}

constexpr std::uint64_t mib = 1 << 20;

std::vector<copy_op> two_runs() { return {run(0, 512 * mib, 32 * mib), run(64 * mib, 640 * mib, 32 * mib)}; }

} // namespace

TEST_SUITE("pure") {
  TEST_CASE("beside a link, runs take a fifth of the multiprocessors, and the next list all again") {
    auto const owner = noting_gpu();
    memory::cuda::lane lane(owner);
    auto const ops = two_runs();
    CHECK_FALSE(lane.sort(ops, effort::beside_link));
    lane.launch();
    CHECK_FALSE(lane.sort(ops));
    lane.launch();
    CHECK(grids == std::vector<unsigned>{10, 1024});
    CHECK(driver_copies == 0);
  }

  TEST_CASE("a list that is one run is the driver's, but beside a link") {
    auto const owner = noting_gpu();
    memory::cuda::lane lane(owner);
    auto const op = run(0, 512 * mib, 64 * mib);
    CHECK_FALSE(lane.sort({&op, 1}));
    lane.launch();
    CHECK(driver_copies == 1);
    CHECK(grids.empty());
    CHECK_FALSE(lane.sort({&op, 1}, effort::beside_link));
    lane.launch();
    CHECK(driver_copies == 1);
    CHECK(grids == std::vector<unsigned>{10});
  }

  TEST_CASE("boxes are slower than a link with few blocks, and get all") {
    auto const owner = noting_gpu();
    memory::cuda::lane lane(owner);
    auto transposed = run(0, 512 * mib, 0);
    transposed.rank = 2;
    transposed.from_element = transposed.to_element = 2;
    transposed.extent = {2048, 2048};
    transposed.from_stride = {2, 4096};
    transposed.to_stride = {4096, 2};
    for (auto const how : {effort::full, effort::beside_link}) {
      CHECK_FALSE(lane.sort({&transposed, 1}, how));
      lane.launch();
    }
    REQUIRE(grids.size() == 2);
    CHECK(grids[0] > 10);
    CHECK(grids[1] == grids[0]);
  }

  TEST_CASE("a queue hands the effort on") {
    auto const owner = noting_gpu();
    auto const queue = memory::cuda::make_queue(owner);
    auto const ops = two_runs();
    queue->copy(ops, effort::beside_link);
    queue->copy(ops);
    CHECK(grids == std::vector<unsigned>{10, 1024});
  }
}
