#include "conformance.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <random>
#include <thread>
#include <unistd.h>

#include "digest_cases.hpp"
#include "memory/host/convert.hpp"
#include "ropeway/error.hpp"

namespace ropeway::testing {
namespace {

using memory::conversion;
using memory::copy_op;

// Memory of the kind with room for guard bytes on both sides, filled with `filler`.
constexpr std::byte filler{0xA5};
class area {
 public:
  area(memory_kind& kind, std::uint64_t bytes) : kind_(kind), bytes_(bytes), memory_(kind.allocate(bytes)) {
    clear();
  }
  area(memory_kind& kind, std::span<std::byte const> content) : area(kind, content.size()) { put(content); }

  std::byte* at(std::uint64_t offset = 0) const { return memory_.get() + offset; }
  void put(std::span<std::byte const> content, std::uint64_t offset = 0) { kind_.write(at(offset), content); }
  void clear() { kind_.write(at(), std::vector<std::byte>(bytes_, filler)); }
  std::vector<std::byte> get() const {
    std::vector<std::byte> out(bytes_);
    kind_.read(out, at());
    return out;
  }

 private:
  memory_kind& kind_;
  std::uint64_t bytes_;
  std::shared_ptr<std::byte> memory_;
};

copy_op bytes_op(memory_kind& kind, std::byte const* from, std::byte* to, std::uint64_t bytes) {
  copy_op op;
  op.from = from;
  op.to = to;
  op.bytes = bytes;
  op.from_where = op.to_where = kind.backend().where();
  return op;
}

// A box, with strides in bytes.
copy_op box_op(memory_kind& kind, std::byte const* from, std::byte* to,
               std::vector<std::uint64_t> const& extent, std::vector<std::int64_t> const& from_stride,
               std::vector<std::int64_t> const& to_stride, std::uint16_t element) {
  copy_op op = bytes_op(kind, from, to, 0);
  op.rank = static_cast<std::uint8_t>(extent.size());
  op.from_element = op.to_element = element;
  std::copy(extent.begin(), extent.end(), op.extent.begin());
  std::copy(from_stride.begin(), from_stride.end(), op.from_stride.begin());
  std::copy(to_stride.begin(), to_stride.end(), op.to_stride.begin());
  return op;
}

std::vector<std::int64_t> row_major(std::vector<std::uint64_t> const& extent, std::int64_t element) {
  std::vector<std::int64_t> strides(extent.size());
  for (std::size_t i = extent.size(); i-- > 0;) {
    strides[i] = element;
    element *= static_cast<std::int64_t>(extent[i]);
  }
  return strides;
}

// What a box does, done in the plainest way, on host copies of both areas; offsets are of op.from and op.to
// in them.
void expect_box(copy_op const& op, std::span<std::byte const> from, std::int64_t from_offset,
                std::span<std::byte> to, std::int64_t to_offset) {
  std::array<std::uint64_t, max_rank> index{};
  for (;;) {
    std::int64_t source = from_offset, target = to_offset;
    for (std::size_t i = 0; i < op.rank; ++i) {
      source += static_cast<std::int64_t>(index[i]) * op.from_stride[i];
      target += static_cast<std::int64_t>(index[i]) * op.to_stride[i];
    }
    auto const* const read = from.data() + source;
    auto* const written = to.data() + target;
    std::uint32_t wide = 0;
    std::uint16_t narrow = 0;
    switch (op.convert) {
    case conversion::none: std::memcpy(written, read, op.from_element); break;
    case conversion::f32_to_bf16:
    case conversion::f32_to_f16:
      std::memcpy(&wide, read, 4);
      narrow = op.convert == conversion::f32_to_f16 ? memory::host::f32_to_f16(wide)
                                                    : memory::host::f32_to_bf16(wide);
      std::memcpy(written, &narrow, 2);
      break;
    case conversion::bf16_to_f32:
    case conversion::f16_to_f32:
      std::memcpy(&narrow, read, 2);
      wide = op.convert == conversion::f16_to_f32 ? memory::host::f16_to_f32(narrow)
                                                  : memory::host::bf16_to_f32(narrow);
      std::memcpy(written, &wide, 4);
      break;
    }
    std::size_t i = op.rank;
    while (i > 0 && ++index[i - 1] == op.extent[i - 1]) index[--i] = 0;
    if (i == 0) return;
  }
}

// Runs a list and waits for it.
void run(memory::queue& queue, std::span<copy_op const> ops, memory::effort how = memory::effort::full) {
  queue.copy(ops, how);
  REQUIRE(reaches(queue, queue.mark()));
}

// Runs one box between two areas of the given contents and compares every byte, also those beside the box.
void check_box(memory_kind& kind, copy_op op, std::vector<std::byte> const& content, std::int64_t from_offset,
               std::uint64_t to_bytes, std::int64_t to_offset) {
  area const source(kind, content);
  area const target(kind, to_bytes);
  op.from = source.at() + from_offset;
  op.to = target.at() + to_offset;
  std::vector<std::byte> expected(to_bytes, filler);
  expect_box(op, content, from_offset, expected, to_offset);
  auto const queue = kind.backend().make_queue();
  run(*queue, {&op, 1});
  CHECK(target.get() == expected);
  CHECK(source.get() == content);
}

// ---- regions

void a_peer_sees_the_same_bytes(memory_kind& kind) {
  for (std::uint64_t bytes :
       {std::uint64_t{1}, std::uint64_t{4096}, std::uint64_t{100'003}, std::uint64_t{5} << 20}) {
    auto made = kind.backend().make_region(bytes);
    CHECK(made.memory->size() == bytes);
    CHECK(made.memory->where() == kind.backend().where());
    CHECK(reinterpret_cast<std::uintptr_t>(made.memory->data()) % 256 == 0);
    auto const first = pattern(bytes, bytes);
    kind.write(made.memory->data(), first);
    auto answer = kind.peer().import(made.handle.get(), bytes, kind.backend().uuid());
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(first));
    // Later writes reach it too, without a new import.
    auto const second = pattern(bytes, bytes + 1);
    kind.write(made.memory->data(), second);
    answer = kind.peer().look_again();
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(second));
  }
}

void a_peer_keeps_memory_whose_maker_let_go(memory_kind& kind) {
  auto const content = pattern(70'000, 3);
  {
    auto made = kind.backend().make_region(content.size());
    kind.write(made.memory->data(), content);
    REQUIRE(kind.peer().import(made.handle.get(), content.size(), kind.backend().uuid()).error == "");
  }
  CHECK(kind.peer().look_again().hash == hash_of(content));
}

void a_queue_writes_into_a_region(memory_kind& kind) {
  auto const content = pattern(3 << 20, 9);
  area const source(kind, content);
  auto made = kind.backend().make_region(content.size());
  auto const queue = kind.backend().make_queue();
  copy_op const op = bytes_op(kind, source.at(), made.memory->data(), content.size());
  run(*queue, {&op, 1});
  auto const answer = kind.peer().import(made.handle.get(), content.size(), kind.backend().uuid());
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(content));
}

void wrong_descriptors_are_refused(memory_kind& kind) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  unique_fd const write_end(ends[1]);
  CHECK_THROWS_AS(kind.backend().import_region(unique_fd(ends[0]), 4096, kind.backend().uuid()),
                  transfer_error);
  unique_fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  CHECK_THROWS_AS(kind.backend().import_region(std::move(null), 4096, kind.backend().uuid()), transfer_error);
  CHECK_THROWS_AS(kind.backend().import_region(unique_fd(), 4096, kind.backend().uuid()), transfer_error);
}

void sizes_that_lie_are_refused(memory_kind& kind) {
  std::uint64_t const bytes = 4 << 20;
  auto made = kind.backend().make_region(bytes);
  auto again = [&] { return unique_fd(::fcntl(made.handle.get(), F_DUPFD_CLOEXEC, 0)); };
  CHECK_THROWS_AS(kind.backend().import_region(again(), bytes * 2, kind.backend().uuid()), transfer_error);
  CHECK_THROWS_AS(kind.backend().import_region(again(), std::uint64_t{1} << 62, kind.backend().uuid()),
                  transfer_error);
}

void memory_that_nobody_has_is_refused(memory_kind& kind) {
  std::uint64_t const bytes = std::uint64_t{1} << 50;
  try {
    auto made = kind.backend().make_region(bytes);
    FAIL("a region of 1 PiB was made");
  } catch (transfer_error const& error) {
    CHECK(error.code() == errc::out_of_memory);
    CHECK(std::string(error.what()).find(std::to_string(bytes)) != std::string::npos);
  }
}

// ---- the queue

void lists_keep_their_order(memory_kind& kind) {
  // Each list reads what the one before wrote and overwrites what the one before read: a rotation by one
  // block, many times. Large and small blocks, so that a list would overtake if it could.
  constexpr std::uint64_t blocks = 16, turns = 75;
  auto const content = pattern(1 << 20, 4);
  area const a(kind, content), b(kind, content.size());
  auto const queue = kind.backend().make_queue();
  std::uint64_t const block = content.size() / blocks;
  // The queue has been used before, and the first list holds it up while the others pile up behind.
  std::uint64_t const large = 64 << 20;
  area const slow(kind, large), target(kind, large);
  copy_op const small = bytes_op(kind, slow.at(), target.at(), 16),
                held = bytes_op(kind, slow.at(), target.at(), large);
  for (int i = 0; i < 3; ++i) run(*queue, {&small, 1});
  queue->copy({&held, 1});
  for (std::uint64_t i = 0; i < turns; ++i) {
    std::vector<copy_op> turned;
    for (std::uint64_t k = 0; k < blocks; ++k) {
      turned.push_back(bytes_op(kind, a.at((k + 1) % blocks * block), b.at(k * block), block));
    }
    queue->copy(turned);
    copy_op const back = bytes_op(kind, b.at(), a.at(), content.size());
    queue->copy({&back, 1});
  }
  REQUIRE(reaches(*queue, queue->mark()));
  auto expected = content;
  std::rotate(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(turns % blocks * block),
              expected.end());
  CHECK(a.get() == expected);
}

void tickets_grow_and_are_reached(memory_kind& kind) {
  area const a(kind, pattern(1 << 20, 5)), b(kind, 1 << 20);
  auto const queue = kind.backend().make_queue();
  std::uint64_t last = 0, reached = 0;
  copy_op const op = bytes_op(kind, a.at(), b.at(), 1 << 20);
  for (int i = 0; i < 200; ++i) {
    if (i % 3 != 0) queue->copy({&op, 1});
    auto const ticket = queue->mark();
    CHECK(ticket > last);
    last = ticket;
    auto const now = queue->poll();
    CHECK_FALSE(now.error);
    CHECK(now.completed >= reached);
    CHECK(now.completed <= last);
    reached = now.completed;
  }
  CHECK(reaches(*queue, last));
  CHECK(queue->poll().completed >= last);
}

void a_mark_on_an_idle_queue_is_reached(memory_kind& kind) {
  auto const queue = kind.backend().make_queue();
  for (int i = 0; i < 3; ++i) CHECK(reaches(*queue, queue->mark()));
  queue->start_after({});
  CHECK(reaches(*queue, queue->mark()));
}

void the_descriptor_wakes_once_for_each_progress(memory_kind& kind) {
  auto const queue = kind.backend().make_queue();
  area const a(kind, pattern(4096, 6)), b(kind, 4096);
  copy_op const op = bytes_op(kind, a.at(), b.at(), 4096);
  for (int i = 0; i < 20; ++i) {
    queue->copy({&op, 1});
    REQUIRE(reaches(*queue, queue->mark()));
  }
  REQUIRE(queue->drain(std::chrono::seconds(10)));
  // Emptied and with nothing left to report, it stays quiet.
  std::uint64_t count = 0;
  while (::read(queue->event_fd(), &count, sizeof count) > 0) {}
  pollfd waiting{queue->event_fd(), POLLIN, 0};
  CHECK(::poll(&waiting, 1, 20) == 0);
}

void lists_are_taken_over(memory_kind& kind) {
  auto const content = pattern(8 << 20, 7);
  area const a(kind, content), b(kind, content.size());
  auto const queue = kind.backend().make_queue();
  std::vector<copy_op> ops;
  for (std::uint64_t at = 0; at < content.size(); at += 4096)
    ops.push_back(bytes_op(kind, a.at(at), b.at(at), 4096));
  queue->copy(ops);
  auto const ticket = queue->mark();
  for (auto& op : ops) op.from = op.to = nullptr;
  REQUIRE(reaches(*queue, ticket));
  CHECK(b.get() == content);
}

void nothing_to_do_is_fine(memory_kind& kind) {
  auto const queue = kind.backend().make_queue();
  auto const content = pattern(64, 8);
  area const a(kind, content), b(kind, 64);
  queue->copy({});
  copy_op const ops[] = {bytes_op(kind, a.at(), b.at(), 0), bytes_op(kind, nullptr, nullptr, 0),
                         box_op(kind, a.at(), b.at(), {3, 0, 2}, {8, 4, 2}, {8, 4, 2}, 2),
                         box_op(kind, nullptr, nullptr, {0}, {1}, {1}, 1)};
  run(*queue, ops);
  CHECK(b.get() == std::vector<std::byte>(64, filler));
}

void draining_waits_for_everything(memory_kind& kind) {
  auto const content = pattern(16 << 20, 10);
  area const a(kind, content), b(kind, content.size());
  auto const queue = kind.backend().make_queue();
  CHECK(queue->drain(std::chrono::milliseconds(0)));
  copy_op const op = bytes_op(kind, a.at(), b.at(), content.size());
  for (int i = 0; i < 5; ++i) queue->copy({&op, 1});
  auto const ticket = queue->mark();
  CHECK(queue->drain(std::chrono::seconds(20)));
  CHECK(b.get() == content);
  CHECK(reaches(*queue, ticket));
}

void a_destroyed_queue_has_finished(memory_kind& kind) {
  auto const content = pattern(16 << 20, 11);
  area const a(kind, content), b(kind, content.size()), c(kind, content.size());
  {
    auto const queue = kind.backend().make_queue();
    copy_op const there = bytes_op(kind, a.at(), b.at(), content.size());
    copy_op const on = bytes_op(kind, b.at(), c.at(), content.size());
    queue->copy({&there, 1});
    queue->copy({&on, 1});
  }
  CHECK(c.get() == content);
}

void queues_are_independent(memory_kind& kind) {
  auto const content = pattern(1 << 20, 12);
  area const a(kind, content), b(kind, content.size()), c(kind, content.size());
  auto const one = kind.backend().make_queue();
  auto two = kind.backend().make_queue();
  CHECK(one->event_fd() != two->event_fd());
  copy_op const to_b = bytes_op(kind, a.at(), b.at(), content.size());
  copy_op const to_c = bytes_op(kind, a.at(), c.at(), content.size());
  for (int i = 0; i < 10; ++i) {
    one->copy({&to_b, 1});
    two->copy({&to_c, 1});
  }
  REQUIRE(reaches(*two, two->mark()));
  two.reset();
  REQUIRE(reaches(*one, one->mark()));
  CHECK(b.get() == content);
  CHECK(c.get() == content);
}

void threads_may_take_turns(memory_kind& kind) {
  auto const content = pattern(1 << 20, 13);
  area const a(kind, content), b(kind, content.size());
  auto const queue = kind.backend().make_queue();
  copy_op const op = bytes_op(kind, a.at(), b.at(), content.size());
  std::uint64_t last = 0;
  bool grew = true;
  for (int i = 0; i < 8; ++i) {
    std::thread turn([&] {
      queue->copy({&op, 1});
      auto const ticket = queue->mark();
      grew = grew && ticket > last;
      last = ticket;
    });
    turn.join();
  }
  CHECK(grew);
  REQUIRE(reaches(*queue, last));
  CHECK(b.get() == content);
}

// ---- copies

void every_alignment_and_length(memory_kind& kind) {
  constexpr std::uint64_t room = 8192 + 64;
  auto const content = pattern(room, 14);
  area const source(kind, content);
  auto const queue = kind.backend().make_queue();
  std::vector<std::uint64_t> const lengths{1,  2,  3,  7,   8,   15,   16,   17,  31,
                                           63, 64, 65, 127, 255, 4095, 4096, 8191};
  std::vector<copy_op> ops;
  std::vector<std::byte> expected;
  // All in one list, side by side: a byte too much of one is seen in its neighbour.
  area const target(kind, lengths.size() * 16 * 4 * (room + 96));
  for (std::uint64_t length : lengths) {
    for (std::uint64_t from = 0; from < 16; ++from) {
      for (std::uint64_t to : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{8}, std::uint64_t{15}}) {
        expected.insert(expected.end(), to + (64 - expected.size() % 64) % 64, filler);
        ops.push_back(bytes_op(kind, source.at(from), target.at(expected.size()), length));
        auto const first = content.begin() + static_cast<std::ptrdiff_t>(from);
        expected.insert(expected.end(), first, first + static_cast<std::ptrdiff_t>(length));
      }
    }
  }
  run(*queue, ops);
  auto seen = target.get();
  expected.resize(seen.size(), filler);
  CHECK(seen == expected);
}

