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

namespace {

void fill(memory::region const& memory, std::uint64_t at, std::vector<std::byte> const& content) {
  std::copy(content.begin(), content.end(), memory.data() + at);
}

std::vector<std::byte> bytes_of(memory::region const& memory) {
  return {memory.data(), memory.data() + memory.size()};
}

constexpr std::uint64_t sizes[] = {8192, 4096, 65536};
constexpr std::uint64_t all_sizes = 8192 + 4096 + 65536;

// What an update does: asks for each allocation in a range, exports it, and maps it elsewhere.
std::shared_ptr<memory::region> carry(memory::backend& from, memory::backend& to,
                                      memory::region const& memory) {
  auto importer = to.start_import(memory::part_kind::cuda_memory, memory.size(), 3, from.uuid());
  for (std::byte const* at = memory.data(); at < memory.data() + memory.size();) {
    auto const found = from.find_allocation(at);
    importer->add(from.export_allocation(found));
    at = found.begin + found.bytes;
  }
  return importer->finish();
}

} // namespace

TEST_CASE("an application's allocations are found one by one, and mapped side by side") {
  auto const when = std::make_shared<script>();
  scripted_devices sender(when, 2), receiver(when, 2);
  auto const from = sender.get(device::cuda(0)), to = receiver.get(device::cuda(1));
  auto memory = sender.allocate(device::cuda(0), sizes);
  auto const content = pattern(all_sizes, 1);
  fill(*memory, 0, content);

  auto const first = from->find_allocation(memory->data()),
             last = from->find_allocation(memory->data() + 12288);
  CHECK(first.begin == memory->data());
  CHECK(first.bytes == 8192);
  CHECK(first.kind == memory::part_kind::cuda_memory);
  CHECK(first.where == device::cuda(0));
  CHECK(first.identity != 0);
  CHECK(from->find_allocation(memory->data() + 8191).identity == first.identity);
  CHECK(from->find_allocation(memory->data() + 8192).identity != first.identity);
  CHECK(from->find_allocation(memory->data() + all_sizes - 1).identity == last.identity);
  CHECK(from->find_allocation(memory->data() + all_sizes).kind == memory::part_kind::none);
  CHECK(from->find_allocation(memory->data() - 1).kind == memory::part_kind::none);
  CHECK(sender.get(device::cuda(1))->find_allocation(memory->data()).where == device::cuda(0));
  CHECK(sender.get(device::host())->find_allocation(memory->data()).kind == memory::part_kind::none);
  CHECK(to->find_allocation(memory->data()).kind == memory::part_kind::none);
  int here = 0;
  auto const unknown = from->find_allocation(reinterpret_cast<std::byte*>(&here));
  CHECK(unknown.kind == memory::part_kind::none);
  CHECK(unknown.why_not == std::string("memory that the script does not share"));

  auto const seen = carry(*from, *to, *memory);
  CHECK(seen->where() == device::cuda(1));
  CHECK(bytes_of(*seen) == content);
  fill(*memory, 8000, pattern(500, 2)); // over the border, later
  CHECK(bytes_of(*seen) == bytes_of(*memory));
  CHECK(sender.count().exports == 3);
  CHECK(receiver.count().segments_alive == 1);
  auto const kept = bytes_of(*memory);
  memory.reset();
  CHECK(bytes_of(*seen) == kept);
  CHECK(from->find_allocation(first.begin).kind == memory::part_kind::none);
  CHECK_THROWS_AS(from->export_allocation(first), transfer_error);
}

TEST_CASE("an allocation that is made anew has another identity, and who mapped the old one keeps it") {
  auto const when = std::make_shared<script>();
  scripted_devices devices(when, 1);
  auto const gpu = devices.get(device::cuda(0));
  auto const memory = devices.allocate(device::cuda(0), sizes);
  auto const old = pattern(all_sizes, 3);
  fill(*memory, 0, old);
  auto const before = gpu->find_allocation(memory->data() + 8192);
  auto const seen = carry(*gpu, *gpu, *memory);
  devices.make_anew(memory->data() + 9000);
  auto const after = gpu->find_allocation(memory->data() + 8192);
  CHECK(after.begin == before.begin);
  CHECK(after.identity != before.identity);
  memory::allocation const both[] = {after, before};
  CHECK(gpu->are_there({both, 1}));
  CHECK_FALSE(gpu->are_there(both));
  CHECK_THROWS_AS(gpu->export_allocation(before), transfer_error);
  CHECK(memory->data()[8192] == std::byte{0});
  fill(*memory, 8192, pattern(4096, 4));
  CHECK(bytes_of(*seen) == old);
  CHECK(bytes_of(*carry(*gpu, *gpu, *memory)) == bytes_of(*memory));
  devices.hide(memory->data(), "memory of a pool");
  CHECK(gpu->find_allocation(memory->data() + 1).why_not == std::string("memory of a pool"));
  CHECK_THROWS_AS(gpu->export_allocation(gpu->find_allocation(memory->data())), transfer_error);
}

