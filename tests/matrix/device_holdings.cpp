#include "device_holdings.hpp"

#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "memory/cuda/driver.hpp"

namespace ropeway::matrix {
namespace {

using memory::cuda::driver;

struct counters {
  std::atomic<long> allocations, ranges, opened, host, streams, events, modules;
};
counters held; // the table's entries are plain functions
std::shared_ptr<driver const> real;

template <auto Entry, auto Counter, int Step>
struct counted;
template <class... Arguments, CUresult (*driver::*Entry)(Arguments...), std::atomic<long> counters::*Counter,
          int Step>
struct counted<Entry, Counter, Step> {
  static CUresult call(Arguments... arguments) {
    CUresult const result = ((*real).*Entry)(arguments...);
    if (result == CUDA_SUCCESS) held.*Counter += Step;
    return result;
  }
};
template <auto Entry, auto Counter, int Step>
void count(driver& table) {
  table.*Entry = &counted<Entry, Counter, Step>::call;
}
template <auto Makes, auto Ends, auto Counter>
void count_pair(driver& table) {
  count<Makes, Counter, 1>(table);
  count<Ends, Counter, -1>(table);
}

std::shared_ptr<driver const> counting_driver() {
  real = memory::cuda::load_driver();
  auto table = std::make_shared<driver>(*real);
  count_pair<&driver::cuMemAlloc, &driver::cuMemFree, &counters::allocations>(*table);
  count_pair<&driver::cuMemCreate, &driver::cuMemRelease, &counters::allocations>(*table);
  count<&driver::cuMemImportFromShareableHandle, &counters::allocations, 1>(*table);
  count<&driver::cuMemRetainAllocationHandle, &counters::allocations, 1>(*table);
  count_pair<&driver::cuMemAddressReserve, &driver::cuMemAddressFree, &counters::ranges>(*table);
  count_pair<&driver::cuIpcOpenMemHandle, &driver::cuIpcCloseMemHandle, &counters::opened>(*table);
  count_pair<&driver::cuMemHostAlloc, &driver::cuMemFreeHost, &counters::host>(*table);
  count_pair<&driver::cuMemHostRegister, &driver::cuMemHostUnregister, &counters::host>(*table);
  count_pair<&driver::cuStreamCreateWithPriority, &driver::cuStreamDestroy, &counters::streams>(*table);
  count_pair<&driver::cuEventCreate, &driver::cuEventDestroy, &counters::events>(*table);
  count_pair<&driver::cuModuleLoadData, &driver::cuModuleUnload, &counters::modules>(*table);
  return table;
}

class devices final : public memory::backends {
 public:
  std::shared_ptr<memory::backend> get(device where) override {
    if (!where.is_cuda()) return system_->get(where);
    std::scoped_lock lock(mutex_);
    auto& one = made_[where.ordinal()];
    if (!one) one = memory::cuda::make_backend(table_, where.ordinal());
    return one;
  }
  std::vector<memory::device_uuid> cuda_devices() override { return system_->cuda_devices(); }

 private:
  std::shared_ptr<memory::backends> system_ = memory::system_backends();
  std::shared_ptr<driver const> table_ = counting_driver();
  std::mutex mutex_;
  std::map<int, std::shared_ptr<memory::backend>> made_;
};

} // namespace

device_holdings device_holdings::now() {
  return {held.allocations, held.ranges, held.opened, held.host, held.streams, held.events, held.modules};
}

bool device_holdings::as_much_as(device_holdings const& before) const noexcept {
  constexpr long events_kept = 4;
  auto const all = [](device_holdings const& one) {
    return std::tie(one.allocations, one.ranges, one.opened, one.host, one.streams, one.modules);
  };
  return all(*this) == all(before) && events <= before.events + events_kept;
}

std::string device_holdings::words() const {
  auto const number = [](long count, char const* what) { return std::to_string(count) + ' ' + what; };
  return number(allocations, "allocations, ") + number(ranges, "ranges, ") + number(opened, "opened, ") +
         number(host, "of the host, ") + number(streams, "streams, ") + number(events, "events, ") +
         number(modules, "modules");
}

std::shared_ptr<memory::backends> counted_devices() { return std::make_shared<devices>(); }

} // namespace ropeway::matrix
