// From pieces to copies: out of the caller's tensors into a slot (gather), and out of a slot into the
// caller's destinations (scatter). Pure; neither allocates for a piece once its scratch space and `out` have
// grown. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/copy.hpp"
#include "plan/destination.hpp"
#include "plan/manifest.hpp"
#include "plan/strided.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::plan {

/// What turns elements of one type into another while packing; nothing if that is not offered.
std::optional<memory::conversion> conversion_between(dtype from, dtype to) noexcept;

/// The sender's side. Knows the manifest, which must outlive it, and no memory: tensors are given with each
/// piece, so they may move, or exist only while they are packed.
class gather {
 public:
  explicit gather(manifest const& of);

  /// Whether `source` can be packed as tensor number `tensor`: same shape, its wire type the one announced.
  /// Throws transfer_error, naming the tensor: errc::source_failed for another shape or type than announced,
  /// errc::invalid_argument for a null pointer, errc::unsupported for a conversion that is not offered, or
  /// for strides of elements smaller than a byte. Names are not compared.
  void check(std::uint32_t tensor, tensor_view const& source) const;

  /// Appends the copies that bring piece `p` of `source` into the slot at `slot_base`. Throws as check().
  void ops_for_piece(piece const& p, tensor_view const& source, std::byte* slot_base, device slot_where,
                     std::vector<memory::copy_op>& out);

 private:
  manifest const* of_;
  std::vector<box> scratch_;
};

/// The receiver's side: which destinations take what. Made once a layout; does not need the manifest
/// afterwards.
class scatter {
 public:
  scatter() = default;
  /// With `subset`, tensors that no destination asks for are left out; otherwise they are mismatches.
  /// Destinations that nobody sends are mismatches either way.
  scatter(manifest const& sent, std::span<destination const> into, bool subset = false);

  /// What does not fit, all of it. Destinations concerned take nothing; callers refuse the update.
  mismatches const& check() const noexcept { return mismatches_; }
  /// Whether any destination takes something of this tensor.
  bool wants(std::uint32_t tensor) const noexcept;

  /// Appends the copies that bring piece `p`, which lies in the slot at `slot_base`, to where it is wanted.
  void ops_for_piece(piece const& p, std::byte const* slot_base, device slot_where,
                     std::vector<memory::copy_op>& out);

  /// Appends the copies that bring tensor number `tensor` from where it lies itself, converted where the
  /// source says so, to where it is wanted. The source has the shape and wire type of the manifest.
  void ops_for_source(std::uint32_t tensor, tensor_view const& source,
                      std::vector<memory::copy_op>& out) const;

  /// A destination that takes something.
  struct target {
    std::uint32_t tensor = 0;
    std::uint16_t element = 0; ///< bytes; 0 for whole tensors of elements smaller than that, carried as bytes
    device where;
    std::byte* data = nullptr;
    strided_part array;
    box part; ///< as it was given, with the array's own strides: for sources that are strided otherwise
    std::array<std::int64_t, max_rank> strides{};
  };
  /// By tensor.
  std::span<target const> targets() const noexcept { return targets_; }

 private:
  void add(manifest const& sent, destination const& into);
  void find_unexpected(manifest const& sent);
  void find_overlaps(manifest const& sent);
  void index_targets(std::size_t tensors);

  std::vector<target> targets_;             // by tensor
  std::vector<std::uint32_t> first_target_; // tensor t has [t] up to [t + 1]
  std::vector<bool> named_;                 // tensors that a destination asked for, fitting or not
  mismatches mismatches_;
  std::vector<box> scratch_;
};

/// Appends the copies that bring a whole array into another of the same type and shape. Elements smaller than
/// a byte must be contiguous on both sides.
void ops_between(mutable_tensor_view const& from, mutable_tensor_view const& to,
                 std::vector<memory::copy_op>& out);

} // namespace ropeway::plan
