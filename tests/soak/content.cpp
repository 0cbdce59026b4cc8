#include "content.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace ropeway::soak {
namespace {

constexpr std::uint64_t kib = 1024;

std::uint64_t scramble(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

std::uint64_t elements_of(shape const& dims) { return dims.elements().value_or(0); }
std::uint64_t element_bytes(dtype type) { return bits(type) / 8; } // 0 for those smaller than a byte

// ---- conversions, written as the rules say and not as the library does it ----

template <class To, class From>
To load(From const* at) {
  To value{};
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::uint16_t to_bf16(float value) {
  auto const raw = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((raw >> 16) | 0x40U);
  std::uint32_t upper = raw >> 16;
  std::uint32_t const lower = raw & 0xffffU;
  if (lower > 0x8000U || (lower == 0x8000U && upper % 2 == 1)) ++upper;
  return static_cast<std::uint16_t>(upper);
}

std::uint16_t to_f16(float value) {
  auto const raw = std::bit_cast<std::uint32_t>(value);
  auto const sign = static_cast<std::uint16_t>((raw >> 16) & 0x8000U);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00U | ((raw >> 13) & 0x3ffU));
  double const magnitude = std::fabs(static_cast<double>(value));
  if (magnitude == 0) return sign;
  // In steps of the last place that a half has there; nearbyint takes the even one of two that are as near.
  int const exponent = std::isinf(magnitude) ? 16 : std::max(std::ilogb(magnitude), -14);
  double const steps = std::isinf(magnitude) ? 0 : std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  double const rounded = std::isinf(magnitude) ? magnitude : std::ldexp(steps, exponent - 10);
  if (rounded >= 65536) return static_cast<std::uint16_t>(sign | 0x7c00U);
  int const place = std::max(std::ilogb(rounded), -14);
  auto const mantissa = static_cast<std::uint32_t>(std::ldexp(rounded, 10 - place));
  if (rounded == 0 || mantissa < 0x400U) return static_cast<std::uint16_t>(sign | mantissa);
  return static_cast<std::uint16_t>(sign | (static_cast<std::uint32_t>(place + 15) << 10) |
                                    (mantissa - 0x400U));
}

float from_f16(std::uint16_t raw) {
  std::uint32_t const exponent = (raw >> 10) & 0x1fU, mantissa = raw & 0x3ffU;
  float const sign = (raw & 0x8000U) != 0 ? -1.F : 1.F;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) // infinities, and NaN with its bits
    return std::bit_cast<float>((std::uint32_t(raw & 0x8000U) << 16) | 0x7f800000U | (mantissa << 13));
  return sign * std::ldexp(static_cast<float>(mantissa + 0x400U), static_cast<int>(exponent) - 25);
}

void convert(dtype from, dtype to, std::span<std::byte const> in, std::vector<std::byte>& out) {
  auto const each = [&]<class A, class B>(A, B, auto&& how) {
    std::size_t const count = in.size() / sizeof(A);
    out.resize(count * sizeof(B));
    for (std::size_t i = 0; i < count; ++i) {
      B const value = how(load<A>(in.data() + i * sizeof(A)));
      std::memcpy(out.data() + i * sizeof(B), &value, sizeof(B));
    }
  };
  if (from == dtype::f32 && to == dtype::bf16)
    each(float(), std::uint16_t(), [](float value) { return to_bf16(value); });
  else if (from == dtype::f32)
    each(float(), std::uint16_t(), [](float value) { return to_f16(value); });
  else if (from == dtype::bf16)
    each(std::uint16_t(), std::uint32_t(), [](std::uint16_t value) { return std::uint32_t(value) << 16; });
  else
    each(std::uint16_t(), std::uint32_t(),
         [](std::uint16_t value) { return std::bit_cast<std::uint32_t>(from_f16(value)); });
}

// ---- layouts ----

std::string a_name(chance& luck, std::size_t index) {
  static constexpr std::array stems{"layers", "model.layers", "transformer.h", "embed", "ключ", "层", "w"};
  std::string text = std::string(stems[luck.below(stems.size())]) + "." + std::to_string(index);
  if (luck.one_in(3)) text += ".weight";
  if (luck.one_in(40)) text.append(1000, 'x');
  return text;
}

shape a_shape(chance& luck, std::uint64_t most_elements) {
  std::array<std::uint64_t, max_rank> extents{};
  if (luck.one_in(20)) return {};
  std::size_t const rank = luck.one_in(25) ? max_rank : luck.between(1, 4);
  std::uint64_t left = std::max<std::uint64_t>(most_elements, 1);
  for (std::size_t d = 0; d < rank; ++d) {
    extents[d] = d + 1 == rank ? luck.between(1, left) : luck.between(1, std::min<std::uint64_t>(left, 64));
    left = std::max<std::uint64_t>(left / extents[d], 1);
  }
  if (luck.one_in(25)) extents[luck.below(rank)] = 0;
  return shape(std::span(extents.data(), rank));
}

/// Divisible in every dimension by 2 and 4, as matrices of models are: they can be shared out.
shape a_matrix(chance& luck, std::uint64_t most_elements) {
  std::uint64_t const rows = 4 * luck.between(1, 32);
  std::uint64_t const columns = 4 * luck.between(1, std::max<std::uint64_t>(most_elements / rows / 4, 1));
  return {rows, columns};
}

tensor_plan a_tensor(chance& luck, layout const& so_far, bool even) {
  static constexpr std::array types{dtype::boolean, dtype::u8,          dtype::i8,         dtype::u16,
                                    dtype::i16,     dtype::u32,         dtype::i32,        dtype::u64,
                                    dtype::i64,     dtype::f16,         dtype::bf16,       dtype::f32,
                                    dtype::f64,     dtype::c64,         dtype::f8_e4m3,    dtype::f8_e5m2,
                                    dtype::f8_e8m0, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz};
  tensor_plan made;
  made.sent.name = a_name(luck, so_far.tensors.size());
  auto const tie = so_far.tensors.empty() ? 0 : luck.below(so_far.tensors.size());
  if (!so_far.tensors.empty() && luck.one_in(8) && so_far.tensors[tie].how == lie::plain) {
    made.tied_to = static_cast<std::uint32_t>(tie);
    auto const& other = so_far.tensors[made.tied_to];
    made.sent.type = other.sent.type, made.sent.dims = other.sent.dims;
    made.source = other.source, made.how = lie::tied;
    return made;
  }
  std::uint64_t const most = even              ? 16 * kib
                             : luck.one_in(60) ? 1024 * kib
                             : luck.one_in(6)  ? 64 * kib
                             : luck.one_in(2)  ? 4 * kib
                                               : 200;
  if (luck.one_in(12)) { // elements smaller than a byte: opaque, a whole number of bytes
    static constexpr std::array small{dtype::f4, dtype::f6_e2m3, dtype::f6_e3m2};
    made.sent.type = made.source = small[luck.below(small.size())];
    made.sent.dims = {luck.between(1, 8), 4 * luck.between(1, std::max<std::uint64_t>(most / 32, 1))};
    return made;
  }
  made.sent.dims = luck.one_in(2) ? a_matrix(luck, most) : a_shape(luck, most);
  made.sent.type = made.source = types[luck.below(types.size())];
  auto const rank = made.sent.dims.rank();
  auto const elements = elements_of(made.sent.dims);
  if (luck.one_in(6) && elements <= 64 * kib) {
    switch (luck.below(4)) {
    case 0: made.source = dtype::f32, made.sent.type = dtype::bf16; break;
    case 1: made.source = dtype::f32, made.sent.type = dtype::f16; break;
    case 2: made.source = dtype::bf16, made.sent.type = dtype::f32; break;
    default: made.source = dtype::f16, made.sent.type = dtype::f32; break;
    }
  }
  if (rank != 0 && elements != 0 && elements <= 64 * kib && luck.one_in(4)) {
    static constexpr std::array ways{lie::every_second_row, lie::backwards, lie::repeated, lie::reversed,
                                     lie::transposed};
    auto const how = ways[luck.below(ways.size())];
    if (how != lie::transposed || rank >= 2) made.how = how;
  }
  return made;
}

/// Distances between neighbours in elements, and where the first element lies.
struct distances {
  std::array<std::int64_t, max_rank> step{};
  std::uint64_t first = 0, elements = 0; ///< elements: that the memory must have
};

distances distances_of(tensor_plan const& of) {
  auto const& dims = of.sent.dims;
  auto const rank = dims.rank();
  distances out;
  out.elements = elements_of(dims);
  std::array<std::size_t, max_rank> order{}; // outermost first, as in memory
  for (std::size_t d = 0; d < rank; ++d) order[d] = d;
  if (of.how == lie::transposed) std::swap(order[rank - 1], order[rank - 2]);
  if (of.how == lie::reversed) std::reverse(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(rank));
  std::int64_t step = 1;
  for (std::size_t i = rank; i-- > 0;) {
    out.step[order[i]] = step;
    step *= static_cast<std::int64_t>(dims[order[i]]);
  }
  if (of.how == lie::every_second_row) {
    out.step[0] *= 2;
    out.elements *= 2;
  }
  if (of.how == lie::backwards) {
    out.first = static_cast<std::uint64_t>(out.step[0]) * (dims[0] - 1);
    out.step[0] = -out.step[0];
  }
  if (of.how == lie::repeated) {
    out.step[0] = 0;
    out.elements /= dims[0];
  }
  return out;
}

void random_bytes(std::uint64_t seed, std::span<std::byte> out) {
  std::uint64_t at = 0;
  for (std::uint64_t word = 0; at < out.size(); at += sizeof word) {
    word = scramble(seed + at * 0x9e3779b97f4a7c15U);
    std::memcpy(out.data() + at, &word, std::min<std::uint64_t>(sizeof word, out.size() - at));
  }
}

/// Numbers that a conversion has something to say about: ordinary ones, subnormal ones, ties, infinities,
/// NaN.
void telling_numbers(dtype type, std::uint64_t seed, std::span<std::byte> out) {
  random_bytes(seed, out);
  std::size_t const element = element_bytes(type);
  for (std::size_t i = 0; i + element <= out.size(); i += element) {
    if (type == dtype::f32) {
      auto raw = load<std::uint32_t>(out.data() + i);
      switch (raw % 8) {
      case 0: raw = (raw & 0x80ffffffU) | 0x38000000U; break; // about where halves become subnormal
      case 1: raw = (raw & 0xbfff0000U) | 0x30008000U; break; // ties of bf16
      case 2: raw = (raw & 0xbfffe000U) | 0x30001000U; break; // ties of f16
      case 3:
        raw = (raw & 0x80000000U) | ((raw & 0x100U) != 0 ? 0x7f800000U : 0x477fefffU + (raw >> 30));
        break;
      default: break;
      }
      if ((raw & 0x7fffffffU) > 0x7f800000U) raw |= 0x400000U; // a NaN is a quiet one
      std::memcpy(out.data() + i, &raw, sizeof raw);
    } else {
      auto raw = load<std::uint16_t>(out.data() + i);
      std::uint32_t const top = type == dtype::f16 ? 0x7c00U : 0x7f80U,
                          quiet = type == dtype::f16 ? 0x200U : 0x40U;
      if ((raw & 0x7fffU) > top) raw = static_cast<std::uint16_t>(raw | quiet);
      std::memcpy(out.data() + i, &raw, sizeof raw);
    }
  }
}

} // namespace