void copy_one_large_piece(memory_kind& kind, memory::effort how) {
  // Large enough for every path that large pieces take, odd at both ends.
  auto const content = pattern((48 << 20) + 77, 15);
  area const a(kind, content), b(kind, content.size());
  auto const queue = kind.backend().make_queue();
  copy_op const op = bytes_op(kind, a.at(3), b.at(6), content.size() - 13);
  run(*queue, {&op, 1}, how);
  auto const seen = b.get();
  CHECK(std::equal(content.begin() + 3, content.end() - 10, seen.begin() + 6));
  CHECK(seen[5] == filler);
  CHECK(seen[content.size() - 7] == filler);
  CHECK(seen.back() == filler);
}

void one_large_piece(memory_kind& kind) { copy_one_large_piece(kind, memory::effort::full); }
void one_large_piece_beside_a_link(memory_kind& kind) {
  copy_one_large_piece(kind, memory::effort::beside_link);
}

void twenty_thousand_small_pieces(memory_kind& kind) {
  constexpr std::uint64_t count = 20'000, slot = 48;
  auto const content = pattern(count * slot, 16);
  area const a(kind, content);
  auto const queue = kind.backend().make_queue();
  std::vector<copy_op> ops;
  area const in_one_list(kind, content.size()), one_by_one(kind, content.size());
  std::vector<std::byte> expected(content.size(), filler);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t const bytes = 1 + i % slot, to = (count - 1 - i) * slot;
    ops.push_back(bytes_op(kind, a.at(i * slot), in_one_list.at(to), bytes));
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(i * slot), bytes,
                expected.begin() + static_cast<std::ptrdiff_t>(to));
  }
  run(*queue, ops);
  CHECK(in_one_list.get() == expected);
  for (auto& op : ops) {
    op.to = one_by_one.at() + (op.to - in_one_list.at());
    queue->copy({&op, 1});
  }
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(one_by_one.get() == expected);
}

