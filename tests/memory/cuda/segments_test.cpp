// Device memory of the application's own: found, exported, and mapped by another process.
#include <doctest/doctest.h>

#include <algorithm>
#include <fcntl.h>
#include <functional>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "../../support/allocations.hpp"
#include "../conformance.hpp"
#include "kit.hpp"
#include "memory/host/backend.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::allocation;
using memory::part_handle;
using memory::part_kind;

namespace {

constexpr std::uint64_t mib = 1 << 20;

// Virtual memory as expandable segments are: allocations mapped one behind the other.
class chunks {
 public:
  chunks(kit& g, std::vector<std::uint64_t> const& sizes, bool shareable = true, std::uint64_t more = 0)
      : g_(g), shareable_(shareable) {
    for (std::uint64_t const bytes : sizes) total_ += bytes;
    reserved_ = total_ + more;
    current here(g_);
    g_.check(g_.table->cuMemAddressReserve(&begin_, reserved_, 0, 0, 0), "reserve");
    std::uint64_t at = 0;
    for (std::uint64_t const bytes : sizes) {
      parts_.push_back({at, bytes, 0});
      make(parts_.back());
      at += bytes;
    }
  }
  ~chunks() {
    current here(g_);
    for (part& one : parts_) drop(one);
    (void)g_.table->cuMemAddressFree(begin_, reserved_);
  }
  chunks(chunks const&) = delete;
  chunks& operator=(chunks const&) = delete;

  std::byte* data(std::uint64_t at = 0) const { return reinterpret_cast<std::byte*>(begin_) + at; }
  std::uint64_t size() const { return total_; }
  void make_anew(std::size_t index) {
    current here(g_);
    drop(parts_[index]);
    make(parts_[index]);
  }

 private:
  struct part {
    std::uint64_t at, bytes;
    CUmemGenericAllocationHandle handle;
  };
  void make(part& one) {
    CUmemAllocationProp wanted{};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wanted.location.id = g_.id;
    if (shareable_) wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    g_.check(g_.table->cuMemCreate(&one.handle, one.bytes, &wanted, 0), "cuMemCreate");
    g_.check(g_.table->cuMemMap(begin_ + one.at, one.bytes, 0, one.handle, 0), "cuMemMap");
    CUmemAccessDesc access{};
    access.location = wanted.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    g_.check(g_.table->cuMemSetAccess(begin_ + one.at, one.bytes, &access, 1), "cuMemSetAccess");
  }
  void drop(part const& one) {
    (void)g_.table->cuMemUnmap(begin_ + one.at, one.bytes);
    (void)g_.table->cuMemRelease(one.handle);
  }

  kit& g_;
  bool shareable_;
  CUdeviceptr begin_ = 0;
  std::uint64_t total_ = 0, reserved_ = 0;
  std::vector<part> parts_;
};

std::shared_ptr<memory::backend> const& gpu() {
  static auto const made = memory::cuda::make_backend(0);
  return made;
}

// Has imported and looked at something before, so that what it takes from the device from now on is segments.
import_peer& peer() {
  static import_peer started("cuda:0");
  static bool const warm = [] {
    auto const made = gpu()->make_region(4096);
    (void)started.import(made.handle.get(), 4096, gpu()->uuid());
    return started.let_go().error.empty();
  }();
  CHECK(warm);
  return started;
}

errc error_of(std::function<void()> const& what) {
  try {
    what();
    return errc::ok;
  } catch (transfer_error const& error) {
    MESSAGE(std::string(error.what()));
    return static_cast<errc>(error.code().value());
  }
}

// The parts of a range, allocation by allocation, as an update finds them.
std::vector<part_handle> parts_of(memory::backend& backend, std::byte const* begin, std::uint64_t bytes) {
  std::vector<part_handle> parts;
  for (std::byte const* at = begin; at < begin + bytes;) {
    allocation const found = backend.find_allocation(at);
    parts.push_back(backend.export_allocation(found));
    at = found.begin + found.bytes;
  }
  return parts;
}

part_handle again(part_handle const& part) {
  part_handle out;
  out.kind = part.kind;
  out.bytes = part.bytes;
  out.legacy = part.legacy;
  if (part.fd) out.fd.reset(::fcntl(part.fd.get(), F_DUPFD_CLOEXEC, 0));
  return out;
}

std::shared_ptr<memory::region> import_here(std::span<part_handle const> parts, std::uint64_t bytes) {
  auto importer =
      gpu()->start_import(parts[0].kind, bytes, static_cast<std::uint32_t>(parts.size()), gpu()->uuid());
  for (part_handle const& part : parts) importer->add(again(part));
  return importer->finish();
}

std::size_t free_bytes() {
  kit& g = kit::device(0);
  current here(g);
  std::size_t free = 0, total = 0;
  g.check(g.table->cuMemGetInfo(&free, &total), "cuMemGetInfo");
  return free;
}

} // namespace

