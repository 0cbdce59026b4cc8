// Shared device memory beyond what all kinds of memory have in common.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "../conformance.hpp"
#include "kit.hpp"
#include "memory/host/backend.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

errc import_error(memory::backend& backend, unique_fd handle, std::uint64_t bytes = 1 << 20) {
  try {
    (void)backend.import_region(std::move(handle), bytes, backend.uuid());
    return errc::ok;
  } catch (transfer_error const& error) {
    MESSAGE(std::string(error.what()));
    return static_cast<errc>(error.code().value());
  }
}

std::size_t free_bytes() {
  kit& g = kit::device(0);
  current here(g);
  std::size_t free = 0, total = 0;
  g.check(g.table->cuMemGetInfo(&free, &total), "cuMemGetInfo");
  return free;
}

unique_fd again(unique_fd const& fd) { return unique_fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

} // namespace

TEST_CASE("descriptors that are no device memory are refused as bad regions") {
  auto const backend = memory::cuda::make_backend(0);
  CHECK(import_error(*backend, unique_fd(::memfd_create("no", MFD_CLOEXEC))) == errc::bad_region);
  auto host = memory::host::make_backend()->make_region(1 << 20);
  CHECK(import_error(*backend, std::move(host.handle)) == errc::bad_region);
  CHECK(import_error(*backend, unique_fd(::eventfd(0, EFD_CLOEXEC))) == errc::bad_region);
  CHECK(import_error(*backend, unique_fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))) ==
        errc::bad_region);
  CHECK(import_error(*backend, unique_fd(::open("/", O_RDONLY | O_CLOEXEC))) == errc::bad_region);
  CHECK(import_error(*backend, unique_fd(::open("/dev/zero", O_RDWR | O_CLOEXEC))) == errc::bad_region);
  CHECK(import_error(*backend, unique_fd(::open("/dev/nvidiactl", O_RDWR | O_CLOEXEC))) == errc::bad_region);
  CHECK(import_error(*backend, unique_fd()) == errc::bad_region);
  // The device is none the worse for it.
  auto made = backend->make_region(1 << 20);
  CHECK(import_error(*backend, std::move(made.handle)) == errc::ok);
}

TEST_CASE("a region of another size than was said is refused") {
  auto const backend = memory::cuda::make_backend(0);
  auto made = backend->make_region(8 << 20);
  CHECK(import_error(*backend, again(made.handle), 16 << 20) == errc::bad_region);
  CHECK(import_error(*backend, again(made.handle), 4 << 20) == errc::bad_region);
  CHECK(import_error(*backend, again(made.handle), 8 << 20) == errc::ok);
}

TEST_CASE("an imported region is the same memory, and regions give everything back") {
  auto const backend = memory::cuda::make_backend(0);
  kit& g = kit::device(0);
  { auto warm = backend->make_region(1 << 20); }
  auto const before = free_bytes();
  for (int i = 0; i < 20; ++i) {
    auto made = backend->make_region(100'000'001);
    CHECK(made.memory->size() == 100'000'001);
    auto const seen = backend->import_region(std::move(made.handle), 100'000'001, backend->uuid());
    CHECK(seen->data() != made.memory->data());
    CHECK(seen->where() == backend->where());
    auto const content = pattern(1000, static_cast<std::uint64_t>(i));
    g.write(made.memory->data() + 99'999'001, content);
    std::vector<std::byte> read(1000);
    made.memory.reset(); // the importer keeps it alive
    g.read(read, seen->data() + 99'999'001);
    CHECK(read == content);
  }
  CHECK(free_bytes() == before);
}

TEST_CASE("too large a region says what was asked for and what is free, and leaves nothing behind") {
  auto const backend = memory::cuda::make_backend(0);
  auto const before = free_bytes();
  std::uint64_t const bytes = before + (std::uint64_t{1} << 30);
  try {
    (void)backend->make_region(bytes);
    FAIL("more memory than there is was given out");
  } catch (transfer_error const& error) {
    MESSAGE(std::string(error.what()));
    CHECK(error.code() == errc::out_of_memory);
    CHECK(std::string(error.what()).find(std::to_string(bytes)) != std::string::npos);
    CHECK(std::string(error.what()).find("free") != std::string::npos);
  }
  CHECK(free_bytes() == before);
  CHECK_THROWS_AS(backend->make_region(0), transfer_error);
  CHECK_THROWS_AS(backend->make_region(~std::uint64_t{0}), transfer_error);
}

TEST_CASE("a device reaches itself and unknown GPUs, not the host") {
  auto const backend = memory::cuda::make_backend(0);
  CHECK(backend->can_reach(backend->uuid()));
  CHECK_FALSE(backend->can_reach({}));
  memory::device_uuid unknown{};
  unknown.fill(9);
  CHECK(backend->can_reach(unknown));
  auto made = backend->make_region(4096);
  CHECK_THROWS_AS(backend->import_region(std::move(made.handle), 4096, {}), transfer_error);
}

TEST_CASE("devices that do not exist are refused with a reason") {
  try {
    (void)memory::cuda::make_backend(4096);
    FAIL("there is no such device");
  } catch (transfer_error const& error) {
    MESSAGE(std::string(error.what()));
    CHECK(error.code() == errc::no_device);
  }
  CHECK_THROWS_AS(memory::cuda::make_backend(-1), transfer_error);
  CHECK(memory::cuda::visible_devices().at(0) == memory::cuda::make_backend(0)->uuid());
}

TEST_CASE("host rings are registered, a peer's read-only view too, and let go") {
  auto const backend = memory::cuda::make_backend(0);
  auto const host = memory::host::make_backend();
  kit& g = kit::device(0);
  std::size_t const bytes = 4 << 20;
  auto made = host->make_region(bytes);
  auto const content = pattern(bytes, 5);
  std::copy(content.begin(), content.end(), made.memory->data());
  auto const view = host->import_region(again(made.handle), bytes, {});
  auto const target = g.allocate(bytes);
  auto const queue = backend->make_queue();
  for (auto const& ring : {made.memory, view}) {
    for (bool registered : {false, true, false}) {
      auto const pin = registered ? backend->register_host(ring) : nullptr;
      if (registered) MESSAGE((ring == view ? "view" : "ring"), " registered: ", pin != nullptr);
      g.write(target.get(), std::vector<std::byte>(bytes));
      memory::copy_op op;
      std::vector<memory::copy_op> ops;
      for (std::size_t at = 0; at < bytes; at += 100'000) { // large ones and a small one
        op.from = ring->data() + at, op.to = target.get() + at;
        op.bytes = std::min<std::size_t>(100'000, bytes - at);
        op.to_where = device::cuda(0);
        ops.push_back(op);
      }
      op.from = ring->data(), op.to = target.get(), op.bytes = 1000;
      ops[0].from += 1000, ops[0].to += 1000, ops[0].bytes -= 1000;
      ops.push_back(op);
      queue->copy(ops);
      REQUIRE(reaches(*queue, queue->mark()));
      std::vector<std::byte> seen(bytes);
      g.read(seen, target.get());
      CHECK(seen == content);
    }
  }
  {
    auto const pin = backend->register_host(view);
    memory::copy_op op;
    op.from = target.get(), op.to = view->data(), op.bytes = 1000, op.from_where = device::cuda(0);
    CHECK_THROWS_AS(queue->copy({&op, 1}), transfer_error); // and not a fault on the device
    REQUIRE(reaches(*queue, queue->mark()));
  }
  CHECK(backend->register_host(nullptr) == nullptr);
  CHECK(backend->register_host(backend->make_region(4096).memory) == nullptr);
}