void transposes(memory_kind& kind) {
  for (int size : {1, 2, 4, 8, 16, 3}) {
    auto const element = static_cast<std::uint16_t>(size);
    for (auto [rows, columns] :
         {std::pair<std::uint64_t, std::uint64_t>{1, 7}, {5, 3}, {64, 64}, {131, 257}}) {
      auto const content = pattern(rows * columns * element, element);
      auto const e = static_cast<std::int64_t>(element);
      auto const op =
          box_op(kind, nullptr, nullptr, {rows, columns}, {e, static_cast<std::int64_t>(rows) * e},
                 row_major({rows, columns}, e), element);
      check_box(kind, op, content, 0, content.size(), 0);
    }
  }
}

void every_second_row(memory_kind& kind) {
  auto const content = pattern(100 * 333 * 2, 17);
  check_box(kind, box_op(kind, nullptr, nullptr, {50, 333}, {2 * 666, 2}, {666, 2}, 2), content, 0, 50 * 666,
            0);
  // And into every second row, the odd ones, from a byte address that is odd.
  check_box(kind, box_op(kind, nullptr, nullptr, {49, 333}, {666, 2}, {2 * 666, 2}, 2), content, 1,
            100 * 666 + 9, 666 + 5);
}

void negative_and_zero_strides(memory_kind& kind) {
  auto const content = pattern(4096 * 4, 18);
  check_box(kind, box_op(kind, nullptr, nullptr, {4096}, {-4}, {4}, 4), content, 4095 * 4, 4096 * 4, 0);
  check_box(kind, box_op(kind, nullptr, nullptr, {4096}, {4}, {-4}, 4), content, 0, 4096 * 4, 4095 * 4);
  check_box(kind, box_op(kind, nullptr, nullptr, {64, 64}, {-256, -4}, {256, 4}, 4), content, 4095 * 4,
            4096 * 4, 0);
  check_box(kind, box_op(kind, nullptr, nullptr, {30, 100, 2}, {0, 8, 4}, {800, 8, 4}, 4), content, 0, 24'000,
            0);
  check_box(kind, box_op(kind, nullptr, nullptr, {1000}, {0}, {2}, 2), content, 10, 2000, 0);
}

