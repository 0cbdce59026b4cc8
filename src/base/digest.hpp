// Digests on the host: of runs of bytes, and of updates. What a digest is stands in digest_math.h.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ropeway/digest.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

/// What `bytes` bytes at `data`, which are those from `image` on of a tensor as delivered, add to its digest.
digest128 digest_of_run(std::byte const* data, std::uint64_t image, std::uint64_t bytes) noexcept;

/// What all tensors of an update come to, with their names, types and shapes, as far as these are in
/// `identity`. In any order: names are unique, and the same tensors in another order are the same weights.
class update_digest {
 public:
  void add(std::uint64_t identity, digest128 const& tensor) noexcept;
  digest128 const& value() const noexcept { return value_; }

 private:
  digest128 value_;
};

/// Of a tensor's name, type and shape.
std::uint64_t identity_of(tensor_info const& tensor);

} // namespace ropeway
