// The lists that kernels get, carried out here as the kernels carry them out. Needs no device.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "../conformance.hpp"
#include "memory/cuda/lists.hpp"
#include "memory/host/box.hpp"
#include "memory/host/convert.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::memory;
using cuda::chunk_table;
using cuda::copy_lists;

namespace {

std::uint32_t divide(std::uint32_t n, ropeway_dim const& dim) {
  std::uint32_t const high = static_cast<std::uint32_t>(std::uint64_t{n} * dim.multiplier >> 32);
  int const shift = dim.extent == 1 ? 0 : 32 - __builtin_clz(dim.extent - 1);
  return static_cast<std::uint32_t>((std::uint64_t{high} + n) >> shift);
}

template <class From, class To, class Convert>
void convert(std::byte* to, std::byte const* from, int count, Convert one) {
  for (int i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from + static_cast<std::size_t>(i) * sizeof value, sizeof value);
    To const result = one(value);
    std::memcpy(to + static_cast<std::size_t>(i) * sizeof result, &result, sizeof result);
  }
}

void copy_unit(int unit, std::byte* to, std::byte const* from) {
  auto aligned = [&](std::uintptr_t f, std::uintptr_t t) {
    CHECK(reinterpret_cast<std::uintptr_t>(from) % f == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(to) % t == 0);
  };
  if (unit <= ropeway_copy_16) {
    std::size_t const bytes = std::size_t{1} << unit;
    aligned(bytes, bytes);
    std::memcpy(to, from, bytes);
    return;
  }
  int const which = (unit - ropeway_f32_bf16) % 4, form = (unit - ropeway_f32_bf16) / 4;
  int const count = form == 1 ? 4 : 1;
  auto const many = static_cast<std::uintptr_t>(count);
  if (form != 2 && which < 2) aligned(4 * many, 2 * many);
  if (form != 2 && which >= 2) aligned(2 * many, 4 * many);
  if (which == 0) convert<std::uint32_t, std::uint16_t>(to, from, count, host::f32_to_bf16);
  if (which == 1) convert<std::uint32_t, std::uint16_t>(to, from, count, host::f32_to_f16);
  if (which == 2) convert<std::uint16_t, std::uint32_t>(to, from, count, host::bf16_to_f32);
  if (which == 3) convert<std::uint16_t, std::uint32_t>(to, from, count, host::f16_to_f32);
}

template <class Entries>
std::uint32_t entry_of(Entries const& entries, std::uint32_t count, std::uint32_t chunk) {
  std::uint32_t at = count - 1;
  while (entries[at].first_chunk > chunk) --at;
  return at;
}

template <class List>
void play_pieces(List const& list) {
  for (std::uint32_t chunk = 0; chunk < list.chunks; ++chunk) {
    ropeway_piece const& piece = list.pieces[entry_of(list.pieces, list.count, chunk)];
    std::uint32_t const begin = (chunk - piece.first_chunk) << list.chunk_shift;
    REQUIRE(begin < piece.bytes);
    std::uint32_t const bytes = std::min(piece.bytes - begin, 1U << list.chunk_shift);
    std::memcpy(reinterpret_cast<void*>(piece.to + begin), reinterpret_cast<void const*>(piece.from + begin),
                bytes);
  }
}

void play_units(ropeway_box const& box, ropeway_dim const* dims, std::uint32_t begin, std::uint32_t end) {
  for (std::uint32_t i = begin; i < end; ++i) {
    std::uint32_t index = i;
    std::uint64_t from = box.from, to = box.to;
    for (std::uint32_t d = box.rank - 1U; d > 0; --d) {
      std::uint32_t const outer = divide(index, dims[d]), here = index - outer * dims[d].extent;
      from += here * static_cast<std::uint64_t>(dims[d].from_stride);
      to += here * static_cast<std::uint64_t>(dims[d].to_stride);
      index = outer;
    }
    from += index * static_cast<std::uint64_t>(dims[0].from_stride);
    to += index * static_cast<std::uint64_t>(dims[0].to_stride);
    copy_unit(box.unit, reinterpret_cast<std::byte*>(to), reinterpret_cast<std::byte const*>(from));
  }
}

