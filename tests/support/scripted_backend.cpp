#include "scripted_backend.hpp"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <sys/eventfd.h>
#include <utility>

#include "memory/host/box.hpp"
#include "memory/host/region.hpp"

namespace ropeway::testing {

using memory::copy_op;

struct scripted_devices::state {
  std::shared_ptr<script> when;
  int cuda_count = 0;
  mutable std::mutex mutex;
  scripted_devices::counts counts;
  cost_function cost;
  struct failure {
    errc why;
    int successes;
  };
  std::map<call, failure> failures;
  std::map<std::pair<int, memory::device_uuid>, bool> reach; // by ordinal, -1 for the host
  std::map<int, std::weak_ptr<memory::backend>> devices;     // which hold this state
  bool hang = false;

  static int key(device where) noexcept { return where.is_cuda() ? where.ordinal() : -1; }

  void may_fail(call what, std::string const& text) {
    std::lock_guard const lock(mutex);
    auto const planned = failures.find(what);
    if (planned == failures.end() || planned->second.successes-- > 0) return;
    errc const why = planned->second.why;
    failures.erase(planned);
    throw transfer_error(why, "scripted failure: " + text);
  }
  template <class Change>
  void tell(Change const& change) {
    std::lock_guard const lock(mutex);
    change(counts);
  }
};

// All of it under the script's mutex.
class scripted_queue final : public memory::queue {
 public:
  using state = scripted_devices::state;

  scripted_queue(device where, std::shared_ptr<state> devices)
      : where_(where), devices_(std::move(devices)), event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!event_) throw std::runtime_error("eventfd");
    devices_->tell([](auto& c) { ++c.queues_made, ++c.queues_alive; });
    std::lock_guard const lock(when().mutex_);
    when().queues_.push_back(this);
  }
  ~scripted_queue() override {
    drain(drain_limit);
    std::lock_guard const lock(when().mutex_);
    std::erase(when().queues_, this);
    devices_->tell([](auto& c) { --c.queues_alive; });
  }

  void start_after(ready_after const& what) override {
    devices_->may_fail(scripted_devices::call::start_after, "start_after");
    std::lock_guard const lock(when().mutex_);
    if (what.type() == ready_after::kind::nothing) return;
    gate_ = what.type() == ready_after::kind::stream ? static_cast<void const*>(what.stream())
                                                     : static_cast<void const*>(what.event());
    devices_->tell([](auto& c) { ++c.waits; });
  }

  void copy(std::span<copy_op const> ops) override {
    devices_->may_fail(scripted_devices::call::copy, "copy");
    std::vector<copy_op> taken(ops.begin(), ops.end());
    std::uint64_t bytes = 0;
    for (copy_op& op : taken) {
      // Only names of devices are scripted; the memory is the host's.
      op.from_where = op.to_where = device::host();
      memory::host::check(op);
      bytes += memory::host::bytes_written(op);
    }
    devices_->tell([&](auto& c) { ++c.lists, c.ops += taken.size(), c.bytes += bytes; });
    std::lock_guard const lock(when().mutex_);
    if (error_) return;
    lists_.push_back({std::move(taken), 0, when().order_++, when().now_, std::exchange(gate_, nullptr)});
    if (when().pace_ == script::pace::immediate) {
      while (may_finish()) finish_front();
    }
  }

  std::uint64_t mark() override {
    std::lock_guard const lock(when().mutex_);
    ++last_ticket_;
    if (gate_ != nullptr) { // as on a device: what is marked is also what was waited for
      lists_.push_back({{}, last_ticket_, when().order_++, when().now_, std::exchange(gate_, nullptr)});
      if (when().pace_ == script::pace::immediate)
        while (may_finish()) finish_front();
    } else if (lists_.empty()) {
      if (!error_) reached(last_ticket_);
    } else {
      lists_.back().ticket = last_ticket_;
    }
    return last_ticket_;
  }

  memory::progress poll() override {
    std::lock_guard const lock(when().mutex_);
    return {completed_, error_};
  }
  int event_fd() const noexcept override { return event_.get(); }

  bool drain(std::chrono::milliseconds) noexcept override {
    std::lock_guard const lock(when().mutex_);
    if (devices_->hang) return lists_.empty();
    std::uint64_t finished = 0;
    for (; !lists_.empty(); ++finished) finish_front();
    devices_->tell([&](auto& c) { c.drained += finished; });
    return true;
  }

  // For the script, which holds its mutex:
  bool may_finish() const { return !lists_.empty() && when().open(lists_.front().gate); }
  std::uint64_t front_order() const { return lists_.front().order; }
  std::chrono::nanoseconds front_due() const {
    auto const& list = lists_.front();
    auto start = std::max(list.since, free_);
    if (list.gate != nullptr) start = std::max(start, when().signalled_.at(list.gate));
    return start + (devices_->cost ? devices_->cost(where_, list.ops) : std::chrono::nanoseconds{0});
  }
  void finish_front() {
    auto const list = std::move(lists_.front());
    lists_.pop_front();
    for (copy_op const& op : list.ops) memory::host::copy(op, false);
    free_ = when().now_;
    if (list.ticket != 0) reached(list.ticket);
  }
  std::size_t waiting() const { return lists_.size(); }
  bool touches(std::byte const* begin, std::byte const* end) const {
    // Ranges that boxes span: from the smallest to the largest address of an element.
    auto const spans = [&](copy_op const& op, std::byte const* at, auto const& strides,
                           std::uint64_t element) {
      auto low = reinterpret_cast<std::uintptr_t>(at), high = low;
      for (std::size_t i = 0; i < op.rank; ++i) {
        if (op.extent[i] == 0) return false;
        auto const reach = static_cast<std::int64_t>(op.extent[i] - 1) * strides[i];
        (reach < 0 ? low : high) += static_cast<std::uintptr_t>(reach);
      }
      high += op.rank == 0 ? op.bytes : element;
      return low < reinterpret_cast<std::uintptr_t>(end) && reinterpret_cast<std::uintptr_t>(begin) < high;
    };
    for (auto const& list : lists_) {
      for (copy_op const& op : list.ops) {
        if (spans(op, op.from, op.from_stride, op.from_element) ||
            spans(op, op.to, op.to_stride, op.to_element)) {
          return true;
        }
      }
    }
    return false;
  }
  device where() const noexcept { return where_; }
  state const* devices() const noexcept { return devices_.get(); }
  void fail(errc why) {
    error_ = why;
    lists_.clear();
    ::eventfd_write(event_.get(), 1);
  }

 private:
  struct queued_list {
    std::vector<copy_op> ops;
    std::uint64_t ticket;
    std::uint64_t order;
    std::chrono::nanoseconds since;
    void const* gate;
  };
  script& when() const { return *devices_->when; }
  void reached(std::uint64_t ticket) {
    completed_ = ticket;
    ::eventfd_write(event_.get(), 1);
  }

  device where_;
  std::shared_ptr<state> devices_;
  unique_fd event_;
  std::deque<queued_list> lists_;
  std::uint64_t last_ticket_ = 0, completed_ = 0;
  std::chrono::nanoseconds free_{0};
  void const* gate_ = nullptr;
  std::error_code error_;
};

