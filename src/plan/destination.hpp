// Where a receiver wants tensors to end up, and how that can fail to fit what is sent. Pure data.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/boxes.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::plan {

/// A tensor, or a box of it (a shard), and the memory that takes it. Several destinations may take boxes of
/// one tensor, and several may lie in one allocation (q, k and v in one fused array): each has pointer and
/// strides.
struct destination {
  std::string tensor;      ///< the name under which it is sent
  std::optional<box> part; ///< in coordinates of the tensor sent; nothing is the whole tensor
  mutable_tensor_view
      into; ///< of the shape of the box, or of the tensor; the box's first element lands at data()
  std::optional<shape> shape_sent = {}; ///< of the tensor, where the embedder knows it: it must be sent so
  bool tied = false; ///< the same memory as another one's, which takes it: it must fit, and takes nothing
};

/// One difference between what is sent and where it should go.
struct mismatch {
  enum class kind : std::uint8_t {
    missing,       ///< a destination for a tensor that is not sent
    unexpected,    ///< a tensor that is sent and has no destination
    wrong_dtype,   ///< element types differ; receivers do not convert
    wrong_shape,   ///< the memory's shape is not that of the tensor, or of the box
    out_of_bounds, ///< the box is not within the tensor
    overlapping,   ///< two destinations, or the elements of one, lie in the same memory
    no_memory,     ///< a null pointer
    unsupported,   ///< boxes and strides of elements smaller than a byte
  } what = kind::missing;
  std::string tensor;
  std::string text; ///< one line for people, with the tensor's name
};

/// All differences counted, the first of them in words.
struct mismatches {
  static constexpr std::size_t most_in_words = 100;
  std::vector<mismatch> first;
  std::uint64_t count = 0;

  bool none() const noexcept { return count == 0; }
  void add(mismatch::kind what, std::string_view tensor, std::string text);
};
/// "2 differences: ...; ..." and how many more there are.
std::string to_string(mismatches const& all);

} // namespace ropeway::plan
