// The one loop that takes the time: rows times rows. A sample of ropeway; Apache-2.0.
#pragma once
#include <cstddef>

/// A matrix of float32 in memory: `stride` elements from one row to the next.
struct const_rows {
  float const* data;
  std::size_t rows, stride;
};
struct mutable_rows {
  float* data;
  std::size_t stride;
};

/// into[i][j] = a[i] · b[j] + bias[j], over `depth` elements; `bias` may be null. Uses AVX2 where the
/// processor has it.
void multiply(const_rows a, const_rows b, std::size_t depth, float const* bias, mutable_rows into);
