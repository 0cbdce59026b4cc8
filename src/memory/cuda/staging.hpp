// Copies from and to memory that the device does not reach, through a little pinned memory. For the worker
// thread of a queue: it blocks. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <span>

#include "memory/cuda/lane.hpp"

namespace ropeway::memory::cuda {

class staging {
 public:
  /// Throws `transfer_error(errc::out_of_memory)`. In a scope of the owner, as everything here.
  explicit staging(std::shared_ptr<gpu> owner);
  ~staging();
  staging(staging const&) = delete;
  staging& operator=(staging const&) = delete;

  /// Carries the copies out, after everything that is on the lane; on return, the host's part is done and the
  /// device's is on the lane.
  void run(std::span<copy_op const> ops, lane& on);

 private:
  // Two, so that the processor fills one while the device empties the other.
  static constexpr std::uint64_t slot_bytes = std::uint64_t{4} << 20;
  struct slot {
    std::byte* memory = nullptr;
    event done;
    bool used = false;
    bool to_be_copied_out = false;
    copy_op out;
  };
  void part(copy_op const& op, lane& on);
  void settle(slot& which);

  std::shared_ptr<gpu> owner_;
  std::byte* pinned_ = nullptr;
  std::array<slot, 2> slots_;
  std::size_t next_ = 0;
};

} // namespace ropeway::memory::cuda
