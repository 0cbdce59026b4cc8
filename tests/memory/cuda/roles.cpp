#include "roles.hpp"

#include <chrono>
#include <cstdio>
#include <map>
#include <poll.h>
#include <thread>
#include <vector>

#include "kit.hpp"
#include "ropeway/error.hpp"

namespace ropeway::testing {
namespace {

using clock = std::chrono::steady_clock;

int fail(char const* why) {
  std::printf("role failed: %s\n", why);
  return 1;
}

memory::copy_op device_copy(std::byte const* from, std::byte* to, std::uint64_t bytes) {
  memory::copy_op op;
  op.from = from;
  op.to = to;
  op.bytes = bytes;
  op.from_where = op.to_where = device::cuda(0);
  return op;
}

// A kernel breaks the context while copies wait: the queue says so by itself, and everything can still be let
// go.
int fault() {
  kit& g = kit::device(0);
  auto backend = memory::cuda::make_backend(0);
  auto region = backend->make_region(1 << 20);
  auto a = g.allocate(1 << 20), b = g.allocate(1 << 20);
  auto queue = backend->make_queue();
  CUstream const other = g.make_stream();
  g.slow_fill(other, a.get(), 1, 1, 50'000'000);
  g.trap(other);
  queue->start_after(after(other));
  auto const op = device_copy(a.get(), b.get(), 1 << 20);
  queue->copy({&op, 1});
  auto const ticket = queue->mark();
  pollfd waiting{queue->event_fd(), POLLIN, 0};
  if (::poll(&waiting, 1, 5000) != 1) return fail("nothing woke the loop after the context broke");
  auto const now = queue->poll();
  if (now.error != errc::device_failed) return fail("poll does not report device_failed");
  if (now.completed >= ticket) return fail("the broken copy counts as done");
  if (!queue->drain(std::chrono::seconds(1))) return fail("a dead context can't be drained");
  try {
    queue->copy({&op, 1});
    return fail("a copy on a broken queue does not throw");
  } catch (transfer_error const& error) { std::printf("as it should: %s\n", error.what()); }
  auto const begin = clock::now();
  queue.reset();
  region = {};
  backend.reset();
  if (clock::now() - begin > std::chrono::seconds(2)) return fail("letting go took too long");
  return 0;
}

// The application resets the device under our feet.
int reset() {
  kit& g = kit::device(0);
  auto backend = memory::cuda::make_backend(0);
  auto region = backend->make_region(1 << 20);
  auto queue = backend->make_queue();
  auto const op = device_copy(region.memory->data(), region.memory->data() + 4096, 100);
  queue->copy({&op, 1});
  queue->mark();
  g.check(g.more.cuDevicePrimaryCtxReset(g.id), "reset");
  (void)queue->poll();
  try {
    queue->copy({&op, 1});
  } catch (transfer_error const& error) { std::printf("as it should: %s\n", error.what()); }
  queue->mark();
  (void)queue->poll();
  queue.reset();
  region = {};
  backend.reset();
  return 0;
}

// Objects that live longer than main, and perhaps than the driver.
struct belated {
  std::shared_ptr<memory::backend> backend;
  memory::backend::shared_region region;
  std::unique_ptr<memory::queue> queue;
};
belated& late() {
  static belated object;
  return object;
}
int at_exit() {
  belated& object = late();
  object.backend = memory::cuda::make_backend(0);
  object.region = object.backend->make_region(1 << 20);
  object.queue = object.backend->make_queue();
  auto const op = device_copy(object.region.memory->data(), object.region.memory->data() + 4096, 100);
  std::vector<std::byte> pageable(100);
  auto from_host = op;
  from_host.from = pageable.data();
  from_host.from_where = device::host();
  object.queue->copy({&op, 1});
  object.queue->copy({&from_host, 1});
  object.queue->mark();
  if (!object.queue->drain(std::chrono::seconds(5))) return fail("not drained");
  return 0;
}

// A copy that never starts: the queue gives up after its limit and leaves alive what the device may touch.
int stuck() {
  kit& g = kit::device(0);
  auto flag = g.allocate_pinned(64);
  auto* const word = reinterpret_cast<std::uint32_t*>(flag.get());
  *word = 0;
  auto backend = memory::cuda::make_backend(0);
  auto a = g.allocate(1 << 20), b = g.allocate(1 << 20);
  std::vector<std::byte> pageable(1 << 20);
  auto queue = backend->make_queue();
  CUstream const other = g.make_stream();
  g.wait_for(other, word);
  queue->start_after(after(other));
  auto op = device_copy(a.get(), b.get(), 1 << 20);
  queue->copy({&op, 1});
  op.from = pageable.data();
  op.from_where = device::host();
  queue->copy({&op, 1}); // and a worker that hangs
  queue->mark();
  auto const begin = clock::now();
  if (queue->drain(std::chrono::milliseconds(50))) return fail("drained although nothing can run");
  queue.reset();
  auto const took = clock::now() - begin;
  if (took < memory::queue::drain_limit || took > memory::queue::drain_limit + std::chrono::seconds(3))
    return fail("the drain limit is not kept");
  *word = 1;
  // What was left behind still works to its end.
  g.check(g.more.cuStreamSynchronize(other), "synchronize");
  auto again = backend->make_queue();
  op = device_copy(a.get(), b.get(), 1 << 20);
  again->copy({&op, 1});
  if (!again->drain(std::chrono::seconds(5))) return fail("the device did not recover");
  return 0;
}

} // namespace

int play(std::string const& role) {
  std::map<std::string, int (*)()> const known{
      {"fault", fault}, {"reset", reset}, {"at-exit", at_exit}, {"stuck", stuck}};
  auto const found = known.find(role);
  if (found == known.end()) return fail("no such role");
  try {
    return found->second();
  } catch (std::exception const& error) { return fail(error.what()); }
}

} // namespace ropeway::testing