TEST_CASE("every kind of memory is told from the others") {
  kit& g = kit::device(0);
  auto find = [](std::byte const* at) { return gpu()->find_allocation(at); };
  auto const plain = g.allocate(10 * mib);
  allocation const found = find(plain.get() + 5 * mib);
  CHECK(found.kind == part_kind::cuda_legacy);
  CHECK(found.begin == plain.get());
  CHECK(found.bytes == 10 * mib);
  CHECK(found.where == device::cuda(0));
  CHECK(found.identity != 0);
  CHECK(find(plain.get() + 10 * mib - 1).identity == found.identity);

  chunks const run(g, {4 * mib, 2 * mib, 6 * mib}, true, 2 * mib);
  allocation const first = find(run.data()), second = find(run.data(4 * mib)),
                   third = find(run.data(12 * mib - 1));
  CHECK(first.kind == part_kind::cuda_memory);
  CHECK(first.begin == run.data());
  CHECK(first.bytes == 4 * mib);
  CHECK(first.where == device::cuda(0));
  CHECK(second.begin == run.data(4 * mib));
  CHECK(second.bytes == 2 * mib);
  CHECK(third.begin == run.data(6 * mib));
  CHECK(third.bytes == 6 * mib);
  CHECK(first.identity != second.identity);
  CHECK(second.identity != third.identity);
  CHECK(find(run.data(4 * mib - 1)).identity == first.identity);
  auto const made = gpu()->make_region(3 * mib);
  CHECK(find(made.memory->data()).kind == part_kind::cuda_memory);

  auto is_none = [&](char const* name, std::byte const* at, std::string const& words) {
    CAPTURE(name);
    allocation const none = find(at);
    MESSAGE(name, ": it is ", none.why_not);
    CHECK(none.kind == part_kind::none);
    CHECK(std::string(none.why_not).find(words) != std::string::npos);
    CHECK(error_of([&] { (void)gpu()->export_allocation(none); }) == errc::not_reachable);
  };
  is_none("behind the last chunk", run.data(12 * mib), "");
  is_none("a pool's", g.allocate_from_pool(mib).get(), "pool");
  is_none("managed", g.allocate_managed(mib).get(), "managed");
  is_none("pinned", g.allocate_pinned(mib).get(), "host memory");
  std::vector<std::byte> pageable(100);
  is_none("pageable", pageable.data(), "host memory");
  is_none("null", nullptr, "host memory");
  chunks const own(g, {2 * mib}, false);
  is_none("not shareable", own.data(), "without a shareable handle");
  auto const exported = parts_of(*gpu(), run.data(), run.size());
  auto const imported = import_here(exported, run.size());
  is_none("imported", imported->data() + 5 * mib, "another process");
}

