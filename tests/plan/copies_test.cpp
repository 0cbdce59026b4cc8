// Gather and scatter: random strides, buckets and boxes against the plainest copy. Part of ropeway;
// Apache-2.0.
#include "plan/copies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "../support/allocations.hpp"
#include "ropeway/error.hpp"
#include "support.hpp"

using namespace ropeway;
using namespace ropeway::plan;
using test::for_each_index;

namespace {

using bytes = std::vector<std::byte>;

box make_box(std::initializer_list<std::uint64_t> start, std::initializer_list<std::uint64_t> extent) {
  box b;
  b.rank = static_cast<std::uint8_t>(start.size());
  std::copy(start.begin(), start.end(), b.start.begin());
  std::copy(extent.begin(), extent.end(), b.extent.begin());
  return b;
}

/// An array with strides somewhere in memory of its own.
struct array {
  shape dims;
  std::vector<std::int64_t> strides; // in elements
  std::size_t element = 1;
  std::int64_t origin = 0; // element that index 0 is
  bytes memory;

  std::size_t byte_of(std::array<std::uint64_t, max_rank> const& index) const {
    std::int64_t at = origin;
    for (std::size_t d = 0; d < dims.rank(); ++d) at += static_cast<std::int64_t>(index[d]) * strides[d];
    return static_cast<std::size_t>(at) * element;
  }
  std::byte* data() { return memory.data() + static_cast<std::size_t>(origin) * element; }
};

/// Dimensions in any order in memory, with gaps, some backwards; for sources also all at one place.
array random_array(test::dice& dice, shape const& dims, std::size_t element, bool may_repeat) {
  array a;
  a.dims = dims;
  a.element = element;
  a.strides.resize(dims.rank());
  std::vector<std::size_t> order(dims.rank());
  std::iota(order.begin(), order.end(), std::size_t{0});
  bool const plain = dice.one_in(3);
  if (!plain) std::shuffle(order.begin(), order.end(), dice.engine());
  std::int64_t step = 1;
  for (std::size_t i = order.size(); i-- > 0;) {
    auto const d = order[i];
    a.strides[d] = step;
    step *= static_cast<std::int64_t>(std::max<std::uint64_t>(dims[d], 1));
    if (!plain && dice.one_in(3)) step += static_cast<std::int64_t>(dice.roll(1, 3));
    if (!plain && dice.one_in(4)) a.strides[d] = -a.strides[d];
    if (!plain && may_repeat && dice.one_in(8)) a.strides[d] = 0;
  }
  for (std::size_t d = 0; d < dims.rank(); ++d)
    if (a.strides[d] < 0 && dims[d] > 0) a.origin -= a.strides[d] * static_cast<std::int64_t>(dims[d] - 1);
  a.memory = dice.bytes(static_cast<std::size_t>(step) * element);
  return a;
}

/// Packs, bucket by bucket, into slots poisoned before; checks that nothing beside the pieces was touched.
std::vector<bytes> pack(manifest const& m, std::vector<tensor_view> const& sources) {
  gather from(m);
  std::vector<bytes> slots;
  std::vector<memory::copy_op> ops;
  for (std::uint32_t b = 0; b < m.buckets().size(); ++b) {
    bytes slot(m.buckets()[b].bytes, std::byte{0xee});
    ops.clear();
    for (auto const& p : m.pieces_of(b))
      from.ops_for_piece(p, sources[p.tensor], slot.data(), device::host(), ops);
    for (auto const& op : ops) test::perform(op);
    std::uint64_t end = 0;
    bool clean = true;
    for (auto const& p : m.pieces_of(b)) {
      for (; end < p.bucket_offset; ++end) clean = clean && slot[end] == std::byte{0xee};
      end += p.bytes;
    }
    REQUIRE(clean);
    slots.push_back(std::move(slot));
  }
  return slots;
}

void unpack(manifest const& m, std::vector<bytes> const& slots, scatter& into) {
  std::vector<memory::copy_op> ops;
  for (std::uint32_t b = 0; b < m.buckets().size(); ++b) {
    // In any order: each piece stands alone.
    ops.clear();
    auto const pieces = m.pieces_of(b);
    for (std::size_t i = pieces.size(); i-- > 0;)
      into.ops_for_piece(pieces[i], slots[b].data(), device::host(), ops);
    for (auto const& op : ops) test::perform(op);
  }
}

tensor_info info_of(tensor_view const& v) { return {std::string(v.name()), v.wire_type(), v.dims()}; }

manifest cut(std::vector<tensor_view> const& sources, std::uint64_t bucket) {
  std::vector<tensor_info> infos;
  for (auto const& s : sources) infos.push_back(info_of(s));
  return manifest::cut(std::move(infos), bucket);
}

std::size_t ops_count(manifest const& m, tensor_view const& source) {
  gather from(m);
  bytes slot(m.bucket_bytes());
  std::vector<memory::copy_op> ops;
  for (auto const& p : m.pieces()) from.ops_for_piece(p, source, slot.data(), device::host(), ops);
  return ops.size();
}

errc pack_error(tensor_info announced, tensor_view const& source) {
  auto const m = manifest::cut({std::move(announced)}, 1024);
  try {
    ops_count(m, source);
    gather(m).check(0, source);
    return errc::ok;
  } catch (transfer_error const& e) {
    CHECK(e.tensor() == m.tensors()[0].name);
    return static_cast<errc>(e.code().value());
  }
}

} // namespace

