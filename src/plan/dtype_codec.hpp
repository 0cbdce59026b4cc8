// Which dtypes the codec takes from others. Part of ropeway; Apache-2.0.
#pragma once
#include "base/codec.hpp"
#include "ropeway/tensor.hpp"

template <>
struct ropeway::codec::enum_range<ropeway::dtype> {
  static constexpr dtype last = dtype::f4;
};
