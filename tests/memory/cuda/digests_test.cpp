// The lists that the digest kernels get, carried out here as the kernels carry them out: needs no device. And
// what happens when the driver refuses.
#include <doctest/doctest.h>

#include <cstring>
#include <random>

#include "../conformance.hpp"
#include "base/digest.hpp"
#include "fake_gpu.hpp"
#include "memory/cuda/digests.hpp"
#include "memory/host/convert.hpp"
#include "memory/host/digests.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::conversion;
using memory::digest_op;
using memory::cuda::device_digests;
using memory::cuda::digest_table;

namespace {

std::uint32_t divide(std::uint32_t n, ropeway_dim const& dim) {
  std::uint32_t const high = static_cast<std::uint32_t>(std::uint64_t{n} * dim.multiplier >> 32);
  int const shift = dim.extent == 1 ? 0 : 32 - __builtin_clz(dim.extent - 1);
  return static_cast<std::uint32_t>((std::uint64_t{high} + n) >> shift);
}

/// Bytes as they are delivered.
std::vector<std::byte> converted(unsigned form, std::byte const* from, std::size_t image_bytes) {
  std::vector<std::byte> out(image_bytes);
  for (std::size_t i = 0; i < image_bytes;) {
    std::uint32_t wide = 0;
    std::uint16_t narrow = 0;
    if (form == ropeway_digest_as_is) {
      out[i] = from[i];
      ++i;
    } else if (form == ropeway_digest_f32_bf16 || form == ropeway_digest_f32_f16) {
      std::memcpy(&wide, from + 2 * i, 4);
      narrow =
          form == ropeway_digest_f32_f16 ? memory::host::f32_to_f16(wide) : memory::host::f32_to_bf16(wide);
      std::memcpy(&out[i], &narrow, 2);
      i += 2;
    } else {
      std::memcpy(&narrow, from + i / 2, 2);
      wide = form == ropeway_digest_f16_f32 ? memory::host::f16_to_f32(narrow)
                                            : memory::host::bf16_to_f32(narrow);
      std::memcpy(&out[i], &wide, 4);
      i += 4;
    }
  }
  return out;
}

/// What the kernels do, with what they rely on checked.
std::vector<digest128> carry_out(digest_table const& table, std::uint32_t sums, std::uint64_t base) {
  std::vector<digest128> all(sums);
  for (auto const& task : table.tasks) {
    if (task.box == 0) {
      std::uint64_t const address = task.address + base;
      CHECK(task.count > 0);
      CHECK(task.image / ropeway_digest_window == (task.image + task.count - 1) / ropeway_digest_window);
      if (task.form == ropeway_digest_as_is) {
        CHECK(address % 16 == task.image % 16);
      } else {
        CHECK(task.image % 16 == 0);
        CHECK(task.count % 16 == 0);
        bool const narrows = task.form == ropeway_digest_f32_bf16 || task.form == ropeway_digest_f32_f16;
        CHECK(address % (narrows ? 16 : 8) == 0);
      }
      auto const bytes = converted(task.form, reinterpret_cast<std::byte const*>(address), task.count);
      all[task.sum] += digest_of_run(bytes.data(), task.image, bytes.size());
      continue;
    }
    auto const& box = table.boxes.at(task.box - 1);
    auto const* const dims = table.dims.data() + box.first_dim;
    for (std::uint64_t i = task.image; i < task.image + task.count; ++i) {
      auto index = static_cast<std::uint32_t>(i);
      std::uint64_t from = box.address + base, image = box.image;
      for (std::uint32_t d = box.rank - 1u; d > 0; --d) {
        auto const outer = divide(index, dims[d]), here = index - outer * dims[d].extent;
        from += here * static_cast<std::uint64_t>(dims[d].from_stride);
        image += here * static_cast<std::uint64_t>(dims[d].to_stride);
        index = outer;
      }
      from += index * static_cast<std::uint64_t>(dims[0].from_stride);
      image += index * static_cast<std::uint64_t>(dims[0].to_stride);
      unsigned form = ropeway_digest_as_is;
      std::size_t size = std::size_t(1) << box.unit;
      if (box.unit > ropeway_copy_16) {
        form = ropeway_digest_f32_bf16 + (box.unit - ropeway_f32_bf16) % 4u;
        size = form == ropeway_digest_f32_bf16 || form == ropeway_digest_f32_f16 ? 2 : 4;
        if (box.unit < ropeway_f32_bf16_4) CHECK(from % (size == 2 ? 4 : 2) == 0);
      } else {
        CHECK(from % size == 0);
      }
      CHECK(image % size == 0); // a unit lies within a row, and within its words
      auto const bytes = converted(form, reinterpret_cast<std::byte const*>(from), size);
      all[task.sum] += digest_of_run(bytes.data(), image, size);
    }
  }
  return all;
}

void check(std::vector<digest_op> ops, std::byte const* base) {
  for (std::size_t i = 0; i < ops.size(); ++i) ops[i].sum = static_cast<std::uint32_t>(i);
  digest_table const table(ops, static_cast<std::uint32_t>(ops.size()));
  auto const found =
      carry_out(table, static_cast<std::uint32_t>(ops.size()), reinterpret_cast<std::uintptr_t>(base));
  for (std::size_t i = 0; i < ops.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i] == memory::host::digest_of(ops[i], base));
  }
}