std::uint64_t hash_of(std::string_view text) noexcept {
  std::uint64_t value = 0;
  for (char const c : text) value = scramble(value ^ static_cast<unsigned char>(c));
  return value;
}

std::uint64_t mix(std::initializer_list<std::uint64_t> parts) noexcept {
  std::uint64_t state = 0x9e3779b97f4a7c15U;
  for (auto const part : parts) state = scramble(state + 0x9e3779b97f4a7c15U + part);
  return state;
}

std::uint64_t chance::next() noexcept { return scramble(state_ += 0x9e3779b97f4a7c15U); }

layout make_layout(std::uint64_t seed, std::uint64_t number, bool even) {
  layout made;
  made.number = number;
  chance luck(mix({seed, 1, number}));
  std::uint64_t const count = even ? 24 : luck.one_in(30) ? 0 : luck.one_in(40) ? 600 : luck.between(1, 30);
  for (std::uint64_t i = 0; i < count; ++i) {
    auto tensor = a_tensor(luck, made, even || count > 100);
    if (count > 100 && tensor.how != lie::tied && element_bytes(tensor.source) != 0) {
      tensor.how = lie::plain;
      tensor.sent.dims = {luck.between(1, 40)};
    }
    made.bytes += byte_size(tensor.sent.type, tensor.sent.dims).value();
    made.tensors.push_back(std::move(tensor));
  }
  if (!even && luck.one_in(100)) { // larger than any bucket of a soak
    tensor_plan big;
    big.sent = {"big", dtype::f32, {1024, 2048}};
    big.source = dtype::f32;
    made.bytes += 4 * 1024 * 2048;
    made.tensors.insert(made.tensors.begin(), std::move(big));
    for (auto& one : made.tensors)
      if (one.how == lie::tied) ++one.tied_to;
  }
  return made;
}