TEST_CASE("gather after scatter is exact for random strides, buckets and boxes") {
  constexpr std::array<std::uint64_t, 5> buckets{256, 512, 1024, 4096, 65536};
  constexpr std::array types{dtype::u8, dtype::bf16, dtype::f32, dtype::c64};
  std::size_t cut_tensors = 0, partial = 0;
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    test::dice dice(seed);
    std::vector<std::string> names;
    std::vector<array> arrays;
    std::vector<tensor_view> sources;
    std::size_t const tensors = dice.roll(1, 5);
    names.reserve(tensors);
    arrays.reserve(tensors);
    for (std::size_t t = 0; t < tensors; ++t) {
      std::vector<std::uint64_t> extents(dice.roll(0, 5));
      for (auto& e : extents) e = dice.one_in(25) ? 0 : dice.roll(1, extents.size() < 3 ? 60 : 7);
      auto const type = dice.pick(types);
      names.push_back("t" + std::to_string(t));
      arrays.push_back(
          random_array(dice, shape(std::span<std::uint64_t const>(extents)), bits(type) / 8, true));
      sources.emplace_back(names[t], type, arrays[t].dims, arrays[t].data());
      sources[t].strides(arrays[t].strides);
    }
    auto const m = cut(sources, dice.pick(buckets));
    cut_tensors += m.pieces().size() > tensors;
    auto const slots = pack(m, sources);

    // One to three destinations a tensor, each whole or a box, in memory of any strides.
    std::vector<array> targets;
    std::vector<destination> destinations;
    std::vector<box> parts;
    std::vector<std::size_t> tensor_of;
    targets.reserve(3 * tensors);
    for (std::size_t t = 0; t < tensors; ++t)
      for (auto more = dice.roll(1, 3); more > 0; --more) {
        auto const& dims = arrays[t].dims;
        box part = whole(dims);
        bool const boxed = dice.one_in(2);
        for (std::size_t d = 0; boxed && d < dims.rank(); ++d)
          if (dims[d] > 0 && !dice.one_in(3)) {
            part.start[d] = dice.roll(0, dims[d] - 1);
            part.extent[d] = dice.roll(1, dims[d] - part.start[d]);
          }
        partial += part != whole(dims);
        shape const extents(std::span<std::uint64_t const>(part.extent).first(part.rank));
        targets.push_back(random_array(dice, extents, arrays[t].element, false));
        destination one{names[t], boxed ? std::optional(part) : std::nullopt,
                        mutable_tensor_view("", sources[t].type(), extents, targets.back().data())};
        one.into.strides(targets.back().strides);
        destinations.push_back(one);
        parts.push_back(part);
        tensor_of.push_back(t);
      }
    auto expected = targets;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      auto const& from = arrays[tensor_of[i]];
      for_each_index(expected[i].dims.extents(), [&](auto const& index) {
        auto at = index;
        for (std::size_t d = 0; d < parts[i].rank; ++d) at[d] += parts[i].start[d];
        std::memcpy(expected[i].memory.data() + expected[i].byte_of(index),
                    from.memory.data() + from.byte_of(at), from.element);
      });
    }
    scatter into(m, destinations);
    REQUIRE_MESSAGE(into.check().none(), to_string(into.check()));
    unpack(m, slots, into);
    for (std::size_t i = 0; i < targets.size(); ++i) REQUIRE(targets[i].memory == expected[i].memory);
  }
  CHECK(cut_tensors > 50);
  CHECK(partial > 100);
}

