#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../support/allocations.hpp"
#include "../support/leftovers.hpp"
#include "conformance.hpp"
#include "memory/host/available.hpp"
#include "memory/host/backend.hpp"
#include "memory/host/box.hpp"
#include "memory/host/convert.hpp"
#include "memory/host/queue.hpp"
#include "memory/host/region.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

class host_kind final : public memory_kind {
 public:
  memory::backend& backend() override { return *backend_; }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    void* const at = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
    return {static_cast<std::byte*>(at), std::free};
  }
  void write(std::byte* to, std::span<std::byte const> from) override {
    std::memcpy(to, from.data(), from.size());
  }
  void read(std::span<std::byte> to, std::byte const* from) override {
    std::memcpy(to.data(), from, to.size());
  }
  import_peer& peer() override { return peer_; }

 private:
  import_peer peer_{"host"};
  std::shared_ptr<memory::backend> backend_ = memory::host::make_backend();
};

errc import_error(unique_fd fd, std::uint64_t bytes) {
  try {
    (void)memory::host::import_region(std::move(fd), bytes);
  } catch (transfer_error const& error) {
    CHECK(error.code().category() == ropeway_category());
    return static_cast<errc>(error.code().value());
  }
  return errc::ok;
}

unique_fd memfd(std::uint64_t bytes, int seals, std::uint64_t there = ~std::uint64_t{0}) {
  unique_fd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  if (auto const reserved = std::min(bytes, there); reserved != 0)
    REQUIRE(::fallocate(fd.get(), 0, 0, static_cast<off_t>(reserved)) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

} // namespace

TEST_CASE("host memory conforms") {
  host_kind kind;
  for (conformance_case const& c : conformance_cases()) {
    SUBCASE(c.sentence) { c.run(kind); }
  }
}

TEST_CASE("a region can't be resized, punched, written or mapped writable through its descriptor") {
  auto made = memory::host::make_region(8192);
  std::memset(made.memory->data(), 7, 8192);
  int const fd = made.handle.get();
  CHECK(::ftruncate(fd, 0) != 0);
  CHECK(::ftruncate(fd, 16384) != 0);
  CHECK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
  CHECK(::pwrite(fd, "x", 1, 0) != 1);
  CHECK(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
  CHECK(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0);
  CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  for (std::size_t i = 0; i < 8192; ++i) REQUIRE(made.memory->data()[i] == std::byte{7});
}

TEST_CASE("an imported region can be read but never made writable") {
  auto made = memory::host::make_region(4096);
  made.memory->data()[0] = std::byte{1};
  auto const imported = memory::host::import_region(unique_fd(::dup(made.handle.get())), 4096);
  CHECK(imported->data() != made.memory->data());
  made.memory->data()[5] = std::byte{42};
  CHECK(imported->data()[5] == std::byte{42});
  CHECK(::mprotect(imported->data(), 4096, PROT_READ | PROT_WRITE) != 0);
}

TEST_CASE("descriptors that only look like a region are refused") {
  constexpr int sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
  CHECK(import_error(memfd(4096, sealed), 4096) == errc::ok);
  CHECK(import_error(memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 4096) == errc::ok);
  CHECK(import_error(memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW), 4096) == errc::bad_region);
  CHECK(import_error(memfd(4096, F_SEAL_GROW | F_SEAL_FUTURE_WRITE), 4096) == errc::bad_region);
  CHECK(import_error(memfd(4096, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE), 4096) == errc::bad_region);
  CHECK(import_error(memfd(4096, 0), 4096) == errc::bad_region);
  CHECK(import_error(memfd(4096, sealed), 4095) == errc::bad_region);
  CHECK(import_error(memfd(4096, sealed), 4097) == errc::bad_region);
  CHECK(import_error(memfd(0, sealed), 0) == errc::bad_region);
  CHECK(import_error(memfd(4096, sealed), std::uint64_t{1} << 63) == errc::bad_region);
  CHECK(import_error(unique_fd(), 4096) == errc::bad_region);
  CHECK(import_error(unique_fd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), 4096) == errc::bad_region);
  CHECK(import_error(unique_fd(::open("/", O_RDONLY | O_CLOEXEC)), 4096) == errc::bad_region);
}

TEST_CASE("memory that its maker has not reserved is refused, for reading it would allocate it here") {
  constexpr int sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
  constexpr std::uint64_t huge = std::uint64_t{1} << 42;
  CHECK(import_error(memfd(huge, sealed, 0), huge) == errc::bad_region);
  CHECK(import_error(memfd(8192, sealed, 4096), 8192) == errc::bad_region);
  CHECK(import_error(memfd(100, sealed, 0), 100) == errc::bad_region);
  CHECK(import_error(memfd(100, sealed), 100) == errc::ok);
}

