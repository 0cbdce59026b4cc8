// Cutting tensors into pieces, and reading what a peer says that it cut. Part of ropeway; Apache-2.0.
#include "plan/manifest.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <boost/describe.hpp>

#include "base/codec.hpp"
#include "ropeway/error.hpp"
#include "support.hpp"
#include "support/sanitized.hpp"

using namespace ropeway;
using namespace ropeway::plan;

namespace {

constexpr std::uint64_t kib = 1024, mib = 1024 * kib;

tensor_info tensor(std::string name, dtype type, shape dims) { return {std::move(name), type, dims}; }

std::uint64_t aligned(std::uint64_t n) {
  return (n + piece_alignment - 1) / piece_alignment * piece_alignment;
}

/// Everything that a manifest promises, checked the long way.
void check_whole(manifest const& m) {
  std::size_t next = 0;
  std::uint64_t total = 0;
  for (std::uint32_t t = 0; t < m.tensors().size(); ++t) {
    auto const [first, count] = m.pieces_of_tensor(t);
    REQUIRE(first == next);
    std::uint64_t covered = 0;
    for (auto const& p : m.pieces().subspan(first, count)) {
      REQUIRE(p.tensor == t);
      REQUIRE(p.tensor_offset == covered);
      REQUIRE(p.tensor_offset % piece_alignment == 0);
      REQUIRE(p.bytes > 0);
      covered += p.bytes;
    }
    REQUIRE(covered == byte_size(m.tensors()[t].type, m.tensors()[t].dims));
    REQUIRE(m.tensor_bytes(t) == covered);
    REQUIRE(m.find(m.tensors()[t].name) == t);
    next += count;
    total += covered;
  }
  REQUIRE(next == m.pieces().size());
  REQUIRE(total == m.total_bytes());
  next = 0;
  auto const sizes = m.bucket_sizes();
  REQUIRE(sizes.size() == m.buckets().size());
  for (std::uint32_t b = 0; b < m.buckets().size(); ++b) {
    std::uint64_t end = 0;
    REQUIRE(m.buckets()[b].first_piece == next);
    REQUIRE_FALSE(m.pieces_of(b).empty());
    for (auto const& p : m.pieces_of(b)) {
      REQUIRE(p.bucket == b);
      REQUIRE(p.bucket_offset % piece_alignment == 0);
      REQUIRE(p.bucket_offset >= end);
      end = p.bucket_offset + p.bytes;
    }
    REQUIRE(end <= m.bucket_bytes());
    REQUIRE(sizes[b] == end);
    next += m.pieces_of(b).size();
  }
  REQUIRE(next == m.pieces().size());
}

/// Full but for crumbs; holds for what cut() makes.
void check_full(manifest const& m) {
  for (std::size_t b = 0; b + 1 < m.buckets().size(); ++b) {
    auto const left = m.bucket_bytes() - aligned(m.buckets()[b].bytes);
    REQUIRE((left == 0 || left < wasted_tail(m.bucket_bytes())));
  }
}

void check_same(manifest const& a, manifest const& b) {
  REQUIRE(std::ranges::equal(a.tensors(), b.tensors()));
  REQUIRE(std::ranges::equal(a.pieces(), b.pieces()));
  REQUIRE(a.bucket_sizes() == b.bucket_sizes());
  REQUIRE(a.bucket_bytes() == b.bucket_bytes());
  REQUIRE(a.layout() == b.layout());
}

errc cut_error(std::vector<tensor_info> tensors, std::uint64_t bucket = mib,
               std::string* tensor_named = nullptr) {
  try {
    manifest::cut(std::move(tensors), bucket);
    return errc::ok;
  } catch (transfer_error const& e) {
    if (tensor_named) *tensor_named = e.tensor();
    return static_cast<errc>(e.code().value());
  }
}

/// The encoding as its readers see it, to write wrong ones with.
struct wire_tensor {
  std::string name;
  std::uint8_t type = 0;
  std::vector<std::uint64_t> dims;
};
struct wire_piece {
  std::uint32_t tensor = 0, bucket = 0;
  std::uint64_t tensor_offset = 0, bucket_offset = 0, bytes = 0;
};
struct wire_manifest {
  std::uint64_t bucket_bytes = 0;
  std::vector<wire_tensor> tensors;
  std::vector<wire_piece> pieces;
};
BOOST_DESCRIBE_STRUCT(wire_tensor, (), (name, type, dims))
BOOST_DESCRIBE_STRUCT(wire_piece, (), (tensor, bucket, tensor_offset, bucket_offset, bytes))
BOOST_DESCRIBE_STRUCT(wire_manifest, (), (bucket_bytes, tensors, pieces))

/// Two tensors, the second cut in two.
wire_manifest good() {
  return {1024,
          {{"a", 0, {700}}, {"b", 0, {1000}}},
          {{0, 0, 0, 0, 700}, {1, 0, 0, 768, 256}, {1, 1, 256, 0, 744}}};
}

std::string refusal(wire_manifest const& w, manifest_limits const& limits = {}) {
  std::vector<std::byte> bytes;
  codec::encode(w, bytes);
  try {
    check_whole(manifest::decode(bytes, limits));
    return {};
  } catch (transfer_error const& e) {
    CHECK(e.code() == errc::protocol_error);
    return e.what();
  }
}

template <class F>
std::string refusal_after(F change) {
  auto w = good();
  change(w);
  return refusal(w);
}

manifest random_manifest(test::dice& dice) {
  constexpr std::array types{dtype::u8, dtype::f16, dtype::f32, dtype::f64, dtype::f8_e4m3, dtype::boolean};
  std::vector<tensor_info> tensors(dice.roll(0, 12));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<std::uint64_t> extents(dice.roll(0, 4));
    for (auto& e : extents) e = dice.one_in(20) ? 0 : dice.roll(1, dice.one_in(4) ? 200 : 12);
    tensors[i] = tensor("layer." + std::to_string(i), dice.pick(types),
                        shape(std::span<std::uint64_t const>(extents)));
  }
  constexpr std::array<std::uint64_t, 6> buckets{1, 256, 1000, 4096, 64 * kib, mib};
  // Some tensors become far too many pieces for small buckets; that is no subject here.
  std::erase_if(tensors, [](auto const& t) { return *byte_size(t.type, t.dims) > 8 * mib; });
  return manifest::cut(std::move(tensors), dice.pick(buckets));
}

} // namespace