TEST_CASE("contiguous memory is one copy a piece, whatever its rank and destination box of rows") {
  bytes from(4 * 5 * 6 * 4), to(4 * 5 * 6 * 4);
  tensor_view const source("x", dtype::f32, {4, 5, 6}, from.data(), device::cuda(1));
  auto const m = cut({source}, 256);
  REQUIRE(m.pieces().size() == 2);
  gather packer(m);
  std::vector<memory::copy_op> ops;
  bytes slot(256);
  packer.ops_for_piece(m.pieces()[1], source, slot.data(), device::host(), ops);
  REQUIRE(ops.size() == 1);
  CHECK(ops[0].rank == 0);
  CHECK(ops[0].bytes == 224);
  CHECK(ops[0].from == from.data() + 256);
  CHECK(ops[0].to == slot.data());
  CHECK(ops[0].from_where == device::cuda(1));
  CHECK(ops[0].to_where == device::host());

  destination const rows{"x", make_box({1, 0, 0}, {3, 5, 6}),
                         mutable_tensor_view("", dtype::f32, {3, 5, 6}, to.data(), device::cuda(0))};
  scatter into(m, std::span(&rows, 1));
  REQUIRE(into.check().none());
  ops.clear();
  into.ops_for_piece(m.pieces()[0], slot.data(), device::host(), ops);
  into.ops_for_piece(m.pieces()[1], slot.data(), device::host(), ops);
  REQUIRE(ops.size() == 2);
  CHECK(ops[0].bytes == 256 - 120);
  CHECK(ops[0].from == slot.data() + 120);
  CHECK(ops[0].to == to.data());
  CHECK(ops[1].bytes == 224);
  CHECK(ops[1].to == to.data() + 136);
  CHECK(ops[1].to_where == device::cuda(0));
}

TEST_CASE("a transposed tensor larger than the bucket is a few strided copies a piece") {
  std::vector<std::uint16_t> from(300 * 200);
  std::iota(from.begin(), from.end(), std::uint16_t{0});
  tensor_view source("x", dtype::f16, {200, 300}, from.data());
  source.strides({1, 200});
  auto const m = cut({source}, 4096);
  CHECK(ops_count(m, source) <= 3 * m.pieces().size());
  auto const slots = pack(m, {source});
  bool exact = true;
  for (std::uint64_t i = 0; i < from.size(); ++i) {
    std::uint16_t value = 0;
    std::memcpy(&value, slots[i * 2 / 4096].data() + i * 2 % 4096, 2);
    exact = exact && value == from[(i % 300) * 200 + i / 300];
  }
  CHECK(exact);
}

