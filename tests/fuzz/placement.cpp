// Any placement over a small manifest: what is not refused lies within its segments, to the last byte. Inputs
// that begin with an odd byte are made of choices, so that most of them are nearly right.
#include "plan/placement.hpp"

#include <algorithm>

#include "choices.hpp"
#include "ropeway/error.hpp"

namespace ropeway::fuzz {
namespace {

using plan::manifest;
using plan::placement;

/// No sum of ours overflows it.
__extension__ typedef __int128 wide;

/// Several dtypes and ranks, a packed one, one without elements.
manifest const& layout() {
  static manifest const made = manifest::cut({{"a", dtype::f32, {3, 5}},
                                              {"b", dtype::bf16, {2, 3, 4}},
                                              {"c", dtype::u8, {7}},
                                              {"d", dtype::f4, {4, 4}},
                                              {"e", dtype::f32, {0, 9}},
                                              {"f", dtype::f64, {}}},
                                             64);
  return made;
}

std::vector<std::byte> chosen(choices& from) {
  placement p;
  p.segments.resize(from.below(4));
  for (auto& one : p.segments) {
    auto const how = from.byte();
    one.id = how < 240 ? static_cast<std::uint64_t>(&one - p.segments.data()) + 1 : from.number();
    one.bytes = how % 16 < 14 ? 64u << how % 8 : from.number();
    one.parts = how % 16 < 12 ? 1 + how % 3 : static_cast<std::uint32_t>(from.number());
    one.kind = how / 16 % 4;
  }
  auto const& tensors = layout().tensors();
  p.tensors.resize(from.below(16) == 15 ? from.below(9) : tensors.size());
  for (std::size_t i = 0; i < p.tensors.size(); ++i) {
    auto& one = p.tensors[i];
    auto const how = from.byte();
    if (how % 8 == 7) continue;
    one.segment = how < 240 && !p.segments.empty() ? how / 8 % static_cast<std::uint32_t>(p.segments.size())
                                                   : static_cast<std::uint32_t>(from.number());
    one.offset = from.number();
    one.type = how % 8 == 6 || i >= tensors.size()
                   ? static_cast<dtype>(from.below(static_cast<unsigned>(dtype::f4) + 1))
                   : tensors[i].type;
    one.strided = how % 8 < 3;
    if (!one.strided) continue;
    for (auto& stride : one.strides) {
      auto const number = static_cast<std::int64_t>(from.number());
      stride = number >= 0 && number < 16 ? number - 4 : number;
    }
  }
  return p.encode();
}

/// Every element of the tensor, by its first byte and its last; this manifest has few.
void check_elements(placement const& p, std::uint32_t index) {
  auto const& one = p.tensors[index];
  auto const& info = layout().tensors()[index];
  std::uint64_t const size = p.segments.at(one.segment).bytes;
  // Nothing is read there.
  constexpr std::uintptr_t base = std::uintptr_t{1} << 49;
  auto const view = p.view(index, layout(), reinterpret_cast<std::byte const*>(base), device::host());
  promise(view.type() == one.type && view.wire_type() == info.type && view.dims() == info.dims,
          "a view is of the tensor as it lies there, and is announced");
  std::uint64_t const elements = info.dims.elements().value();
  std::uint64_t const first = reinterpret_cast<std::uintptr_t>(view.data()) - base;
  promise(first == one.offset && first <= size, "a view begins within its segment");
  if (bits(one.type) % 8 != 0) {
    promise(!view.is_strided(), "packed elements are contiguous");
    promise(elements * bits(one.type) / 8 <= size - first, "and lie within their segment");
    return;
  }
  auto const strides = view.strides();
  auto const element = static_cast<wide>(bits(one.type) / 8);
  for (std::uint64_t n = 0; n < elements; ++n) {
    auto left = n;
    wide at = static_cast<wide>(first);
    for (std::size_t d = info.dims.rank(); d-- > 0; left /= info.dims[d])
      at += static_cast<wide>(left % info.dims[d]) * strides[d] * element;
    promise(at >= 0 && at + element <= static_cast<wide>(size), "every element lies within its segment");
  }
}

} // namespace

void placement(input bytes) {
  choices from(bytes);
  std::vector<std::byte> text;
  if ((from.byte() & 1) != 0) {
    text = chosen(from);
  } else {
    auto const rest = std::as_bytes(from.rest());
    text.assign(rest.begin(), rest.end());
  }
  plan::placement read;
  try {
    read = plan::placement::decode(text, layout());
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::protocol_error), "a bad placement is a breach");
    promise(std::string_view(e.what()).find('\n') == std::string_view::npos, "a refusal is one line");
    return;
  }
  auto const again = read.encode();
  auto const twice = plan::placement::decode(again, layout());
  promise(twice == read && twice.encode() == again, "what was read is written as the same");
  promise(read.tensors.size() == layout().tensors().size(), "every tensor has its place");
  for (std::size_t i = 0; i < read.segments.size(); ++i) {
    auto const& one = read.segments[i];
    promise(one.id != 0 && one.bytes != 0 && one.parts != 0 && one.parts <= one.bytes,
            "a segment is something");
    for (std::size_t j = 0; j < i; ++j) promise(read.segments[j].id != one.id, "and like no other");
  }
  for (std::uint32_t t = 0; t < read.tensors.size(); ++t)
    if (read.tensors[t].mapped()) check_elements(read, t);
  auto const needed = read.needed_buckets(layout());
  promise(needed.size() == layout().buckets().size(), "each bucket is needed or not");
  std::vector<bool> expected(needed.size(), false);
  for (auto const& piece : layout().pieces())
    if (!read.tensors[piece.tensor].mapped()) expected[piece.bucket] = true;
  promise(needed == expected, "a bucket is needed for a tensor that is nowhere else");
}

} // namespace ropeway::fuzz
