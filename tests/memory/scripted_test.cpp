// The scripted devices are a tool of other tests, so they are tested themselves.
#include <doctest/doctest.h>

#include <cstring>
#include <poll.h>

#include "../support/scripted_backend.hpp"
#include "conformance.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;

namespace {

class scripted_kind final : public memory_kind {
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
  scripted_devices devices_{std::make_shared<script>()};
  std::shared_ptr<memory::backend> backend_ = devices_.get(device::host());
};

memory::copy_op op_of(char const* from, char* to, std::uint64_t bytes) {
  memory::copy_op op;
  op.from = reinterpret_cast<std::byte const*>(from);
  op.to = reinterpret_cast<std::byte*>(to);
  op.bytes = bytes;
  return op;
}

bool readable(int fd) {
  pollfd waiting{fd, POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 1;
}

} // namespace

TEST_CASE("scripted memory conforms") {
  scripted_kind kind;
  for (conformance_case const& c : conformance_cases()) {
    SUBCASE(c.sentence) { c.run(kind); }
  }
}

TEST_CASE("held copies move no byte before they are finished, oldest first") {
  auto const when = std::make_shared<script>(script::pace::held);
  scripted_devices devices(when);
  auto const one = devices.get(device::host())->make_queue(), two = devices.get(device::host())->make_queue();
  char a[] = "new", b[] = "old", c[] = "old";
  auto const to_b = op_of(a, b, 3), to_c = op_of(a, c, 3);
  one->copy({&to_b, 1});
  two->copy({&to_c, 1});
  auto const ticket = one->mark();
  CHECK(when->in_flight() == 2);
  CHECK(when->touches(b + 2, 1));
  CHECK_FALSE(when->touches(b + 3, 1));
  CHECK(b == std::string("old"));
  CHECK(one->poll().completed < ticket);
  CHECK_FALSE(readable(one->event_fd()));
  REQUIRE(when->finish_next());
  CHECK(b == std::string("new"));
  CHECK(c == std::string("old"));
  CHECK(one->poll().completed == ticket);
  CHECK(readable(one->event_fd()));
  CHECK(when->finish_all() == 1);
  CHECK(c == std::string("new"));
  CHECK_FALSE(when->finish_next());
  CHECK(devices.count().bytes == 6);
}

TEST_CASE("timed copies take their time, one after the other in a queue, side by side in two") {
  auto const when = std::make_shared<script>(script::pace::timed);
  scripted_devices devices(when);
  devices.cost([](device, std::span<memory::copy_op const> ops) { return 10ms * ops.size(); });
  auto const one = devices.get(device::host())->make_queue(), two = devices.get(device::host())->make_queue();
  char a[] = "x", b[2] = {}, c[2] = {};
  auto const op = op_of(a, b, 1), other = op_of(a, c, 1);
  memory::copy_op const twice[] = {op_of(a, b, 1), op_of(a, b + 1, 1)};
  one->copy({&op, 1});
  one->copy(twice);
  two->copy({&other, 1});
  auto const last = one->mark();
  REQUIRE(when->advance());
  REQUIRE(when->advance());
  CHECK(when->now() == 10ms);
  CHECK(one->poll().completed < last);
  REQUIRE(when->advance());
  CHECK(when->now() == 30ms);
  CHECK(one->poll().completed == last);
  CHECK_FALSE(when->advance());
  two->copy({&other, 1});
  REQUIRE(when->advance());
  CHECK(when->now() == 40ms);
}

TEST_CASE("copies after a stream wait for its signal") {
  auto const when = std::make_shared<script>();
  scripted_devices devices(when, 1);
  auto const queue = devices.get(device::cuda(0))->make_queue();
  char a[] = "new", b[] = "old";
  int anything = 0;
  auto* const stream = reinterpret_cast<CUstream_st*>(&anything);
  queue->start_after(after(stream));
  auto const op = op_of(a, b, 3);
  queue->copy({&op, 1});
  auto const ticket = queue->mark();
  CHECK(b == std::string("old"));
  CHECK_FALSE(when->finish_next());
  when->signal(stream);
  CHECK(b == std::string("new"));
  CHECK(queue->poll().completed == ticket);
}

TEST_CASE("failures come where they were planned, and everything is counted") {
  auto const when = std::make_shared<script>(script::pace::held);
  scripted_devices devices(when, 2);
  CHECK_THROWS_AS(devices.get(device::cuda(2)), transfer_error);
  CHECK(devices.cuda_devices().size() == 2);
  auto const gpu = devices.get(device::cuda(1));
  devices.fail(scripted_devices::call::make_region, errc::out_of_memory, 1);
  auto made = gpu->make_region(4096);
  CHECK_THROWS_AS(gpu->make_region(4096), transfer_error);
  CHECK(gpu->make_region(4096).memory->where() == device::cuda(1));
  CHECK(devices.count().regions_made == 2);
  CHECK(devices.count().regions_alive == 1);

  CHECK(gpu->can_reach(scripted_devices::uuid_of(0)));
  CHECK_FALSE(devices.get(device::host())->can_reach(scripted_devices::uuid_of(0)));
  devices.reaches(device::cuda(1), scripted_devices::uuid_of(0), false);
  CHECK_THROWS_AS(gpu->import_region(std::move(made.handle), 4096, scripted_devices::uuid_of(0)),
                  transfer_error);

  {
    auto const keep = gpu->register_host(made.memory);
    CHECK(devices.count().registrations_alive == 1);
  }
  CHECK(devices.count().registrations_alive == 0);

  auto const queue = gpu->make_queue();
  char a[] = "new", b[] = "old";
  auto const op = op_of(a, b, 3);
  queue->copy({&op, 1});
  auto const ticket = queue->mark();
  devices.fail_queues(device::cuda(1), errc::device_failed);
  CHECK(queue->poll().error == errc::device_failed);
  CHECK(queue->poll().completed < ticket);
  CHECK(readable(queue->event_fd()));
  CHECK(when->in_flight() == 0);
}

TEST_CASE("a queue that is destroyed finishes what waits, and it is counted") {
  auto const when = std::make_shared<script>(script::pace::held);
  scripted_devices devices(when);
  char a[] = "new", b[] = "old";
  {
    auto const queue = devices.get(device::host())->make_queue();
    auto const op = op_of(a, b, 3);
    queue->copy({&op, 1});
    devices.hang_on_drain();
    CHECK_FALSE(queue->drain(1ms));
    devices.hang_on_drain(false);
  }
  CHECK(b == std::string("new"));
  CHECK(devices.count().drained == 1);
  CHECK(devices.count().queues_alive == 0);
}