TEST_CASE("conversions change the size of elements on the way, also strided and over several buckets") {
  std::vector<float> from(40 * 50);
  for (std::size_t i = 0; i < from.size(); ++i)
    from[i] = static_cast<float>(i % 200) - 100.0f; // bf16 has them all
  for (bool const strided : {false, true}) {
    CAPTURE(strided);
    tensor_view source("x", dtype::f32, {40, 50}, from.data());
    if (strided) source = tensor_view("x", dtype::f32, {50, 40}, from.data()).strides({1, 50});
    source.sent_as(dtype::bf16);
    auto const m = cut({source}, 512);
    CHECK(m.total_bytes() == 4000);
    auto const slots = pack(m, {source});
    std::vector<std::uint16_t> narrow(2000);
    scatter whole_tensor(
        m, std::vector{
               destination{"x", {}, mutable_tensor_view("", dtype::bf16, source.dims(), narrow.data())}});
    REQUIRE(whole_tensor.check().none());
    unpack(m, slots, whole_tensor);
    bool exact = true;
    for (std::size_t i = 0; i < narrow.size(); ++i) {
      std::uint32_t const wide = std::uint32_t{narrow[i]} << 16;
      float value = 0;
      std::memcpy(&value, &wide, 4);
      exact = exact && value == (strided ? from[(i % 40) * 50 + i / 40] : from[i]);
    }
    CHECK(exact);

    tensor_view back("x", dtype::bf16, {2000}, narrow.data());
    back.sent_as(dtype::f32);
    auto const wide = cut({back}, 512);
    auto const wide_slots = pack(wide, {back});
    std::vector<float> floats(2000);
    scatter again(
        wide, std::vector{destination{"x", {}, mutable_tensor_view("", dtype::f32, {2000}, floats.data())}});
    unpack(wide, wide_slots, again);
    CHECK((strided ? floats[1] == from[50] : floats == from));
  }
  float const one = 1.0f;
  tensor_view scalar("s", dtype::f32, {}, &one);
  scalar.sent_as(dtype::f16);
  auto const m = cut({scalar}, 512);
  gather packer(m);
  std::vector<memory::copy_op> ops;
  bytes slot(512);
  packer.ops_for_piece(m.pieces()[0], scalar, slot.data(), device::host(), ops);
  REQUIRE(ops.size() == 1);
  CHECK(ops[0].rank == 1);
  CHECK(ops[0].extent[0] == 1);
  CHECK(ops[0].from_element == 4);
  CHECK(ops[0].to_element == 2);
  CHECK(ops[0].convert == memory::conversion::f32_to_f16);
}

TEST_CASE("a source that is not what was announced is refused before anything is packed") {
  float memory[16] = {};
  CHECK(pack_error({"x", dtype::f32, {4, 4}}, {"x", dtype::f32, {4, 4}, memory}) == errc::ok);
  CHECK(pack_error({"x", dtype::f32, {4, 4}}, {"x", dtype::f32, {2, 8}, memory}) == errc::source_failed);
  CHECK(pack_error({"x", dtype::f32, {4, 4}}, {"x", dtype::i32, {4, 4}, memory}) == errc::source_failed);
  CHECK(pack_error({"x", dtype::f32, {4, 4}}, {"x", dtype::f32, {4, 4}, nullptr}) == errc::invalid_argument);
  CHECK(pack_error({"x", dtype::f32, {0, 4}}, {"x", dtype::f32, {0, 4}, nullptr}) == errc::ok);
  CHECK(pack_error({"x", dtype::bf16, {4}}, tensor_view("x", dtype::f32, {4}, memory).sent_as(dtype::bf16)) ==
        errc::ok);
  CHECK(pack_error({"x", dtype::bf16, {4}}, tensor_view("x", dtype::f64, {4}, memory).sent_as(dtype::bf16)) ==
        errc::unsupported);
  CHECK(pack_error({"x", dtype::f4, {4, 4}}, {"x", dtype::f4, {4, 4}, memory}) == errc::ok);
  CHECK(pack_error({"x", dtype::f4, {4, 4}}, tensor_view("x", dtype::f4, {4, 4}, memory).strides({1, 4})) ==
        errc::unsupported);
  auto const m = manifest::cut({{"x", dtype::f32, {4}}}, 1024);
  CHECK_THROWS_AS(gather(m).check(1, {"x", dtype::f32, {4}, memory}), transfer_error);
}

TEST_CASE("elements smaller than a byte travel whole") {
  test::dice dice(9);
  auto from = dice.bytes(1500);
  bytes to(1500);
  tensor_view const source("x", dtype::f6_e2m3, {20, 100}, from.data());
  auto const m = cut({source}, 512);
  scatter into(
      m, std::vector{destination{"x", {}, mutable_tensor_view("", dtype::f6_e2m3, {20, 100}, to.data())}});
  REQUIRE(into.check().none());
  unpack(m, pack(m, {source}), into);
  CHECK(to == from);
  destination const half{"x", make_box({0, 0}, {10, 100}),
                         mutable_tensor_view("", dtype::f6_e2m3, {10, 100}, to.data())};
  scatter const refused(m, std::span(&half, 1));
  REQUIRE(refused.check().count == 1);
  CHECK(refused.check().first[0].what == mismatch::kind::unsupported);
}