namespace {

// A real host region that says it lies on a device, and is counted while it lives.
class named_region final : public memory::region {
 public:
  named_region(std::shared_ptr<memory::region> real, device where, std::function<void()> gone)
      : region(real->data(), real->size(), where), real_(std::move(real)), gone_(std::move(gone)) {}
  ~named_region() override { gone_(); }

 private:
  std::shared_ptr<memory::region> real_;
  std::function<void()> gone_;
};

} // namespace

class scripted_device final : public memory::backend {
 public:
  using call = scripted_devices::call;
  scripted_device(device where, std::shared_ptr<scripted_devices::state> devices)
      : where_(where), devices_(std::move(devices)) {}

  device where() const noexcept override { return where_; }
  memory::device_uuid uuid() const noexcept override {
    return where_.is_cuda() ? scripted_devices::uuid_of(where_.ordinal()) : memory::device_uuid{};
  }
  shared_region make_region(std::uint64_t bytes) override {
    devices_->may_fail(call::make_region, "make_region of " + std::to_string(bytes) + " bytes");
    auto made = memory::host::make_region(bytes);
    devices_->tell([](auto& c) { ++c.regions_made, ++c.regions_alive; });
    auto gone = [devices = devices_] { devices->tell([](auto& c) { --c.regions_alive; }); };
    return {std::make_shared<named_region>(std::move(made.memory), where_, gone), std::move(made.handle)};
  }
  std::shared_ptr<memory::region> import_region(unique_fd handle, std::uint64_t bytes,
                                                memory::device_uuid const& origin) override {
    devices_->may_fail(call::import_region, "import_region of " + std::to_string(bytes) + " bytes");
    if (!can_reach(origin)) {
      throw transfer_error(errc::not_reachable,
                           memory::to_string(uuid()) + " can't map memory of " + memory::to_string(origin));
    }
    auto real = memory::host::import_region(std::move(handle), bytes);
    devices_->tell([](auto& c) { ++c.imports_made, ++c.imports_alive; });
    auto gone = [devices = devices_] { devices->tell([](auto& c) { --c.imports_alive; }); };
    auto const from = origin == memory::device_uuid{} ? device::host() : where_;
    return std::make_shared<named_region>(std::move(real), from, gone);
  }
  bool can_reach(memory::device_uuid const& origin) const noexcept override {
    std::lock_guard const lock(devices_->mutex);
    auto const said = devices_->reach.find({scripted_devices::state::key(where_), origin});
    if (said != devices_->reach.end()) return said->second;
    // The host maps host memory; a device maps its peers', host memory it registers.
    return (origin == memory::device_uuid{}) != where_.is_cuda();
  }
  std::shared_ptr<void> register_host(std::shared_ptr<memory::region> memory) override {
    devices_->may_fail(call::register_host, "register_host");
    if (!where_.is_cuda()) return nullptr;
    devices_->tell([](auto& c) { ++c.registrations_made, ++c.registrations_alive; });
    return {memory.get(),
            [memory, devices = devices_](void*) { devices->tell([](auto& c) { --c.registrations_alive; }); }};
  }
  std::unique_ptr<memory::queue> make_queue() override {
    devices_->may_fail(call::make_queue, "make_queue");
    return std::make_unique<scripted_queue>(where_, devices_);
  }

