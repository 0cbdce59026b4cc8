#include <doctest/doctest.h>

#include <cerrno>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.hpp"
#include "sandbox.hpp"
#include "ways.hpp"

using namespace ropeway;
using namespace ropeway::test;

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

TEST_CASE("where no memory may be locked a checkpoint is read all the same") {
  scratch const here;
  write_pattern(here / "x.safetensors", odd);
  int const result = in_child([&] {
    rlimit const none{0, 0};
    if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0) return 1;
    // Root may lock what it likes; as another user it might not get here, if this is below /root.
    if (!drop_capability(CAP_IPC_LOCK)) return 2;
    auto const model = checkpoint::open(here / "x.safetensors");
    for (auto const backend : {io_backend::automatic, io_backend::pread}) {
      checkpoint_reader reader(model, read_options().backend(backend));
      std::vector<std::byte> bytes(3'000'001);
      reader.read(0, 0, bytes);
      if (!holds_pattern(bytes, 0, 0)) return 3;
    }
    return 0;
  });
  CHECK(result == 0);
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
