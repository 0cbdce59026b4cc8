// What a shared_memory object is. Part of ropeway; Apache-2.0.
#pragma once
#include "memory/memory.hpp"

namespace ropeway::memory {

/// Host memory with its descriptor.
class shared_block {
 public:
  explicit shared_block(std::uint64_t bytes);
  std::byte* data() const noexcept { return made_.memory->data(); }
  std::uint64_t size() const noexcept { return made_.memory->size(); }
  /// A descriptor of its own.
  part_handle handle() const;

 private:
  backend::shared_region made_;
};

} // namespace ropeway::memory