TEST_CASE("f16[3] followed by f32[4]: the second starts aligned") {
  auto const m = manifest::cut({tensor("a", dtype::f16, {3}), tensor("b", dtype::f32, {4})}, mib);
  check_whole(m);
  REQUIRE(m.pieces().size() == 2);
  CHECK(m.pieces()[0] == piece{0, 0, 0, 0, 6});
  CHECK(m.pieces()[1] == piece{1, 0, 0, 256, 16});
  CHECK(m.bucket_sizes() == std::vector<std::uint64_t>{272});
}

TEST_CASE("alignment is applied before the fit test") {
  // 1000 + 24 bytes fill 1024, but the second tensor can start at 1024 only, where nothing is left.
  auto const m = manifest::cut({tensor("a", dtype::u8, {1000}), tensor("b", dtype::u8, {24})}, 1024);
  check_whole(m);
  REQUIRE(m.buckets().size() == 2);
  CHECK(m.pieces()[1] == piece{1, 1, 0, 0, 24});
}

TEST_CASE("a tensor of exactly one bucket's size is one piece in one bucket") {
  auto const m = manifest::cut({tensor("a", dtype::f32, {256, 1024})}, mib);
  check_whole(m);
  CHECK(m.buckets().size() == 1);
  CHECK(m.pieces().size() == 1);
  auto const more =
      manifest::cut({tensor("a", dtype::f32, {256, 1024}), tensor("b", dtype::f32, {256, 1024})}, mib);
  CHECK(more.buckets().size() == 2);
  CHECK(more.pieces().size() == 2);
}

TEST_CASE("three small tensors share a bucket, twenty of 64 KiB fill mebibytes") {
  auto const three = manifest::cut(
      {tensor("a", dtype::f32, {10}), tensor("b", dtype::bf16, {10}), tensor("c", dtype::boolean, {10})},
      mib);
  check_whole(three);
  CHECK(three.buckets().size() == 1);
  std::vector<tensor_info> twenty;
  for (int i = 0; i < 20; ++i) twenty.push_back(tensor("w" + std::to_string(i), dtype::f32, {128, 128}));
  auto const m = manifest::cut(std::move(twenty), mib);
  check_whole(m);
  CHECK(m.buckets().size() == 2);
  CHECK(m.pieces().size() == 20);
}