TEST_CASE("host code says that it can't map device memory") {
  auto const backend = memory::host::make_backend();
  memory::device_uuid gpu{};
  gpu[0] = 0xab;
  CHECK_FALSE(backend->can_reach(gpu));
  CHECK(backend->can_reach({}));
  try {
    (void)backend->import_region(memfd(4096, 0), 4096, gpu);
    FAIL("imported");
  } catch (transfer_error const& error) {
    CHECK(error.code() == errc::not_reachable);
    CHECK(std::string(error.what()).find("GPU-ab000000-0000-0000-0000-000000000000") != std::string::npos);
  }
  CHECK(memory::to_string(memory::device_uuid{}) == "host");
  CHECK(backend->register_host(nullptr) == nullptr);
}

TEST_CASE("regions of no bytes are refused and others really have their memory") {
  CHECK_THROWS_AS(memory::host::make_region(0), transfer_error);
  auto const made = memory::host::make_region(10 << 20);
  struct stat about {};
  REQUIRE(::fstat(made.handle.get(), &about) == 0);
  CHECK(about.st_blocks * 512 >= 10 << 20);
}

TEST_CASE("available memory is a sensible number") {
  CHECK(memory::host::available_memory() > 1 << 20);
  CHECK(memory::host::available_memory() < std::uint64_t{1} << 50);
}

TEST_CASE("a host queue refuses what it can't do, and takes nothing of that list") {
  memory::host::host_queue made;
  memory::queue& queue = made;
  CHECK_THROWS_AS(queue.start_after(after(static_cast<CUstream_st*>(nullptr))), transfer_error);
  char source[16] = "source", target[16] = {};
  memory::copy_op good;
  good.from = reinterpret_cast<std::byte const*>(source);
  good.to = reinterpret_cast<std::byte*>(target);
  good.bytes = 6;
  auto refused = [&](memory::copy_op const& bad) {
    memory::copy_op const both[] = {good, bad};
    CHECK_THROWS_AS(queue.copy(both), transfer_error);
    REQUIRE(reaches(queue, queue.mark()));
    CHECK(target[0] == '\0');
  };
  auto bad = good;
  bad.to_where = device::cuda(0);
  refused(bad);
  bad = good;
  bad.from_where = device::cuda(0);
  refused(bad);
  bad = good;
  bad.convert = memory::conversion::f32_to_f16;
  refused(bad);
  bad = good;
  bad.rank = 9;
  refused(bad);
  bad = good;
  bad.rank = 1;
  bad.extent[0] = 1;
  bad.from_element = 4;
  bad.to_element = 2;
  refused(bad);
  bad.convert = memory::conversion::bf16_to_f32;
  refused(bad);
  bad.convert = static_cast<memory::conversion>(99);
  refused(bad);
  bad.convert = memory::conversion::none;
  bad.from_element = bad.to_element = 0;
  refused(bad);
  bad.from_element = bad.to_element = 2;
  bad.rank = 2;
  bad.extent[0] = bad.extent[1] = std::uint64_t{1} << 40;
  refused(bad);
  queue.copy({&good, 1});
  REQUIRE(reaches(queue, queue.mark()));
  CHECK(std::string(target) == "source");
}

TEST_CASE("all backends of the process come from one place") {
  auto const all = memory::system_backends();
  CHECK(all == memory::system_backends());
  CHECK(all->get(device::host()) == all->get(device::host()));
  if (all->cuda_devices().empty()) {
    CHECK_THROWS_AS(all->get(device::cuda(0)), transfer_error);
    CHECK_THROWS_AS(all->get(device::cuda(0)), transfer_error);
  } else {
    leaves_things_behind(); // the driver's descriptors
  }
}

// ---- conversions, against arithmetic that shares nothing with them