TEST_CASE("q, k and v land in one fused array, and shards of rows and columns in theirs") {
  test::dice dice(10);
  std::vector<bytes> memory;
  std::vector<tensor_view> sources;
  for (auto const* name : {"q", "k", "v"}) {
    memory.push_back(dice.bytes(8 * 6 * 2));
    sources.emplace_back(name, dtype::bf16, shape{8, 6}, memory.back().data());
  }
  auto const m = cut(sources, 256);
  bytes rows(3 * 96), columns(3 * 48);
  std::vector<destination> into;
  for (std::size_t i = 0; i < 3; ++i) {
    into.push_back({std::string(sources[i].name()),
                    {},
                    mutable_tensor_view("", dtype::bf16, {8, 6}, rows.data() + 96 * i)});
    // The second rank's three columns of each, side by side: [8, 9].
    mutable_tensor_view side("", dtype::bf16, {8, 3}, columns.data() + 6 * i);
    side.strides({9, 1});
    into.push_back({std::string(sources[i].name()), make_box({0, 3}, {8, 3}), side});
  }
  scatter fused(m, into);
  REQUIRE_MESSAGE(fused.check().none(), to_string(fused.check()));
  unpack(m, pack(m, sources), fused);
  bool exact = true;
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t r = 0; r < 8; ++r) {
      exact = exact && std::memcmp(rows.data() + 96 * i + 12 * r, memory[i].data() + 12 * r, 12) == 0;
      exact = exact && std::memcmp(columns.data() + 18 * r + 6 * i, memory[i].data() + 12 * r + 6, 6) == 0;
    }
  CHECK(exact);
}

TEST_CASE("every way not to fit is told apart, and all are told at once") {
  auto const m = manifest::cut({{"dtype", dtype::bf16, {4, 4}},
                                {"shape", dtype::f32, {4, 4}},
                                {"bounds", dtype::f32, {4, 4}},
                                {"rank", dtype::f32, {4, 4}},
                                {"null", dtype::f32, {4, 4}},
                                {"repeat", dtype::f32, {4, 4}},
                                {"both", dtype::f32, {4, 4}},
                                {"good", dtype::f32, {4, 4}},
                                {"empty", dtype::f32, {4, 0}},
                                {"sent\n", dtype::f32, {4, 4}}},
                               4096);
  std::vector<float> memory(160);
  auto const view = [&](dtype type, shape dims, std::size_t at) {
    return mutable_tensor_view("", type, dims, memory.data() + at);
  };
  std::vector<destination> const into{
      {"nowhere", {}, view(dtype::f32, {4, 4}, 0)},
      {"dtype", {}, view(dtype::f16, {4, 4}, 0)},
      {"shape", {}, view(dtype::f32, {2, 8}, 0)},
      {"bounds", make_box({2, 0}, {3, 4}), view(dtype::f32, {3, 4}, 0)},
      {"bounds", make_box({1, 0}, {~std::uint64_t{0}, 4}), view(dtype::f32, {~std::uint64_t{0}, 4}, 0)},
      {"rank", make_box({0}, {16}), view(dtype::f32, {16}, 0)},
      {"null", {}, mutable_tensor_view("", dtype::f32, {4, 4}, nullptr)},
      {"repeat", {}, view(dtype::f32, {4, 4}, 0).strides({4, 0})},
      {"both", make_box({0, 0}, {2, 4}), view(dtype::f64, {4, 4}, 0)},
      {"good", {}, view(dtype::f32, {4, 4}, 16)},
      {"empty", {}, mutable_tensor_view("", dtype::f32, {4, 0}, nullptr)},
  };
  scatter const refused(m, into);
  using kind = mismatch::kind;
  std::vector<std::pair<std::string, kind>> told;
  for (auto const& one : refused.check().first) told.emplace_back(one.tensor, one.what);
  std::vector<std::pair<std::string, kind>> const expected{
      {"nowhere", kind::missing},      {"dtype", kind::wrong_dtype},    {"shape", kind::wrong_shape},
      {"bounds", kind::out_of_bounds}, {"bounds", kind::out_of_bounds}, {"rank", kind::out_of_bounds},
      {"null", kind::no_memory},       {"repeat", kind::overlapping},   {"both", kind::wrong_dtype},
      {"both", kind::wrong_shape},     {"sent\n", kind::unexpected}};
  CHECK(told == expected);
  CHECK(refused.check().count == expected.size());
  auto const text = to_string(refused.check());
  CHECK(text.starts_with(
      "11 differences: \"nowhere\" is not sent; \"dtype\" is sent as BF16 but its destination is F16; "
      "\"shape\" needs a destination of shape [4, 4], not [2, 8]; "
      "\"bounds\" has shape [4, 4] and no box [2+3, 0+4]; "));
  CHECK(text.find('\n') == std::string::npos);
  CHECK(refused.wants(7));
  CHECK_FALSE(refused.wants(0));
  CHECK_FALSE(refused.wants(8));
  CHECK_FALSE(refused.wants(10));
}