TEST_CASE("tensors larger than buckets and rings: first, in the middle, last, several in a row") {
  auto const m = manifest::cut({tensor("first", dtype::f32, {3, 100000}), tensor("a", dtype::u8, {5}),
                                tensor("middle", dtype::bf16, {999999}), tensor("next", dtype::f64, {200001}),
                                tensor("b", dtype::f32, {}), tensor("last", dtype::u8, {3 * 1000000})},
                               256 * kib);
  check_whole(m);
  check_full(m);
  CHECK(m.buckets().size() == (m.total_bytes() + 256 * kib - 1) / (256 * kib));
}

TEST_CASE("zero-element tensors have no piece, scalars have one, and no tensors at all are an update") {
  auto const m = manifest::cut({tensor("none", dtype::f32, {3, 0, 5}), tensor("scalar", dtype::f64, {}),
                                tensor("nothing", dtype::u8, {0})},
                               mib);
  check_whole(m);
  REQUIRE(m.pieces().size() == 1);
  CHECK(m.pieces()[0] == piece{1, 0, 0, 0, 8});
  CHECK(m.pieces_of_tensor(0).second == 0);
  CHECK(m.pieces_of_tensor(2) == std::pair<std::uint32_t, std::uint32_t>{1, 0});
  check_same(m, manifest::decode(m.encode()));
  auto const empty = manifest::cut({}, mib);
  check_whole(empty);
  CHECK(empty.buckets().empty());
  check_same(empty, manifest::decode(empty.encode()));
}

TEST_CASE("no crumb is split off at the end of a bucket, and a crumb is under a 64th of it") {
  static_assert(wasted_tail(mib) == 16 * kib && wasted_tail(64 * mib) == 64 * kib && wasted_tail(kib) == 16);
  auto const left = [](std::uint64_t room, std::uint64_t bytes) {
    return manifest::cut({tensor("a", dtype::u8, {mib - room}), tensor("b", dtype::u8, {bytes})}, mib)
        .pieces()
        .size();
  };
  CHECK(left(16 * kib - 256, 32 * kib) == 2); // a fresh bucket
  CHECK(left(16 * kib - 256, 8 * kib) == 2);  // it fits
  CHECK(left(16 * kib, 32 * kib) == 3);       // cut
}

TEST_CASE("bucket sizes are rounded down to the alignment, and are one unit at the least") {
  CHECK(manifest::cut({}, 1000).bucket_bytes() == 768);
  CHECK(manifest::cut({}, 0).bucket_bytes() == 256);
  auto const m = manifest::cut({tensor("a", dtype::u8, {600})}, 300);
  check_whole(m);
  CHECK(m.buckets().size() == 3);
}

TEST_CASE("repeated names are refused, naming the name") {
  std::string named;
  CHECK(cut_error({tensor("x", dtype::u8, {1}), tensor("y", dtype::u8, {1}), tensor("x", dtype::u8, {2})},
                  mib, &named) == errc::duplicate_name);
  CHECK(named == "x");
}

TEST_CASE("names are UTF-8 without NUL, of any length up to the limit, and not empty") {
  CHECK(cut_error({tensor("", dtype::u8, {1})}) == errc::invalid_argument);
  CHECK(cut_error({tensor(std::string("a\0b", 3), dtype::u8, {1})}) == errc::invalid_argument);
  CHECK(cut_error({tensor("a\xff", dtype::u8, {1})}) == errc::invalid_argument);
  CHECK(cut_error({tensor(std::string(64 * kib + 1, 'x'), dtype::u8, {1})}) == errc::overflow);
  std::string long_name;
  while (long_name.size() < 1024) long_name += "\xe6\x9d\x83\xe9\x87\x8d\xf0\x9f\x9a\xa1\n\"/";
  auto const m =
      manifest::cut({tensor(long_name, dtype::u8, {1}), tensor(long_name + "2", dtype::u8, {1})}, mib);
  check_same(m, manifest::decode(m.encode()));
  CHECK(m.find(long_name) == 0u);
  CHECK_FALSE(m.find(long_name + "3"));
}

