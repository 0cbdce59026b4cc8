#include "scripted_backend.hpp"

#include <algorithm>
#include <deque>
#include <fcntl.h>
#include <stdexcept>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

#include "memory/host/backend.hpp"
#include "memory/host/box.hpp"
#include "memory/host/digests.hpp"
#include "memory/host/region.hpp"

namespace ropeway::testing {

using memory::copy_op;

namespace {

// Addresses of an application, or of an imported segment: memory files mapped one behind the other.
class address_space {
 public:
  explicit address_space(std::uint64_t bytes) : bytes_(bytes) {
    void* const at = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw transfer_error(errc::out_of_memory, "no addresses for a segment");
    begin_ = static_cast<std::byte*>(at);
  }
  ~address_space() {
    if (begin_ != nullptr) ::munmap(begin_, bytes_);
  }
  address_space(address_space const&) = delete;
  address_space& operator=(address_space const&) = delete;

  void map(std::byte* at, std::uint64_t bytes, int fd, int protection) const {
    if (::mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
      throw transfer_error(errc::bad_region, "a part of a segment can't be mapped");
  }
  std::byte* begin() const noexcept { return begin_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* begin_ = nullptr;
  std::uint64_t bytes_;
};

unique_fd again(unique_fd const& fd) { return unique_fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

bool whole_pages(std::uint64_t bytes) {
  return bytes > 0 && bytes % static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) == 0;
}

// What a device's application allocated: a memory file, which only its maker's mapping writes.
struct own_allocation {
  memory::allocation seen;
  unique_fd fd;
  void fill(address_space const& into) {
    fd.reset(::memfd_create("scripted", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ::fallocate(fd.get(), 0, 0, static_cast<off_t>(seen.bytes)) != 0)
      throw transfer_error(errc::out_of_memory, "no memory for a scripted allocation");
    into.map(seen.begin, seen.bytes, fd.get(), PROT_READ | PROT_WRITE);
    ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
  }
};

} // namespace

struct scripted_devices::state {
  std::shared_ptr<script> when;
  int cuda_count = 0;
  mutable std::mutex mutex;
  scripted_devices::counts counts;
  cost_function cost;
  corrupt_function corrupt;
  struct failure {
    errc why;
    int successes;
  };
  std::map<call, failure> failures;
  std::map<std::pair<int, memory::device_uuid>, bool> reach; // by ordinal, -1 for the host
  std::map<int, std::weak_ptr<memory::backend>> devices;     // which hold this state
  bool hang = false;
  struct own_memory {
    address_space const* where;
    own_allocation what;
  };
  std::map<std::byte const*, own_memory> own; // by its first address
  std::uint64_t last_identity = 0;

  // Under the mutex; null if there is none.
  own_memory* find_own(std::byte const* address) noexcept {
    auto next = own.upper_bound(address);
    if (next == own.begin()) return nullptr;
    auto& [begin, found] = *std::prev(next);
    return address < begin + found.what.seen.bytes ? &found : nullptr;
  }

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

  void copy(std::span<copy_op const> ops, memory::effort how) override {
    devices_->may_fail(scripted_devices::call::copy, "copy");
    std::vector<copy_op> taken(ops.begin(), ops.end());
    std::uint64_t bytes = 0;
    for (copy_op& op : taken) {
      // Only names of devices are scripted; the memory is the host's.
      op.from_where = op.to_where = device::host();
      memory::host::check(op);
      bytes += memory::bytes_of(op);
    }
    devices_->tell([&](auto& c) {
      ++c.lists, c.ops += taken.size(), c.bytes += bytes;
      c.lists_beside_link += how == memory::effort::beside_link;
    });
    std::lock_guard const lock(when().mutex_);
    if (error_) return;
    add(std::move(taken), nullptr, {}, 0);
  }

  void digest(memory::prepared_digests& list, memory::digest_run what) override {
    devices_->may_fail(scripted_devices::call::digest, "digest");
    devices_->tell([](auto& c) { ++c.digests; });
    std::lock_guard const lock(when().mutex_);
    if (error_) return;
    add({}, &dynamic_cast<memory::host::host_digests&>(list), what, 0);
  }

  void repeat(memory::prepared_copies const& list, memory::portion what) override {
    devices_->tell([&](auto& c) { ++c.repeats, c.most_blocks = what.most_blocks; });
    queue::repeat(list, what);
  }

  std::uint64_t mark() override {
    std::lock_guard const lock(when().mutex_);
    ++last_ticket_;
    if (gate_ != nullptr) { // as on a device: what is marked is also what was waited for
      add({}, nullptr, {}, last_ticket_);
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
    for (copy_op const& op : list.ops) {
      memory::host::copy(op, false);
      if (devices_->corrupt) devices_->corrupt(op);
    }
    if (list.digests) list.digests->carry_out(list.run);
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
    memory::host::host_digests* digests;
    memory::digest_run run;
    std::uint64_t ticket;
    std::uint64_t order;
    std::chrono::nanoseconds since;
    void const* gate;
  };
  void add(std::vector<copy_op> ops, memory::host::host_digests* digests, memory::digest_run run,
           std::uint64_t ticket) {
    lists_.push_back(
        {std::move(ops), digests, run, ticket, when().order_++, when().now_, std::exchange(gate_, nullptr)});
    if (when().pace_ != script::pace::immediate) return;
    while (may_finish()) finish_front();
  }
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

// An application's memory, or a peer's segment of it.
class mapped_files final : public memory::region {
 public:
  mapped_files(std::unique_ptr<address_space> space, device where, std::function<void()> gone)
      : region(space->begin(), space->bytes(), where), space_(std::move(space)), gone_(std::move(gone)) {}
  ~mapped_files() override { gone_(); }

 private:
  std::unique_ptr<address_space> space_;
  std::function<void()> gone_;
};

} // namespace

class scripted_importer final : public memory::segment_importer {
 public:
  using state = scripted_devices::state;

  scripted_importer(device where, std::uint64_t bytes, std::uint32_t parts, std::shared_ptr<state> devices)
      : where_(where), parts_left_(parts), devices_(std::move(devices)) {
    if (!whole_pages(bytes) || parts == 0) bad();
    space_ = std::make_unique<address_space>(bytes);
  }
  void add(memory::part_handle part) override {
    devices_->may_fail(scripted_devices::call::import_segment, "import_segment");
    if (part.kind != memory::part_kind::cuda_memory || parts_left_ == 0 || !whole_pages(part.bytes) ||
        part.bytes > space_->bytes() - mapped_)
      bad();
    // Checks the descriptor, as strictly as a ring's.
    (void)memory::host::import_region(again(part.fd), part.bytes);
    space_->map(space_->begin() + mapped_, part.bytes, part.fd.get(), PROT_READ);
    mapped_ += part.bytes;
    --parts_left_;
  }
  std::shared_ptr<memory::region> finish() override {
    if (!space_ || parts_left_ != 0 || mapped_ != space_->bytes()) bad();
    devices_->tell([](auto& c) { ++c.segments_made, ++c.segments_alive; });
    auto gone = [devices = devices_] { devices->tell([](auto& c) { --c.segments_alive; }); };
    return std::make_shared<mapped_files>(std::move(space_), where_, gone);
  }

 private:
  [[noreturn]] static void bad() {
    throw transfer_error(errc::bad_region, "a segment's parts are not what was announced");
  }
  device where_;
  std::uint32_t parts_left_;
  std::uint64_t mapped_ = 0;
  std::unique_ptr<address_space> space_;
  std::shared_ptr<state> devices_;
};

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
  std::shared_ptr<memory::prepared_copies const> prepare(std::span<copy_op const> ops) override {
    devices_->may_fail(call::prepare, "prepare");
    auto list = backend::prepare(ops);
    devices_->tell([](auto& c) { ++c.prepared_made, ++c.prepared_alive; });
    auto const* const raw = list.get();
    return {raw, [list = std::move(list), devices = devices_](auto*) {
              devices->tell([](auto& c) { --c.prepared_alive; });
            }};
  }
  std::shared_ptr<memory::prepared_digests> prepare_digests(std::span<memory::digest_op const> ops,
                                                            std::uint32_t sums) override {
    devices_->may_fail(call::prepare_digests, "prepare digests");
    for (memory::digest_op const& op : ops)
      if (op.where != where_) throw std::invalid_argument("digests of memory of another device");
    auto list = std::make_shared<memory::host::host_digests>(ops, sums);
    devices_->tell([](auto& c) { ++c.prepared_made, ++c.prepared_alive; });
    auto* const raw = list.get();
    return {raw, [list = std::move(list), devices = devices_](auto*) {
              devices->tell([](auto& c) { --c.prepared_alive; });
            }};
  }
  memory::allocation find_allocation(std::byte const* address) const noexcept override {
    if (!where_.is_cuda()) return backend::find_allocation(address);
    std::lock_guard const lock(devices_->mutex);
    if (auto const* const own = devices_->find_own(address)) return own->what.seen;
    memory::allocation none;
    none.why_not = "memory that the script does not share";
    return none;
  }
  memory::part_handle export_allocation(memory::allocation const& what) override {
    devices_->may_fail(call::export_allocation, "export_allocation");
    std::lock_guard const lock(devices_->mutex);
    auto const* const own = where_.is_cuda() ? devices_->find_own(what.begin) : nullptr;
    if (!own || own->what.seen.identity != what.identity ||
        own->what.seen.kind != memory::part_kind::cuda_memory)
      throw transfer_error(errc::not_reachable, "scripted memory was freed, or can't be exported");
    ++devices_->counts.exports;
    memory::part_handle part;
    part.kind = own->what.seen.kind;
    part.bytes = own->what.seen.bytes;
    part.fd = again(own->what.fd);
    return part;
  }
  std::unique_ptr<memory::segment_importer> start_import(memory::part_kind kind, std::uint64_t bytes,
                                                         std::uint32_t parts,
                                                         memory::device_uuid const& origin) override {
    if (!where_.is_cuda()) return memory::host::make_backend()->start_import(kind, bytes, parts, origin);
    if (kind != memory::part_kind::cuda_memory || !can_reach(origin))
      return backend::start_import(kind, bytes, parts, origin);
    return std::make_unique<scripted_importer>(where_, bytes, parts, devices_);
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

std::shared_ptr<memory::region> scripted_devices::allocate(device where,
                                                           std::span<std::uint64_t const> sizes) {
  std::uint64_t all = 0;
  for (std::uint64_t const bytes : sizes) {
    if (!whole_pages(bytes)) throw std::invalid_argument("a scripted allocation is whole pages");
    all += bytes;
  }
  auto space = std::make_unique<address_space>(all);
  std::byte *const begin = space->begin(), *at = begin;
  std::map<std::byte const*, state::own_memory> made;
  for (std::uint64_t const bytes : sizes) {
    own_allocation one{{at, bytes, 0, where, memory::part_kind::cuda_memory, ""}, {}};
    one.fill(*space);
    made.emplace(at, state::own_memory{space.get(), std::move(one)});
    at += bytes;
  }
  std::lock_guard const lock(state_->mutex);
  for (auto& [address, one] : made) one.what.seen.identity = ++state_->last_identity;
  state_->own.merge(made);
  auto gone = [state = state_, begin, end = at] {
    std::lock_guard const inside(state->mutex);
    state->own.erase(state->own.lower_bound(begin), state->own.lower_bound(end));
  };
  return std::make_shared<mapped_files>(std::move(space), where, gone);
}

void scripted_devices::make_anew(std::byte const* address) {
  std::lock_guard const lock(state_->mutex);
  auto* const own = state_->find_own(address);
  if (!own) throw std::invalid_argument("no scripted allocation");
  own->what.fill(*own->where);
  own->what.seen.identity = ++state_->last_identity;
}

void scripted_devices::hide(std::byte const* address, char const* why) {
  std::lock_guard const lock(state_->mutex);
  auto* const own = state_->find_own(address);
  if (!own) throw std::invalid_argument("no scripted allocation");
  own->what.seen.kind = memory::part_kind::none;
  own->what.seen.why_not = why;
}

void scripted_devices::cost(cost_function how_long) {
  std::lock_guard const lock(state_->when->mutex_);
  state_->cost = std::move(how_long);
}

void scripted_devices::corrupt(corrupt_function how) {
  std::lock_guard const lock(state_->when->mutex_);
  state_->corrupt = std::move(how);
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
