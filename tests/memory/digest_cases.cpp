#include "digest_cases.hpp"

#include <algorithm>
#include <cstring>
#include <doctest/doctest.h>
#include <random>

#include "base/digest_math.h"
#include "memory/host/convert.hpp"
#include "ropeway/error.hpp"

namespace ropeway::testing {
namespace {

using memory::conversion;
using memory::digest_op;

/// By the definition, byte by byte.
void add(digest128& sum, std::uint64_t image, std::byte value) {
  std::uint64_t const word = std::uint64_t(value) << 8 * (image % 4);
  auto const column = static_cast<std::uint32_t>(image / 4 % ropeway_digest_columns);
  for (std::uint32_t lane = 0; lane < 2; ++lane)
    sum.lanes[lane] += ropeway_digest_column(column, lane) * ropeway_digest_row(image / 4096, lane) * word;
}

std::vector<std::byte> as_delivered(conversion how, std::byte const* from, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  std::uint32_t wide = 0;
  std::uint16_t narrow = 0;
  auto const widen = [&](auto convert) {
    std::memcpy(&narrow, from, 2);
    wide = convert(narrow);
    std::memcpy(out.data(), &wide, 4);
  };
  auto const shorten = [&](auto convert) {
    std::memcpy(&wide, from, 4);
    narrow = convert(wide);
    std::memcpy(out.data(), &narrow, 2);
  };
  switch (how) {
  case conversion::none: std::memcpy(out.data(), from, bytes); break;
  case conversion::f32_to_bf16: shorten(memory::host::f32_to_bf16); break;
  case conversion::f32_to_f16: shorten(memory::host::f32_to_f16); break;
  case conversion::bf16_to_f32: widen(memory::host::bf16_to_f32); break;
  case conversion::f16_to_f32: widen(memory::host::f16_to_f32); break;
  }
  return out;
}

/// What an operation on `content`, which begins at `begin`, comes to.
digest128 expected(digest_op const& op, std::vector<std::byte> const& content, std::uint64_t begin) {
  digest128 sum;
  if (op.rank == 0) {
    for (std::uint64_t i = 0; i < op.bytes; ++i) add(sum, op.image + i, content[op.address - begin + i]);
    return sum;
  }
  std::array<std::uint64_t, max_rank> index{};
  for (std::size_t d = 0; d < op.rank; ++d)
    if (op.extent[d] == 0) return sum;
  for (;;) {
    std::uint64_t from = op.address - begin, image = op.image;
    for (std::size_t d = 0; d < op.rank; ++d) {
      from += index[d] * static_cast<std::uint64_t>(op.data_stride[d]);
      image += index[d] * op.image_stride[d];
    }
    auto const value = as_delivered(op.convert, content.data() + from, op.image_element);
    for (std::size_t i = 0; i < value.size(); ++i) add(sum, image + i, value[i]);
    std::size_t d = op.rank;
    while (d > 0 && ++index[d - 1] == op.extent[d - 1]) index[--d] = 0;
    if (d == 0) return sum;
  }
}

struct bench {
  bench(memory_kind& of, std::vector<std::byte> bytes)
      : kind(of), content(std::move(bytes)), memory(kind.allocate(content.size())) {
    kind.write(memory.get(), content);
  }
  std::uint64_t begin() const { return reinterpret_cast<std::uintptr_t>(memory.get()); }
  digest_op run(std::uint64_t from, std::uint64_t image, std::uint64_t bytes) const {
    digest_op op;
    op.address = begin() + from;
    op.image = image;
    op.bytes = bytes;
    op.where = kind.backend().where();
    return op;
  }
  /// One sum for each; compares all of them.
  void check(std::vector<digest_op> ops) const {
    for (std::size_t i = 0; i < ops.size(); ++i) ops[i].sum = static_cast<std::uint32_t>(i);
    auto const list = kind.backend().prepare_digests(ops, static_cast<std::uint32_t>(ops.size()));
    auto const queue = kind.backend().make_queue();
    queue->digest(*list);
    REQUIRE(reaches(*queue, queue->mark()));
    for (std::size_t i = 0; i < ops.size(); ++i) {
      CAPTURE(i);
      CHECK(list->sums()[i] == expected(ops[i], content, begin()));
    }
  }
  memory_kind& kind;
  std::vector<std::byte> content;
  std::shared_ptr<std::byte> memory;
};

} // namespace

void digests_of_runs(memory_kind& kind) {
  bench const on(kind, pattern(600'000, 51));
  std::vector<digest_op> ops;
  for (std::uint64_t const at : std::initializer_list<std::uint64_t>{0, 1, 4, 15, 16, 255})
    for (std::uint64_t const image : std::initializer_list<std::uint64_t>{0, 3, 16, 4095, 65'520, 1'048'560})
      for (std::uint64_t const bytes : std::initializer_list<std::uint64_t>{0, 1, 5, 16, 31, 48, 4096, 4100})
        ops.push_back(on.run(at, image, bytes));
  for (std::uint64_t const at : std::initializer_list<std::uint64_t>{0, 16, 7})
    ops.push_back(on.run(at, 5 * 65'536 + at, 500'000));
  ops.push_back(on.run(0, 77 << 20, 600'000));
  ops.push_back(on.run(3, (std::uint64_t(1) << 40) + 3, 70'000));
  on.check(std::move(ops));
}

void digests_of_boxes(memory_kind& kind) {
  bench const on(kind, pattern(1 << 20, 52));
  std::vector<digest_op> ops;
  std::mt19937 dice(7);
  auto const roll = [&](std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(dice);
  };
  for (int i = 0; i < 60; ++i) {
    // A box of a tensor, in memory of its own strides.
    std::uint64_t const element = std::uint64_t(1) << roll(0, 4);
    std::size_t const rank = roll(1, 4);
    digest_op op = on.run(roll(0, 3) * (i % 2 == 0 ? 16 : element), 0, 0);
    op.rank = static_cast<std::uint8_t>(rank);
    op.data_element = op.image_element = static_cast<std::uint16_t>(element);
    std::uint64_t data_step = element * (i % 3 == 0 ? roll(1, 3) : 1), image_step = element;
    for (std::size_t d = rank; d-- > 0;) {
      op.extent[d] = roll(1, d + 1 == rank ? 40 : 6);
      op.data_stride[d] = static_cast<std::int64_t>(data_step);
      op.image_stride[d] = image_step;
      data_step *= op.extent[d] + roll(0, 2);
      image_step *= op.extent[d] + roll(0, 2);
    }
    op.image = element * roll(0, 100'000);
    ops.push_back(op);
  }
  // The columns of a matrix, as a tensor-parallel rank takes them; and rows backwards.
  digest_op columns = on.run(0, 2048, 0);
  columns.rank = 2;
  columns.data_element = columns.image_element = 2;
  columns.extent = {128, 1024};
  columns.data_stride = {2048, 2};
  columns.image_stride = {8192, 2};
  ops.push_back(columns);
  digest_op backwards = columns;
  backwards.address += 127 * 2048;
  backwards.data_stride[0] = -2048;
  ops.push_back(backwards);
  digest_op none = columns;
  none.extent[1] = 0;
  ops.push_back(none);
  on.check(std::move(ops));
}

void digests_of_conversions(memory_kind& kind) {
  bench const on(kind, pattern(1 << 20, 53));
  std::vector<digest_op> ops;
  for (auto const how :
       {conversion::f32_to_bf16, conversion::f32_to_f16, conversion::bf16_to_f32, conversion::f16_to_f32}) {
    bool const narrows = how == conversion::f32_to_bf16 || how == conversion::f32_to_f16;
    std::uint16_t const from = narrows ? 4 : 2, to = narrows ? 2 : 4;
    for (std::uint64_t const at : std::initializer_list<std::uint64_t>{0, 1, 4, 8, 32})
      for (std::uint64_t const image : std::initializer_list<std::uint64_t>{0, 4, 16, 65'520})
        for (std::uint64_t const count : std::initializer_list<std::uint64_t>{1, 7, 8, 5000, 40'000}) {
          digest_op op = on.run(at, image, 0);
          op.convert = how;
          op.rank = 1;
          op.data_element = from;
          op.image_element = to;
          op.extent[0] = count;
          op.data_stride[0] = from;
          op.image_stride[0] = to;
          ops.push_back(op);
        }
    digest_op turned = on.run(0, 0, 0); // a transpose
    turned.convert = how;
    turned.rank = 2;
    turned.data_element = from;
    turned.image_element = to;
    turned.extent = {50, 60};
    turned.data_stride = {from, 50 * from};
    turned.image_stride = {std::uint64_t(60) * to, to};
    ops.push_back(turned);
  }
  on.check(std::move(ops));
}

void digests_of_groups_add_up(memory_kind& kind) {
  bench const on(kind, pattern(300'000, 54));
  std::vector<digest_op> ops;
  digest128 all;
  for (std::uint32_t i = 0; i < 10; ++i) {
    auto op = on.run(i * 30'000, i * 30'000, 30'000);
    all += expected(op, on.content, on.begin());
    op.address -= on.begin(); // from the base
    op.group = i / 2 * 2;     // every second is empty
    ops.push_back(op);
  }
  auto const list = kind.backend().prepare_digests(ops, 1);
  CHECK(list->bytes() == 300'000);
  auto const queue = kind.backend().make_queue();
  memory::digest_run run;
  run.base = on.memory.get();
  for (int turn = 0; turn < 2; ++turn) {
    for (std::uint32_t group = 0; group < 10; ++group) {
      run.first = group;
      run.count = 1;
      run.begin = group == 0;
      run.fetch = false;
      queue->digest(*list, run);
    }
    run.first = 10;
    run.fetch = true;
    queue->digest(*list, run);
    REQUIRE(reaches(*queue, queue->mark()));
    CHECK(list->sums()[0] == all);
  }
  // At another base: the same bytes one buffer further.
  bench const other(kind, pattern(300'000, 55));
  run = {};
  run.base = other.memory.get();
  queue->digest(*list, run);
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(list->sums()[0] != all);
}

void digests_keep_their_order(memory_kind& kind) {
  bench const on(kind, pattern(4 << 20, 56));
  bench const next(kind, pattern(4 << 20, 57));
  auto const op = on.run(0, 0, on.content.size());
  auto const first = kind.backend().prepare_digests({&op, 1}, 1),
             second = kind.backend().prepare_digests({&op, 1}, 1);
  memory::copy_op copy;
  copy.from = next.memory.get();
  copy.to = on.memory.get();
  copy.bytes = on.content.size();
  copy.from_where = copy.to_where = kind.backend().where();
  auto const queue = kind.backend().make_queue();
  queue->digest(*first);
  queue->copy({&copy, 1});
  queue->digest(*second);
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(first->sums()[0] == expected(op, on.content, on.begin()));
  CHECK(second->sums()[0] == expected(op, next.content, on.begin()));
}

void digests_that_make_no_sense(memory_kind& kind) {
  bench const on(kind, pattern(4096, 58));
  auto const refused = [&](digest_op const& op, std::uint32_t sums) {
    CHECK_THROWS_AS((void)kind.backend().prepare_digests({&op, 1}, sums), transfer_error);
  };
  auto const good = on.run(0, 0, 100);
  refused(good, 0); // no such sum
  auto op = good;
  op.convert = conversion::f32_to_f16; // without elements
  refused(op, 1);
  op = good;
  op.rank = max_rank + 1;
  refused(op, 1);
  op = good;
  op.rank = 2;
  op.extent = {std::uint64_t(1) << 40, std::uint64_t(1) << 40};
  refused(op, 1);
  digest_op descending[2] = {good, good};
  descending[0].group = 1;
  CHECK_THROWS_AS((void)kind.backend().prepare_digests(descending, 1), transfer_error);
  class foreign final : public memory::prepared_digests {
    std::span<digest128 const> sums() const noexcept override { return {}; }
  } theirs;
  auto const queue = kind.backend().make_queue();
  CHECK_THROWS(queue->digest(theirs));
  // Nothing to do is fine.
  auto const none = kind.backend().prepare_digests({}, 0);
  queue->digest(*none);
  CHECK(reaches(*queue, queue->mark()));
  CHECK(none->sums().empty());
}

} // namespace ropeway::testing
