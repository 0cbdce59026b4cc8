// A look at memory from the host, a piece at a time, wherever it lies. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "memory/memory.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::cli {

/// Host memory is seen in place; device memory through a small host buffer. Blocks; one thread at a time.
class host_window {
 public:
  /// What device memory is seen through.
  static constexpr std::uint64_t window_bytes = std::uint64_t(16) << 20;

  /// Throws `errc::no_device`, `errc::out_of_memory`.
  explicit host_window(device where);
  ~host_window();

  using reader = std::function<void(std::span<std::byte const> piece)>;
  using changer = std::function<void(std::span<std::byte> piece, std::uint64_t offset)>;
  /// Calls `see` with all bytes, in order.
  void read(std::byte const* from, std::uint64_t bytes, reader const& see);
  /// Calls `change` with all bytes and where they lie; what it does to them is done to the memory. Pieces
  /// begin at multiples of 8.
  void change(std::byte* memory, std::uint64_t bytes, changer const& change);

  /// The buffer itself, for device memory: fill it, `queue_to_device` parts of it, then `finish`.
  std::span<std::byte> buffer() const noexcept;
  void queue_to_device(std::uint64_t buffer_offset, std::byte* to, std::uint64_t bytes);
  void finish();

 private:
  void copy(std::byte const* from, device from_where, std::byte* to, device to_where, std::uint64_t bytes);

  device where_;
  std::shared_ptr<memory::region> buffer_;
  std::shared_ptr<void> registered_;
  std::unique_ptr<memory::queue> queue_;
};

} // namespace ropeway::cli
