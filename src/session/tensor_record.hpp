// What a send recognises its tensors by. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "ropeway/tensor.hpp"

namespace ropeway::session {

/// Tensors written down side by side, for later sends to compare theirs with. Thousands of them leave the
/// processor's caches between two updates, and then to read them is what comparing takes: this is half of
/// what views and names are, and in one piece.
class tensor_record {
 public:
  void add(tensor_view const& tensor) {
    auto const what = head_of(tensor);
    auto const strides = tensor.strides();
    append(&what, sizeof what);
    append(tensor.dims().extents().data(), what.rank * sizeof(std::uint64_t));
    if (what.flags & head::strided) append(strides.data(), what.rank * sizeof(std::int64_t));
    append(tensor.name().data(), tensor.name().size());
  }
  void clear() noexcept { bytes_.clear(); }

  /// Whether `tensor` is the one at `place` (0: the first): the same bytes in the same place, and the same to
  /// receivers. If so, `place` is that of the next one.
  bool next_is(tensor_view const& tensor, std::size_t& place) const noexcept {
    auto rest = std::span(bytes_).subspan(place);
    auto const what = head_of(tensor);
    if (rest.empty() || !take(rest, &what, sizeof what)) return false;
    if (!take(rest, tensor.dims().extents().data(), what.rank * sizeof(std::uint64_t))) return false;
    if (what.flags & head::strided) {
      auto const strides = tensor.strides();
      if (!take(rest, strides.data(), what.rank * sizeof(std::int64_t))) return false;
    }
    if (!take(rest, tensor.name().data(), tensor.name().size())) return false;
    place = bytes_.size() - rest.size();
    return true;
  }

 private:
  /// Without padding, and with the lengths of all that follows it: where it is equal, as much follows.
  struct head {
    std::byte const* data;
    std::uint64_t name;
    std::int32_t ordinal;
    dtype type, wire_type;
    std::uint8_t rank;
    static constexpr std::uint8_t cuda = 1, strided = 2;
    std::uint8_t flags;
  };
  static_assert(std::has_unique_object_representations_v<head>);
  static head head_of(tensor_view const& tensor) noexcept {
    auto const flags =
        (tensor.where().is_cuda() ? head::cuda : 0) | (tensor.is_strided() ? head::strided : 0);
    return {tensor.data(),
            tensor.name().size(),
            tensor.where().ordinal(),
            tensor.type(),
            tensor.wire_type(),
            static_cast<std::uint8_t>(tensor.dims().rank()),
            static_cast<std::uint8_t>(flags)};
  }
  static bool take(std::span<std::byte const>& rest, void const* bytes, std::size_t count) noexcept {
    if (count == 0) return true; // a name may be null
    if (std::memcmp(rest.data(), bytes, count) != 0) return false;
    rest = rest.subspan(count);
    return true;
  }
  void append(void const* what, std::size_t count) {
    auto const* const first = static_cast<std::byte const*>(what);
    bytes_.insert(bytes_.end(), first, first + count);
  }
  std::vector<std::byte> bytes_;
};

} // namespace ropeway::session
