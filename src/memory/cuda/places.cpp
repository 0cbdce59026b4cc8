// Part of ropeway; Apache-2.0.
#include "memory/cuda/places.hpp"

#include <array>

namespace ropeway::memory::cuda {

end places::find(device where, address_range const& range) {
  if (!where.is_cuda()) return find_host(range);
  if (where.ordinal() == owner_.ordinal())
    return {owner_.is_peer_memory(range.low) ? place::peer : place::local};
  // Another device's memory that was not mapped here: whether kernels may touch it depends on peer access
  // between contexts that are not ours to change, and the driver's access flags
  // (CU_POINTER_ATTRIBUTE_ACCESS_FLAGS) say yes where a kernel then faults (seen on two H200). The copy
  // engine always gets there.
  return {place::far};
}

end places::find_host(address_range const& range) {
  if (known_.low <= range.low && range.high <= known_.high) return known_.what;
  CUdeviceptr seen = 0, begin = 0;
  std::size_t bytes = 0;
  unsigned type = 0, access = 0;
  std::array which{CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                   CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                   CU_POINTER_ATTRIBUTE_ACCESS_FLAGS};
  std::array<void*, 5> into{&type, &seen, &begin, &bytes, &access};
  CUresult const result = owner_.call().cuPointerGetAttributes(static_cast<unsigned>(which.size()),
                                                               which.data(), into.data(), range.low);
  // Memory that the driver does not know comes back as zeros; half registered memory must not be touched by
  // kernels.
  if (result != CUDA_SUCCESS || type == 0 || seen == 0 || begin == 0) return {place::pageable};
  std::uintptr_t const end_of_range = begin + bytes;
  if (range.low < begin || range.high > end_of_range) return {place::pageable};
  // A peer's ring is registered for reading; a kernel that wrote there would break the context.
  known_ = {begin,
            end_of_range,
            {place::pinned, seen - range.low, access != CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READ}};
  return known_.what;
}

} // namespace ropeway::memory::cuda