std::vector<bool> part_of(layout const& whole, std::uint64_t seed, std::uint64_t update) {
  chance luck(mix({seed, 2, update}));
  std::vector<bool> sent(whole.tensors.size(), true);
  if (sent.size() < 2) return sent;
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = !luck.one_in(3);
  std::uint64_t const out = luck.below(sent.size());
  sent[out] = false;
  sent[(out + 1) % sent.size()] = true;
  return sent;
}

void make_source(std::uint64_t seed, std::uint64_t update, layout const& of, std::uint32_t tensor,
                 std::vector<std::byte>& out) {
  auto const key = of.tensors[tensor].how == lie::tied ? of.tensors[tensor].tied_to : tensor;
  auto const& plan = of.tensors[key];
  out.resize(byte_size(plan.source, plan.sent.dims).value());
  auto const bits_seed = mix({seed, 3, update, of.number, key});
  auto const fill = [&](std::span<std::byte> bytes) {
    if (plan.source == plan.sent.type)
      random_bytes(bits_seed, bytes);
    else
      telling_numbers(plan.source, bits_seed, bytes);
  };
  if (plan.how != lie::repeated) return fill(out);
  std::size_t const row = out.size() / plan.sent.dims[0];
  fill(std::span(out).first(row));
  for (std::size_t at = row; at < out.size(); at += row) std::memcpy(out.data() + at, out.data(), row);
}