void permuted_boxes(memory_kind& kind) {
  std::vector<std::uint64_t> const dims{6, 35, 77};
  auto const content = pattern(6 * 35 * 77 * 4, 19);
  auto const strides = row_major(dims, 4);
  std::vector<std::size_t> order{0, 1, 2};
  do {
    std::vector<std::uint64_t> extent;
    std::vector<std::int64_t> from;
    for (std::size_t i : order) {
      extent.push_back(dims[i]);
      from.push_back(strides[i]);
    }
    check_box(kind, box_op(kind, nullptr, nullptr, extent, from, row_major(extent, 4), 4), content, 0,
              content.size(), 0);
    check_box(kind, box_op(kind, nullptr, nullptr, extent, row_major(extent, 4), from, 4), content, 0,
              content.size(), 0);
  } while (std::next_permutation(order.begin(), order.end()));
}

void boxes_of_eight_dimensions(memory_kind& kind) {
  std::vector<std::uint64_t> const dims{2, 3, 1, 2, 4, 2, 3, 5};
  auto const content = pattern(2 * 3 * 2 * 4 * 2 * 3 * 5 * 2, 20);
  auto from = row_major(dims, 2);
  auto const to = from;
  check_box(kind, box_op(kind, nullptr, nullptr, dims, from, to, 2), content, 0, content.size(), 0);
  // Reversed: nothing collapses.
  std::vector<std::uint64_t> const turned(dims.rbegin(), dims.rend());
  std::reverse(from.begin(), from.end());
  check_box(kind, box_op(kind, nullptr, nullptr, turned, from, row_major(turned, 2), 2), content, 0,
            content.size(), 0);
  // A box inside a larger one, on both sides.
  check_box(kind, box_op(kind, nullptr, nullptr, {2, 2, 1, 2, 3, 1, 2, 4}, to, to, 2), content, 2,
            content.size(), 2);
}

