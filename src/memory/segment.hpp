// Memory of an application's own that other processes map as it is: what the mapped route reads.
// Part of ropeway; Apache-2.0.
//
// A *segment* is a contiguous range of addresses, backed by one allocation or by several side by side (CUDA
// virtual memory, as PyTorch's expandable segments are). It crosses processes as *parts*, one an allocation.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/unique_fd.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::memory {

class region;
/// Names a device across processes; all zero for the host.
using device_uuid = std::array<std::uint8_t, 16>;

/// How a part crosses.
enum class part_kind : std::uint8_t {
  none,        ///< not at all
  host_memory, ///< a sealed memfd, made by the library (shared_memory)
  cuda_memory, ///< a physical allocation (cuMemCreate), as a descriptor
  cuda_legacy, ///< an allocation of cudaMalloc, as 64 bytes
};

/// The allocation that an address lies in, as its owner sees it now.
struct allocation {
  std::byte* begin = nullptr;
  std::uint64_t bytes = 0;
  /// Never that of another allocation of this process, be it at the same address. 0: unknown.
  std::uint64_t identity = 0;
  device where;
  part_kind kind = part_kind::none;
  char const* why_not = ""; ///< for none, in words that go on "it is "
};

/// What lets another process map one allocation. The memory stays alive as long as somebody maps it.
struct part_handle {
  part_kind kind = part_kind::none;
  std::uint64_t bytes = 0; ///< of the allocation; what a descriptor really has is checked where it is mapped
  std::array<std::uint8_t, 64> legacy{}; ///< cuda_legacy
  unique_fd fd;                          ///< the other kinds
};

/// Maps the parts of a segment side by side, for reading only where the system allows it. Slow: off the loop.
class segment_importer {
 public:
  virtual ~segment_importer() = default;
  /// Maps the next part behind those before. Throws transfer_error (bad_region, not_reachable,
  /// out_of_memory).
  virtual void add(part_handle part) = 0;
  /// The whole; once, after the last part. Throws `bad_region` if the parts are not what was announced.
  virtual std::shared_ptr<region> finish() = 0;
};

} // namespace ropeway::memory
