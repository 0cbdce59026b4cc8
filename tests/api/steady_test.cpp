// From the second send on nothing is made that stays, and what is made does not grow with the model: counted
// at operator new, mmap and memfd_create of this program. Part of ropeway; Apache-2.0.
#include <array>
#include <asio/io_context.hpp>
#include <cstdlib>
#include <sstream>

#include "counting.hpp"
#include "line.hpp"
#include "support/allocations.hpp"
#include "support/co_test.hpp"
#include "support/peer_process.hpp"
#include "support/sanitized.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::vector<tensor_info> layers(std::size_t count, std::uint64_t elements) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i)
    specs.push_back({"model.layers.weight." + std::to_string(i), dtype::f32, {elements}});
  return specs;
}

/// Loads whatever comes until the sender closes; says what it holds after the versions of `tell`.
awaitable<void> follow(std::shared_ptr<words> parent, std::string path, std::vector<tensor_info> specs,
                       std::array<std::uint64_t, 2> tell) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver();
  options.connect_limit(std::chrono::seconds(20));
  receiver from(executor, options);
  co_await parent->expect("connect");
  co_await from.connect(path);
  model held(host_memory(), std::move(specs), 0);
  auto into = held.into();
  while (auto next = co_await from.next_update()) {
    load_report const report = co_await next->load_into(into);
    if (report.version != tell[0] && report.version != tell[1]) continue;
    auto const made = allocations();
    auto const now = holdings::now();
    std::ostringstream text;
    text << now.descriptors << " " << now.mappings << " " << now.resident_kib << " " << made;
    parent->say(text.str());
  }
  co_await from.close();
}

struct counts {
  std::size_t heap = 0, maps = 0, files = 0;
};