template <class List>
void play_boxes(List const& list) {
  for (std::uint32_t chunk = 0; chunk < list.chunks; ++chunk) {
    ropeway_box const& box = list.boxes[entry_of(list.boxes, list.count, chunk)];
    std::uint32_t const begin = (chunk - box.first_chunk) << list.chunk_shift;
    REQUIRE(begin < box.units);
    std::uint32_t const end = std::min(box.units, begin + (1U << list.chunk_shift));
    play_units(box, list.dims + box.first_dim, begin, end);
  }
}

// A prepared list, as its kernel carries it out: any chunk at any time.
void play(chunk_table const& table, std::uint32_t most_bytes, std::mt19937& random) {
  auto shuffled = table.chunks;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  for (ropeway_chunk const& chunk : shuffled) {
    REQUIRE(chunk.count > 0);
    REQUIRE(chunk.count <= most_bytes);
    if (chunk.box == 0) {
      std::memcpy(reinterpret_cast<void*>(chunk.to), reinterpret_cast<void const*>(chunk.from), chunk.count);
      continue;
    }
    REQUIRE(chunk.box <= table.boxes.size());
    ropeway_box const& box = table.boxes[chunk.box - 1];
    REQUIRE(chunk.from + chunk.count <= box.units);
    REQUIRE(box.first_dim + box.rank <= table.dims.size());
    auto const begin = static_cast<std::uint32_t>(chunk.from);
    play_units(box, table.dims.data() + box.first_dim, begin, begin + chunk.count);
  }
}

int play(copy_lists& lists) {
  copy_lists::launch next{};
  int launches = 0;
  for (; lists.next(next); ++launches) {
    CHECK(next.blocks > 0);
    switch (next.which) {
    case copy_lists::kernel::small_pieces:
      play_pieces(*static_cast<ropeway_small_piece_list const*>(next.parameters));
      break;
    case copy_lists::kernel::large_pieces:
      play_pieces(*static_cast<ropeway_large_piece_list const*>(next.parameters));
      break;
    case copy_lists::kernel::small_boxes:
      play_boxes(*static_cast<ropeway_small_box_list const*>(next.parameters));
      break;
    case copy_lists::kernel::large_boxes:
      play_boxes(*static_cast<ropeway_large_box_list const*>(next.parameters));
      break;
    default: FAIL("a kernel for prepared lists");
    }
  }
  return launches;
}

copy_op bytes_op(std::byte const* from, std::byte* to, std::uint64_t bytes) {
  copy_op op;
  op.from = from;
  op.to = to;
  op.bytes = bytes;
  return op;
}

} // namespace

