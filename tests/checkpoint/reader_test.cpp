#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <poll.h>
#include <random>
#include <span>

#include "files.hpp"
#include "support/sanitized.hpp"
#include "ways.hpp"

using namespace ropeway;
using namespace ropeway::test;

TEST_CASE("any range arrives exactly, wherever it goes to") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  auto const model = checkpoint::open(here / "x.safetensors");
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(model, options);
    CHECK(reader.backend() == options.backend());
    std::mt19937_64 random(7);
    std::byte const guard{0xA5};
    for (int round = 0; round < testing::rounds(60); ++round) {
      struct one {
        std::size_t tensor;
        std::uint64_t offset, size;
        std::vector<std::byte> memory;
        std::size_t at;
      };
      std::vector<one> reads;
      for (int i = 0; i < 20; ++i) {
        std::size_t const tensor = random() % model.tensors().size();
        std::uint64_t const bytes = model.tensors()[tensor].bytes;
        std::uint64_t const offset = round == 0 ? 0 : random() % (bytes + 1);
        std::uint64_t const most = std::min<std::uint64_t>(bytes - offset, i % 4 == 0 ? ~0ull : 70'000);
        std::uint64_t const size = round == 0 ? bytes : random() % (most + 1);
        reads.push_back(
            {tensor, offset, size, std::vector<std::byte>(size + 4096 + 64, guard), 32 + random() % 4096});
        // Every other one where the disk can put it in place: congruent to its place in the file.
        if (i % 2 == 0) {
          auto const address = reinterpret_cast<std::uintptr_t>(reads.back().memory.data()) + 32;
          reads.back().at = 32 + (model.tensors()[tensor].offset + offset - address) % 4096;
        }
      }
      for (auto& each : reads)
        reader.start(each.tensor, each.offset, std::span(each.memory).subspan(each.at, each.size));
      reader.wait_all();
      for (auto const& each : reads) {
        std::span<std::byte const> const memory(each.memory);
        REQUIRE(holds_pattern(memory.subspan(each.at, each.size), each.tensor, each.offset));
        auto const untouched = [&](std::span<std::byte const> part) {
          return std::all_of(part.begin(), part.end(), [&](std::byte b) { return b == guard; });
        };
        REQUIRE(untouched(memory.first(each.at)));
        REQUIRE(untouched(memory.subspan(each.at + each.size)));
      }
    }
  });
}

TEST_CASE("several requests are in flight together") {
  scratch const here;
  tensor_info const tensors[] = {{"a", dtype::u8, {32 << 20}}};
  write_pattern(here / "x.safetensors", tensors);
  auto const model = checkpoint::open(here / "x.safetensors");
  std::vector<std::byte> memory(32 << 20);
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(model, options);
    reader.read(0, 0, memory);
    // Threads that copy from the page cache may each be done before the next one runs.
    if (reader.direct() || reader.backend() == io_backend::io_uring) CHECK(reader.max_in_flight_seen() > 1);
    CHECK(reader.max_in_flight_seen() <= 8);
    CHECK(holds_pattern(std::span(memory).subspan((32 << 20) - 5000), 0, (32 << 20) - 5000));
    read_options one = options;
    checkpoint_reader alone(model, one.queue_depth(1));
    alone.read(0, 0, std::span(memory).first(4 << 20));
    CHECK(alone.max_in_flight_seen() <= 1);
  });
}

TEST_CASE("an event loop is told by the descriptor, and each read is reported once") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  auto const model = checkpoint::open(here / "x.safetensors");
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(model, options);
    std::vector<std::vector<std::byte>> memory;
    std::vector<checkpoint_reader::ticket> expected, seen;
    for (std::size_t i = 0; i < 60; ++i) {
      memory.emplace_back(static_cast<std::size_t>(model.tensors()[i % 6].bytes));
      expected.push_back(reader.start(i % 6, 0, memory.back()));
    }
    CHECK(reader.pending() == 60);
    while (reader.pending() > 0) {
      ::pollfd watched{reader.event_fd(), POLLIN, 0};
      REQUIRE(::poll(&watched, 1, 10'000) == 1);
      while (auto done = reader.poll()) {
        CHECK_FALSE(done->error);
        seen.push_back(done->id);
      }
    }
    std::sort(seen.begin(), seen.end());
    CHECK(seen == expected);
    for (std::size_t i = 0; i < 60; ++i) CHECK(holds_pattern(memory[i], i % 6, 0));
    CHECK_FALSE(reader.poll());
  });
}

TEST_CASE("reads may be waited for in any order, and mixed with polling") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(checkpoint::open(here / "x.safetensors"), options);
    std::vector<std::byte> a(3'000'001), b(500'003), c(7);
    auto const first = reader.start(0, 0, a);
    auto const second = reader.start(4, 0, b);
    auto const third = reader.start(1, 0, c);
    reader.wait(third);
    CHECK(holds_pattern(c, 1, 0));
    reader.wait(first);
    CHECK(holds_pattern(a, 0, 0));
    CHECK(code_of([&] { reader.wait(first); }) == errc::invalid_argument);
    CHECK(code_of([&] { reader.wait(1000); }) == errc::invalid_argument);
    std::optional<checkpoint_reader::finished> done;
    while (!(done = reader.poll())) {}
    CHECK(done->id == second);
    CHECK(reader.pending() == 0);
  });
}

namespace {

// More reads of the largest tensor than are in flight at once, each into memory of its own.
struct many {
  static constexpr std::size_t count = 12, bytes = 3'000'001;
  std::unique_ptr<std::byte[]> memory = std::make_unique_for_overwrite<std::byte[]>(count * bytes);

  void start(checkpoint_reader& reader) {
    for (std::size_t i = 0; i < count; ++i) reader.start(0, 0, std::span(&memory[i * bytes], bytes));
  }
};

} // namespace

TEST_CASE("a cancelled read touches its memory no more") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(checkpoint::open(here / "x.safetensors"), options);
    std::vector<std::byte> kept(500'003);
    auto const other = reader.start(4, 0, kept);
    {
      std::vector<std::byte> gone(3'000'001);
      auto const id = reader.start(0, 0, gone);
      reader.cancel(id);
      CHECK(code_of([&] { reader.cancel(id); }) == errc::invalid_argument);
    }
    reader.wait(other);
    CHECK(holds_pattern(kept, 4, 0));
    {
      many gone;
      gone.start(reader);
      reader.cancel();
    }
    CHECK(reader.pending() == 0);
    CHECK_FALSE(reader.poll());
    {
      many gone;
      checkpoint_reader other_reader(checkpoint::open(here / "x.safetensors"), options);
      gone.start(other_reader);
      other_reader = std::move(reader); // waits for what is in flight
      std::span const again(gone.memory.get(), 500'003);
      other_reader.read(4, 0, again);
      CHECK(holds_pattern(again, 4, 0));
    }
  });
}