 private:
  device where_;
  std::shared_ptr<scripted_devices::state> devices_;
};

void script::set(pace how) {
  std::lock_guard const lock(mutex_);
  pace_ = how;
}

bool script::finish_next() {
  std::lock_guard const lock(mutex_);
  scripted_queue* next = nullptr;
  for (scripted_queue* q : queues_) {
    if (q->may_finish() && (next == nullptr || q->front_order() < next->front_order())) next = q;
  }
  if (next != nullptr) next->finish_front();
  return next != nullptr;
}

std::size_t script::finish_all() {
  std::size_t count = 0;
  while (finish_next()) ++count;
  return count;
}

bool script::advance() {
  std::lock_guard const lock(mutex_);
  scripted_queue* next = nullptr;
  for (scripted_queue* q : queues_) {
    if (q->may_finish() && (next == nullptr || q->front_due() < next->front_due())) next = q;
  }
  if (next == nullptr || pace_ != pace::timed) return false;
  now_ = std::max(now_, next->front_due());
  next->finish_front();
  return true;
}

std::chrono::nanoseconds script::now() const {
  std::lock_guard const lock(mutex_);
  return now_;
}

void script::signal(void const* stream_or_event) {
  std::lock_guard const lock(mutex_);
  signalled_.emplace(stream_or_event, now_);
  if (pace_ != pace::immediate) return;
  for (scripted_queue* q : queues_) {
    while (q->may_finish()) q->finish_front();
  }
}

std::size_t script::in_flight() const {
  std::lock_guard const lock(mutex_);
  std::size_t count = 0;
  for (scripted_queue const* q : queues_) count += q->waiting();
  return count;
}

bool script::touches(void const* memory, std::uint64_t bytes) const {
  std::lock_guard const lock(mutex_);
  auto const* const begin = static_cast<std::byte const*>(memory);
  return std::any_of(queues_.begin(), queues_.end(),
                     [&](scripted_queue const* q) { return q->touches(begin, begin + bytes); });
}

scripted_devices::scripted_devices(std::shared_ptr<script> when, int cuda_count)
    : state_(std::make_shared<state>()) {
  state_->when = std::move(when);
  state_->cuda_count = cuda_count;
}

std::shared_ptr<memory::backend> scripted_devices::get(device where) {
  if (where.is_cuda() && (where.ordinal() < 0 || where.ordinal() >= state_->cuda_count)) {
    throw transfer_error(errc::no_device, "there is no " + to_string(where) + " in this script");
  }
  std::lock_guard const lock(state_->mutex);
  auto& known = state_->devices[state::key(where)];
  auto device = known.lock();
  if (!device) known = device = std::make_shared<scripted_device>(where, state_);
  return device;
}

std::vector<memory::device_uuid> scripted_devices::cuda_devices() {
  std::vector<memory::device_uuid> out;
  for (int i = 0; i < state_->cuda_count; ++i) out.push_back(uuid_of(i));
  return out;
}

memory::device_uuid scripted_devices::uuid_of(int ordinal) {
  memory::device_uuid id{};
  id.front() = 0xc0;
  id.back() = static_cast<std::uint8_t>(ordinal + 1);
  return id;
}

void scripted_devices::cost(cost_function how_long) {
  std::lock_guard const lock(state_->when->mutex_);
  state_->cost = std::move(how_long);
}

void scripted_devices::reaches(device where, memory::device_uuid const& origin, bool can) {
  std::lock_guard const lock(state_->mutex);
  state_->reach[{state::key(where), origin}] = can;
}

void scripted_devices::fail(call what, errc why, int successes) {
  std::lock_guard const lock(state_->mutex);
  state_->failures[what] = {why, successes};
}

void scripted_devices::fail_queues(device where, errc why) {
  std::lock_guard const lock(state_->when->mutex_);
  for (scripted_queue* q : state_->when->queues_) {
    if (q->devices() == state_.get() && q->where() == where) q->fail(why);
  }
}

void scripted_devices::hang_on_drain(bool on) {
  std::lock_guard const lock(state_->when->mutex_);
  state_->hang = on;
}

scripted_devices::counts scripted_devices::count() const {
  std::lock_guard const lock(state_->mutex);
  return state_->counts;
}

} // namespace ropeway::testing