TEST_CASE("the first hundred differences are told in words, all are counted") {
  std::vector<tensor_info> many;
  for (int i = 0; i < 20000; ++i) many.push_back({"t" + std::to_string(i), dtype::u8, {1}});
  auto const m = manifest::cut(std::move(many), 1024);
  scatter const nothing(m, {});
  CHECK(nothing.check().count == 20000);
  CHECK(nothing.check().first.size() == 100);
  CHECK(to_string(nothing.check()).ends_with("and 19900 more"));
}

TEST_CASE("a subset is asked for explicitly, and by whole names") {
  auto const m = manifest::cut({{"layers.2", dtype::u8, {4}}, {"layers.20", dtype::u8, {4}}}, 1024);
  bytes memory(4);
  std::vector<destination> const one{
      {"layers.2", {}, mutable_tensor_view("", dtype::u8, {4}, memory.data())}};
  scatter const all(m, one);
  REQUIRE(all.check().count == 1);
  CHECK(all.check().first[0].what == mismatch::kind::unexpected);
  CHECK(all.check().first[0].tensor == "layers.20");
  scatter some(m, one, true);
  CHECK(some.check().none());
  CHECK(some.wants(0));
  CHECK_FALSE(some.wants(1));
  std::vector<memory::copy_op> ops;
  some.ops_for_piece(m.pieces()[1], memory.data(), device::host(), ops);
  CHECK(ops.empty());
  std::vector<destination> const wrong{
      {"layers", {}, mutable_tensor_view("", dtype::u8, {4}, memory.data())}};
  CHECK(scatter(m, wrong, true).check().count == 1);
}

TEST_CASE("destinations that share memory are noticed; columns of one array are none") {
  auto const m =
      manifest::cut({{"a", dtype::u8, {8}}, {"b", dtype::u8, {8}}, {"c", dtype::u8, {4, 4}}}, 1024);
  bytes memory(64);
  auto const count = [&](std::size_t a, std::size_t b, std::size_t c, std::int64_t stride) {
    std::vector<destination> into{{"a", {}, mutable_tensor_view("", dtype::u8, {8}, memory.data() + a)},
                                  {"b", {}, mutable_tensor_view("", dtype::u8, {8}, memory.data() + b)},
                                  {"c", {}, mutable_tensor_view("", dtype::u8, {4, 4}, memory.data() + c)}};
    into[2].into.strides({stride, 1});
    return scatter(m, into).check().count;
  };
  CHECK(count(0, 8, 16, 4) == 0);
  CHECK(count(0, 0, 16, 4) == 1);
  CHECK(count(0, 7, 16, 4) == 1);
  CHECK(count(0, 8, 4, 4) == 2);
  CHECK(count(0, 16, 7, 16) == 1); // rows apart, the first within a
  CHECK(count(0, 16, 8, 16) == 0); // rows apart, and none within a or b
  std::vector<destination> halves;
  for (std::uint64_t half = 0; half < 2; ++half) {
    mutable_tensor_view view("", dtype::u8, {4, 2}, memory.data() + 2 * half);
    view.strides({4, 1});
    halves.push_back({"c", make_box({0, 2 * half}, {4, 2}), view});
  }
  CHECK(scatter(m, halves, true).check().none());
  halves[1].into = halves[0].into;
  CHECK(scatter(m, halves, true).check().count == 1);
  // Both begin at the same byte, and the contiguous one is the longer.
  mutable_tensor_view corner("", dtype::u8, {2, 2}, memory.data());
  corner.strides({3, 1});
  std::vector<destination> const both{{"c", make_box({0, 0}, {2, 2}), corner},
                                      {"a", {}, mutable_tensor_view("", dtype::u8, {8}, memory.data())}};
  CHECK(scatter(m, both, true).check().count == 1);
  // A backwards array lies before its first element.
  mutable_tensor_view backwards("", dtype::u8, {8}, memory.data() + 15);
  backwards.strides({-1});
  auto const beside = [&](std::size_t a) {
    return scatter(
               m,
               std::vector{destination{"a", {}, mutable_tensor_view("", dtype::u8, {8}, memory.data() + a)},
                           destination{"b", {}, backwards}},
               true)
        .check()
        .count;
  };
  CHECK(beside(0) == 0);
  CHECK(beside(16) == 0);
  CHECK(beside(4) == 1);
  CHECK(beside(8) == 1);
}

