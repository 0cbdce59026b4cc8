// Copies between all kinds of memory that a CUDA queue may meet, against the host's own copy.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "../conformance.hpp"
#include "kit.hpp"
#include "memory/host/backend.hpp"
#include "memory/host/box.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::conversion;
using memory::copy_op;

namespace {

constexpr std::size_t room = 12 << 20; // more than the worker's pinned memory holds

// Memory of one kind, of `room` bytes.
struct side {
  char const* name = "";
  ropeway::device where;
  std::shared_ptr<std::byte> memory;
  std::shared_ptr<void> also;             // what must live with it
  std::shared_ptr<memory::region> made{}; // by another device, which alone may write: a source only

  void write(std::span<std::byte const> from) const {
    if (made)
      kit::device(made->where().ordinal()).write(made->data(), from);
    else if (where.is_cuda())
      kit::device(where.ordinal()).write(memory.get(), from);
    else
      std::memcpy(memory.get(), from.data(), from.size());
  }
  std::vector<std::byte> read() const {
    std::vector<std::byte> out(room);
    if (where.is_cuda())
      kit::device(where.ordinal()).read(out, memory.get());
    else
      std::memcpy(out.data(), memory.get(), room);
    return out;
  }
};

std::shared_ptr<std::byte> of_region(std::shared_ptr<memory::region> region) {
  std::byte* const at = region->data();
  return {at, [keep = std::move(region)](std::byte*) {}};
}

std::vector<side> all_sides(memory::backend& backend) {
  kit& g = kit::device(0);
  std::vector<side> sides;
  sides.push_back({"device", device::cuda(0), g.allocate(room), nullptr});
  sides.push_back({"shared region", device::cuda(0), of_region(backend.make_region(room).memory), nullptr});
  sides.push_back(
      {"pageable", device::host(), {new std::byte[room], std::default_delete<std::byte[]>()}, nullptr});
  sides.push_back({"pinned", device::host(), g.allocate_pinned(room), nullptr});
  auto ring = memory::host::make_backend()->make_region(room).memory;
  auto registered = backend.register_host(ring);
  CHECK(registered);
  sides.push_back({"registered ring", device::host(), of_region(ring), registered});
  if (memory::cuda::visible_devices().size() > 1) {
    sides.push_back({"other device", device::cuda(1), kit::device(1).allocate(room), nullptr});
    auto other = memory::cuda::make_backend(1);
    auto made = other->make_region(room);
    auto imported = backend.import_region(std::move(made.handle), room, other->uuid());
    sides.push_back({"other device's region", device::cuda(0), of_region(imported), nullptr, made.memory});
  }
  return sides;
}

// A box of random shape inside `room`, with offsets; the same list for every pair of sides.
struct planned {
  copy_op op;
  std::size_t from_offset, to_offset;
};
std::vector<planned> random_plan(std::mt19937& random, std::size_t boxes) {
  auto pick = [&](std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); };
  std::vector<planned> plan;
  std::size_t const share = room / boxes;
  for (std::size_t i = 0; i < boxes; ++i) {
    copy_op op;
    std::size_t const odd = pick(3) == 0 ? pick(64) : 64 * pick(4);
    std::size_t const from_offset = i * share + odd,
                      to_offset = i * share + (pick(3) == 0 ? pick(64) : 64 * pick(4));
    std::size_t const space = share - 512;
    if (pick(3) == 0) {
      op.bytes = pick(2) == 0 ? 1 + pick(3000) : space - pick(3000);
      plan.push_back({op, from_offset, to_offset});
      continue;
    }
    op.convert = pick(2) == 0 ? conversion::none : static_cast<conversion>(pick(5));
    bool const narrow = op.convert == conversion::f32_to_bf16 || op.convert == conversion::f32_to_f16;
    std::uint16_t const sizes[] = {1, 2, 4, 8, 3};
    op.from_element = op.to_element = sizes[pick(5)];
    if (op.convert != conversion::none) op.from_element = narrow ? 4 : 2, op.to_element = narrow ? 2 : 4;
    // Rows and columns, sometimes turned, sometimes with gaps, sometimes in a third dimension.
    std::uint64_t const element = std::max(op.from_element, op.to_element);
    std::uint64_t const columns = 1 + pick(700), layers = 1 + pick(3);
    std::uint64_t const rows = std::max<std::uint64_t>(1, space / (columns + 9) / element / layers);
    bool const turned = pick(2) == 0;
    op.rank = 3;
    op.extent = {layers, rows, columns};
    auto strides = [&](std::array<std::int64_t, max_rank>& out, std::int64_t size, bool swapped) {
      auto const gap = static_cast<std::int64_t>(pick(3) == 0 ? pick(9) : 0);
      auto const r = static_cast<std::int64_t>(rows), c = static_cast<std::int64_t>(columns);
      out[1] = swapped ? size : (c + gap) * size;
      out[2] = swapped ? r * size : size;
      out[0] = swapped ? r * c * size : r * (c + gap) * size;
    };
    strides(op.from_stride, op.from_element, turned);
    strides(op.to_stride, op.to_element, false);
    plan.push_back({op, from_offset, to_offset});
  }
  return plan;
}

} // namespace

