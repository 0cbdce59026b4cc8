#include "plan/placement.hpp"

#include <boost/describe.hpp>
#include <unordered_set>

#include "base/codec.hpp"
#include "plan/copies.hpp"
#include "plan/dtype_codec.hpp"
#include "ropeway/error.hpp"

namespace ropeway::plan {

BOOST_DESCRIBE_STRUCT(segment, (), (id, bytes, parts, kind, origin))

namespace {

/// The encoding: these structs through the codec.
struct encoded_place {
  std::uint32_t segment = 0;
  std::uint64_t offset = 0;
  dtype type = dtype::u8;
  std::vector<std::int64_t> strides; ///< empty: contiguous
};
struct encoded_placement {
  std::vector<segment> segments;
  std::vector<encoded_place> tensors;
};
BOOST_DESCRIBE_STRUCT(encoded_place, (), (segment, offset, type, strides))
BOOST_DESCRIBE_STRUCT(encoded_placement, (), (segments, tensors))

[[noreturn]] void refuse(std::string const& why) {
  throw transfer_error(errc::protocol_error, "placement: " + why);
}

void check(segment const& one) {
  auto const wrong = [&](char const* why) { refuse(codec::print(one) + why); };
  if (one.id == 0) wrong(" has no number");
  if (one.bytes == 0 || one.bytes > placement::most_bytes) wrong(" has an impossible size");
  if (one.parts == 0 || one.parts > placement::most_parts || one.parts > one.bytes)
    wrong(" has an impossible number of parts");
}

} // namespace

bool reach_of(shape const& dims, std::span<std::int64_t const> strides, std::uint32_t element_bits,
              reach& out) noexcept {
  out = {};
  auto const elements = dims.elements();
  if (!elements) return false;
  if (*elements == 0) return true;
  if (element_bits % 8 != 0) { // packed, and so contiguous
    std::uint64_t all = 0;
    if (__builtin_mul_overflow(*elements, std::uint64_t(element_bits), &all)) return false;
    out.high = static_cast<std::int64_t>(all / 8);
    return out.high >= 0;
  }
  std::int64_t const element = element_bits / 8;
  for (std::size_t d = 0; d < dims.rank(); ++d) {
    if (dims[d] > std::uint64_t(INT64_MAX)) return false;
    std::int64_t far = 0;
    if (__builtin_mul_overflow(static_cast<std::int64_t>(dims[d] - 1), strides[d], &far) ||
        __builtin_mul_overflow(far, element, &far) ||
        __builtin_add_overflow(far < 0 ? out.low : out.high, far, far < 0 ? &out.low : &out.high))
      return false;
  }
  return !__builtin_add_overflow(out.high, element, &out.high);
}

std::vector<std::byte> placement::encode() const {
  encoded_placement all;
  all.segments = segments;
  all.tensors.reserve(tensors.size());
  for (placed_tensor const& one : tensors) {
    encoded_place& place = all.tensors.emplace_back();
    place.segment = one.segment;
    place.offset = one.offset;
    place.type = one.type;
    if (one.strided) place.strides.assign(one.strides.begin(), one.strides.end());
  }
  std::vector<std::byte> out;
  codec::encode(all, out);
  return out;
}

placement placement::decode(std::span<std::byte const> bytes, manifest const& of) {
  encoded_placement all;
  if (auto const read = codec::decode(bytes, all); !read) refuse(read.text());
  if (all.segments.size() > most_segments)
    refuse(std::to_string(all.segments.size()) + " segments, allowed are " + std::to_string(most_segments));
  if (all.tensors.size() != of.tensors().size())
    refuse(std::to_string(all.tensors.size()) + " tensors, the manifest has " +
           std::to_string(of.tensors().size()));
  std::unordered_set<std::uint64_t> ids;
  for (segment const& one : all.segments) {
    check(one);
    if (!ids.insert(one.id).second) refuse("segment " + std::to_string(one.id) + " twice");
  }
  placement result;
  result.segments = std::move(all.segments);
  result.tensors.reserve(all.tensors.size());
  for (std::size_t i = 0; i < all.tensors.size(); ++i) {
    encoded_place const& from = all.tensors[i];
    tensor_info const& info = of.tensors()[i];
    auto const wrong = [&](char const* why) {
      refuse("tensor " + codec::print(info.name) + " at " + codec::print(from) + why);
    };
    placed_tensor& to = result.tensors.emplace_back();
    if (from.segment == placed_tensor::nowhere) continue;
    if (from.segment >= result.segments.size()) wrong(": there is no such segment");
    if (!conversion_between(from.type, info.type)) wrong(": can't be converted to what was announced");
    to.segment = from.segment;
    to.offset = from.offset;
    to.type = from.type;
    to.strided = !from.strides.empty();
    if (to.strided && from.strides.size() != max_rank) wrong(" has not as many strides as tensors have");
    std::copy(from.strides.begin(), from.strides.end(), to.strides.begin());
    if (to.strided && bits(from.type) % 8 != 0) wrong(" has strides and packed elements");
    if (!to.strided) to.strides = row_major(info.dims);
    reach touched;
    if (!reach_of(info.dims, to.strides, bits(from.type), touched)) wrong(" is larger than any memory");
    if (!to.strided) to.strides = {};
    std::uint64_t const size = result.segments[to.segment].bytes; // at most 2^48: no sum overflows
    // Not -low, which INT64_MIN has no room for.
    if (to.offset > size || std::uint64_t(0) - static_cast<std::uint64_t>(touched.low) > to.offset ||
        std::uint64_t(touched.high) > size - to.offset)
      wrong(" is not within its segment");
  }
  return result;
}

std::vector<bool> placement::needed_buckets(manifest const& of) const {
  std::vector<bool> needed(of.buckets().size(), false);
  for (piece const& p : of.pieces())
    if (!tensors[p.tensor].mapped()) needed[p.bucket] = true;
  return needed;
}

tensor_view placement::view(std::uint32_t tensor, manifest const& of, std::byte const* base,
                            device where) const {
  placed_tensor const& one = tensors[tensor];
  tensor_info const& info = of.tensors()[tensor];
  tensor_view made({}, one.type, info.dims, base + one.offset, where);
  made.sent_as(info.type);
  if (one.strided) made.strides(std::span(one.strides).first(info.dims.rank()));
  return made;
}

} // namespace ropeway::plan
