// Ranges as boxes, and their common parts. Part of ropeway; Apache-2.0.
#include "plan/boxes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <iterator>

#include "plan/strided.hpp"
#include "ropeway/error.hpp"
#include "support.hpp"

using namespace ropeway;
using namespace ropeway::plan;
using test::for_each_index;

namespace {

/// The row-major numbers of a box's elements, in order.
std::vector<std::uint64_t> elements_of(box const& b, shape const& dims) {
  std::vector<std::uint64_t> out;
  auto const strides = row_major(dims);
  for_each_index(std::span(b.extent).first(b.rank), [&](auto const& index) {
    box at = b;
    for (std::size_t d = 0; d < b.rank; ++d) at.start[d] += index[d];
    out.push_back(static_cast<std::uint64_t>(offset_of(at, strides)));
  });
  return out;
}

box make_box(std::initializer_list<std::uint64_t> start, std::initializer_list<std::uint64_t> extent) {
  box b;
  b.rank = static_cast<std::uint8_t>(start.size());
  std::copy(start.begin(), start.end(), b.start.begin());
  std::copy(extent.begin(), extent.end(), b.extent.begin());
  return b;
}

} // namespace

TEST_CASE("every range of many small shapes is covered in order by few boxes") {
  test::dice dice(1);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::uint64_t> extents(dice.roll(0, 5));
    for (auto& e : extents) e = dice.roll(1, 3);
    shape const dims{std::span<std::uint64_t const>(extents)};
    auto const n = *dims.elements();
    std::vector<box> boxes;
    for (std::uint64_t first = 0; first <= n; ++first)
      for (std::uint64_t count = 0; first + count <= n; ++count) {
        boxes.clear();
        boxes_of_range(dims, first, count, boxes);
        std::vector<std::uint64_t> covered;
        for (auto const& b : boxes) {
          REQUIRE(b.rank == dims.rank());
          for (auto e : elements_of(b, dims)) covered.push_back(e);
        }
        REQUIRE(covered.size() == count);
        bool in_order = true;
        for (std::uint64_t i = 0; i < count; ++i) in_order = in_order && covered[i] == first + i;
        REQUIRE(in_order);
        REQUIRE(boxes.size() <= std::max<std::size_t>(1, 2 * dims.rank() - (dims.rank() != 0)));
      }
  }
}

TEST_CASE("boxes are appended, and nothing for an empty range") {
  std::vector<box> boxes;
  boxes_of_range({4, 5}, 3, 0, boxes);
  boxes_of_range({0, 5}, 0, 0, boxes);
  CHECK(boxes.empty());
  boxes_of_range({4, 5}, 7, 10, boxes);
  boxes_of_range({}, 0, 1, boxes);
  REQUIRE(boxes.size() == 4);
  CHECK(boxes[0] == make_box({1, 2}, {1, 3}));
  CHECK(boxes[1] == make_box({2, 0}, {1, 5}));
  CHECK(boxes[2] == make_box({3, 0}, {1, 2}));
  CHECK(boxes[3] == box{});
}

TEST_CASE("a range beyond the tensor is refused, also where the sum overflows") {
  std::vector<box> boxes;
  CHECK_THROWS_AS(boxes_of_range({4, 5}, 0, 21, boxes), transfer_error);
  CHECK_THROWS_AS(boxes_of_range({4, 5}, 21, 1, boxes), transfer_error);
  CHECK_THROWS_AS(boxes_of_range({4, 5}, 20, ~std::uint64_t{0}, boxes), transfer_error);
  CHECK_THROWS_AS(boxes_of_range({}, 0, 2, boxes), transfer_error);
  CHECK(boxes.empty());
}

TEST_CASE("the intersection has exactly the elements that both boxes have") {
  test::dice dice(2);
  int met = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::uint64_t> extents(dice.roll(0, 3));
    box a, b, common;
    a.rank = b.rank = static_cast<std::uint8_t>(extents.size());
    for (std::size_t d = 0; d < extents.size(); ++d) {
      extents[d] = dice.roll(1, 5);
      for (box* one : {&a, &b}) {
        one->start[d] = dice.roll(0, extents[d] - 1);
        one->extent[d] = dice.roll(0, extents[d] - one->start[d]);
      }
    }
    shape const dims{std::span<std::uint64_t const>(extents)};
    bool const any = intersect(a, b, common);
    auto const in_a = elements_of(a, dims), in_b = elements_of(b, dims), in_both = elements_of(common, dims);
    std::vector<std::uint64_t> expected;
    std::set_intersection(in_a.begin(), in_a.end(), in_b.begin(), in_b.end(), std::back_inserter(expected));
    REQUIRE(in_both == expected);
    REQUIRE(any == !expected.empty());
    met += any;
  }
  CHECK(met > 300);
  box common;
  CHECK_FALSE(intersect(make_box({0}, {4}), make_box({0, 0}, {4, 4}), common));
  CHECK(intersect(make_box({3}, {~std::uint64_t{0}}), make_box({2}, {4}), common));
  CHECK(common == make_box({3}, {3}));
}

TEST_CASE("offsets and strides") {
  shape const dims{2, 3, 4};
  auto const strides = row_major(dims);
  CHECK(std::vector<std::int64_t>(strides.begin(), strides.begin() + 3) ==
        std::vector<std::int64_t>{12, 4, 1});
  CHECK(offset_of(make_box({1, 2, 3}, {1, 1, 1}), strides) == 23);
  std::array<std::int64_t, 2> const backwards{-4, 1};
  CHECK(offset_of(make_box({2, 1}, {1, 1}), backwards) == -7);
  CHECK(whole(dims) == make_box({0, 0, 0}, {2, 3, 4}));
}

TEST_CASE("an array has as many dimensions as it needs") {
  auto const rank_of = [](shape const& dims, box const& part, std::vector<std::int64_t> const& strides) {
    auto const array = collapse(dims, part, strides);
    CHECK(array.dims.elements() == dims.elements());
    return array.dims.rank();
  };
  CHECK(rank_of({2, 3, 4}, whole({2, 3, 4}), {12, 4, 1}) == 1);
  CHECK(rank_of({1, 1}, whole({1, 1}), {7, 7}) == 0);
  CHECK(rank_of({}, box{}, {}) == 0);
  CHECK(rank_of({3, 4}, whole({3, 4}), {1, 3}) == 2);             // transposed
  CHECK(rank_of({3, 4}, whole({3, 4}), {8, 1}) == 2);             // every second row
  CHECK(rank_of({3, 4}, whole({3, 4}), {8, 2}) == 1);             // every second element
  CHECK(rank_of({3, 4}, whole({3, 4}), {0, 0}) == 1);             // one value everywhere
  CHECK(rank_of({6, 4}, make_box({2, 0}, {2, 4}), {4, 1}) == 1);  // rows
  CHECK(rank_of({6, 4}, make_box({0, 2}, {6, 2}), {2, 1}) == 2);  // columns
  CHECK(rank_of({6, 4}, make_box({2, 0}, {1, 4}), {99, 1}) == 1); // a single row, whatever its stride
  CHECK(is_dense(collapse({6, 4}, make_box({0, 2}, {6, 2}), std::vector<std::int64_t>{2, 1})));
  CHECK_FALSE(is_dense(collapse({6, 4}, make_box({0, 2}, {6, 2}), std::vector<std::int64_t>{4, 1})));
}