TEST_CASE("all pairs of memory copy and convert as the host does") {
  auto const backend = memory::cuda::make_backend(0);
  auto sides = all_sides(*backend);
  auto targets = all_sides(*backend);
  // Fine boxes of memory that this device can't map are refused: below.
  auto const unmapped = [](side const& one) { return one.where == device::cuda(1); };
  std::erase_if(sides, unmapped);
  std::erase_if(targets, unmapped);
  std::erase_if(targets, [](side const& one) { return one.made != nullptr; });
  auto const content = pattern(room, 77);
  std::vector<std::byte> const empty(room, std::byte{0x5a});
  auto const queue = backend->make_queue();
  std::mt19937 random(11);
  for (side const& from : sides) from.write(content);
  for (std::size_t boxes : {std::size_t{1}, std::size_t{7}, std::size_t{200}}) {
    auto const plan = random_plan(random, boxes);
    std::vector<std::byte> expected = empty;
    for (planned const& p : plan) {
      copy_op op = p.op;
      op.from = content.data() + p.from_offset;
      op.to = expected.data() + p.to_offset;
      memory::host::copy(op, false);
    }
    for (side const& from : sides) {
      for (side const& to : targets) {
        CAPTURE(from.name);
        CAPTURE(to.name);
        CAPTURE(boxes);
        to.write(empty);
        std::vector<copy_op> ops;
        for (planned const& p : plan) {
          copy_op op = p.op;
          op.from = from.memory.get() + p.from_offset;
          op.to = to.memory.get() + p.to_offset;
          op.from_where = from.where;
          op.to_where = to.where;
          ops.push_back(op);
        }
        queue->copy(ops);
        REQUIRE(reaches(*queue, queue->mark()));
        CHECK(to.read() == expected);
        // The same, prepared, in three portions.
        auto const list = backend->prepare(ops);
        to.write(empty);
        std::uint64_t const third = list->units() / 3;
        queue->repeat(*list, {0, third, 2});
        queue->repeat(*list, {third, third, 0});
        queue->repeat(*list, {2 * third});
        REQUIRE(reaches(*queue, queue->mark()));
        CHECK(to.read() == expected);
      }
    }
  }
}