TEST_CASE("finding an allocation leaves the context alone and allocates nothing") {
  kit& g = kit::device(0);
  auto const plain = g.allocate(mib);
  chunks const run(g, {2 * mib});
  allocation const known[] = {gpu()->find_allocation(plain.get()), gpu()->find_allocation(run.data())};
  std::size_t const before = allocations_of_this_thread();
  CUcontext now = nullptr;
  bool there = true;
  for (int i = 0; i < 100; ++i) {
    (void)gpu()->find_allocation(plain.get());
    (void)gpu()->find_allocation(run.data());
    (void)gpu()->find_allocation(nullptr);
    there = there && gpu()->are_there(known);
  }
  CHECK(allocations_of_this_thread() == before);
  CHECK(there);
  CHECK(g.more.cuCtxGetCurrent(&now) == CUDA_SUCCESS);
  CHECK(now == nullptr);
}

TEST_CASE("another process maps allocations side by side, and keeps them") {
  kit& g = kit::device(0);
  (void)peer().let_go();
  std::vector<std::byte> content;
  {
    chunks const run(g, {4 * mib, 2 * mib, 6 * mib});
    content = pattern(run.size(), 11);
    g.write(run.data(), content);
    auto parts = parts_of(*gpu(), run.data(), run.size());
    CHECK(parts.size() == 3);
    auto answer = peer().import(parts, run.size(), gpu()->uuid());
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(content));
    parts.clear();
    auto const later = pattern(2 * mib, 12); // over both borders
    std::copy(later.begin(), later.end(), content.begin() + 3 * mib);
    g.write(run.data(3 * mib), later);
    CHECK(peer().look_again().hash == hash_of(content));
  }
  auto answer = peer().look_again();
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(content));
  // Other processes come and go meanwhile, so only what changes here and now counts.
  auto const held = free_bytes();
  CHECK(peer().let_go().error == "");
  CHECK(free_bytes() >= held + 12 * mib);
}

TEST_CASE("a chunk that is freed and made anew has another identity, and only the new one is exported") {
  kit& g = kit::device(0);
  chunks run(g, {2 * mib, 2 * mib});
  auto const content = pattern(run.size(), 13);
  g.write(run.data(), content);
  REQUIRE(peer().import(parts_of(*gpu(), run.data(), run.size()), run.size(), gpu()->uuid()).error == "");
  allocation const old = gpu()->find_allocation(run.data(2 * mib)),
                   other = gpu()->find_allocation(run.data());
  run.make_anew(1);
  allocation const now = gpu()->find_allocation(run.data(2 * mib));
  CHECK(now.begin == old.begin);
  CHECK(now.bytes == old.bytes);
  CHECK(now.identity != old.identity);
  CHECK(gpu()->find_allocation(run.data()).identity == other.identity);
  CHECK(gpu()->are_there({&other, 1}));
  CHECK_FALSE(gpu()->are_there({&old, 1}));
  allocation const kept[] = {other, now};
  CHECK(gpu()->are_there(kept));
  CHECK(error_of([&] { (void)gpu()->export_allocation(old); }) == errc::not_reachable);
  auto const anew = pattern(2 * mib, 14);
  g.write(run.data(2 * mib), anew);
  CHECK(peer().look_again().hash == hash_of(content)); // the old memory, as it was
  auto expected = content;
  std::copy(anew.begin(), anew.end(), expected.begin() + 2 * mib);
  auto const answer = peer().import(parts_of(*gpu(), run.data(), run.size()), run.size(), gpu()->uuid());
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(expected));
  (void)peer().let_go();
}

