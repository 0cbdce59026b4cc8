// What copies wait for.
#include <doctest/doctest.h>

#include <cstring>

#include "../conformance.hpp"
#include "kit.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::copy_op;

namespace {

constexpr std::uint32_t words = 1024;
constexpr std::uint64_t slow = 60'000'000; // ns

struct fixture {
  kit& g = kit::device(0);
  std::shared_ptr<memory::backend> backend = memory::cuda::make_backend(0);
  std::unique_ptr<memory::queue> queue = backend->make_queue();
  std::shared_ptr<std::byte> source = g.allocate(words * 4), target = g.allocate(words * 4);
  CUstream producer = g.make_stream();
  std::vector<std::byte> pageable = std::vector<std::byte>(words * 4);

  void produce(std::uint32_t value, CUstream on) { g.slow_fill(on, source.get(), value, words, slow); }
  void copy() {
    copy_op op;
    op.from = source.get(), op.to = target.get(), op.bytes = words * 4;
    op.from_where = op.to_where = device::cuda(0);
    queue->copy({&op, 1});
  }
  // Keeps the worker busy: everything after it goes through the worker, too.
  void copy_pageable() {
    copy_op op;
    op.from = source.get(), op.to = pageable.data(), op.bytes = words * 4;
    op.from_where = device::cuda(0);
    queue->copy({&op, 1});
  }
  std::uint32_t value() {
    REQUIRE(reaches(*queue, queue->mark()));
    std::vector<std::byte> seen(words * 4);
    g.read(seen, target.get());
    std::uint32_t first = 0;
    std::memcpy(&first, seen.data(), 4);
    for (std::size_t i = 0; i < words; ++i) CHECK(std::memcmp(seen.data() + 4 * i, &first, 4) == 0);
    return first;
  }
  CUevent make_event() {
    current here(g);
    CUevent made = nullptr;
    g.check(g.table->cuEventCreate(&made, CU_EVENT_DISABLE_TIMING), "event");
    return made;
  }
  void record(CUevent event, CUstream on) {
    current here(g);
    g.check(g.table->cuEventRecord(event, on), "record");
  }
};

} // namespace

TEST_CASE_FIXTURE(fixture, "a copy after a stream sees what its slow kernel wrote") {
  for (std::uint32_t i = 1; i < 4; ++i) {
    produce(i, producer);
    queue->start_after(after(producer));
    copy();
    CHECK(queue->poll().completed < queue->mark());
    CHECK(value() == i);
  }
}

TEST_CASE_FIXTURE(fixture, "a copy after an event waits for that record, whatever is recorded later") {
  CUevent const event = make_event();
  produce(7, producer);
  record(event, producer);
  queue->start_after(after(event));
  record(event, g.make_stream()); // done at once, and of no interest
  copy();
  CHECK(value() == 7);
}

TEST_CASE_FIXTURE(fixture, "a stream or event that has come so far is told from one that has not") {
  CUevent const event = make_event();
  CHECK(backend->is_past({}));
  CHECK(backend->is_past(after(producer)));
  CHECK_FALSE(backend->is_past(after(producer, device::host())));
  for (auto* const stream : {producer, static_cast<CUstream>(nullptr)}) {
    current here(g);
    produce(5, stream);
    record(event, stream);
    CHECK_FALSE(backend->is_past(after(stream)));
    CHECK_FALSE(backend->is_past(after(event)));
    queue->start_after(after(event));
    CHECK(reaches(*queue, queue->mark()));
    CHECK(backend->is_past(after(stream)));
    CHECK(backend->is_past(after(event)));
  }
}

TEST_CASE_FIXTURE(fixture, "waits keep their place behind pageable copies") {
  CUevent const event = make_event();
  produce(21, producer);
  queue->start_after(after(producer));
  copy_pageable();
  produce(22, producer);
  record(event, producer);
  queue->start_after(after(event));
  record(event, g.make_stream());
  copy();
  produce(23, producer);
  queue->start_after(after(producer));
  copy_pageable();
  CHECK(value() >= 22);
  std::uint32_t last = 0;
  std::memcpy(&last, pageable.data(), 4);
  CHECK(last == 23);
}

TEST_CASE_FIXTURE(fixture, "what the processor copies comes after what the device copies") {
  auto const pinned = g.allocate_pinned(words * 4);
  std::memset(pinned.get(), 0, words * 4);
  produce(41, producer);
  queue->start_after(after(producer));
  copy_op op;
  op.from = source.get(), op.to = pinned.get(), op.bytes = words * 4;
  op.from_where = device::cuda(0);
  queue->copy({&op, 1});
  op.from = pinned.get(), op.to = pageable.data();
  op.from_where = device::host();
  queue->copy({&op, 1});
  REQUIRE(reaches(*queue, queue->mark()));
  std::uint32_t last = 0;
  std::memcpy(&last, pageable.data(), 4);
  CHECK(last == 41);
}

TEST_CASE_FIXTURE(fixture, "the default stream can be waited for") {
  {
    current here(g);
    g.slow_fill(nullptr, source.get(), 9, words, slow);
  }
  queue->start_after(after(static_cast<CUstream>(nullptr)));
  copy();
  CHECK(value() == 9);
}

TEST_CASE_FIXTURE(fixture, "a stream that is being captured is refused, and its capture goes on") {
  g.check(g.more.cuStreamBeginCapture(producer, CU_STREAM_CAPTURE_MODE_GLOBAL), "begin");
  {
    current here(g);
    g.check(g.more.cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(source.get()), 3, 16, producer), "memset");
  }
  CHECK_FALSE(backend->is_past(after(producer)));
  try {
    queue->start_after(after(producer));
    FAIL("a captured stream was accepted");
  } catch (transfer_error const& error) { CHECK(error.code() == errc::invalid_argument); }
  CUgraph graph = nullptr;
  CHECK(g.more.cuStreamEndCapture(producer, &graph) == CUDA_SUCCESS);
  std::size_t nodes = 0;
  CHECK(g.more.cuGraphGetNodes(graph, nullptr, &nodes) == CUDA_SUCCESS);
  CHECK(nodes == 1);
  g.more.cuGraphDestroy(graph);
  copy(); // the queue is as good as before
  REQUIRE(reaches(*queue, queue->mark()));
}

TEST_CASE_FIXTURE(fixture, "streams and events that belong to no CUDA device are refused") {
  CHECK_THROWS_AS(queue->start_after(after(producer, device::host())), transfer_error);
  CHECK_THROWS_AS(queue->start_after(after(static_cast<CUstream>(nullptr), device::cuda(99))),
                  transfer_error);
  copy();
  REQUIRE(reaches(*queue, queue->mark()));
}

TEST_CASE("a copy after a stream of another GPU waits" *
          doctest::skip(memory::cuda::visible_devices().size() < 2)) {
  fixture f;
  kit& other = kit::device(1);
  auto const pinned = other.allocate_pinned(words * 4);
  CUstream const far = other.make_stream();
  other.slow_fill(far, pinned.get(), 31, words, slow);
  f.queue->start_after(after(far, device::cuda(1)));
  copy_op op;
  op.from = pinned.get(), op.to = f.target.get(), op.bytes = words * 4, op.to_where = device::cuda(0);
  f.queue->copy({&op, 1});
  CHECK(f.value() == 31);
  other.slow_fill(nullptr, pinned.get(), 32, words, slow);
  f.queue->start_after(after(static_cast<CUstream>(nullptr), device::cuda(1)));
  f.queue->copy({&op, 1});
  CHECK(f.value() == 32);
}
