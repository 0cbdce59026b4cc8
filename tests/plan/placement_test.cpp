// Placements: what is written is read again, and what can't be true is refused.
#include <doctest/doctest.h>

#include <limits>

#include "plan/placement.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using plan::manifest;
using plan::placement;

namespace {

/// A matrix of 4 x 6 f32, and 8 bytes.
manifest layout() { return manifest::cut({{"a", dtype::f32, {4, 6}}, {"b", dtype::u8, {8}}}, 4096); }

/// The matrix lies transposed in the first of two segments, in bf16; the bytes are nowhere.
placement honest() {
  placement p;
  p.segments.resize(2);
  for (std::size_t i = 0; i < 2; ++i) {
    p.segments[i].id = 7 + i;
    p.segments[i].bytes = 4096;
    p.segments[i].parts = 1;
    p.segments[i].kind = 1;
  }
  p.tensors.resize(2);
  p.tensors[0].segment = 0;
  p.tensors[0].offset = 4096 - 48;
  p.tensors[0].type = dtype::bf16;
  p.tensors[0].strided = true;
  p.tensors[0].strides = {1, 4};
  return p;
}

std::string refusal(placement const& what) {
  auto const of = layout();
  try {
    (void)placement::decode(what.encode(), of);
  } catch (transfer_error const& e) {
    CHECK(e.code() == make_error_code(errc::protocol_error));
    return e.what();
  }
  return "none";
}

} // namespace

TEST_CASE("a placement is read as it was written, and says which buckets are needed") {
  auto const of = layout();
  auto const read = placement::decode(honest().encode(), of);
  CHECK(read == honest());
  CHECK(read.needed_buckets(of) == std::vector<bool>{true});
}

TEST_CASE("what a tensor touches lies within its segment, to the byte, in both directions") {
  auto p = honest();
  CHECK(refusal(p) == "none");
  p.tensors[0].offset += 1;
  CHECK(refusal(p).find("is not within its segment") != std::string::npos);
  p = honest();
  p.tensors[0].strides = {-1, -4};
  p.tensors[0].offset = 46;
  CHECK(refusal(p) == "none");
  p.tensors[0].offset = 45;
  CHECK(refusal(p).find("is not within its segment") != std::string::npos);
}

TEST_CASE("strides beyond any memory are refused, down to the lowest number there is") {
  auto p = honest();
  p.tensors[0].type = dtype::f32;
  // The first dimension has 4 elements of 4 bytes: 3 steps.
  for (std::int64_t const stride : {std::numeric_limits<std::int64_t>::min(), std::int64_t(1) << 60,
                                    std::numeric_limits<std::int64_t>::max()}) {
    p.tensors[0].strides = {stride, 1};
    CHECK(refusal(p).find("is larger than any memory") != std::string::npos);
  }
  // 2 x 2 of bytes: one step of INT64_MIN bytes is just within what can be counted.
  auto const bytes = manifest::cut({{"a", dtype::u8, {2, 2}}}, 4096);
  p = honest();
  p.tensors.resize(1);
  p.tensors[0].type = dtype::u8;
  p.tensors[0].strides = {std::numeric_limits<std::int64_t>::min(), 0};
  p.tensors[0].offset = 4000;
  CHECK_THROWS_AS((void)placement::decode(p.encode(), bytes), transfer_error);
}

TEST_CASE("segments that can't be, and tensors that don't fit the manifest, are refused") {
  auto const refused = [](auto change, char const* why) {
    auto p = honest();
    change(p);
    CHECK_MESSAGE(refusal(p).find(why) != std::string::npos, refusal(p));
  };
  refused([](placement& p) { p.segments[1].id = 0; }, "has no number");
  refused([](placement& p) { p.segments[1].id = 7; }, "segment 7 twice");
  refused([](placement& p) { p.segments[1].bytes = 0; }, "an impossible size");
  refused([](placement& p) { p.segments[1].bytes = placement::most_bytes + 1; }, "an impossible size");
  refused([](placement& p) { p.segments[1].parts = 0; }, "an impossible number of parts");
  refused([](placement& p) { p.segments[1].parts = 4097; }, "an impossible number of parts");
  refused([](placement& p) { p.tensors.pop_back(); }, "1 tensors, the manifest has 2");
  refused([](placement& p) { p.tensors.emplace_back(); }, "3 tensors, the manifest has 2");
  refused([](placement& p) { p.tensors[0].segment = 2; }, "there is no such segment");
  refused([](placement& p) { p.tensors[0].type = dtype::i64; }, "can't be converted");
}
