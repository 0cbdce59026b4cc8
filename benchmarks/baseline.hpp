// What ropeway is compared with: the same bytes, copied as plainly as it can be done. Part of ropeway;
// Apache-2.0.
#pragma once
#include <memory>
#include <string>

#include "bench.hpp"

namespace ropeway::bench {

class baseline {
 public:
  virtual ~baseline() = default;
  /// Copies all of it once.
  virtual void run() = 0;
  /// What `run` does, in a line.
  virtual std::string what() const = 0;
};

/// Two memcpys one after the other, on one thread: tensors to a bucket, bucket to tensors, with the ring's
/// buckets. Or, where both sides share a CUDA device, one driver copy of all bytes from and to its memory.
/// Null where there is no fair comparison inside one process.
std::unique_ptr<baseline> make_baseline(plan const& of, cli::weights const& from);

/// "NVIDIA H100 80GB HBM3" or the processor's name.
std::string device_name(device where);

} // namespace ropeway::bench
