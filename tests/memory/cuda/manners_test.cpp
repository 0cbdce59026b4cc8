// What the application may rely on: its context, its captures, its exits, and no allocation on the steady
// path.
#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "../../support/allocations.hpp"
#include "../conformance.hpp"
#include "kit.hpp"
#include "memory/host/backend.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using memory::copy_op;

namespace {

copy_op op_of(std::byte const* from, device from_where, std::byte* to, device to_where, std::uint64_t bytes) {
  copy_op op;
  op.from = from, op.to = to, op.bytes = bytes;
  op.from_where = from_where, op.to_where = to_where;
  return op;
}

// Everything that a session does, once.
void use_everything(CUstream caller, std::function<void(char const*)> const& after_each) {
  std::size_t const bytes = 1 << 20;
  auto backend = memory::cuda::make_backend(0);
  after_each("make_backend");
  (void)memory::cuda::visible_devices();
  after_each("visible_devices");
  auto made = backend->make_region(bytes);
  after_each("make_region");
  auto imported = backend->import_region(std::move(made.handle), bytes, backend->uuid());
  after_each("import_region");
  (void)backend->can_reach(backend->uuid());
  after_each("can_reach");
  auto ring = memory::host::make_backend()->make_region(bytes).memory;
  auto pin = backend->register_host(ring);
  after_each("register_host");
  auto queue = backend->make_queue();
  after_each("make_queue");
  std::vector<std::byte> pageable(bytes);
  (void)backend->is_past(after(caller));
  after_each("is_past");
  if (caller != nullptr) queue->start_after(after(caller));
  after_each("start_after");
  auto to_device = op_of(ring->data(), device::host(), made.memory->data(), device::cuda(0), bytes);
  queue->copy({&to_device, 1});
  after_each("copy");
  auto const from_pageable =
      op_of(pageable.data(), device::host(), made.memory->data(), device::cuda(0), bytes);
  queue->copy({&from_pageable, 1});
  after_each("copy of pageable memory");
  copy_op const both[] = {to_device, from_pageable};
  auto prepared = backend->prepare(both);
  after_each("prepare");
  queue->repeat(*prepared);
  after_each("repeat");
  auto const found = backend->find_allocation(made.memory->data());
  after_each("find_allocation");
  (void)backend->find_allocation(pageable.data());
  after_each("find_allocation of host memory");
  auto part = backend->export_allocation(found);
  after_each("export_allocation");
  auto importer = backend->start_import(part.kind, part.bytes, 1, backend->uuid());
  after_each("start_import");
  importer->add(std::move(part));
  after_each("add");
  auto segment = importer->finish();
  after_each("finish");
  importer.reset();
  (void)queue->mark();
  after_each("mark");
  (void)queue->poll();
  after_each("poll");
  CHECK(queue->drain(std::chrono::seconds(10)));
  after_each("drain");
  queue.reset();
  after_each("~queue");
  prepared.reset();
  after_each("~prepared_copies");
  segment.reset();
  after_each("~segment");
  pin.reset();
  after_each("unregister");
  imported.reset();
  made = {};
  after_each("~region");
  backend.reset();
  after_each("~backend");
}

// Counters in the driver's table: what must not happen on the steady path.
std::atomic<int> costly{0};
memory::cuda::driver real; // NOLINT: the wrappers below are plain functions
CUresult count_event(CUevent* out, unsigned flags) { return ++costly, real.cuEventCreate(out, flags); }
CUresult count_stream(CUstream* out, unsigned flags, int p) {
  return ++costly, real.cuStreamCreateWithPriority(out, flags, p);
}
CUresult count_host(void** out, std::size_t n, unsigned flags) {
  return ++costly, real.cuMemHostAlloc(out, n, flags);
}
CUresult count_create(CUmemGenericAllocationHandle* out, std::size_t n, CUmemAllocationProp const* p,
                      unsigned long long f) {
  return ++costly, real.cuMemCreate(out, n, p, f);
}
CUresult count_alloc(CUdeviceptr* out, std::size_t n) { return ++costly, real.cuMemAlloc(out, n); }
CUresult count_register(void* at, std::size_t n, unsigned f) {
  return ++costly, real.cuMemHostRegister(at, n, f);
}

} // namespace

