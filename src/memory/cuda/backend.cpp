// CUDA memory as one backend a device. Part of ropeway; Apache-2.0.
#include "memory/cuda/cuda.hpp"
#include "memory/cuda/digests.hpp"
#include "memory/cuda/driver.hpp"
#include "memory/cuda/gates.hpp"
#include "memory/cuda/gpu.hpp"
#include "memory/cuda/prepared.hpp"
#include "memory/cuda/queue.hpp"
#include "memory/cuda/region.hpp"
#include "memory/cuda/segments.hpp"

namespace ropeway::memory::cuda {
namespace {

class cuda_backend final : public backend {
 public:
  cuda_backend(std::shared_ptr<driver const> table, int ordinal)
      : gpu_(std::make_shared<gpu>(std::move(table), ordinal)) {}

  device where() const noexcept override { return gpu_->where(); }
  device_uuid uuid() const noexcept override { return gpu_->uuid(); }
  shared_region make_region(std::uint64_t bytes) override { return cuda::make_region(gpu_, bytes); }
  std::shared_ptr<region> import_region(unique_fd handle, std::uint64_t bytes,
                                        device_uuid const& origin) override {
    return cuda::import_region(gpu_, std::move(handle), bytes, origin);
  }
  bool can_reach(device_uuid const& origin) const noexcept override { return cuda::can_reach(*gpu_, origin); }
  std::shared_ptr<void> register_host(std::shared_ptr<region> memory) override {
    return cuda::register_host(gpu_, std::move(memory));
  }
  std::unique_ptr<queue> make_queue() override { return cuda::make_queue(gpu_); }
  std::shared_ptr<prepared_copies const> prepare(std::span<copy_op const> ops) override {
    return std::make_shared<prepared>(gpu_, ops);
  }
  std::shared_ptr<prepared_digests> prepare_digests(std::span<digest_op const> ops,
                                                    std::uint32_t sums) override {
    for (digest_op const& op : ops)
      if (op.where != where())
        throw transfer_error(errc::invalid_argument, "digests of memory of another device");
    return std::make_shared<device_digests>(gpu_, ops, sums);
  }
  bool is_past(ready_after const& when) const noexcept override { return cuda::is_past(*gpu_, when); }
  bool are_there(std::span<allocation const> known) const noexcept override {
    return cuda::are_there(*gpu_, known);
  }
  allocation find_allocation(std::byte const* address) const noexcept override {
    return cuda::find_allocation(*gpu_, address);
  }
  part_handle export_allocation(allocation const& what) override {
    return cuda::export_allocation(*gpu_, what);
  }
  std::unique_ptr<segment_importer> start_import(part_kind kind, std::uint64_t bytes, std::uint32_t parts,
                                                 device_uuid const& origin) override {
    return cuda::start_import(gpu_, kind, bytes, parts, origin);
  }

 private:
  std::shared_ptr<gpu> gpu_;
};

} // namespace

std::shared_ptr<backend> make_backend(std::shared_ptr<driver const> table, int ordinal) {
  return std::make_shared<cuda_backend>(std::move(table), ordinal);
}

std::shared_ptr<backend> make_backend(int ordinal) { return make_backend(load_driver(), ordinal); }

std::vector<device_uuid> visible_devices() noexcept {
  try {
    return list_devices(*load_driver());
  } catch (...) { return {}; }
}

} // namespace ropeway::memory::cuda
