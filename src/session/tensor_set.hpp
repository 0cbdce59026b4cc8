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
  std::shared_ptr<session::layout> layout; ///< null for a source: known when it has stated its manifest
  std::vector<tensor_view> views;          ///< by tensor index; empty for a source
  tensor_source* source = nullptr;
  device where;  ///< where buckets are packed: of the first CUDA tensor, else the host
  failure error; ///< what is wrong with the tensors, for the send to report
};

} // namespace ropeway::detail