TEST_CASE("the current context stays as it was, whatever is called") {
  kit& g = kit::device(0);
  CUstream const caller = g.make_stream();
  auto const watch = [&](CUcontext expected) {
    use_everything(caller, [&g, expected](char const* what) {
      CAPTURE(what);
      CUcontext now = nullptr;
      CHECK(g.more.cuCtxGetCurrent(&now) == CUDA_SUCCESS);
      CHECK(now == expected);
      CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
      CHECK(g.table->cuThreadExchangeStreamCaptureMode(&mode) == CUDA_SUCCESS);
      CHECK(mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
      CHECK(g.table->cuThreadExchangeStreamCaptureMode(&mode) == CUDA_SUCCESS);
    });
  };
  std::thread without([&] { watch(nullptr); });
  without.join();
  current here(g);
  watch(g.context);
}

TEST_CASE("a capture goes on undisturbed while everything is used") {
  kit& g = kit::device(0);
  for (auto mode :
       {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED}) {
    for (bool same_thread : {false, true}) {
      CAPTURE(static_cast<int>(mode));
      CAPTURE(same_thread);
      CUstream const captured = g.make_stream(), caller = g.make_stream();
      auto const memory = g.allocate(64);
      current here(g);
      g.check(g.more.cuStreamBeginCapture(captured, mode), "begin");
      auto node = [&] {
        CHECK(g.more.cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(memory.get()), 1, 64, captured) ==
              CUDA_SUCCESS);
      };
      node();
      auto use = [&] { use_everything(caller, [](char const*) {}); };
      if (same_thread)
        use();
      else
        std::thread(use).join();
      node();
      CUgraph graph = nullptr;
      REQUIRE(g.more.cuStreamEndCapture(captured, &graph) == CUDA_SUCCESS);
      std::size_t nodes = 0;
      CHECK(g.more.cuGraphGetNodes(graph, nullptr, &nodes) == CUDA_SUCCESS);
      CHECK(nodes == 2);
      g.more.cuGraphDestroy(graph);
    }
  }
}

TEST_CASE("the steady path makes nothing: no memory, no event, no stream, no registration") {
  kit& g = kit::device(0);
  real = *g.table;
  auto table = std::make_shared<memory::cuda::driver>(real);
  table->cuEventCreate = count_event;
  table->cuStreamCreateWithPriority = count_stream;
  table->cuMemHostAlloc = count_host;
  table->cuMemCreate = count_create;
  table->cuMemAlloc = count_alloc;
  table->cuMemHostRegister = count_register;
  auto const backend = memory::cuda::make_backend(table, 0);
  auto const queue = backend->make_queue();
  CUstream const caller = g.make_stream();
  std::size_t const bytes = 8 << 20;
  auto const a = g.allocate(bytes), b = g.allocate(bytes), pinned = g.allocate_pinned(bytes);
  std::vector<std::byte> pageable(bytes);
  std::vector<copy_op> ops, slow_ops;
  for (std::size_t at = 0; at < bytes; at += 4096)
    ops.push_back(op_of(a.get() + at, device::cuda(0), b.get() + at, device::cuda(0), 4000));
  ops.push_back(op_of(pinned.get(), device::host(), a.get(), device::cuda(0), bytes));
  copy_op turned = op_of(a.get(), device::cuda(0), b.get(), device::cuda(0), 0);
  turned.rank = 2, turned.from_element = turned.to_element = 2;
  turned.extent = {100, 100}, turned.from_stride = {2, 200}, turned.to_stride = {200, 2};
  ops.push_back(turned);
  slow_ops.push_back(op_of(pageable.data(), device::host(), a.get(), device::cuda(0), bytes));
  slow_ops.push_back(op_of(a.get(), device::cuda(0), pageable.data(), device::host(), 1000));
  auto const list = backend->prepare(ops), slow_list = backend->prepare(slow_ops);
  auto round = [&] {
    for (int i = 0; i < 8; ++i) {
      queue->start_after(after(caller));
      queue->copy(i % 4 == 3 ? slow_ops : ops);
      queue->repeat(i % 4 == 2 ? *slow_list : *list);
      queue->repeat(*list, {static_cast<std::uint64_t>(i), 1, 1});
      queue->start_after(after(caller)); // perhaps behind the worker
      auto const ticket = queue->mark();
      while (queue->poll().completed < ticket) std::this_thread::yield();
    }
  };
  for (int i = 0; i < 40; ++i) round(); // which of the worker's jobs holds what is a matter of chance
  int const made = costly;
  std::size_t const allocated = allocations_of_this_thread();
  CHECK(made > 0); // it does count
  for (int i = 0; i < 20; ++i) {
    round();
    (void)backend->find_allocation(a.get() + i);
    (void)backend->find_allocation(pageable.data());
  }
  CHECK(costly == made);
  CHECK(allocations_of_this_thread() == allocated);
}

TEST_CASE("a broken context is reported by the queue itself") { CHECK(run_role("fault") == 0); }
TEST_CASE("a device that the application resets is survived") { CHECK(run_role("reset") == 0); }
TEST_CASE("objects may live longer than main") { CHECK(run_role("at-exit") == 0); }
TEST_CASE(
    "a queue that can't be drained is given up after its limit, and nothing is freed under the device") {
  CHECK(run_role("stuck") == 0);
}
