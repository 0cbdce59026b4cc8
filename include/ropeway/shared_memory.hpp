// Host memory that receivers can map as it is. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

namespace detail {
class sender_core;
}
namespace memory {
class shared_block;
}

/// Host memory for a trainer's weights. Tensors that lie in it, once it was given to `sender::share`, are
/// copied once, by each receiver in host memory from here to its destinations, instead of twice through a
/// ring. (Memory of a CUDA device needs nothing of the kind.)
///
/// A handle: copies share the memory, which is unmapped with the last of them and of the senders that it was
/// given to. Receivers that have mapped it keep it alive, and can read all of it at any time: put nothing
/// else there. Zero-filled, page-aligned. Thread-safe as a std::shared_ptr is.
class ROPEWAY_API shared_memory {
 public:
  /// No memory.
  shared_memory() = default;
  /// Throws transfer_error: `errc::out_of_memory`, `errc::no_resources`, `errc::invalid_argument` (0 bytes).
  static shared_memory make(std::uint64_t bytes);

  /// The first byte; null without memory.
  std::byte* data() const noexcept;
  /// As it was asked for, in bytes.
  std::uint64_t size() const noexcept;
  /// Whether there is memory.
  explicit operator bool() const noexcept { return block_ != nullptr; }

 private:
  friend class sender;
  explicit shared_memory(std::shared_ptr<memory::shared_block const> block) : block_(std::move(block)) {}
  std::shared_ptr<memory::shared_block const> block_;
};

} // namespace ropeway
