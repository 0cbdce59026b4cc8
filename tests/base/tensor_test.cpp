#include <doctest/doctest.h>

#include <limits>

#include "ropeway/error.hpp"
#include "ropeway/tensor.hpp"

using namespace ropeway;

TEST_CASE("every dtype's spelling is read back") {
  for (int i = 0; i <= static_cast<int>(dtype::f4); ++i) {
    auto const type = static_cast<dtype>(i);
    CHECK(parse_dtype(name(type)) == type);
    CHECK(bits(type) > 0);
  }
  CHECK_FALSE(parse_dtype("bf16"));
  CHECK(bits(static_cast<dtype>(200)) == 0);
}

TEST_CASE("sizes are exact or absent, never wrapped") {
  CHECK(byte_size(dtype::bf16, {4096, 1024}) == 8388608);
  CHECK(byte_size(dtype::f32, {}) == 4);
  CHECK(byte_size(dtype::f32, {7, 0}) == 0);
  CHECK(byte_size(dtype::f4, {2}) == 1);
  CHECK_FALSE(byte_size(dtype::f4, {3}));
  auto const huge = std::numeric_limits<std::uint64_t>::max();
  CHECK_FALSE(byte_size(dtype::u8, {huge, 2}));
  CHECK_FALSE(byte_size(dtype::f64, {huge / 2}));
  CHECK(byte_size(dtype::f64, {huge, huge, 0}) == 0);
}

TEST_CASE("strides that say row-major are recognised as contiguous") {
  float data[6] = {};
  tensor_view view("w", dtype::f32, {2, 3}, data);
  CHECK_FALSE(view.strides({3, 1}).is_strided());
  CHECK(view.strides({1, 2}).is_strided());
  CHECK(view.strides()[0] == 1);
  CHECK_THROWS_AS(view.strides({1}), transfer_error);
}

TEST_CASE("device names") {
  CHECK(device::parse("host") == device::host());
  CHECK(device::parse("cuda:3") == device::cuda(3));
  CHECK(device::parse("cuda") == device::cuda(0));
  for (auto text : {"", "cuda:", "cuda:-1", "cuda:1x", "gpu:0"}) CHECK_FALSE(device::parse(text));
}
