// A manifest with the sealed memory that carries it to receivers. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "memory/memory.hpp"
#include "plan/manifest.hpp"
#include "protocol/messages.hpp"

namespace ropeway::session {

/// Made once a layout, kept as long as an update or a prepared set uses it.
struct layout {
  layout(plan::manifest m, protocol::bytes16 const& made_by)
      : manifest(std::move(m)), bucket_sizes(manifest.bucket_sizes()), sender(made_by) {
    name_ends_.reserve(manifest.tensors().size());
    for (tensor_info const& one : manifest.tensors()) name_ends_.push_back((names_ += one.name).size());
  }
  /// As the manifest has it. All of them lie side by side: each send is compared with them from first to
  /// last.
  std::string_view name(std::uint32_t tensor) const {
    std::size_t const begin = tensor == 0 ? 0 : name_ends_[tensor - 1];
    return std::string_view(names_).substr(begin, name_ends_[tensor] - begin);
  }
  plan::manifest const manifest;
  std::vector<std::uint64_t> const bucket_sizes;
  protocol::bytes16 const sender; ///< the instance whose buckets these are; on its strand only
  /// Made when the first receiver asks (on the strand).
  memory::backend::shared_region carrier;
  std::uint64_t carrier_bytes = 0;

 private:
  std::string names_;
  std::vector<std::size_t> name_ends_;
};

} // namespace ropeway::session
