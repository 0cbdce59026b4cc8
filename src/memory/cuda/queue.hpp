// Ordered copies on one device. Part of ropeway; Apache-2.0.
#pragma once
#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

std::unique_ptr<queue> make_queue(std::shared_ptr<gpu> owner);

} // namespace ropeway::memory::cuda