TEST_CASE("segments whose parts are not what was announced are refused, and failures come as planned") {
  auto const when = std::make_shared<script>();
  scripted_devices devices(when, 2);
  auto const gpu = devices.get(device::cuda(0));
  auto const memory = devices.allocate(device::cuda(0), sizes);
  auto part = [&](std::size_t at) {
    return gpu->export_allocation(gpu->find_allocation(memory->data() + at));
  };
  auto start = [&](std::uint64_t bytes, std::uint32_t parts) {
    return gpu->start_import(memory::part_kind::cuda_memory, bytes, parts, gpu->uuid());
  };
  CHECK_THROWS_AS(start(0, 1), transfer_error);
  CHECK_THROWS_AS(start(4096, 0), transfer_error);
  CHECK_THROWS_AS(start(4095, 1), transfer_error);
  CHECK_THROWS_AS(start(4096, 2)->finish(), transfer_error);
  CHECK_THROWS_AS(start(4096, 1)->add(part(0)), transfer_error); // too long
  {
    auto one = start(8192, 2);
    one->add(part(8192));
    CHECK_THROWS_AS(one->finish(), transfer_error);
    CHECK_THROWS_AS(one->add(part(0)), transfer_error);
    auto lying = part(8192);
    lying.bytes = 8192;
    CHECK_THROWS_AS(start(8192, 1)->add(std::move(lying)), transfer_error);
    auto closed = part(8192);
    closed.fd.reset();
    CHECK_THROWS_AS(start(4096, 1)->add(std::move(closed)), transfer_error);
  }
  devices.reaches(device::cuda(1), scripted_devices::uuid_of(0), false);
  CHECK_THROWS_AS(carry(*gpu, *devices.get(device::cuda(1)), *memory), transfer_error);
  CHECK_THROWS_AS(carry(*gpu, *devices.get(device::host()), *memory), transfer_error);

  devices.fail(scripted_devices::call::import_segment, errc::not_reachable, 2);
  CHECK_THROWS_AS(carry(*gpu, *gpu, *memory), transfer_error); // at the third part
  devices.fail(scripted_devices::call::export_allocation, errc::not_reachable, 1);
  CHECK_THROWS_AS(carry(*gpu, *gpu, *memory), transfer_error);
  CHECK(devices.count().segments_made == 0);
  CHECK(bytes_of(*carry(*gpu, *gpu, *memory)) == bytes_of(*memory));
  CHECK(devices.count().segments_made == 1);
  CHECK(devices.count().segments_alive == 0);
}

TEST_CASE("prepared lists take their pace from the script, portion by portion") {
  auto const when = std::make_shared<script>(script::pace::timed);
  scripted_devices devices(when, 1);
  devices.cost([](device, std::span<memory::copy_op const> ops) { return 10ms * ops.size(); });
  auto const gpu = devices.get(device::cuda(0));
  char a[] = "abc", b[] = "old";
  std::vector<memory::copy_op> ops{op_of(a, b, 1), op_of(a + 1, b + 1, 1), op_of(a + 2, b + 2, 1)};
  devices.fail(scripted_devices::call::prepare, errc::out_of_memory);
  CHECK_THROWS_AS(gpu->prepare(ops), transfer_error);
  {
    auto const list = gpu->prepare(ops);
    CHECK(devices.count().prepared_alive == 1);
    auto const queue = gpu->make_queue();
    queue->repeat(*list, {0, 2, 8});
    auto const first = queue->mark();
    queue->repeat(*list, {2});
    auto const second = queue->mark();
    CHECK(b == std::string("old"));
    REQUIRE(when->advance());
    CHECK(when->now() == 20ms);
    CHECK(queue->poll().completed == first);
    CHECK(b == std::string("abd"));
    REQUIRE(when->advance());
    CHECK(when->now() == 30ms);
    CHECK(queue->poll().completed == second);
    CHECK(b == std::string("abc"));
    CHECK(devices.count().repeats == 2);
    CHECK(devices.count().most_blocks == 0);
    when->set(script::pace::held);
    b[0] = 'x';
    queue->repeat(*list, {0, 1, 3});
    CHECK(devices.count().most_blocks == 3);
    CHECK(when->touches(b, 1));
    CHECK_FALSE(when->touches(b + 1, 2));
    CHECK(b[0] == 'x');
    CHECK(when->finish_all() == 1);
    CHECK(b[0] == 'a');
  }
  CHECK(devices.count().prepared_alive == 0);
}
