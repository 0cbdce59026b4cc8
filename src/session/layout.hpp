// A manifest with the sealed memory that carries it to receivers. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <vector>

#include "memory/memory.hpp"
#include "plan/manifest.hpp"
#include "protocol/messages.hpp"

namespace ropeway::session {

/// Made once a layout, kept as long as an update or a prepared set uses it.
struct layout {
  layout(plan::manifest m, protocol::bytes16 const& made_by)
      : manifest(std::move(m)), bucket_sizes(manifest.bucket_sizes()), sender(made_by) {}
  plan::manifest const manifest;
  std::vector<std::uint64_t> const bucket_sizes;
  protocol::bytes16 const sender; ///< the instance whose buckets these are; on its strand only
  /// Made when the first receiver asks (on the strand).
  memory::backend::shared_region carrier;
  std::uint64_t carrier_bytes = 0;
};

} // namespace ropeway::session