TEST_CASE("once grown, neither side allocates, however many pieces there are") {
  std::vector<float> from(64 * 64), to(64 * 64);
  tensor_view plain("a", dtype::f32, {64, 64}, from.data());
  tensor_view turned("b", dtype::f32, {64, 64}, from.data());
  turned.strides({1, 64});
  std::vector<tensor_view> const sources{plain, turned};
  auto const m = cut(sources, 512);
  std::vector<destination> const shards{
      {"a", make_box({3, 5}, {20, 20}), mutable_tensor_view("", dtype::f32, {20, 20}, to.data())},
      {"b", {}, mutable_tensor_view("", dtype::f32, {64, 32}, to.data() + 400)}};
  auto fitting = shards;
  fitting[1].part = make_box({0, 32}, {64, 32});
  gather packer(m);
  scatter into(m, fitting);
  REQUIRE(into.check().none());
  bytes slot(512);
  std::vector<memory::copy_op> ops;
  ops.reserve(100000);
  auto const before = testing::allocations();
  bool same = true;
  for (auto const& p : m.pieces()) {
    packer.ops_for_piece(p, sources[p.tensor], slot.data(), device::host(), ops);
    into.ops_for_piece(p, slot.data(), device::host(), ops);
    same = same && m.same_tensor(p.tensor, sources[p.tensor].name(), dtype::f32, sources[p.tensor].dims());
  }
  CHECK(testing::allocations() == before);
  CHECK(same);
  CHECK(ops.size() > 100);
}

TEST_CASE(
    "an array is brought into another of other strides exactly, and in as few steps as they have in common") {
  constexpr std::array types{dtype::u8, dtype::bf16, dtype::f32, dtype::c64};
  std::size_t plain = 0, strided = 0;
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    test::dice dice(seed);
    std::vector<std::uint64_t> extents(dice.roll(0, 5));
    for (auto& extent : extents) extent = dice.roll(dice.one_in(20) ? 0 : 1, 5);
    shape const dims{std::span<std::uint64_t const>(extents)};
    auto const type = dice.pick(types);
    std::size_t const element = bits(type) / 8;
    auto from = random_array(dice, dims, element, false), to = random_array(dice, dims, element, false);
    auto const source = mutable_tensor_view("t", type, dims, from.data()).strides(from.strides);
    auto const target = mutable_tensor_view("t", type, dims, to.data()).strides(to.strides);
    auto wanted = to.memory;
    for_each_index(extents, [&](auto const& index) {
      std::copy_n(from.memory.begin() + static_cast<std::ptrdiff_t>(from.byte_of(index)), element,
                  wanted.begin() + static_cast<std::ptrdiff_t>(to.byte_of(index)));
    });
    std::vector<memory::copy_op> ops;
    ops_between(source, target, ops);
    CHECK(ops.size() <= 1);
    for (auto const& op : ops) {
      test::perform(op);
      ++(op.rank == 0 ? plain : strided);
    }
    CHECK(to.memory == wanted);
  }
  CHECK(plain > 30);
  CHECK(strided > 30);
  // Elements smaller than a byte, as bytes.
  bytes four(3, std::byte{0x5a}), into(3);
  std::vector<memory::copy_op> ops;
  ops_between({"t", dtype::f4, {2, 3}, four.data()}, {"t", dtype::f4, {2, 3}, into.data()}, ops);
  REQUIRE(ops.size() == 1);
  CHECK(ops[0].rank == 0);
  CHECK(ops[0].bytes == 3);
}
