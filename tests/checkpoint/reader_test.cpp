#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <random>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.hpp"
#include "sandbox.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

// Whether this system has io_uring: told by the library itself, whose refusal another test looks at.
bool has_io_uring() {
  scratch const here;
  write_pattern(here / "x.safetensors", {});
  try {
    checkpoint_reader(checkpoint::open(here / "x.safetensors"), read_options().backend(io_backend::io_uring));
    return true;
  } catch (transfer_error const& error) {
    MESSAGE("not tested: " << error.what());
    return false;
  }
}

std::vector<io_backend> backends() {
  static bool const uring = has_io_uring();
  if (uring) return {io_backend::io_uring, io_backend::pread};
  return {io_backend::pread};
}

// A few megabytes in tensors of odd sizes, so that none but the first is aligned to anything.
std::vector<tensor_info> const odd = {
    {"large", dtype::u8, {3'000'001}}, {"tiny", dtype::u8, {7}},         {"empty", dtype::u8, {0}},
    {"block", dtype::u8, {4096}},      {"middle", dtype::u8, {500'003}}, {"last", dtype::u8, {1'048'576}},
};

// `call` for every backend, with and without the page cache.
template <class Call>
void for_each_way(Call call) {
  for (io_backend backend : backends())
    for (bool direct : {true, false}) {
      CAPTURE(to_string(backend));
      CAPTURE(direct);
      read_options options;
      options.backend(backend).direct(direct).queue_depth(8);
      call(options);
    }
}

} // namespace

TEST_CASE("any range arrives exactly, wherever it goes to") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  auto const model = checkpoint::open(here / "x.safetensors");
  for_each_way([&](read_options const& options) {
    checkpoint_reader reader(model, options);
    CHECK(reader.backend() == options.backend());
    std::mt19937_64 random(7);
    std::byte const guard{0xA5};
    for (int round = 0; round < 60; ++round) {
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

TEST_CASE("where io_uring is refused, automatic falls back and io_uring says why") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  for (int error : {EPERM, ENOSYS, ENOMEM}) {
    int const result = in_child([&] {
      refuse_call(SYS_io_uring_setup, error);
      auto const model = checkpoint::open(here / "x.safetensors");
      auto const force = [&] { checkpoint_reader(model, read_options().backend(io_backend::io_uring)); };
      std::error_code const code = code_of(force);
      if (code != std::error_code(error, std::system_category()) && code != std::errc::function_not_supported)
        return 1;
      if (!contains(message_of(force), "use the pread backend")) return 2;
      checkpoint_reader reader(model);
      if (reader.backend() != io_backend::pread) return 3;
      std::vector<std::byte> bytes(3'000'001);
      reader.read(0, 0, bytes);
      return holds_pattern(bytes, 0, 0) ? 0 : 4;
    });
    CHECK(result == 0);
  }
}

TEST_CASE("where O_DIRECT is refused the page cache serves") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  int const result = in_child([&] {
    refuse_call(SYS_openat, EINVAL, 2, O_DIRECT);
    checkpoint_reader reader(checkpoint::open(here / "x.safetensors"));
    if (reader.direct()) return 1;
    std::vector<std::byte> bytes(500'003);
    reader.read(4, 0, bytes);
    return holds_pattern(bytes, 4, 0) ? 0 : 2;
  });
  CHECK(result == 0);
}

TEST_CASE("a file that shrinks after it was opened is an error, not a hang") {
  for_each_way([](read_options const& options) {
    scratch const here;
    auto const path = here / "x.safetensors";
    write_pattern(path, odd);
    auto const model = checkpoint::open(path);
    checkpoint_reader reader(model, options);
    std::vector<std::byte> bytes(3'000'001);
    std::filesystem::resize_file(path, 1'000'001);
    auto const read = [&] { reader.read(0, 0, bytes); };
    CHECK(code_of(read) == errc::bad_checkpoint);
    CHECK(contains(message_of(read),
                   "x.safetensors: ends at byte 1000001, before tensor \"large\" does; it shrank"));
    CHECK(code_of([&] { reader.read(5, 0, std::span(bytes).first(100)); }) == errc::bad_checkpoint);
    // What is still there can be read.
    reader.read(0, 5, std::span(bytes).first(900'000));
    CHECK(holds_pattern(std::span(bytes).first(900'000), 0, 5));
  });
}

TEST_CASE("a file that is replaced after it was opened is read as it was") {
  for_each_way([](read_options const& options) {
    scratch const here;
    auto const path = here / "x.safetensors";
    write_pattern(path, odd);
    auto const model = checkpoint::open(path);
    std::vector<tensor_info> turned(odd.rbegin(), odd.rend());
    write_pattern(path, turned);
    checkpoint_reader reader(model, options);
    std::vector<std::byte> bytes(500'003);
    reader.read(4, 0, bytes);
    CHECK(holds_pattern(bytes, 4, 0));
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
      std::vector<std::byte> gone(3'000'001);
      for (int i = 0; i < 50; ++i) reader.start(0, 0, gone);
      reader.cancel();
    }
    CHECK(reader.pending() == 0);
    CHECK_FALSE(reader.poll());
    {
      std::vector<std::byte> gone(3'000'001);
      checkpoint_reader other_reader(checkpoint::open(here / "x.safetensors"), options);
      for (int i = 0; i < 50; ++i) other_reader.start(0, 0, gone);
      other_reader = std::move(reader); // the destructor waits for what is in flight
      other_reader.read(4, 0, std::span(gone).first(500'003));
      CHECK(holds_pattern(std::span(gone).first(500'003), 4, 0));
    }
  });
}

TEST_CASE("ranges that a tensor does not have, and depths that make no sense, are refused") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  auto const model = checkpoint::open(here / "x.safetensors");
  checkpoint_reader reader(model);
  std::vector<std::byte> bytes(8);
  CHECK(code_of([&] { reader.start(6, 0, bytes); }) == errc::invalid_argument);
  CHECK(code_of([&] { reader.start(1, 0, bytes); }) == errc::invalid_argument);
  CHECK(code_of([&] { reader.start(1, ~std::uint64_t{0}, bytes); }) == errc::invalid_argument);
  CHECK(contains(message_of([&] { reader.start(1, 0, bytes); }),
                 "8 bytes from byte 0 of tensor \"tiny\", which has 7"));
  CHECK(reader.pending() == 0);
  for (std::uint32_t depth : {0u, 65u})
    CHECK(code_of([&] { checkpoint_reader(model, read_options().queue_depth(depth)); }) ==
          errc::invalid_argument);
}

TEST_CASE("read_into fills tensors by name, and reports all that does not fit before a byte moves") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  auto const model = checkpoint::open(here / "x.safetensors");
  std::vector<std::byte> block(4096), middle(500'003);
  std::vector<mutable_tensor_view> views;
  views.emplace_back("middle", dtype::u8, shape{500'003}, middle.data());
  views.emplace_back("block", dtype::u8, shape{4096}, block.data());
  read_into(model, views);
  CHECK(holds_pattern(block, 3, 0));
  CHECK(holds_pattern(middle, 4, 0));

  std::fill(block.begin(), block.end(), std::byte{0});
  std::vector<mutable_tensor_view> wrong = views;
  wrong.emplace_back("tiny", dtype::i8, shape{7}, block.data());
  wrong.emplace_back("block", dtype::u8, shape{64, 64}, block.data());
  wrong.emplace_back("absent", dtype::u8, shape{1}, block.data());
  auto const read = [&] { read_into(model, wrong); };
  CHECK(code_of(read) == errc::destination_mismatch);
  std::string const message = message_of(read);
  CHECK(contains(message, "tensor \"tiny\" is U8 [7] in the checkpoint and I8 [7] here"));
  CHECK(contains(message, "tensor \"block\" is U8 [4096] in the checkpoint and U8 [64, 64] here"));
  CHECK(contains(message, "tensor \"absent\" is not in the checkpoint"));
  CHECK(block[0] == std::byte{0});

  std::vector<mutable_tensor_view> strided;
  strided.emplace_back("block", dtype::u8, shape{64, 64}, block.data());
  strided.back().strides({1, 64});
  CHECK(code_of([&] { read_into(model, strided); }) == errc::unsupported);
}
