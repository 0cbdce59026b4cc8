#include "memory/host/backend.hpp"

#include <utility>

#include "memory/host/digests.hpp"
#include "memory/host/queue.hpp"
#include "memory/host/region.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::host {
namespace {

/// A segment of host memory has one part: what shared_memory made.
class host_importer final : public segment_importer {
 public:
  explicit host_importer(std::uint64_t bytes) : bytes_(bytes) {}
  void add(part_handle part) override {
    if (memory_ || part.kind != part_kind::host_memory || part.bytes != bytes_)
      throw transfer_error(errc::bad_region, "a segment of host memory is one part of its own size");
    memory_ = host::import_region(std::move(part.fd), bytes_);
  }
  std::shared_ptr<region> finish() override {
    if (!memory_) throw transfer_error(errc::bad_region, "a segment without parts");
    return std::move(memory_);
  }

 private:
  std::uint64_t bytes_;
  std::shared_ptr<region> memory_;
};

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
  std::shared_ptr<prepared_digests> prepare_digests(std::span<digest_op const> ops,
                                                    std::uint32_t sums) override {
    for (digest_op const& op : ops)
      if (op.where.is_cuda())
        throw transfer_error(errc::invalid_argument, "digests of CUDA memory are computed by its device");
    return std::make_shared<host_digests>(ops, sums);
  }
  std::unique_ptr<segment_importer> start_import(part_kind kind, std::uint64_t bytes, std::uint32_t parts,
                                                 device_uuid const& origin) override {
    if (kind != part_kind::host_memory || parts != 1 || !can_reach(origin))
      return backend::start_import(kind, bytes, parts, origin);
    return std::make_unique<host_importer>(bytes);
  }
};

} // namespace

std::shared_ptr<backend> make_backend() { return std::make_shared<host_backend>(); }

} // namespace ropeway::memory::host
