#include "memory/host/backend.hpp"

#include <utility>

#include "memory/host/queue.hpp"
#include "memory/host/region.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::host {
namespace {

class host_backend final : public backend {
 public:
  device where() const noexcept override { return device::host(); }
  device_uuid uuid() const noexcept override { return {}; }
  shared_region make_region(std::uint64_t bytes) override { return host::make_region(bytes); }
  std::shared_ptr<region> import_region(unique_fd handle, std::uint64_t bytes,
                                        device_uuid const& origin) override {
    if (!can_reach(origin)) {
      throw transfer_error(errc::not_reachable, "host code can't map memory of " + to_string(origin) +
                                                    "; the sender must use a host ring for this receiver");
    }
    return host::import_region(std::move(handle), bytes);
  }
  bool can_reach(device_uuid const& origin) const noexcept override { return origin == device_uuid{}; }
  std::shared_ptr<void> register_host(std::shared_ptr<region>) override { return nullptr; }
  std::unique_ptr<queue> make_queue() override { return std::make_unique<host_queue>(); }
};

} // namespace

std::shared_ptr<backend> make_backend() { return std::make_shared<host_backend>(); }

} // namespace ropeway::memory::host
