#include "session/tensor_record.hpp"

#include <doctest/doctest.h>

#include <array>
#include <string>
#include <vector>

using namespace ropeway;
using session::tensor_record;

namespace {

std::array<std::byte, 256> memory;

/// Whether a record of `tensors` takes `again` for the same.
bool same(std::vector<tensor_view> const& tensors, std::vector<tensor_view> const& again) {
  tensor_record record;
  for (auto const& one : tensors) record.add(one);
  std::size_t place = 0;
  for (auto const& one : again)
    if (!record.next_is(one, place)) return false;
  return true;
}

} // namespace

TEST_CASE("a record knows its tensors again, and nothing that differs in one thing") {
  tensor_view const a("layer.0.weight", dtype::f32, {4, 8}, memory.data());
  tensor_view const b("layer.1.weight", dtype::bf16, {64}, memory.data() + 128);
  REQUIRE(same({a, b}, {a, b}));

  SUBCASE("a name elsewhere") {
    std::string const name = "layer.0.weight";
    auto copy = a;
    CHECK(same({a, b}, {copy.name(name), b}));
  }
  SUBCASE("another name, as long or not") {
    for (char const* name : {"layer.0.weighs", "layer.0.weight2", "layer.0.weigh", ""}) {
      auto other = a;
      CHECK_FALSE(same({a, b}, {other.name(name), b}));
      CHECK_FALSE(same({other, b}, {a, b}));
    }
  }
  SUBCASE("other memory") {
    CHECK_FALSE(same({a, b}, {tensor_view(a.name(), a.type(), a.dims(), memory.data() + 4), b}));
    CHECK_FALSE(same({a}, {tensor_view(a.name(), a.type(), a.dims(), memory.data(), device::cuda(0))}));
    auto const first = tensor_view(a.name(), a.type(), a.dims(), memory.data(), device::cuda(0));
    CHECK_FALSE(same({first}, {tensor_view(a.name(), a.type(), a.dims(), memory.data(), device::cuda(1))}));
  }
  SUBCASE("another type, here or on the way") {
    CHECK_FALSE(same({a, b}, {tensor_view(a.name(), dtype::i32, a.dims(), memory.data()), b}));
    auto sent = a;
    CHECK_FALSE(same({a, b}, {sent.sent_as(dtype::bf16), b}));
  }
  SUBCASE("another shape of as many elements, or of another rank") {
    for (shape const& dims : {shape{8, 4}, shape{32}, shape{4, 8, 1}, shape{}})
      CHECK_FALSE(same({a, b}, {tensor_view(a.name(), a.type(), dims, memory.data()), b}));
  }
  SUBCASE("other strides") {
    auto one = a, other = a;
    one.strides({8, 1}); // row-major is no strides at all
    other.strides({1, 4});
    CHECK(same({other, b}, {other, b}));
    CHECK_FALSE(same({a, b}, {other, b}));
    CHECK_FALSE(same({other, b}, {a, b}));
    auto third = a;
    third.strides({1, 5});
    CHECK_FALSE(same({other, b}, {third, b}));
  }
  SUBCASE("another order, or more") {
    CHECK_FALSE(same({a, b}, {b, a}));
    CHECK_FALSE(same({a}, {a, b}));
    CHECK_FALSE(same({}, {a}));
  }
  SUBCASE("what has no name, no extent or no bytes") {
    tensor_view const none, scalar("scalar", dtype::f32, {}, memory.data()),
        empty("empty", dtype::f32, {0}, nullptr);
    CHECK(same({none, scalar, empty}, {none, scalar, empty}));
    CHECK_FALSE(same({none}, {scalar}));
  }
}

TEST_CASE("a record that was cleared has nothing") {
  tensor_record record;
  tensor_view const a("a", dtype::u8, {4}, memory.data());
  record.add(a);
  record.clear();
  std::size_t place = 0;
  CHECK_FALSE(record.next_is(a, place));
}
