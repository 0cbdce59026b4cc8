#include "ropeway/tensor.hpp"

#include <algorithm>
#include <charconv>

#include "ropeway/error.hpp"

namespace ropeway {
namespace {

struct dtype_row {
  dtype type;
  std::uint8_t bits;
  std::string_view name;
};
constexpr dtype_row dtype_table[] = {
    {dtype::boolean, 8, "BOOL"},
    {dtype::u8, 8, "U8"},
    {dtype::i8, 8, "I8"},
    {dtype::u16, 16, "U16"},
    {dtype::i16, 16, "I16"},
    {dtype::u32, 32, "U32"},
    {dtype::i32, 32, "I32"},
    {dtype::u64, 64, "U64"},
    {dtype::i64, 64, "I64"},
    {dtype::f16, 16, "F16"},
    {dtype::bf16, 16, "BF16"},
    {dtype::f32, 32, "F32"},
    {dtype::f64, 64, "F64"},
    {dtype::c64, 64, "C64"},
    {dtype::f8_e4m3, 8, "F8_E4M3"},
    {dtype::f8_e5m2, 8, "F8_E5M2"},
    {dtype::f8_e8m0, 8, "F8_E8M0"},
    {dtype::f8_e4m3fnuz, 8, "F8_E4M3FNUZ"},
    {dtype::f8_e5m2fnuz, 8, "F8_E5M2FNUZ"},
    {dtype::f6_e2m3, 6, "F6_E2M3"},
    {dtype::f6_e3m2, 6, "F6_E3M2"},
    {dtype::f4, 4, "F4"},
};
static_assert([] {
  for (std::size_t i = 0; i < std::size(dtype_table); ++i)
    if (dtype_table[i].type != static_cast<dtype>(i)) return false;
  return true;
}());

dtype_row const* row(dtype type) noexcept {
  auto const index = static_cast<std::size_t>(type);
  return index < std::size(dtype_table) ? &dtype_table[index] : nullptr;
}

} // namespace

std::uint32_t bits(dtype type) noexcept { return row(type) ? row(type)->bits : 0; }
std::string_view name(dtype type) noexcept { return row(type) ? row(type)->name : "unknown"; }
std::optional<dtype> parse_dtype(std::string_view spelling) noexcept {
  for (auto const& r : dtype_table)
    if (r.name == spelling) return r.type;
  return {};
}

shape::shape(std::span<std::uint64_t const> extents) {
  if (extents.size() > max_rank)
    throw transfer_error(errc::unsupported, "a tensor of " + std::to_string(extents.size()) +
                                                " dimensions; at most " + std::to_string(max_rank) +
                                                " are carried");
  std::copy(extents.begin(), extents.end(), extents_.begin());
  rank_ = static_cast<std::uint8_t>(extents.size());
}

std::optional<std::uint64_t> shape::elements() const noexcept {
  std::uint64_t product = 1;
  bool overflow = false;
  for (std::uint64_t extent : extents()) {
    if (extent == 0) return 0; // whatever the other extents are
    if (__builtin_mul_overflow(product, extent, &product)) overflow = true;
  }
  if (overflow) return {};
  return product;
}

std::string to_string(shape const& dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.rank(); ++i) {
    if (i) text += ", ";
    text += std::to_string(dims[i]);
  }
  return text + "]";
}

std::optional<std::uint64_t> byte_size(dtype type, shape const& dims) noexcept {
  auto const elements = dims.elements();
  std::uint64_t total_bits = 0;
  if (!elements || bits(type) == 0 || __builtin_mul_overflow(*elements, bits(type), &total_bits)) return {};
  if (total_bits % 8 != 0) return {};
  return total_bits / 8;
}

std::optional<device> device::parse(std::string_view text) noexcept {
  if (text == "host" || text == "cpu") return device::host();
  if (text == "cuda") return device::cuda(0);
  constexpr std::string_view prefix = "cuda:";
  if (!text.starts_with(prefix)) return {};
  text.remove_prefix(prefix.size());
  int ordinal = -1;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), ordinal);
  if (error != std::errc() || end != text.data() + text.size() || ordinal < 0) return {};
  return device::cuda(ordinal);
}

std::string to_string(device where) {
  return where.is_cuda() ? "cuda:" + std::to_string(where.ordinal()) : "host";
}

template <class Byte>
basic_tensor_view<Byte>& basic_tensor_view<Byte>::strides(std::span<std::int64_t const> elements) {
  if (elements.size() != dims_.rank())
    throw transfer_error(errc::invalid_argument, "strides for " + std::to_string(elements.size()) +
                                                     " dimensions given to a tensor of " +
                                                     std::to_string(dims_.rank()))
        .tensor(name_);
  auto const natural = this->strides();
  std::copy(elements.begin(), elements.end(), strides_.begin());
  // Row-major strides are no strides: the fast path stays fast whoever spells them out.
  strided_ = false;
  for (std::size_t i = 0; i < elements.size(); ++i)
    if (dims_[i] > 1 && elements[i] != natural[i]) strided_ = true;
  return *this;
}

template <class Byte>
std::array<std::int64_t, max_rank> basic_tensor_view<Byte>::strides() const noexcept {
  if (strided_) return strides_;
  std::array<std::int64_t, max_rank> result{};
  std::uint64_t step = 1; // may wrap for a tensor without elements, whose strides mean nothing
  for (std::size_t i = dims_.rank(); i-- > 0;) {
    result[i] = static_cast<std::int64_t>(step);
    step *= dims_[i];
  }
  return result;
}

template class basic_tensor_view<std::byte const>;
template class basic_tensor_view<std::byte>;

} // namespace ropeway