void sizes_of_elements_that_are_whole_rows(memory_kind& kind) {
  auto const content = pattern(50 * 1000, 21);
  check_box(kind, box_op(kind, nullptr, nullptr, {50}, {1000}, {700}, 700), content, 0, 50 * 700, 0);
  check_box(kind, box_op(kind, nullptr, nullptr, {1}, {0}, {0}, 999), content, 1, 1010, 7);
}

// Values where narrowing goes wrong first, and all kinds of NaN.
std::vector<std::uint32_t> telling_values() {
  std::vector<std::uint32_t> values;
  // Around every f16 and bf16 value of interest: exact, half way, one bit to either side of half way.
  for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (std::uint32_t mantissa :
         {0U,        1U,        0x7fffU,   0x8000U,   0x8001U,   0xffffU,   0x17fffU,  0x18000U,
          0x18001U,  0xfffU,    0x1000U,   0x1001U,   0x2fffU,   0x3000U,   0x3001U,   0x400000U,
          0x7fffffU, 0x7fe000U, 0x7ff000U, 0x7fefffU, 0x7f8000U, 0x7f7fffU, 0x200000U, 0x3fffffU}) {
      values.push_back(exponent << 23 | mantissa);
      values.push_back(0x80000000U | exponent << 23 | mantissa);
    }
  }
  std::mt19937 random(22);
  for (int i = 0; i < 200'000; ++i) values.push_back(static_cast<std::uint32_t>(random()));
  // An odd number, so that no vector width divides it.
  values.push_back(0x7f800001U);
  if (values.size() % 2 == 0) values.push_back(0x3f800000U);
  return values;
}