TEST_CASE("another process maps what cudaMalloc made, and keeps it") {
  kit& g = kit::device(0);
  (void)peer().let_go();
  auto const before = free_bytes();
  auto const content = pattern(40 * mib + 1000, 15);
  allocation old;
  {
    auto const plain = g.allocate(content.size());
    g.write(plain.get(), content);
    old = gpu()->find_allocation(plain.get());
    auto const parts = parts_of(*gpu(), plain.get(), content.size());
    CHECK(parts.size() == 1);
    auto answer = peer().import(parts, content.size(), gpu()->uuid());
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(content));
    // Opened once more, it would be the old mapping, whatever the memory is by then.
    answer = peer().import(parts, content.size(), gpu()->uuid());
    MESSAGE(answer.error);
    CHECK(answer.error.find("still mapped") != std::string::npos);
    (void)peer().let_go();
    answer = peer().import(parts, content.size(), gpu()->uuid());
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(content));
  }
  CHECK(peer().look_again().hash == hash_of(content));
  CHECK(error_of([&] { (void)gpu()->export_allocation(old); }) == errc::not_reachable);
  CHECK_FALSE(gpu()->are_there({&old, 1}));
  // At the same address, as a rule; the new bytes arrive while the old memory is still mapped, or the handle
  // is refused.
  auto const anew = g.allocate(content.size());
  auto const other = pattern(content.size(), 16);
  g.write(anew.get(), other);
  allocation const now = gpu()->find_allocation(anew.get());
  MESSAGE("made anew at the same address: ", now.begin == old.begin);
  CHECK(now.identity != old.identity);
  CHECK(gpu()->are_there({&now, 1}));
  CHECK_FALSE(gpu()->are_there({&old, 1}));
  if (now.begin == old.begin)
    CHECK(error_of([&] { (void)gpu()->export_allocation(old); }) == errc::not_reachable);
  auto const parts = parts_of(*gpu(), anew.get(), content.size());
  auto answer = peer().import(parts, content.size(), gpu()->uuid());
  if (!answer.error.empty()) {
    MESSAGE(answer.error);
    CHECK(answer.error.find("still mapped") != std::string::npos);
    (void)peer().let_go();
    answer = peer().import(parts, content.size(), gpu()->uuid());
  }
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(other));
  (void)peer().let_go();
  CHECK(free_bytes() + now.bytes + 4 * mib >= before);
}

TEST_CASE("small allocations that share a block of memory arrive each as itself") {
  kit& g = kit::device(0);
  std::vector<std::shared_ptr<std::byte>> small;
  std::vector<std::vector<std::byte>> contents;
  for (std::uint64_t i = 0; i < 5; ++i) {
    std::uint64_t const bytes = i == 3 ? 700'000 : 1000 + i;
    small.push_back(g.allocate(bytes));
    contents.push_back(pattern(bytes, 20 + i));
    g.write(small[i].get(), contents[i]);
  }
  for (std::size_t i : std::initializer_list<std::size_t>{1, 0, 4, 3, 2}) {
    CAPTURE(i);
    allocation const found = gpu()->find_allocation(small[i].get());
    CHECK(found.begin == small[i].get());
    CHECK(found.bytes == contents[i].size());
    // The one before is still mapped there when this one is opened.
    auto const answer =
        peer().import(parts_of(*gpu(), small[i].get(), found.bytes), found.bytes, gpu()->uuid());
    CHECK(answer.error == "");
    CHECK(answer.hash == hash_of(contents[i]));
  }
  (void)peer().let_go();
}

TEST_CASE("the process that made memory maps its chunks, and is told that it can't map the rest") {
  kit& g = kit::device(0);
  chunks const run(g, {2 * mib, 4 * mib});
  auto const content = pattern(run.size(), 30);
  g.write(run.data(), content);
  auto const seen = import_here(parts_of(*gpu(), run.data(), run.size()), run.size());
  CHECK(seen->data() != run.data());
  CHECK(seen->size() == run.size());
  CHECK(seen->where() == device::cuda(0));
  // A tensor over the border, through a queue.
  auto const target = g.allocate(3 * mib);
  memory::copy_op op;
  op.from = seen->data() + mib, op.to = target.get(), op.bytes = 3 * mib;
  op.from_where = op.to_where = device::cuda(0);
  auto const queue = gpu()->make_queue();
  queue->repeat(*gpu()->prepare({&op, 1}));
  REQUIRE(reaches(*queue, queue->mark()));
  std::vector<std::byte> got(3 * mib);
  g.read(got, target.get());
  CHECK(std::equal(got.begin(), got.end(), content.begin() + mib));

  auto const plain = g.allocate(mib);
  auto const parts = parts_of(*gpu(), plain.get(), mib);
  CHECK(error_of([&] { (void)import_here(parts, mib); }) == errc::not_reachable);
  CHECK(error_of([&] { (void)import_here(parts, mib); }) == errc::not_reachable); // and not "still mapped"
}

