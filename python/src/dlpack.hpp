// The structures of DLPack, version 0: what a capsule named "dltensor" holds. Part of ropeway; Apache-2.0.
//
// A public interface whose layout is fixed, so no header of it is needed.
#pragma once
#include <cstdint>

namespace ropeway::python {

struct dl_device {
  std::int32_t type; // 1: host, 2: CUDA
  std::int32_t ordinal;
};
struct dl_type {
  std::uint8_t code; // 0: int, 1: uint, 2: float, 4: bfloat, 5: complex, 6: bool
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct dl_tensor {
  void* data;
  dl_device device;
  std::int32_t rank;
  dl_type type;
  std::int64_t* extents;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct dl_managed {
  dl_tensor tensor;
  void* context;
  void (*deleter)(dl_managed*);
};

} // namespace ropeway::python
