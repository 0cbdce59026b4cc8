// A list of copies that was looked at once and lies in device memory. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "memory/cuda/sorting.hpp"

namespace ropeway::memory::cuda {

/// How a list is cut, and launched where no portion says otherwise: by default a block for each chunk, which
/// each thread of the block copies in one go. Blocks that run at the same time then work on neighbouring
/// memory, for which the device is fastest (docs/performance.md).
struct list_shape {
  std::uint32_t chunk_bytes = 4 * 16 * ropeway_threads;
  std::uint32_t blocks_per_multiprocessor = 0; ///< 0: a block for each chunk
};

/// Its units are the chunks of one kernel, then the copies of the copy engine, then those that go through
/// the worker of a queue.
class prepared final : public prepared_copies {
 public:
  /// Waits for the device. Throws transfer_error.
  prepared(std::shared_ptr<gpu> owner, std::span<copy_op const> ops, list_shape shape = {});
  /// May wait for the device.
  ~prepared() override;
  prepared(prepared const&) = delete;
  prepared& operator=(prepared const&) = delete;

  gpu const* owner() const noexcept { return owner_.get(); }
  /// Some of its units, by the ways they go.
  struct part {
    ropeway_prepared_list list{};
    std::uint32_t blocks = 0; ///< 0: nothing for the kernel
    copy_lists::kernel kernel{};
    std::span<engine_copy const> engine;
    std::span<copy_op const> staged;
    bool empty() const noexcept { return blocks == 0 && engine.empty() && staged.empty(); }
  };
  part of(portion what) const noexcept;

 private:
  void upload(chunk_table const& table);
  void free() noexcept;
  std::shared_ptr<gpu> owner_;
  list_shape shape_;
  CUdeviceptr memory_ = 0;
  ropeway_prepared_list list_{};
  copy_lists::kernel kernel_{};
  std::vector<engine_copy> engine_;
  std::vector<copy_op> staged_;
};

/// None is longer than `most` bytes afterwards: a list of the copy engine to be carried out bit by bit. Pure.
void cut(std::vector<engine_copy>& copies, std::uint64_t most);

} // namespace ropeway::memory::cuda