TEST_CASE("sizes that overflow, types that are unknown and bits that fill no byte are refused") {
  std::string named;
  std::uint64_t const huge = std::uint64_t{1} << 62;
  CHECK(cut_error({tensor("x", dtype::f32, {huge, huge})}, mib, &named) == errc::overflow);
  CHECK(named == "x");
  CHECK(cut_error({tensor("x", dtype::f32, {huge})}) == errc::overflow);
  CHECK(cut_error({tensor("x", static_cast<dtype>(200), {1})}) == errc::invalid_argument);
  CHECK(cut_error({tensor("x", dtype::f4, {3})}) == errc::unsupported);
  CHECK(cut_error({tensor("x", dtype::f6_e2m3, {2, 3})}) == errc::unsupported);
  CHECK(cut_error({tensor("x", dtype::f6_e2m3, {4}), tensor("y", dtype::f4, {2})}) == errc::ok);
  CHECK(cut_error({tensor("x", dtype::u8, {std::uint64_t{1} << 60})}, 256) ==
        errc::overflow); // too many pieces
  std::vector<tensor_info> many;
  for (int i = 0; i < 9; ++i)
    many.push_back(tensor("t" + std::to_string(i), dtype::u8, {(std::uint64_t{1} << 61) - 1}));
  CHECK(cut_error(std::move(many), std::uint64_t{1} << 50) == errc::overflow); // all together
}

TEST_CASE("sub-byte types are counted in bits") {
  auto const m =
      manifest::cut({tensor("six", dtype::f6_e3m2, {1000, 4}), tensor("four", dtype::f4, {5, 6})}, 1024);
  check_whole(m);
  CHECK(m.tensor_bytes(0) == 3000);
  CHECK(m.tensor_bytes(1) == 15);
}

TEST_CASE("pieces of random tensors and buckets cover exactly, and survive encoding") {
  test::dice dice(3);
  std::size_t pieces = 0;
  for (int round = 0; round < testing::rounds(400); ++round) {
    auto const m = random_manifest(dice);
    check_whole(m);
    check_full(m);
    auto const back = manifest::decode(m.encode());
    check_whole(back);
    check_same(m, back);
    pieces += m.pieces().size();
  }
  CHECK(pieces > testing::rounds(1000u));
}

TEST_CASE("the layout names tensors, shapes, types and the cuts") {
  auto const layout = [](std::vector<tensor_info> tensors, std::uint64_t bucket = mib) {
    return manifest::cut(std::move(tensors), bucket).layout();
  };
  auto const reference = layout({tensor("a", dtype::f32, {4, 2})});
  CHECK(layout({tensor("a", dtype::f32, {4, 2})}) == reference);
  CHECK(layout({tensor("b", dtype::f32, {4, 2})}) != reference);
  CHECK(layout({tensor("a", dtype::i32, {4, 2})}) != reference);
  CHECK(layout({tensor("a", dtype::f32, {2, 4})}) != reference);
  CHECK(layout({tensor("a", dtype::f32, {4, 2})}, 2 * mib) != reference);
}

TEST_CASE("a manifest may be moved; its index goes with it") {
  auto m = manifest::cut({tensor("a", dtype::f32, {4}), tensor("b", dtype::u8, {9})}, mib);
  manifest moved = std::move(m);
  CHECK(moved.find("b") == 1u);
  m = std::move(moved);
  CHECK(m.find("a") == 0u);
  check_whole(m);
}

TEST_CASE("same_tensor compares name, type and shape") {
  auto const m = manifest::cut({tensor("a", dtype::f32, {4, 2})}, mib);
  CHECK(m.same_tensor(0, "a", dtype::f32, {4, 2}));
  CHECK_FALSE(m.same_tensor(0, "ab", dtype::f32, {4, 2}));
  CHECK_FALSE(m.same_tensor(0, "a", dtype::i32, {4, 2}));
  CHECK_FALSE(m.same_tensor(0, "a", dtype::f32, {4, 2, 1}));
  CHECK_FALSE(m.same_tensor(1, "a", dtype::f32, {4, 2}));
}

TEST_CASE("what does not exist is refused") {
  auto const m = manifest::cut({tensor("a", dtype::f32, {4})}, mib);
  CHECK_THROWS_AS(m.pieces_of(1), transfer_error);
  CHECK_THROWS_AS(m.pieces_of_tensor(1), transfer_error);
  manifest const none;
  CHECK_THROWS_AS(none.pieces_of(0), transfer_error);
  CHECK_THROWS_AS(none.pieces_of_tensor(0), transfer_error);
  CHECK_FALSE(none.find("a"));
}

TEST_CASE("20,000 tensors with names of 1 KiB") {
  std::vector<tensor_info> tensors;
  for (int i = 0; i < 20000; ++i)
    tensors.push_back(tensor("layer." + std::to_string(i) + std::string(1012, '.'), dtype::bf16, {64, 3}));
  auto const m = manifest::cut(std::move(tensors), 64 * kib);
  auto const bytes = m.encode();
  CHECK(bytes.size() < 22 * mib);
  auto const back = manifest::decode(bytes);
  CHECK(back.layout() == m.layout());
  CHECK(std::ranges::equal(back.pieces(), m.pieces()));
  CHECK(back.find(back.tensors()[19999].name) == 19999u);
}