void make_wanted(std::uint64_t seed, std::uint64_t update, layout const& of, std::uint32_t tensor,
                 std::vector<std::byte>& out) {
  auto const& plan = of.tensors[tensor];
  if (plan.source == plan.sent.type) return make_source(seed, update, of, tensor, out);
  std::vector<std::byte> source;
  make_source(seed, update, of, tensor, source);
  convert(plan.source, plan.sent.type, source, out);
}

std::uint64_t source_bytes(tensor_plan const& of) {
  if (of.how == lie::plain || of.how == lie::tied) return byte_size(of.source, of.sent.dims).value();
  return distances_of(of).elements * element_bytes(of.source);
}

tensor_view source_view(tensor_plan const& of, std::byte* base, device where) {
  tensor_view view(of.sent.name, of.source, of.sent.dims, base, where);
  if (of.how != lie::plain && of.how != lie::tied) {
    auto const away = distances_of(of);
    view = tensor_view(of.sent.name, of.source, of.sent.dims, base + away.first * element_bytes(of.source),
                       where);
    view.strides(std::span(away.step.data(), of.sent.dims.rank()));
  }
  return view.sent_as(of.sent.type);
}

void lay_out(tensor_plan const& of, std::span<std::byte const> image, std::byte* base) {
  if (image.empty()) return;
  if (of.how == lie::plain || of.how == lie::tied) {
    std::memcpy(base, image.data(), image.size());
    return;
  }
  auto const away = distances_of(of);
  auto const& dims = of.sent.dims;
  auto const element = static_cast<std::int64_t>(element_bytes(of.source));
  std::array<std::uint64_t, max_rank> at{};
  std::int64_t offset = static_cast<std::int64_t>(away.first);
  for (std::size_t i = 0; i < image.size(); i += static_cast<std::size_t>(element)) {
    std::memcpy(base + offset * element, image.data() + i, static_cast<std::size_t>(element));
    for (std::size_t d = dims.rank(); d-- > 0;) {
      offset += away.step[d];
      if (++at[d] < dims[d]) break;
      offset -= away.step[d] * static_cast<std::int64_t>(dims[d]);
      at[d] = 0;
    }
  }
}

void cut_out(tensor_info const& of, part const& box, std::span<std::byte const> image,
             std::vector<std::byte>& out) {
  out.clear();
  if (box.dims == of.dims) {
    out.assign(image.begin(), image.end());
    return;
  }
  std::size_t const rank = of.dims.rank(), element = element_bytes(of.type);
  if (elements_of(box.dims) == 0) return;
  std::array<std::uint64_t, max_rank> at{};
  std::size_t const run = box.dims[rank - 1] * element;
  for (;;) {
    std::uint64_t first = 0;
    for (std::size_t d = 0; d < rank; ++d) first = first * of.dims[d] + box.start[d] + at[d];
    auto const from = image.subspan(first * element, run);
    out.insert(out.end(), from.begin(), from.end());
    std::size_t d = rank - 1; // the last dimension is the run
    while (d-- > 0) {
      if (++at[d] < box.dims[d]) break;
      at[d] = 0;
    }
    if (d > rank) return; // wrapped around: every row was taken
  }
}

std::string difference(std::span<std::byte const> wanted, std::span<std::byte const> got) {
  if (wanted.size() == got.size() &&
      (wanted.empty() || std::memcmp(wanted.data(), got.data(), got.size()) == 0))
    return {};
  if (wanted.size() != got.size())
    return std::to_string(got.size()) + " bytes instead of " + std::to_string(wanted.size());
  std::size_t count = 0, first = 0;
  for (std::size_t i = got.size(); i-- > 0;)
    if (wanted[i] != got[i]) ++count, first = i;
  return std::to_string(count) + " of " + std::to_string(got.size()) + " bytes differ, the first at " +
         std::to_string(first) + " (" + std::to_string(std::to_integer<int>(got[first])) + " instead of " +
         std::to_string(std::to_integer<int>(wanted[first])) + ")";
}

} // namespace ropeway::soak