TEST_CASE("of another device's memory rows are copied, and a large transposed tensor is refused at once") {
  if (memory::cuda::visible_devices().size() < 2) {
    MESSAGE("SKIPPED: two GPUs (this machine has one)");
    return;
  }
  auto const backend = memory::cuda::make_backend(0);
  auto const queue = backend->make_queue();
  kit &here = kit::device(0), &there = kit::device(1);
  auto const from = there.allocate(room), to = here.allocate(room);
  auto const content = pattern(room, 80);
  there.write(from.get(), content);
  here.write(to.get(), std::vector<std::byte>(room, std::byte{0}));
  copy_op op;
  op.from = from.get(), op.to = to.get();
  op.from_where = device::cuda(1), op.to_where = device::cuda(0);
  op.rank = 2;
  op.from_element = op.to_element = 2;
  op.extent = {100, 5000};
  op.from_stride = {20'000, 2};
  op.to_stride = {10'000, 2};
  queue->copy({&op, 1});
  REQUIRE(reaches(*queue, queue->mark()));
  std::vector<std::byte> got(room);
  here.read(got, to.get());
  bool same = true;
  for (std::size_t row = 0; row < 100; ++row)
    same = same && std::equal(got.begin() + std::ptrdiff_t(row * 10'000),
                              got.begin() + std::ptrdiff_t(row * 10'000 + 10'000),
                              content.begin() + std::ptrdiff_t(row * 20'000));
  CHECK(same);
  op.extent = {1000, 1000};
  op.from_stride = {2, 2000};
  op.to_stride = {2000, 2};
  CHECK_THROWS_AS(queue->copy({&op, 1}), transfer_error);
  CHECK(queue->poll().error == std::error_code());
}

TEST_CASE("lists of all kinds of memory in turn keep their order") {
  auto const backend = memory::cuda::make_backend(0);
  auto chain = all_sides(*backend);
  std::erase_if(chain, [](side const& one) { return one.made != nullptr; });
  auto const queue = backend->make_queue();
  // Bytes walk through all memories, many times, and what is overwritten behind them was read before.
  auto const content = pattern(room, 78);
  chain[0].write(content);
  std::size_t const part = room / 16;
  auto expected = content;
  std::vector<std::shared_ptr<memory::prepared_copies const>> prepared;
  for (int turn = 0; turn < 4; ++turn) {
    for (std::size_t i = 0; i < chain.size(); ++i) {
      side const& from = chain[i];
      side const& to = chain[(i + 1) % chain.size()];
      copy_op op;
      op.from_where = from.where, op.to_where = to.where;
      std::vector<copy_op> list;
      for (std::size_t k = 0; k < 16; ++k) { // rotated by one part on every step
        op.from = from.memory.get() + (k + 1) % 16 * part;
        op.to = to.memory.get() + k * part;
        op.bytes = part;
        list.push_back(op);
      }
      if (turn % 2 == 0) {
        queue->copy(list);
      } else {
        prepared.push_back(backend->prepare(list));
        queue->repeat(*prepared.back());
      }
      (void)queue->mark();
      std::rotate(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(part), expected.end());
    }
  }
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(chain[0].read() == expected);
}

TEST_CASE("the caller does not wait for pageable memory") {
  auto const backend = memory::cuda::make_backend(0);
  kit& g = kit::device(0);
  auto const queue = backend->make_queue();
  auto const device_memory = g.allocate(room);
  auto const content = pattern(room, 79);
  std::vector<std::byte> back(room);
  CUstream const slow = g.make_stream();
  auto const word = g.allocate(64);
  g.slow_fill(slow, word.get(), 1, 1, 200'000'000);
  auto const begin = std::chrono::steady_clock::now();
  queue->start_after(after(slow));
  copy_op op;
  op.from = content.data(), op.to = device_memory.get(), op.to_where = device::cuda(0), op.bytes = room;
  queue->copy({&op, 1});
  op.from = device_memory.get(), op.to = back.data(), op.from_where = device::cuda(0),
  op.to_where = device::host();
  queue->copy({&op, 1});
  auto const ticket = queue->mark();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(100));
  CHECK(queue->poll().completed < ticket);
  REQUIRE(reaches(*queue, ticket));
  CHECK(back == content);
}

TEST_CASE("a copy that makes no sense throws and harms nothing") {
  auto const backend = memory::cuda::make_backend(0);
  kit& g = kit::device(0);
  auto const queue = backend->make_queue();
  auto const a = g.allocate(4096), b = g.allocate(4096);
  auto const content = pattern(4096, 80);
  g.write(a.get(), content);
  g.write(b.get(), std::vector<std::byte>(4096));
  copy_op ops[2];
  ops[0].from = a.get(), ops[0].to = b.get(), ops[0].bytes = 4096;
  ops[0].from_where = ops[0].to_where = device::cuda(0);
  ops[1] = ops[0];
  ops[1].convert = conversion::f16_to_f32;
  CHECK_THROWS_AS(queue->copy(ops), transfer_error);
  REQUIRE(reaches(*queue, queue->mark()));
  std::vector<std::byte> seen(4096);
  g.read(seen, b.get());
  CHECK(seen == std::vector<std::byte>(4096));
  queue->copy({ops, 1});
  REQUIRE(reaches(*queue, queue->mark()));
  g.read(seen, b.get());
  CHECK(seen == content);
}