namespace {

double value(std::uint16_t bits, int exponent_bits) {
  int const mantissa_bits = 15 - exponent_bits;
  int const exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  int const mantissa = bits & ((1 << mantissa_bits) - 1);
  int const bias = (1 << (exponent_bits - 1)) - 1;
  double const magnitude = exponent == 0
                               ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// The nearest by looking at distances, in doubles, which hold all of these exactly. Infinity takes the place
// of the next value after the largest.
std::uint16_t nearest(float from, int exponent_bits) {
  auto const sign = static_cast<std::uint16_t>(std::signbit(from) ? 0x8000 : 0);
  int const infinity = ((1 << exponent_bits) - 1) << (15 - exponent_bits);
  double const wanted = std::fabs(static_cast<double>(from));
  int low = 0, high = infinity;
  if (std::isinf(from)) return static_cast<std::uint16_t>(sign | infinity);
  while (high - low > 1) {
    int const middle = (low + high) / 2;
    (value(static_cast<std::uint16_t>(middle), exponent_bits) <= wanted ? low : high) = middle;
  }
  double const below = wanted - value(static_cast<std::uint16_t>(low), exponent_bits);
  double const above = value(static_cast<std::uint16_t>(high), exponent_bits) - wanted;
  bool const up = above < below || (above == below && low % 2 == 1);
  return static_cast<std::uint16_t>(sign | (up ? high : low));
}

} // namespace

TEST_CASE("narrowing is to the nearest, ties to even, for a spread of all f32") {
  std::uint64_t wrong = 0;
  auto check_one = [&](std::uint32_t bits) {
    auto const number = std::bit_cast<float>(bits);
    auto const bf16 = memory::host::f32_to_bf16(bits), f16 = memory::host::f32_to_f16(bits);
    if (std::isnan(number)) {
      bool const signs = (bf16 & 0x8000) == (bits >> 31 << 15) && (f16 & 0x8000) == (bits >> 31 << 15);
      bool const quiet = (bf16 & 0x7fc0) == 0x7fc0 && (f16 & 0x7e00) == 0x7e00;
      bool const payload = (bf16 & 0x3f) == ((bits >> 16) & 0x3f) && (f16 & 0x1ff) == ((bits >> 13) & 0x1ff);
      wrong += !signs || !quiet || !payload;
    } else {
      wrong += bf16 != nearest(number, 8) || f16 != nearest(number, 5);
    }
  };
  for (std::uint64_t bits = 0; bits <= 0xffffffffU; bits += 12'289)
    check_one(static_cast<std::uint32_t>(bits));
  // Every f16 and bf16 value, half way to the next, and a bit beside.
  for (std::uint32_t i = 0; i < 65536; ++i) {
    for (std::uint32_t low : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) check_one(i << 16 | low);
    std::uint32_t const wide = memory::host::f16_to_f32(static_cast<std::uint16_t>(i));
    for (std::uint32_t add : {0U, 1U, 0xfffU, 0x1000U, 0x1001U, 0x1fffU}) check_one(wide + add);
  }
  CHECK(wrong == 0);
}

TEST_CASE("widening gives exactly the value, and back again the same bits") {
  std::uint64_t wrong = 0;
  for (std::uint32_t i = 0; i < 65536; ++i) {
    auto const bits = static_cast<std::uint16_t>(i);
    auto const from_bf16 = std::bit_cast<float>(memory::host::bf16_to_f32(bits));
    auto const from_f16 = std::bit_cast<float>(memory::host::f16_to_f32(bits));
    if ((bits & 0x7f80) != 0x7f80) wrong += static_cast<double>(from_bf16) != value(bits, 8);
    if ((bits & 0x7c00) != 0x7c00) wrong += static_cast<double>(from_f16) != value(bits, 5);
    wrong += std::isnan(from_bf16) != ((bits & 0x7fff) > 0x7f80) ||
             std::isnan(from_f16) != ((bits & 0x7fff) > 0x7c00);
    wrong += std::isinf(from_f16) != ((bits & 0x7fff) == 0x7c00);
    wrong += std::signbit(from_f16) != (bits >= 0x8000) || std::signbit(from_bf16) != (bits >= 0x8000);
    if (!std::isnan(from_f16))
      wrong += memory::host::f32_to_f16(std::bit_cast<std::uint32_t>(from_f16)) != bits;
    if (!std::isnan(from_bf16))
      wrong += memory::host::f32_to_bf16(std::bit_cast<std::uint32_t>(from_bf16)) != bits;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a host queue that is given one list at a time keeps room for one") {
  memory::host::host_queue made;
  memory::queue& queue = made;
  std::vector<std::byte> source(1024), target(1024);
  std::vector<memory::copy_op> list(64);
  for (std::size_t i = 0; i < list.size(); ++i) {
    list[i].from = source.data() + 16 * i;
    list[i].to = target.data() + 16 * i;
    list[i].bytes = 16;
  }
  auto const carry_out = [&] {
    auto const before = allocations_of_this_thread();
    queue.copy(list);
    auto const after = allocations_of_this_thread();
    REQUIRE(reaches(queue, queue.mark()));
    return after - before;
  };
  carry_out();
  for (int i = 0; i < 20; ++i) CHECK(carry_out() == 0);
}
