// Writing checkpoints: one safetensors file, whole or not at all. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "ropeway/checkpoint.hpp"
#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// Writes a .safetensors file. Nothing is seen at `path` before `commit`, which replaces what is there in one
/// step; without it, and if the process dies, nothing stays. Not thread-safe.
class ROPEWAY_API checkpoint_writer {
 public:
  /// `sorted` is the order that the format recommends (widest dtype first, then by name), in which every
  /// tensor is aligned for its dtype; `as_given` keeps the order of the arguments.
  enum class layout : std::uint8_t { sorted, as_given };

  /// Reserves the space. Throws `errc::duplicate_name`, `errc::invalid_argument` (a name that is no UTF-8, a
  /// tensor of no whole number of bytes), `errc::overflow` (a header over 100 MB), or the system's error (no
  /// space, no right).
  checkpoint_writer(std::filesystem::path path, std::span<tensor_info const> tensors,
                    checkpoint_metadata const& metadata = {}, layout order = layout::sorted);
  checkpoint_writer(checkpoint_writer&&) noexcept; ///< the other may then only be assigned to and destroyed
  checkpoint_writer&
  operator=(checkpoint_writer&&) noexcept; ///< drops the file that this one had not committed
  ~checkpoint_writer();

  /// Bytes of tensor number `tensor` (as given to the constructor), in any order and in pieces of any size.
  void write(std::size_t tensor, std::uint64_t offset, std::span<std::byte const> bytes);
  /// Makes the file durable and visible. Throws `errc::invalid_argument` if bytes of a tensor are missing.
  void commit();

 private:
  class state;
  std::unique_ptr<state> state_;
};

} // namespace ropeway
