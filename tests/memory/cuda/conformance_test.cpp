// The suite of all kinds of memory, on each device.
#include <doctest/doctest.h>

#include <cstdlib>

#include "../conformance.hpp"
#include "kit.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

class cuda_kind final : public memory_kind {
 public:
  cuda_kind(int ordinal, std::unique_ptr<import_peer> peer)
      : kit_(kit::device(ordinal)), peer_(std::move(peer)), backend_(memory::cuda::make_backend(ordinal)) {}
  memory::backend& backend() override { return *backend_; }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override { return kit_.allocate(bytes); }
  void write(std::byte* to, std::span<std::byte const> from) override { kit_.write(to, from); }
  void read(std::span<std::byte> to, std::byte const* from) override { kit_.read(to, from); }
  import_peer& peer() override { return *peer_; }

 private:
  kit& kit_;
  std::unique_ptr<import_peer> peer_;
  std::shared_ptr<memory::backend> backend_;
};

std::size_t devices() {
  static std::size_t const count = memory::cuda::visible_devices().size();
  return count;
}

} // namespace

TEST_CASE("cuda memory conforms") {
  static cuda_kind kind(0, std::make_unique<import_peer>("cuda:0"));
  for (conformance_case const& c : conformance_cases()) {
    SUBCASE(c.sentence) { c.run(kind); }
  }
}

TEST_CASE("cuda memory conforms when the other process is on another GPU" * doctest::skip(devices() < 2)) {
  static cuda_kind kind(0, std::make_unique<import_peer>("cuda:1"));
  for (conformance_case const& c : conformance_cases()) {
    SUBCASE(c.sentence) { c.run(kind); }
  }
}

TEST_CASE("a process that sees only its own GPU still reaches another's memory" *
          doctest::skip(devices() < 2)) {
  char const* const before = std::getenv("CUDA_VISIBLE_DEVICES");
  std::string const kept = before != nullptr ? before : "";
  ::setenv("CUDA_VISIBLE_DEVICES", "1", 1);
  import_peer peer("cuda:0");
  if (before != nullptr)
    ::setenv("CUDA_VISIBLE_DEVICES", kept.c_str(), 1);
  else
    ::unsetenv("CUDA_VISIBLE_DEVICES");
  auto const backend = memory::cuda::make_backend(0);
  auto made = backend->make_region(3 << 20);
  auto const content = pattern(3 << 20, 1);
  kit::device(0).write(made.memory->data(), content);
  auto const answer = peer.import(made.handle.get(), content.size(), backend->uuid());
  CHECK(answer.error == "");
  CHECK(answer.hash == hash_of(content));
}