TEST_SUITE("pure") {
  TEST_CASE("random boxes and conversions become lists that copy what the host copies") {
    std::mt19937 random(7);
    auto pick = [&](std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); };
    copy_lists lists(528, true);
    constexpr std::size_t room = 1 << 16;
    auto const content = testing::pattern(room, 3);
    for (int round = 0; round < 3000; ++round) {
      std::vector<std::byte> expected(room), seen(room);
      copy_op op;
      op.rank = static_cast<std::uint8_t>(1 + pick(5));
      op.convert = static_cast<conversion>(pick(5));
      bool const narrow = op.convert == conversion::f32_to_bf16 || op.convert == conversion::f32_to_f16;
      bool const widen = op.convert == conversion::bf16_to_f32 || op.convert == conversion::f16_to_f32;
      std::uint16_t const sizes[] = {1, 2, 3, 4, 8, 16, 24};
      op.from_element = op.to_element = sizes[pick(7)];
      if (narrow || widen) op.from_element = narrow ? 4 : 2, op.to_element = narrow ? 2 : 4;
      // Row-major from the inside out, with gaps now and then, each side by itself.
      std::int64_t from = op.from_element, to = op.to_element;
      for (std::size_t d = op.rank; d-- > 0;) {
        op.extent[d] = 1 + pick(d + 1 == op.rank ? 40 : 5);
        op.from_stride[d] = from;
        op.to_stride[d] = to;
        from *= static_cast<std::int64_t>(op.extent[d]);
        to *= static_cast<std::int64_t>(op.extent[d]);
        if (pick(3) == 0) from += static_cast<std::int64_t>(pick(2) * op.from_element + pick(2));
        if (pick(3) == 0) to += static_cast<std::int64_t>(pick(2) * op.to_element + pick(2));
      }
      if (from > 30000 || to > 30000) continue;
      std::size_t const from_offset = pick(3) == 0 ? pick(32) : 32 * pick(32),
                        to_offset = pick(3) == 0 ? pick(32) : 32 * pick(32);
      op.from = content.data() + from_offset;
      op.to = expected.data() + to_offset;
      host::copy(op, false);
      op.to = seen.data() + to_offset;
      lists.clear();
      lists.add_box(cuda::simplify(op));
      play(lists);
      REQUIRE(seen == expected);
      // The same list, prepared; in chunks of different sizes.
      std::vector<std::byte> again(room);
      op.to = again.data() + to_offset;
      lists.clear();
      lists.add_box(cuda::simplify(op));
      std::uint32_t const chunk = 256U << pick(8);
      play(lists.cut(chunk), chunk, random);
      REQUIRE(again == expected);
    }
  }

  TEST_CASE("a prepared list copies each byte once, whatever is in it, and can be cut again") {
    std::mt19937 random(9);
    constexpr std::size_t count = 30'000;
    auto const content = testing::pattern(count * 64, 6);
    std::vector<std::byte> seen(content.size()), expected(content.size());
    copy_lists lists(528, true);
    // Boxes enough that their dimensions would not fit into 16 bits, and pieces between them.
    for (std::size_t i = 0; i < count; ++i) {
      copy_op op = bytes_op(content.data() + i * 64, expected.data() + i * 64, 63);
      if (i % 4 != 0) {
        op.rank = 4;
        op.from_element = op.to_element = 2;
        op.extent = {2, 2, 2, 2 + i * 7919 % 1000 % 3}; // so that one box's are not another's
        op.from_stride = {2, 4, 8, 16};
        op.to_stride = {32, 16, 8, 2};
      }
      host::copy(op, false);
      op.to = seen.data() + i * 64;
      lists.add_box(cuda::simplify(op));
    }
    for (std::uint32_t chunk : {256U, 1U << 17}) {
      std::fill(seen.begin(), seen.end(), std::byte{0});
      chunk_table const table = lists.cut(chunk);
      CHECK(table.chunks.size() == count);
      CHECK(table.dims.size() > 65'535);
      play(table, chunk, random);
      CHECK(seen == expected);
    }
  }

  TEST_CASE("pieces that continue each other on both sides are one run, in whatever order they came") {
    auto cut = [](std::vector<ropeway_piece> const& pieces, std::uint32_t chunk) {
      copy_lists lists(528, true);
      for (ropeway_piece const& one : pieces) lists.add_piece(one.from, one.to, one.bytes);
      return lists.cut(chunk).chunks;
    };
    // Three tensors side by side on both sides, given out of order.
    auto chunks = cut({{1000 + 512, 4096 + 512, 512, 0}, {1000, 4096, 512, 0}, {2024, 5120, 512, 0}}, 4096);
    REQUIRE(chunks.size() == 1);
    CHECK(chunks[0].from == 1000);
    CHECK(chunks[0].to == 4096);
    CHECK(chunks[0].count == 1536);
    // Side by side in the source alone, or in the target alone: not one.
    CHECK(cut({{1000, 4096, 512, 0}, {1512, 8192, 512, 0}}, 4096).size() == 2);
    CHECK(cut({{1000, 4096, 512, 0}, {9000, 4608, 512, 0}}, 4096).size() == 2);
    // One source for two targets (tied weights).
    CHECK(cut({{1000, 4096, 512, 0}, {1000, 8192, 512, 0}}, 4096).size() == 2);
    // Longer than what is cut elsewhere: cut in chunks all the same, at lines of the target.
    copy_lists lists(528, true);
    std::uint64_t const bytes = (std::uint64_t{5} << 30) + 77;
    lists.add_piece(1 << 20, (1 << 20) + 3, bytes);
    chunks = lists.cut(128 << 10).chunks;
    CHECK(chunks.size() == (bytes + (128 << 10) - 1) / (128 << 10));
    std::uint64_t at = 1 << 20;
    for (ropeway_chunk const& chunk : chunks) {
      REQUIRE(chunk.from == at);
      REQUIRE(chunk.to == at + 3);
      REQUIRE((at == 1 << 20 || chunk.to % 128 == 0));
      at += chunk.count;
    }
    CHECK(at == (1 << 20) + bytes);
  }

  TEST_CASE("a list of many pieces takes few launches, and each byte goes once") {
    constexpr std::size_t count = 20'000;
    auto const content = testing::pattern(count * 64, 4);
    for (bool large : {false, true}) {
      std::vector<std::byte> seen(content.size());
      copy_lists lists(528, large);
      for (std::size_t i = 0; i < count; ++i)
        lists.add_box(cuda::simplify(bytes_op(content.data() + i * 64, seen.data() + i * 64, 64)));
      int const launches = play(lists);
      CHECK(seen == content);
      CHECK(launches == (large ? 15 : 120));
      CHECK_FALSE(lists.empty());
      lists.clear();
      CHECK(lists.empty());
      CHECK(play(lists) == 0);
    }
  }

  TEST_CASE("many boxes of many dimensions are spread over launches") {
    auto const content = testing::pattern(1 << 16, 5);
    std::vector<std::byte> seen(1 << 16), expected(1 << 16);
    for (bool large : {false, true}) {
      copy_lists lists(528, large);
      for (std::size_t i = 0; i < 1000; ++i) {
        copy_op op = bytes_op(content.data() + i * 64, expected.data() + i * 64, 0);
        op.rank = 4;
        op.from_element = op.to_element = 2;
        op.extent = {2, 2, 2, 4};
        op.from_stride = {2, 4, 8, 16};
        op.to_stride = {32, 16, 8, 2};
        host::copy(op, false);
        op.to = seen.data() + i * 64;
        lists.add_box(cuda::simplify(op));
      }
      play(lists);
      CHECK(seen == expected);
    }
  }

  TEST_CASE("dividing by multiplication is exact") {
    std::mt19937 random(8);
    for (int round = 0; round < 2000; ++round) {
      std::uint64_t const extent =
          round < 300 ? 2 + static_cast<std::uint64_t>(round) : 2 + random() % 2'000'000'000;
      copy_op op = bytes_op(nullptr, nullptr, 0);
      op.rank = 2;
      op.extent = {1, extent};
      op.extent[0] = 2'147'483'647 / extent;
      if (op.extent[0] < 2) continue;
      op.from_stride = {3, 7};
      op.to_stride = {5, 11};
      copy_lists lists(528, true);
      lists.add_box(cuda::simplify(op));
      copy_lists::launch next{};
      REQUIRE(lists.next(next));
      auto const& list = *static_cast<ropeway_small_box_list const*>(next.parameters);
      REQUIRE(list.boxes[0].rank == 2);
      auto const most = static_cast<std::uint32_t>(op.extent[0] * extent - 1);
      for (std::uint32_t n : {0U, 1U, static_cast<std::uint32_t>(extent - 1),
                              static_cast<std::uint32_t>(extent), most - most / 3, most - 1, most}) {
        if (n > most) continue;
        CHECK(divide(n, list.dims[1]) == n / extent);
      }
    }
  }

  TEST_CASE("pieces and boxes beyond 32 bits are cut") {
    copy_lists lists(528, true);
    auto* const base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 46);
    std::uint64_t const bytes = (std::uint64_t{9} << 30) + 5;
    lists.add_box(cuda::simplify(bytes_op(base, base + (std::uint64_t{1} << 40), bytes)));
    copy_lists::launch next{};
    REQUIRE(lists.next(next));
    auto const& list = *static_cast<ropeway_small_piece_list const*>(next.parameters);
    std::uint64_t total = 0, at = reinterpret_cast<std::uint64_t>(base);
    for (std::uint32_t i = 0; i < list.count; ++i) {
      CHECK(list.pieces[i].from == at);
      total += list.pieces[i].bytes;
      at += list.pieces[i].bytes;
    }
    CHECK(total == bytes);
    CHECK_FALSE(lists.next(next));

    lists.clear();
    copy_op op = bytes_op(base, base + (std::uint64_t{1} << 42), 0);
    op.rank = 2;
    op.from_element = op.to_element = 2;
    op.extent = {70'000, 100'000};
    op.from_stride = {2, 140'000};
    op.to_stride = {200'000, 2};
    lists.add_box(cuda::simplify(op));
    REQUIRE(lists.next(next));
    auto const& boxes = *static_cast<ropeway_small_box_list const*>(next.parameters);
    CHECK(boxes.count == 4);
    std::uint64_t units = 0;
    for (std::uint32_t i = 0; i < boxes.count; ++i) units += boxes.boxes[i].units;
    CHECK(units == 7'000'000'000);
  }

  TEST_CASE("dimensions that continue each other are one") {
    copy_op op = bytes_op(nullptr, nullptr, 0);
    op.rank = 4;
    op.from_element = op.to_element = 2;
    op.extent = {3, 1, 5, 7};
    op.from_stride = {70, 999, 14, 2};
    op.to_stride = {70, -3, 14, 2};
    auto const merged = cuda::simplify(op);
    CHECK(merged.contiguous());
    CHECK(merged.extent[0] == 210);
    op.extent[3] = 6; // a gap in every row
    auto const rows = cuda::simplify(op);
    CHECK(rows.rank == 2);
    CHECK(rows.extent[0] == 15);
    CHECK(rows.extent[1] == 12);
    op.extent[2] = 0;
    CHECK(cuda::simplify(op).empty());
  }

  TEST_CASE("operations that make no sense are refused") {
    copy_op op = bytes_op(nullptr, nullptr, 8);
    op.convert = conversion::f32_to_bf16;
    CHECK_THROWS_AS(cuda::simplify(op), transfer_error);
    op.rank = 9;
    op.from_element = 4, op.to_element = 2;
    CHECK_THROWS_AS(cuda::simplify(op), transfer_error);
    op.rank = 1;
    op.to_element = 4;
    CHECK_THROWS_AS(cuda::simplify(op), transfer_error);
    op.convert = conversion::none;
    op.rank = 2;
    op.extent = {std::uint64_t{1} << 40, std::uint64_t{1} << 40};
    CHECK_THROWS_AS(cuda::simplify(op), transfer_error);
    op.convert = static_cast<conversion>(9);
    CHECK_THROWS_AS(cuda::simplify(op), transfer_error);
  }

  TEST_CASE("the addresses of a box are its corners, also with negative strides") {
    copy_op op = bytes_op(reinterpret_cast<std::byte*>(1000), reinterpret_cast<std::byte*>(5000), 0);
    op.rank = 2;
    op.from_element = op.to_element = 4;
    op.extent = {3, 10};
    op.from_stride = {-100, 8};
    op.to_stride = {40, 4};
    auto const box = cuda::simplify(op);
    CHECK(cuda::from_range(box).low == 800);
    CHECK(cuda::from_range(box).high == 1000 + 72 + 4);
    CHECK(cuda::to_range(box).low == 5000);
    CHECK(cuda::to_range(box).high == 5120);
  }
}