TEST_CASE("a peer's pieces must cover each tensor once, in order, aligned, and within their bucket") {
  CHECK(refusal(good()) == "");
  auto const has = [](std::string const& text, char const* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(refusal_after([](auto& w) { w.bucket_bytes = 1000; }), "multiple of 256"));
  CHECK(has(refusal_after([](auto& w) { w.bucket_bytes = 0; }), "multiple of 256"));
  CHECK(has(refusal_after([](auto& w) { w.bucket_bytes = 768; }), "not within its bucket"));
  CHECK(has(refusal_after([](auto& w) { w.pieces.pop_back(); }), "no piece for all of \"b\""));
  CHECK(has(refusal_after([](auto& w) { w.pieces.push_back(w.pieces.back()); }), "belongs to no tensor"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[0].tensor = 1; }), "gap or overlap"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].tensor_offset = 512; }), "gap or overlap"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].tensor_offset = 0; }), "gap or overlap"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[1].bytes = 0; }), "wrong size"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bytes = 745; }), "wrong size"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bytes = ~std::uint64_t{0}; }), "wrong size"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[1].bytes = 255, w.pieces[2].tensor_offset = 255; }),
            "unaligned"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[1].bucket_offset = 700; }), "not aligned"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[1].bucket_offset = 512; }), "overlaps the piece"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bucket_offset = 512; }), "not within its bucket"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bucket_offset = ~std::uint64_t{255}; }),
            "not within its bucket"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bucket = 0; }), "overlaps the piece"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[2].bucket = 2; }), "order of the buckets"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[0].bucket = 1; }), "order of the buckets"));
  CHECK(has(refusal_after([](auto& w) { w.pieces[0].bucket = 0xffffffff; }), "order of the buckets"));
}

TEST_CASE("a peer's tensors must have names, types and sizes that make sense") {
  auto const has = [](std::string const& text, char const* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].name = "a"; }), "two tensors"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].name = ""; }), "empty"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].name = "\xc0\x80"; }), "not UTF-8"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].type = 22; }), "enumeration (type)"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].type = 0xff; }), "enumeration (type)"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].dims.assign(9, 1); }), "dimensions"));
  CHECK(has(refusal_after([](auto& w) { w.tensors[1].dims.assign(4, 1u << 31); }), "larger than any memory"));
  CHECK(has(refusal_after([](auto& w) { w.tensors.pop_back(); }), "belongs to no tensor"));
  manifest_limits limits;
  limits.tensors = 1;
  CHECK(has(refusal(good(), limits), "2 tensors"));
  limits = {};
  limits.pieces = 2;
  CHECK(has(refusal(good(), limits), "3 pieces"));
  limits = {};
  auto w = good();
  w.tensors[0].name = "long";
  limits.name_bytes = 3;
  CHECK(has(refusal(w, limits), "above its limit"));
  // Dimensions are neither tensors nor pieces.
  limits = {};
  limits.tensors = 1;
  limits.pieces = 1;
  CHECK(refusal({1024, {{"a", 0, {2, 5, 70}}}, {{0, 0, 0, 0, 700}}}, limits) == "");
}

TEST_CASE("no truncation and no change of a byte makes a manifest that is not whole") {
  auto const m = manifest::cut({tensor("a", dtype::f16, {3}), tensor("w", dtype::f32, {20, 30}),
                                tensor("none", dtype::u8, {0, 7}), tensor("b", dtype::f64, {})},
                               1024);
  auto const bytes = m.encode();
  for (std::size_t n = 0; n < bytes.size(); ++n)
    CHECK_THROWS_AS(manifest::decode(std::span(bytes).first(n)), transfer_error);
  int accepted = 0;
  constexpr unsigned step = testing::sanitized ? 5 : 1;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (auto value = static_cast<unsigned>(i % step); value < 256; value += step) {
      auto changed = bytes;
      changed[i] = static_cast<std::byte>(value);
      if (changed == bytes) continue;
      try {
        auto const other = manifest::decode(changed);
        check_whole(other);
        REQUIRE(other.encode() == changed); // so the hash of what was read names what was understood
        REQUIRE(other.layout() != m.layout());
        ++accepted;
      } catch (transfer_error const& e) { REQUIRE(e.code() == errc::protocol_error); }
    }
  CHECK(accepted > testing::rounds(100)); // other names, other types of the same size
}
