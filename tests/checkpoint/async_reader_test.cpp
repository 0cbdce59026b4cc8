#include <doctest/doctest.h>

#include <algorithm>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/experimental/awaitable_operators.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>
#include <exception>
#include <optional>

#include "files.hpp"
#include "ropeway/checkpoint_async.hpp"
#include "support/sanitized.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

constexpr std::uint64_t large = 24 << 20;

struct fixture {
  scratch here;
  asio::io_context io;
  std::optional<checkpoint> model;

  fixture() {
    std::vector<tensor_info> const tensors = {
        {"large", dtype::u8, {large}}, {"odd", dtype::u8, {300'001}}, {"empty", dtype::u8, {0}}};
    write_pattern(here / "x.safetensors", tensors);
    model = checkpoint::open(here / "x.safetensors");
  }
  // Runs until nothing is left to do: an operation that never ends, or work that is left over, shows as a
  // hang.
  void run(asio::awaitable<void> body) {
    std::exception_ptr thrown;
    asio::co_spawn(io, std::move(body), [&](std::exception_ptr error) { thrown = error; });
    io.run();
    io.restart();
    if (thrown) std::rethrow_exception(thrown);
  }
};

std::vector<io_backend> ways(checkpoint const& model) {
  checkpoint_reader const probe(model);
  if (probe.backend() == io_backend::pread) return {io_backend::pread};
  return {io_backend::io_uring, io_backend::pread};
}

asio::awaitable<void> read_one(async_checkpoint_reader& reader, std::size_t tensor,
                               std::vector<std::byte>& into) {
  co_await reader.read(tensor, 0, into);
}

asio::awaitable<void> next_turn(int turns) {
  for (int i = 0; i < turns; ++i) co_await asio::post(asio::use_awaitable);
}

asio::awaitable<void> read_together(async_checkpoint_reader& reader,
                                    std::vector<std::vector<std::byte>>& memory) {
  using namespace asio::experimental::awaitable_operators;
  co_await (read_one(reader, 0, memory[0]) && read_one(reader, 1, memory[1]) &&
            read_one(reader, 2, memory[2]));
}

asio::awaitable<void> read_or_turn(async_checkpoint_reader& reader, int turns, bool& was_read) {
  using namespace asio::experimental::awaitable_operators;
  std::byte const guard{0xA5};
  std::vector<std::byte> memory(large);
  auto const won = co_await (read_one(reader, 0, memory) || next_turn(turns));
  was_read = won.index() == 0;
  std::fill(memory.begin(), memory.end(),
            guard); // it is ours again; the next reads follow what was in flight
  std::vector<std::byte> again(300'001);
  co_await reader.read(1, 0, again);
  CHECK(holds_pattern(again, 1, 0));
  CHECK(std::all_of(memory.begin(), memory.end(), [&](std::byte b) { return b == guard; }));
}

asio::awaitable<void> expect_error(async_checkpoint_reader& reader, std::size_t tensor, std::uint64_t offset,
                                   std::size_t size, std::error_code expected, std::string& message) {
  std::vector<std::byte> memory(size);
  try {
    co_await reader.read(tensor, offset, memory);
    FAIL("nothing was thrown");
  } catch (std::system_error const& error) {
    CHECK(error.code() == expected);
    message = error.what();
  }
}

asio::awaitable<void> destroy(std::optional<async_checkpoint_reader>& reader) {
  co_await asio::post(asio::use_awaitable);
  reader.reset();
}

asio::awaitable<void> read_while_destroyed(std::optional<async_checkpoint_reader>& reader) {
  using namespace asio::experimental::awaitable_operators;
  std::string message;
  co_await (expect_error(*reader, 0, 0, large, asio::error::operation_aborted, message) && destroy(reader));
}

asio::awaitable<void> own_reader(checkpoint model, read_options options, bool& started) {
  std::vector<std::byte> memory(large);
  async_checkpoint_reader reader(co_await asio::this_coro::executor, model, options);
  started = true;
  co_await reader.read(0, 0, memory);
}

} // namespace

TEST_CASE("coroutines read at the same time on one thread") {
  fixture f;
  for (io_backend backend : ways(*f.model)) {
    CAPTURE(to_string(backend));
    async_checkpoint_reader reader(f.io.get_executor(), *f.model, read_options().backend(backend));
    CHECK(reader.backend() == backend);
    std::vector<std::vector<std::byte>> memory = {
        std::vector<std::byte>(large), std::vector<std::byte>(300'001), {}};
    for (int round = 0; round < 3; ++round) {
      for (auto& each : memory) std::fill(each.begin(), each.end(), std::byte{0});
      f.run(read_together(reader, memory));
      for (std::size_t i = 0; i < 3; ++i) CHECK(holds_pattern(memory[i], i, 0));
    }
    // One thread of pread's may take one request after the other before the next one runs.
    if (backend == io_backend::io_uring) CHECK(reader.max_in_flight_seen() > 1);
  }
}

TEST_CASE("a cancelled read completes when nothing touches its memory any more, and the reader goes on") {
  fixture f;
  for (io_backend backend : ways(*f.model)) {
    CAPTURE(to_string(backend));
    async_checkpoint_reader reader(f.io.get_executor(), *f.model,
                                   read_options().backend(backend).queue_depth(2));
    for (int turns = 0; turns < 12; turns += testing::sanitized ? 3 : 1) {
      bool was_read = true;
      f.run(read_or_turn(reader, turns, was_read));
      if (turns == 0) CHECK_FALSE(was_read);
    }
  }
}

TEST_CASE("the errors of the blocking reader are thrown to the coroutine, with their words") {
  fixture f;
  for (io_backend backend : ways(*f.model)) {
    CAPTURE(to_string(backend));
    std::string message;
    async_checkpoint_reader reader(f.io.get_executor(), *f.model, read_options().backend(backend));
    f.run(expect_error(reader, 1, 1, 300'001, errc::invalid_argument, message));
    f.run(expect_error(reader, 3, 0, 1, errc::invalid_argument, message));
    std::filesystem::resize_file(f.here / "x.safetensors", 1'000'000);
    f.run(expect_error(reader, 0, 0, large, errc::bad_checkpoint, message));
    CHECK(contains(message, "ends at byte 1000000, before tensor \"large\" does"));
  }
}

TEST_CASE("a reader that is destroyed ends its reads with operation_aborted") {
  fixture f;
  for (io_backend backend : ways(*f.model)) {
    std::optional<async_checkpoint_reader> reader;
    reader.emplace(f.io.get_executor(), *f.model, read_options().backend(backend));
    f.run(read_while_destroyed(reader));
    CHECK_FALSE(reader);
  }
}

TEST_CASE("an event loop that is destroyed in the middle of a read leaves nothing behind") {
  scratch const here;
  std::vector<tensor_info> const tensors = {{"large", dtype::u8, {large}}};
  write_pattern(here / "x.safetensors", tensors);
  auto const model = checkpoint::open(here / "x.safetensors");
  for (io_backend backend : ways(model)) {
    asio::io_context io;
    bool started = false;
    read_options const options = read_options().backend(backend).queue_depth(2);
    asio::co_spawn(io, own_reader(model, options, started), asio::detached);
    io.poll_one();
    while (!started) io.run_one();
  } // under the address sanitizer a leak, or a write to freed memory, would show
}
