// Tensors as ropeway sees them: a name, a dtype, a shape, and a span of memory on a device.
// Part of ropeway; Apache-2.0.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// All element types that safetensors knows. ropeway carries bytes; only `tensor_view::sent_as` looks at
/// values. The numbers travel on the wire: append only.
enum class dtype : std::uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  c64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
};

/// Bits that one element takes; below 8 for `f6_*` and `f4`, which are carried as opaque packed bytes.
ROPEWAY_API std::uint32_t bits(dtype type) noexcept;
/// The safetensors spelling, for example "BF16".
ROPEWAY_API std::string_view name(dtype type) noexcept;
/// The reverse of `name`; nothing if the spelling is unknown.
ROPEWAY_API std::optional<dtype> parse_dtype(std::string_view spelling) noexcept;

/// The most dimensions that a tensor may have.
inline constexpr std::size_t max_rank = 8;

/// The extents of a tensor, outermost first; no dimension at all is a scalar. A plain value, no allocation.
/// Throws `transfer_error(errc::unsupported)` for more than `max_rank` dimensions.
class ROPEWAY_API shape {
 public:
  /// A scalar.
  shape() = default;
  /// Of these extents, copied.
  /// @{
  shape(std::initializer_list<std::uint64_t> extents) : shape(std::span(extents.begin(), extents.size())) {}
  explicit shape(std::span<std::uint64_t const> extents);
  /// @}

  /// How many dimensions there are; 0 for a scalar.
  std::size_t rank() const noexcept { return rank_; }
  /// Elements along one dimension; `dimension` is not checked, and must be below `max_rank`.
  std::uint64_t operator[](std::size_t dimension) const noexcept { return extents_[dimension]; }
  /// One number a dimension; valid as long as this shape lives.
  std::span<std::uint64_t const> extents() const noexcept { return {extents_.data(), rank_}; }
  /// The number of elements (1 for a scalar, 0 if any extent is 0), or nothing if it overflows 64 bits.
  std::optional<std::uint64_t> elements() const noexcept;
  friend bool operator==(shape const& a, shape const& b) noexcept {
    return std::ranges::equal(a.extents(), b.extents());
  }

 private:
  std::uint8_t rank_ = 0;
  std::array<std::uint64_t, max_rank> extents_{};
};

/// "[4096, 1024]"
ROPEWAY_API std::string to_string(shape const& dims);

/// The bytes of a contiguous tensor, or nothing if that overflows or is no whole number of bytes.
ROPEWAY_API std::optional<std::uint64_t> byte_size(dtype type, shape const& dims) noexcept;

/// Where memory lies: the host, or a CUDA device by this process's own ordinal.
class ROPEWAY_API device {
 public:
  /// What sort of memory it is.
  enum class kind : std::uint8_t {
    host, ///< any memory that this process's processors read and write, pinned or not
    cuda, ///< memory of a CUDA device
  };
  constexpr device() = default;                          ///< the host
  static constexpr device host() noexcept { return {}; } ///< whatever its NUMA node
  /// By the number that `cudaSetDevice` takes in this process (so after `CUDA_VISIBLE_DEVICES`). Not checked
  /// here: `errc::no_device` comes from what uses it.
  static constexpr device cuda(int ordinal) noexcept { return device(kind::cuda, ordinal); }
  /// "host", "cuda" or "cuda:N"; nothing if the text is none of these.
  static std::optional<device> parse(std::string_view text) noexcept;

  constexpr kind type() const noexcept { return kind_; }                  ///< host or CUDA
  constexpr bool is_cuda() const noexcept { return kind_ == kind::cuda; } ///< short for the comparison
  constexpr int ordinal() const noexcept { return ordinal_; } ///< of a CUDA device; 0 for the host
  friend constexpr bool operator==(device, device) = default;

 private:
  constexpr device(kind k, int ordinal) : kind_(k), ordinal_(ordinal) {}
  kind kind_ = kind::host;
  int ordinal_ = 0;
};
/// "host" or "cuda:N": what `device::parse` reads.
ROPEWAY_API std::string to_string(device where);

/// A tensor without its bytes: what a manifest lists.
struct tensor_info {
  std::string name;       ///< UTF-8, unlike any other of the same update
  dtype type = dtype::u8; ///< of an element, as receivers see it
  shape dims;             ///< of the whole tensor, outermost dimension first
  friend bool operator==(tensor_info const&, tensor_info const&) = default;
};

/// A tensor whose bytes may be read (`tensor_view`) or written (`mutable_tensor_view`). A cheap value: it
/// owns neither name nor memory; both must live as long as the operation that was given the view says.
template <class Byte>
class ROPEWAY_API basic_tensor_view {
 public:
  /// What `data` is given as: `void const` where the bytes may only be read.
  using void_type = std::conditional_t<std::is_const_v<Byte>, void const, void>;

  /// A scalar without name and memory: a place to assign to.
  basic_tensor_view() = default;
  /// A contiguous, row-major tensor of `dims` at `data`.
  basic_tensor_view(std::string_view name, dtype type, shape dims, void_type* data,
                    device where = device::host())
      : name_(name)
      , data_(static_cast<Byte*>(data))
      , where_(where)
      , type_(type)
      , wire_type_(type)
      , dims_(dims) {}

  /// Gives the distance between neighbours in each dimension, in elements; may be 0 or negative. One number a
  /// dimension, else `errc::invalid_argument` is thrown. `data` stays the place of the first element.
  /// @{
  basic_tensor_view& strides(std::span<std::int64_t const> elements);
  basic_tensor_view& strides(std::initializer_list<std::int64_t> elements) {
    return strides(std::span(elements.begin(), elements.size()));
  }
  /// @}
  /// Converts while packing: receivers see a tensor of `type`. Known: f32 to bf16 and f16 (round to nearest
  /// even; infinities and NaN are kept), bf16 and f16 to f32. Anything else fails the send with
  /// `errc::unsupported`.
  basic_tensor_view& sent_as(dtype type) {
    wire_type_ = type;
    return *this;
  }

  /// The same memory under another name.
  basic_tensor_view& name(std::string_view other) {
    name_ = other;
    return *this;
  }

  std::string_view name() const noexcept { return name_; } ///< as given: the caller's characters
  dtype type() const noexcept { return type_; }            ///< of the elements in memory
  dtype wire_type() const noexcept { return wire_type_; }  ///< what receivers see
  shape const& dims() const noexcept { return dims_; }     ///< outermost dimension first
  Byte* data() const noexcept { return data_; }            ///< of the first element; memory on `where`
  device where() const noexcept { return where_; }         ///< whose memory `data` is
  bool is_strided() const noexcept { return strided_; }    ///< whether other than row-major
  /// In elements; row-major strides if none were given.
  std::array<std::int64_t, max_rank> strides() const noexcept;

 private:
  // What a send compares with the last one comes first: thousands of views are read from memory each time.
  std::string_view name_;
  Byte* data_ = nullptr;
  device where_;
  dtype type_ = dtype::u8, wire_type_ = dtype::u8;
  bool strided_ = false;
  shape dims_;
  std::array<std::int64_t, max_rank> strides_{};
};
/// A tensor that is read, by a sender.
using tensor_view = basic_tensor_view<std::byte const>;
/// A tensor that is written, by a receiver or a checkpoint reader.
using mutable_tensor_view = basic_tensor_view<std::byte>;

extern template class ROPEWAY_API basic_tensor_view<std::byte const>;
extern template class ROPEWAY_API basic_tensor_view<std::byte>;

} // namespace ropeway
