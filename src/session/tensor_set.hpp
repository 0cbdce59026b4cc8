// The tensors of one send, looked at once: where they lie, and the layout they have. Part of ropeway;
// Apache-2.0.
#pragma once
#include <memory>
#include <vector>

#include "ropeway/detail/operation.hpp"
#include "ropeway/source.hpp"
#include "session/layout.hpp"

namespace ropeway::detail {

/// Immutable once collected. Names are those of the layout's manifest: the views' own may be gone.
class tensor_set {
 public:
  std::shared_ptr<session::layout> layout; ///< null on the fly: known when the manifest was stated
  std::vector<tensor_view> views;          ///< by tensor index; empty on the fly
  tensor_source* source = nullptr;         ///< yields them one by one
  slot_writer* writer = nullptr;           ///< writes them into the slots itself
  device where;  ///< where buckets are packed: of the first CUDA tensor, else the host
  failure error; ///< what is wrong with the tensors, for the send to report

  bool on_the_fly() const noexcept { return source != nullptr || writer != nullptr; }
};

} // namespace ropeway::detail
