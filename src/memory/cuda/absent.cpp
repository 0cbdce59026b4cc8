// CUDA memory in a build without CUDA: there is none, and the reason is told.
// Part of ropeway; Apache-2.0.
#include "memory/cuda/cuda.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {

std::shared_ptr<backend> make_backend(int ordinal) {
  throw transfer_error(errc::no_device, "no CUDA device " + std::to_string(ordinal) +
                                            ": this build has no CUDA; build again where nvcc is installed");
}

std::vector<device_uuid> visible_devices() noexcept { return {}; }

} // namespace ropeway::memory::cuda
