// The box of a digest, told as a copy: what backends check and simplify is a copy. Part of ropeway;
// Apache-2.0.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "memory/copy.hpp"
#include "memory/digest.hpp"

namespace ropeway::memory {

/// The same box as a copy from memory to the image. Nothing is checked: also one of too many dimensions comes
/// out as it is, for who takes copies to refuse.
inline copy_op as_copy(digest_op const& op) noexcept {
  copy_op same;
  same.from = reinterpret_cast<std::byte const*>(op.address);
  same.to = reinterpret_cast<std::byte*>(op.image);
  same.bytes = op.bytes;
  same.convert = op.convert;
  same.rank = op.rank;
  same.from_element = op.data_element;
  same.to_element = op.image_element;
  same.extent = op.extent;
  same.from_stride = op.data_stride;
  std::transform(op.image_stride.begin(), op.image_stride.end(), same.to_stride.begin(),
                 [](std::uint64_t stride) { return static_cast<std::int64_t>(stride); });
  return same;
}

} // namespace ropeway::memory