copy_op converting(copy_op op, conversion convert, std::uint16_t from, std::uint16_t to) {
  op.convert = convert;
  op.from_element = from;
  op.to_element = to;
  return op;
}

void narrowing_rounds_to_even_and_keeps_nan(memory_kind& kind) {
  auto const values = telling_values();
  auto const raw = std::as_bytes(std::span(values));
  std::vector<std::byte> const content(raw.begin(), raw.end());
  for (auto convert : {conversion::f32_to_bf16, conversion::f32_to_f16}) {
    auto op = converting(box_op(kind, nullptr, nullptr, {values.size()}, {4}, {2}, 1), convert, 4, 2);
    check_box(kind, op, content, 0, values.size() * 2, 0);
    // Odd addresses, and a strided source.
    op.extent[0] -= 1;
    check_box(kind, op, content, 1, values.size() * 2 + 3, 3);
    auto strided = converting(box_op(kind, nullptr, nullptr, {values.size() / 100, 40}, {400, 8}, {80, 2}, 1),
                              convert, 4, 2);
    check_box(kind, strided, content, 0, values.size() * 2, 0);
    auto turned = converting(box_op(kind, nullptr, nullptr, {100, values.size() / 100}, {4, 400},
                                    row_major({100, values.size() / 100}, 2), 1),
                             convert, 4, 2);
    check_box(kind, turned, content, 0, values.size() * 2, 0);
  }
}

void widening_is_exact(memory_kind& kind) {
  std::vector<std::uint16_t> values(65536);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i);
  auto const raw = std::as_bytes(std::span(values));
  std::vector<std::byte> const content(raw.begin(), raw.end());
  for (auto convert : {conversion::bf16_to_f32, conversion::f16_to_f32}) {
    auto const op = converting(box_op(kind, nullptr, nullptr, {65536}, {2}, {4}, 1), convert, 2, 4);
    check_box(kind, op, content, 0, 65536 * 4, 0);
    auto const turned =
        converting(box_op(kind, nullptr, nullptr, {256, 256}, {2, 512}, {1024, 4}, 1), convert, 2, 4);
    check_box(kind, turned, content, 0, 65536 * 4, 0);
  }
}

void copy_mixed_list(memory_kind& kind, memory::effort how) {
  // Runs, and units of boxes, for more blocks than a list is held to beside a link.
  constexpr std::uint64_t size = 8 << 20, half = size / 2, columns = 512, rows = 512;
  auto const content = pattern(size, 23);
  area const source(kind, content), target(kind, size);
  copy_op const ops[] = {
      bytes_op(kind, source.at(), target.at(), 1001),
      box_op(kind, source.at(2000), target.at(2000), {rows, columns}, {4, 4 * rows}, {4 * columns, 4}, 4),
      converting(box_op(kind, source.at(8000), target.at(half - 8000), {500}, {4}, {2}, 1),
                 conversion::f32_to_bf16, 4, 2),
      bytes_op(kind, source.at(5000), target.at(half), half - 9000),
      bytes_op(kind, source.at(1 << 20), target.at(size - 8000), 4000),
  };
  std::vector<std::byte> expected(size, filler);
  std::copy_n(content.begin(), 1001, expected.begin());
  expect_box(ops[1], content, 2000, expected, 2000);
  expect_box(ops[2], content, 8000, expected, half - 8000);
  std::copy_n(content.begin() + 5000, half - 9000, expected.begin() + half);
  std::copy_n(content.begin() + (1 << 20), 4000, expected.begin() + size - 8000);
  auto const queue = kind.backend().make_queue();
  run(*queue, ops, how);
  CHECK(target.get() == expected);
}
void mixed_lists(memory_kind& kind) { copy_mixed_list(kind, memory::effort::full); }
void mixed_lists_beside_a_link(memory_kind& kind) { copy_mixed_list(kind, memory::effort::beside_link); }

// ---- prepared lists