/// A sender with one server in a process of its own.
class sending_side {
 public:
  /// `mapped`: the tensors lie in memory that the server maps.
  sending_side(std::vector<tensor_info> specs, std::uint64_t bucket_bytes, std::array<std::uint64_t, 2> tell,
               bool mapped = false, bool digests = false)
      : server_([path = directory_.file("s"), specs, tell](auto parent) {
        return follow(parent, path, specs, tell);
      })
      , way_(mapped ? route::mapped : route::host)
      , source_(mapped ? shared_host_memory() : host_memory(), std::move(specs), 1)
      , views_(source_.views())
      , sender_(std::in_place, io_.get_executor(), directory_.file("s"), options_of(bucket_bytes, digests)) {
    for (auto const& memory : source_.kind().shared()) sender_->share(memory);
    server_.line().say("connect");
    bool there = false;
    auto handler = [&](std::error_code error, std::size_t) { there = !error; };
    sender_->wait_for_receivers(1, milliseconds(20'000), handler);
    while (!there) io_.run_one();
  }
  ~sending_side() {
    sender_->close([](std::error_code) {});
    io_.restart();
    io_.run();
    CHECK(server_.process().wait() == 0);
  }

  /// Sends once, and counts what that takes on this side.
  counts send(std::uint64_t version, prepared_tensors const* prepared = nullptr) {
    bool done = false;
    auto handler = [&](std::error_code error, send_report const& report) {
      CHECK_FALSE(error);
      CHECK(report.count(outcome::committed) == 1);
      for (auto const& one : report.receivers) CHECK(one.way == way_);
      done = true;
    };
    counts const before{allocations(), mappings_made(), memory_files_made()};
    if (prepared) {
      sender_->send_weights(version, *prepared, handler);
    } else {
      sender_->send_weights(version, views_, handler);
    }
    while (!done) io_.run_one();
    return {allocations() - before.heap, mappings_made() - before.maps, memory_files_made() - before.files};
  }
  prepared_tensors prepare() { return sender_->prepare(views_); }
  /// What the server says of itself.
  struct servers_words {
    holdings held;
    std::size_t allocations = 0;
  };
  servers_words hear();

 private:
  static sender_options options_of(std::uint64_t bucket_bytes, bool digests) {
    return quick_sender(bucket_bytes).digests(digests ? digest_choice::tensors : digest_choice::none);
  }
  scratch directory_;
  peer_process server_; // forks first
  asio::io_context io_{1};
  route way_;
  model source_;
  std::vector<tensor_view> views_;
  std::optional<sender> sender_;
};

awaitable<void> hear_into(words& line, std::string& word) { word = co_await line.hear(); }

sending_side::servers_words sending_side::hear() {
  std::string word;
  auto heard = beside(io_.get_executor(), hear_into(server_.line(), word));
  while (!heard.done()) io_.run_one();
  servers_words result;
  std::istringstream(word) >> result.held.descriptors >> result.held.mappings >> result.held.resident_kib >>
      result.allocations;
  return result;
}

struct heap_blocks {
  std::size_t sender = 0, receiver = 0;
};

/// The heap blocks of an update once everything is warm: the least of a few in the sender, the mean of ten in
/// the receiver.
heap_blocks warm(std::size_t tensors, std::uint64_t elements, std::uint64_t bucket_bytes, bool prepared,
                 bool mapped, bool digests) {
  sending_side side(layers(tensors, elements), bucket_bytes, {6, 16}, mapped, digests);
  prepared_tensors const set = side.prepare();
  heap_blocks least{~std::size_t(0), 0};
  for (std::uint64_t version = 1; version <= 16; ++version) {
    auto const now = side.send(version, prepared ? &set : nullptr);
    if (version == 1) continue;
    CHECK(now.maps == 0);
    CHECK(now.files == 0);
    least.sender = std::min(least.sender, now.heap);
  }
  auto const before = side.hear(), after = side.hear();
  least.receiver = (after.allocations - before.allocations) / 10;
  return least;
}

} // namespace

TEST_CASE("the second send makes no shared memory and no mapping, and heap blocks grow neither with the "
          "tensors nor "
          "with the buckets") {
  deadline_guard const guard(patient(std::chrono::seconds(60)));
  struct way {
    bool prepared, mapped, digests;
  };
  for (auto const& [prepared, mapped, digests] : {way{false, false, false},
                                                  {true, false, false},
                                                  {false, true, false},
                                                  {true, true, false},
                                                  {false, false, true},
                                                  {false, true, true}}) {
    auto const few = warm(20, 1024, 8 * kib, prepared, mapped, digests);           // 20 tensors, 10 buckets
    auto const many_tensors = warm(2'000, 8, 64 * kib, prepared, mapped, digests); // 2,000 tensors, 8 buckets
    auto const many_buckets = warm(20, 20 * 1024, 8 * kib, prepared, mapped, digests); // 20, and 200
    auto const same = [](std::size_t a, std::size_t b) {
      return a <= b + 16 && b <= a + 16;
    }; // timing decides a little
    CHECK(few.sender < 64);
    CHECK(few.receiver < 64);
    CHECK(same(few.sender, many_tensors.sender));
    CHECK(same(few.receiver, many_tensors.receiver));
    CHECK(same(few.sender, many_buckets.sender));
    CHECK(same(few.receiver, many_buckets.receiver));
    MESSAGE("heap blocks of a warm " << std::string(prepared ? "prepared " : "")
                                     << std::string(mapped ? "mapped " : "")
                                     << std::string(digests ? "digested " : "")
                                     << "update, sender/receiver: 10 buckets " << few.sender << "/"
                                     << few.receiver << ", 2,000 tensors " << many_tensors.sender << "/"
                                     << many_tensors.receiver << ", 200 buckets " << many_buckets.sender
                                     << "/" << many_buckets.receiver);
  }
}

TEST_CASE("1,000 updates: descriptors, mappings and memory stay flat in both processes") {
  deadline_guard const guard(patient(std::chrono::seconds(120)));
  bool mapped = false;
  SUBCASE("through the ring") {}
  SUBCASE("mapped") { mapped = true; }
  sending_side side(layers(20, 1024), 8 * kib, {100, 1000}, mapped);
  holdings here[2], there[2];
  for (std::uint64_t version = 1; version <= 1'000; ++version) {
    auto const now = side.send(version);
    if (version != 1) CHECK(now.maps + now.files == 0);
    if (version != 100 && version != 1'000) continue;
    auto const which = version == 100 ? 0 : 1;
    there[which] = side.hear().held;
    here[which] = holdings::now();
  }
  CHECK(there[0].descriptors > 0);
  for (auto const* side_held : {here, there}) {
    CHECK(side_held[1].descriptors == side_held[0].descriptors);
    CHECK(side_held[1].mappings == side_held[0].mappings);
    // The sanitizers keep freed memory for a while, and have memory of their own.
    if (!testing::sanitized) CHECK(side_held[1].resident_kib <= side_held[0].resident_kib + 512);
  }
}
