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

// Version 1, and the table of functions by which a library's tensors are looked at without a call into
// Python.
struct dl_version {
  std::uint32_t major, minor;
};
struct dl_exchange {
  dl_version version;
  void* older;
  void* not_used[3];
  int (*look)(void* object, dl_tensor* seen); // owns nothing; raises, and gives -1, if it can't
};

} // namespace ropeway::python