struct page {
  explicit page(std::size_t bytes) : memory(new (std::align_val_t(256)) std::byte[bytes]) {
    auto const content = pattern(bytes, 9);
    std::memcpy(memory, content.data(), bytes);
  }
  ~page() { ::operator delete[](memory, std::align_val_t(256)); }
  page(page const&) = delete;
  page& operator=(page const&) = delete;
  std::byte* memory;
};

} // namespace

TEST_SUITE("pure") {
  TEST_CASE("runs of digests are cut at windows, and every byte is taken once") {
    page const on(1 << 20);
    std::vector<digest_op> ops;
    for (std::uint64_t const at : std::initializer_list<std::uint64_t>{0, 1, 16, 100})
      for (std::uint64_t const image : std::initializer_list<std::uint64_t>{0, 1, 16, 65'535, 1'048'575})
        for (std::uint64_t const bytes :
             std::initializer_list<std::uint64_t>{0, 1, 15, 16, 17, 4096, 200'000}) {
          digest_op op;
          op.address = at;
          op.image = image;
          op.bytes = bytes;
          ops.push_back(op);
        }
    check(ops, on.memory);
  }

  TEST_CASE("boxes of digests, converted and not, in the largest units that fit") {
    page const on(1 << 20);
    std::mt19937 dice(3);
    auto const roll = [&](std::uint64_t low, std::uint64_t high) {
      return std::uniform_int_distribution<std::uint64_t>(low, high)(dice);
    };
    std::vector<digest_op> ops;
    for (int i = 0; i < 300; ++i) {
      digest_op op;
      auto const how = static_cast<conversion>(i % 5);
      bool const narrows = how == conversion::f32_to_bf16 || how == conversion::f32_to_f16;
      op.convert = how;
      if (how == conversion::none)
        op.data_element = op.image_element = static_cast<std::uint16_t>(1u << roll(0, 4));
      else
        op.data_element = narrows ? 4 : 2, op.image_element = narrows ? 2 : 4;
      op.rank = static_cast<std::uint8_t>(roll(1, 4));
      op.address = roll(0, 2) * (roll(0, 3) == 0 ? 1 : 16);
      op.image = roll(0, 50'000) * op.image_element * (roll(0, 1) == 0 ? 16 : 1);
      // In a row, with gaps, or at odd addresses.
      std::uint64_t data_step =
          op.data_element * (roll(0, 1) == 0 ? 1 : roll(1, 3)) + (roll(0, 5) == 0 ? 1 : 0);
      std::uint64_t image_step = op.image_element;
      for (std::size_t d = op.rank; d-- > 0;) {
        op.extent[d] = roll(1, d + 1 == op.rank ? 300 : 5);
        op.data_stride[d] = static_cast<std::int64_t>(data_step);
        op.image_stride[d] = image_step;
        data_step *= op.extent[d] + roll(0, 1);
        image_step *= op.extent[d] + roll(0, 1);
      }
      if (data_step > 900'000) continue;
      ops.push_back(op);
    }
    check(ops, on.memory);
  }

  TEST_CASE("the columns that a tensor-parallel rank takes are digested in units of 16 bytes") {
    digest_op op;
    op.rank = 2;
    op.data_element = op.image_element = 2;
    op.extent = {128, 1024};
    op.data_stride = {2048, 2};
    op.image_stride = {8192, 2};
    op.image = 2048;
    digest_table const table({&op, 1}, 1);
    REQUIRE(table.boxes.size() == 1);
    CHECK(table.boxes[0].unit == ropeway_copy_16);
    CHECK(table.bytes == 128 * 2048);
    std::uint64_t units = 0;
    for (auto const& task : table.tasks) units += task.count;
    CHECK(units == 128 * 2048 / 16);
  }

  TEST_CASE("what makes no sense, or is too large, is refused") {
    auto const refused = [](digest_op const& op, std::uint32_t sums) {
      CHECK_THROWS_AS(digest_table({&op, 1}, sums), transfer_error);
    };
    digest_op op;
    op.bytes = 16;
    refused(op, 0);
    op.rank = 2;
    op.extent = {std::uint64_t(1) << 20, std::uint64_t(1) << 12};
    op.data_stride = {1 << 13, 2};
    op.image_stride = {1 << 13, 2};
    refused(op, 1); // 2^32 units of a byte
    op.extent = {3, 3};
    op.convert = conversion::f32_to_f16;
    op.data_element = 4, op.image_element = 2;
    op.image = 1;
    refused(op, 1); // an element across words
  }

  TEST_CASE("a list is put on the device once, runs as told, and is gone when a part of it can't be had") {
    static int allocated = 0, pinned = 0, launches = 0, zeroed = 0, fetched = 0;
    static unsigned blocks = 0;
    static bool refuse = false;
    static ropeway_digest_list last{};
    allocated = pinned = launches = zeroed = fetched = 0;
    refuse = false;
    auto table = fake_gpu();
    table->cuMemAlloc = [](CUdeviceptr* at, std::size_t bytes) {
      return *at = reinterpret_cast<CUdeviceptr>(new std::byte[bytes]), ++allocated, CUDA_SUCCESS;
    };
    table->cuMemFree = [](CUdeviceptr at) {
      return delete[] reinterpret_cast<std::byte*>(at), --allocated, CUDA_SUCCESS;
    };
    table->cuMemHostAlloc = [](void** at, std::size_t bytes, unsigned) {
      if (refuse) return CUDA_ERROR_OUT_OF_MEMORY;
      return *at = new std::byte[bytes], ++pinned, CUDA_SUCCESS;
    };
    table->cuMemFreeHost = [](void* at) {
      return delete[] static_cast<std::byte*>(at), --pinned, CUDA_SUCCESS;
    };
    table->cuMemcpyHtoDAsync = [](CUdeviceptr to, void const* from, std::size_t bytes, CUstream) {
      return std::memcpy(reinterpret_cast<void*>(to), from, bytes), CUDA_SUCCESS;
    };
    table->cuMemcpyAsync = [](CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream) {
      return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), ++fetched,
             CUDA_SUCCESS;
    };
    table->cuMemsetD8Async = [](CUdeviceptr at, unsigned char value, std::size_t bytes, CUstream) {
      return std::memset(reinterpret_cast<void*>(at), value, bytes), ++zeroed, CUDA_SUCCESS;
    };
    table->cuLaunchKernel = [](CUfunction, unsigned gx, unsigned, unsigned, unsigned, unsigned, unsigned,
                               unsigned, CUstream, void** parameters, void**) {
      std::memcpy(&last, parameters[0], sizeof last);
      return blocks = gx, ++launches, CUDA_SUCCESS;
    };
    auto const owner = std::make_shared<memory::cuda::gpu>(table, 0);
    std::vector<digest_op> ops(3);
    for (std::uint32_t i = 0; i < 3; ++i) {
      ops[i].bytes = 65'536 * (i + 1);
      ops[i].sum = i;
      ops[i].group = i;
    }
    {
      device_digests const list(owner, ops, 3);
      CHECK(list.bytes() == 6 * 65'536);
      CHECK(list.sums().size() == 3);
      CHECK(allocated == 1);
      CHECK(pinned == 1);
      list.launch({}, nullptr);
      CHECK(launches == 1);
      CHECK(zeroed == 1);
      CHECK(fetched == 1);
      CHECK(last.first == 0);
      CHECK(last.count == 6);
      CHECK(blocks == 6); // of 16 that four multiprocessors hold
      memory::digest_run some;
      some.first = 1;
      some.count = 1;
      some.base = reinterpret_cast<std::byte*>(0x1000);
      some.begin = some.fetch = false;
      list.launch(some, nullptr);
      CHECK(launches == 2);
      CHECK(zeroed == 1);
      CHECK(fetched == 1);
      CHECK(last.first == 1);
      CHECK(last.count == 2);
      CHECK(last.base == 0x1000);
      some.first = 9;
      list.launch(some, nullptr); // nothing
      CHECK(launches == 2);
      some.base = reinterpret_cast<std::byte*>(0x1001);
      CHECK_THROWS_AS(list.launch(some, nullptr), transfer_error);
    }
    CHECK(allocated == 0);
    CHECK(pinned == 0);
    refuse = true;
    CHECK_THROWS_AS(device_digests(owner, ops, 3), transfer_error);
    CHECK(allocated == 0);
    CHECK(pinned == 0);
  }
}
