// Weights that are still being made when they are sent. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>

#include "ropeway/cuda.hpp"

namespace ropeway::matrix {

/// A stream of the trainer's.
class training_stream {
 public:
  virtual ~training_stream() = default;
  /// Queues what takes longer than it takes to begin an update; the weights are ready after it.
  virtual ready_after step() = 0;
};

/// On a device that is there. A build without CUDA has none, and throws.
std::shared_ptr<training_stream> training_on(device where);

} // namespace ropeway::matrix
