// What ropeway is compared with: the same bytes, copied as plainly as it can be done. Part of ropeway;
// Apache-2.0.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench.hpp"

namespace ropeway::bench {

class limit {
 public:
  virtual ~limit() = default;
  /// Copies all of it once for each receiver.
  virtual void run() = 0;
  /// What `run` does, in a line.
  virtual std::string what() const = 0;
};

class device_block;
/// Device memory that limits use one after the other: a model twice would be too much beside the rest.
struct limit_memory {
  std::shared_ptr<device_block> source;
  std::map<int, std::shared_ptr<device_block>> targets; ///< by ordinal
};

/// What no transfer by this route can be faster than, as one process does it.
///
/// Mapped: one copy, by the driver (on a GPU, or from one to another) or one memcpy. Staged on one GPU: the
/// same in buckets, into a ring and out of it; between GPUs: one copy, because the copies within one overlap
/// with those over the link. Host: two memcpys one after the other on one thread, through a ring. Null where
/// there is no fair comparison inside one process. `by` is not automatic. `copies` is how many receivers take
/// all bytes, all of them on `to`.
std::unique_ptr<limit> make_limit(plan const& of, way by, model_memory const& from, device to,
                                  std::size_t copies, limit_memory& memory);

/// "NVIDIA H100 80GB HBM3" or the processor's name.
std::string device_name(device where);

} // namespace ropeway::bench