// A list of pieces and boxes between two areas of 1 MiB, and what it makes of them.
struct mixed_list {
  std::vector<copy_op> ops;
  std::vector<std::byte> expected;
};
mixed_list make_mixed_list(memory_kind& kind, area const& source, area const& target,
                           std::vector<std::byte> const& content) {
  mixed_list list;
  list.expected.assign(1 << 20, filler);
  auto piece = [&](std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
    list.ops.push_back(bytes_op(kind, source.at(from), target.at(to), bytes));
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(from), bytes,
                list.expected.begin() + static_cast<std::ptrdiff_t>(to));
  };
  auto box = [&](copy_op const& op, std::int64_t from, std::int64_t to) {
    list.ops.push_back(op);
    expect_box(op, content, from, list.expected, to);
  };
  piece(500'003, 600'001, 300'000); // odd on both sides
  piece(0, 0, 1001);
  piece(1001, 1001, 7); // goes on
  box(box_op(kind, source.at(2000), target.at(2000), {16, 16}, {4, 64}, {64, 4}, 4), 2000, 2000);
  box(converting(box_op(kind, source.at(8000), target.at(8000), {50'000}, {4}, {2}, 1),
                 conversion::f32_to_bf16, 4, 2),
      8000, 8000);
  box(box_op(kind, source.at(300'000), target.at(200'000), {90, 1000}, {2000, 2}, {2, 200}, 2), 300'000,
      200'000);
  piece(900'000, 450'000, 0);
  for (std::uint64_t i = 0; i < 300; ++i) piece(700'000 + i * 13, 400'000 + i * 17, 13);
  return list;
}

void prepared_lists_are_repeated(memory_kind& kind) {
  auto content = pattern(1 << 20, 31);
  area source(kind, content), target(kind, 1 << 20);
  auto list = make_mixed_list(kind, source, target, content);
  auto const prepared = kind.backend().prepare(list.ops);
  std::uint64_t bytes = 0;
  for (copy_op const& op : list.ops) bytes += memory::bytes_of(op);
  CHECK(prepared->bytes() == bytes);
  CHECK(prepared->units() > 0);
  list.ops.assign(list.ops.size(), copy_op{}); // it was taken over
  auto const queue = kind.backend().make_queue();
  for (std::uint64_t turn = 0; turn < 3; ++turn) {
    content = pattern(1 << 20, 31 + turn);
    source.put(content);
    target.clear();
    queue->repeat(*prepared);
    REQUIRE(reaches(*queue, queue->mark()));
    CHECK(target.get() == make_mixed_list(kind, source, target, content).expected);
  }
}

void portions_add_up(memory_kind& kind) {
  auto const content = pattern(1 << 20, 34);
  area const source(kind, content);
  area target(kind, 1 << 20);
  auto const list = make_mixed_list(kind, source, target, content);
  auto const prepared = kind.backend().prepare(list.ops);
  auto const queue = kind.backend().make_queue();
  std::uint64_t const units = prepared->units();
  for (std::uint64_t step : {std::uint64_t{1}, std::uint64_t{7}, units / 2 + 1}) {
    target.clear();
    for (std::uint64_t first = 0; first < units; first += step) {
      memory::portion some{first, step, static_cast<std::uint32_t>(first % 3)};
      queue->repeat(*prepared, some);
    }
    REQUIRE(reaches(*queue, queue->mark()));
    CHECK(target.get() == list.expected);
  }
  // All but the last unit is not all, and what lies beyond the end is nothing.
  target.clear();
  queue->repeat(*prepared, {0, units - 1, 1});
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(target.get() != list.expected);
  queue->repeat(*prepared, {units, 5, 0});
  queue->repeat(*prepared, {~std::uint64_t{0}, ~std::uint64_t{0}, 0});
  queue->repeat(*prepared, {0, 0, 0});
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(target.get() != list.expected);
  queue->repeat(*prepared, {units - 1, ~std::uint64_t{0}, 100'000});
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(target.get() == list.expected);
}

void prepared_lists_keep_their_order(memory_kind& kind) {
  constexpr std::uint64_t blocks = 16, turns = 30;
  auto const content = pattern(1 << 20, 35);
  area const a(kind, content), b(kind, content.size());
  std::uint64_t const block = content.size() / blocks;
  std::vector<copy_op> turned;
  for (std::uint64_t k = 0; k < blocks; ++k)
    turned.push_back(bytes_op(kind, a.at((k + 1) % blocks * block), b.at(k * block), block));
  copy_op const back = bytes_op(kind, b.at(), a.at(), content.size());
  auto const list = kind.backend().prepare(turned);
  auto const queue = kind.backend().make_queue();
  for (std::uint64_t i = 0; i < turns; ++i) {
    queue->repeat(*list);
    queue->copy({&back, 1});
  }
  REQUIRE(reaches(*queue, queue->mark()));
  auto expected = content;
  std::rotate(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(turns % blocks * block),
              expected.end());
  CHECK(a.get() == expected);
}

void prepared_lists_of_many_pieces(memory_kind& kind) {
  constexpr std::uint64_t count = 20'000, bytes = 200;
  auto const content = pattern(count * bytes, 36);
  area const source(kind, content), target(kind, content.size());
  std::vector<copy_op> ops;
  std::vector<std::byte> expected(content.size());
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t const from = i * 7919 % count;
    ops.push_back(bytes_op(kind, source.at(from * bytes), target.at(i * bytes), bytes));
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(from * bytes), bytes,
                expected.begin() + static_cast<std::ptrdiff_t>(i * bytes));
  }
  auto const list = kind.backend().prepare(ops);
  // One list on two queues at once: it is never written to. Each queue copies its half, for two that
  // write the same bytes would race.
  auto const one = kind.backend().make_queue(), two = kind.backend().make_queue();
  std::uint64_t const half = list->units() / 2;
  one->repeat(*list, {0, half, 0});
  two->repeat(*list, {half, list->units() - half, 0});
  REQUIRE(reaches(*one, one->mark()));
  REQUIRE(reaches(*two, two->mark()));
  CHECK(target.get() == expected);
}

void prepared_lists_of_nothing(memory_kind& kind) {
  auto const queue = kind.backend().make_queue();
  auto const list = kind.backend().prepare({});
  CHECK(list->bytes() == 0);
  CHECK(list->units() == 0);
  queue->repeat(*list);
  CHECK(reaches(*queue, queue->mark()));
}

void prepared_lists_that_make_no_sense(memory_kind& kind) {
  area const a(kind, pattern(4096, 37)), b(kind, 4096);
  auto const queue = kind.backend().make_queue();
  copy_op ops[2] = {bytes_op(kind, a.at(), b.at(), 100), bytes_op(kind, a.at(), b.at(200), 100)};
  ops[1].convert = conversion::f32_to_f16;
  auto prepare_and_repeat = [&] { queue->repeat(*kind.backend().prepare(ops)); };
  CHECK_THROWS_AS(prepare_and_repeat(), transfer_error);
  class foreign final : public memory::prepared_copies {
  } const theirs;
  CHECK_THROWS_AS(queue->repeat(theirs), transfer_error);
  REQUIRE(reaches(*queue, queue->mark()));
  CHECK(b.get() == std::vector<std::byte>(4096, filler));
}

constexpr conformance_case cases[] = {
    {"a peer sees the same bytes, also those written later", a_peer_sees_the_same_bytes},
    {"a peer keeps memory whose maker let go", a_peer_keeps_memory_whose_maker_let_go},
    {"a queue writes into a region", a_queue_writes_into_a_region},
    {"wrong descriptors are refused", wrong_descriptors_are_refused},
    {"sizes that lie are refused", sizes_that_lie_are_refused},
    {"memory that nobody has is refused, saying how much", memory_that_nobody_has_is_refused},
    {"lists keep their order", lists_keep_their_order},
    {"tickets grow and are reached", tickets_grow_and_are_reached},
    {"a mark on an idle queue is reached", a_mark_on_an_idle_queue_is_reached},
    {"the descriptor wakes for progress and is quiet without", the_descriptor_wakes_once_for_each_progress},
    {"lists are taken over", lists_are_taken_over},
    {"nothing to do is fine", nothing_to_do_is_fine},
    {"draining waits for everything", draining_waits_for_everything},
    {"a destroyed queue has finished", a_destroyed_queue_has_finished},
    {"queues are independent", queues_are_independent},
    {"threads may take turns", threads_may_take_turns},
    {"every alignment and length", every_alignment_and_length},
    {"one large piece", one_large_piece},
    {"one large piece, beside a link", one_large_piece_beside_a_link},
    {"twenty thousand small pieces, in one list and one by one", twenty_thousand_small_pieces},
    {"transposes of every element size", transposes},
    {"every second row, read and written", every_second_row},
    {"negative and zero strides", negative_and_zero_strides},
    {"permuted boxes", permuted_boxes},
    {"boxes of eight dimensions", boxes_of_eight_dimensions},
    {"elements that are whole rows", sizes_of_elements_that_are_whole_rows},
    {"narrowing rounds to even and keeps NaN", narrowing_rounds_to_even_and_keeps_nan},
    {"widening is exact", widening_is_exact},
    {"mixed lists", mixed_lists},
    {"mixed lists, beside a link", mixed_lists_beside_a_link},
    {"prepared lists are taken over and repeated", prepared_lists_are_repeated},
    {"portions of a prepared list add up to all of it", portions_add_up},
    {"prepared lists keep their order among others", prepared_lists_keep_their_order},
    {"a prepared list of many pieces, on two queues", prepared_lists_of_many_pieces},
    {"a prepared list of nothing", prepared_lists_of_nothing},
    {"prepared lists that make no sense, or are another's, are refused", prepared_lists_that_make_no_sense},
    {"digests of runs of every alignment", digests_of_runs},
    {"digests of boxes", digests_of_boxes},
    {"digests of what is converted", digests_of_conversions},
    {"digests of groups add up, from any base", digests_of_groups_add_up},
    {"digests keep their order among copies", digests_keep_their_order},
    {"digests that make no sense, or are another's, are refused", digests_that_make_no_sense},
};

} // namespace

std::span<conformance_case const> conformance_cases() { return cases; }

bool reaches(memory::queue& queue, std::uint64_t ticket) {
  auto const deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (;;) {
    auto const now = queue.poll();
    if (now.error) return false;
    if (now.completed >= ticket) return true;
    auto const left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd waiting{queue.event_fd(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&waiting, 1, static_cast<int>(left.count())) < 0) return false;
    std::uint64_t count = 0;
    while (::read(queue.event_fd(), &count, sizeof count) > 0) {}
  }
}

} // namespace ropeway::testing