TEST_CASE("segments that are not what was announced are refused") {
  kit& g = kit::device(0);
  (void)peer().let_go();
  auto const before = free_bytes();
  {
    chunks const run(g, {4 * mib, 2 * mib});
    auto const parts = parts_of(*gpu(), run.data(), run.size());
    auto start = [](part_kind kind, std::uint64_t bytes, std::uint32_t count) {
      return gpu()->start_import(kind, bytes, count, gpu()->uuid());
    };
    auto refused = [&](std::uint64_t bytes, std::uint32_t count) {
      return error_of([&] { (void)start(part_kind::cuda_memory, bytes, count); });
    };
    CHECK(refused(0, 1) == errc::bad_region);
    CHECK(refused(6 * mib, 0) == errc::bad_region);
    CHECK(refused(6 * mib, 4) == errc::bad_region);
    CHECK(refused(6 * mib + 1, 2) == errc::bad_region);
    CHECK(refused(6 * mib, ~std::uint32_t{0}) == errc::bad_region);
    CHECK(refused(~std::uint64_t{0}, 2) == errc::bad_region);
    CHECK(refused(std::uint64_t{1} << 62, 2) == errc::out_of_memory);
    CHECK(error_of([&] { (void)start(part_kind::cuda_legacy, mib, 2); }) == errc::bad_region);
    CHECK(error_of([&] { (void)start(part_kind::cuda_legacy, 0, 1); }) == errc::bad_region);
    CHECK(error_of([&] { (void)start(part_kind::host_memory, mib, 1); }) == errc::not_reachable);
    CHECK(error_of([&] { (void)start(part_kind::none, mib, 1); }) == errc::not_reachable);
    CHECK(error_of([&] { (void)start(static_cast<part_kind>(77), mib, 1); }) == errc::not_reachable);
    CHECK(error_of([&] { (void)gpu()->start_import(part_kind::cuda_memory, 2 * mib, 1, {}); }) ==
          errc::not_reachable);

    auto import = [&](std::uint64_t bytes, std::uint32_t count, std::vector<part_handle> given) {
      return error_of([&] {
        auto importer = start(part_kind::cuda_memory, bytes, count);
        for (part_handle& part : given) importer->add(std::move(part));
        (void)importer->finish();
      });
    };
    auto some = [&](std::initializer_list<std::size_t> which) {
      std::vector<part_handle> out;
      for (std::size_t i : which) out.push_back(again(parts[i]));
      return out;
    };
    auto changed = [&](std::size_t i, auto const& change) {
      auto out = some({i});
      change(out[0]);
      return out;
    };
    CHECK(import(6 * mib, 2, some({0, 1})) == errc::ok);
    CHECK(import(6 * mib, 2, some({1, 0})) == errc::ok);
    CHECK(import(6 * mib, 2, some({0})) == errc::bad_region);
    CHECK(import(6 * mib, 3, some({0, 1})) == errc::bad_region);
    CHECK(import(8 * mib, 2, some({0, 1})) == errc::bad_region);
    CHECK(import(4 * mib, 2, some({0, 1})) == errc::bad_region);
    CHECK(import(6 * mib, 1, some({0, 1})) == errc::bad_region);
    CHECK(import(6 * mib, 2, {}) == errc::bad_region);
    CHECK(import(4 * mib, 1, changed(1, [](part_handle& p) { p.bytes = 4 * mib; })) == errc::bad_region);
    CHECK(import(2 * mib, 1, changed(0, [](part_handle& p) { p.bytes = 2 * mib; })) == errc::bad_region);
    CHECK(import(2 * mib, 1, changed(1, [](part_handle& p) { p.bytes = 0; })) == errc::bad_region);
    CHECK(import(2 * mib, 1, changed(1, [](part_handle& p) { p.bytes = ~std::uint64_t{0}; })) ==
          errc::bad_region);
    CHECK(import(2 * mib, 1, changed(1, [](part_handle& p) { p.kind = part_kind::cuda_legacy; })) ==
          errc::bad_region);
    auto with = [&](int fd) { return changed(1, [fd](part_handle& p) { p.fd.reset(fd); }); };
    CHECK(import(2 * mib, 1, with(-1)) == errc::bad_region);
    CHECK(import(2 * mib, 1, with(::eventfd(0, EFD_CLOEXEC))) == errc::bad_region);
    CHECK(import(2 * mib, 1, with(::open("/dev/zero", O_RDWR | O_CLOEXEC))) == errc::bad_region);
    CHECK(import(2 * mib, 1, with(::open("/dev/nvidiactl", O_RDWR | O_CLOEXEC))) == errc::bad_region);
    CHECK(import(2 * mib, 1, with(::memfd_create("no", MFD_CLOEXEC))) == errc::bad_region);

    // 64 bytes that stand for nothing, for something else, and for less than was said.
    part_handle nothing;
    nothing.kind = part_kind::cuda_legacy;
    nothing.bytes = mib;
    std::vector<part_handle> legacy;
    for (int fill : {0, 7, 255}) {
      nothing.legacy.fill(static_cast<std::uint8_t>(fill));
      legacy.clear();
      legacy.push_back(again(nothing));
      auto const answer = peer().import(legacy, mib, gpu()->uuid());
      MESSAGE(answer.error);
      CHECK(answer.error != "");
    }
    auto const plain = g.allocate(8 * mib);
    auto larger = gpu()->export_allocation(gpu()->find_allocation(plain.get()));
    larger.bytes = 16 * mib;
    legacy.clear();
    legacy.push_back(std::move(larger));
    auto const answer = peer().import(legacy, 16 * mib, gpu()->uuid());
    MESSAGE(answer.error);
    CHECK(answer.error.find("announced size") != std::string::npos);
    legacy[0].bytes = 8 * mib;
    CHECK(peer().import(legacy, 8 * mib, gpu()->uuid()).error == ""); // nothing was left open
    (void)peer().let_go();
  }
  CHECK(free_bytes() + 2 * mib > before); // what legacy handles need for themselves
}

TEST_CASE("memory of two GPUs is placed by either, found by its own, and mapped from one to the other") {
  if (memory::cuda::visible_devices().size() < 2) {
    MESSAGE("SKIPPED: two GPUs (this machine has one)");
    return;
  }
  kit& there = kit::device(1);
  auto const other = memory::cuda::make_backend(1);
  static import_peer far("cuda:0");
  chunks const run(there, {2 * mib, 4 * mib});
  auto const plain = there.allocate(9 * mib);
  auto const content = pattern(9 * mib, 40);
  there.write(run.data(), std::span(content).first(run.size()));
  there.write(plain.get(), content);
  CHECK(gpu()->find_allocation(run.data()).where == device::cuda(1));
  CHECK(gpu()->find_allocation(plain.get()).where == device::cuda(1));
  CHECK(gpu()->find_allocation(run.data()).kind == part_kind::none);
  CHECK(gpu()->find_allocation(plain.get()).kind == part_kind::none);
  auto answer = far.import(parts_of(*other, run.data(), run.size()), run.size(), other->uuid());
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(std::span(content).first(run.size())));
  answer = far.import(parts_of(*other, plain.get(), content.size()), content.size(), other->uuid());
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(content));
  (void)far.let_go();
}
