#include "matmul.hpp"

#include <cstring>

namespace {

// Eight floats: one AVX register, or two of SSE.
using lanes = float __attribute__((vector_size(32)));
constexpr std::size_t width = 8;

/// `N` rows of `a` times `M` rows of `b`: each element that was loaded is used N or M times.
template <std::size_t N, std::size_t M>
[[gnu::always_inline]] inline void block(float const* a, std::size_t a_stride, float const* b,
                                         std::size_t b_stride, std::size_t depth, float const* bias,
                                         float* into, std::size_t stride) {
  lanes sums[N][M] = {};
  std::size_t k = 0;
  for (; k + width <= depth; k += width) {
    // Memory need not be aligned for them. What is read goes into a variable of its own: where it goes
    // straight into the array, GCC 12 keeps the array and the sums in memory, which takes 2.5 times as long.
    lanes left[N];
    for (std::size_t i = 0; i < N; ++i) {
      lanes one;
      std::memcpy(&one, a + i * a_stride + k, sizeof one);
      left[i] = one;
    }
    for (std::size_t j = 0; j < M; ++j) {
      lanes right;
      std::memcpy(&right, b + j * b_stride + k, sizeof right);
      for (std::size_t i = 0; i < N; ++i) sums[i][j] += left[i] * right;
    }
  }
  for (std::size_t i = 0; i < N; ++i) {
    for (std::size_t j = 0; j < M; ++j) {
      lanes const& s = sums[i][j];
      float sum = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
      for (std::size_t rest = k; rest < depth; ++rest) sum += a[i * a_stride + rest] * b[j * b_stride + rest];
      into[i * stride + j] = bias ? sum + bias[j] : sum;
    }
  }
}

template <std::size_t M>
[[gnu::always_inline]] inline void column(const_rows a, float const* b, std::size_t b_stride,
                                          std::size_t depth, float const* bias, float* into,
                                          std::size_t stride) {
  std::size_t i = 0;
  for (; i + 4 <= a.rows; i += 4)
    block<4, M>(a.data + i * a.stride, a.stride, b, b_stride, depth, bias, into + i * stride, stride);
  for (; i < a.rows; ++i)
    block<1, M>(a.data + i * a.stride, a.stride, b, b_stride, depth, bias, into + i * stride, stride);
}

// `b` is the larger (a layer's weights), so it is gone through once.
[[gnu::always_inline]] inline void all(const_rows a, const_rows b, std::size_t depth, float const* bias,
                                       mutable_rows into) {
  std::size_t j = 0;
  for (; j + 2 <= b.rows; j += 2)
    column<2>(a, b.data + j * b.stride, b.stride, depth, bias ? bias + j : nullptr, into.data + j,
              into.stride);
  for (; j < b.rows; ++j)
    column<1>(a, b.data + j * b.stride, b.stride, depth, bias ? bias + j : nullptr, into.data + j,
              into.stride);
}

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void with_avx2(const_rows a, const_rows b, std::size_t depth, float const* bias,
                                           mutable_rows into) {
  all(a, b, depth, bias, into);
}
bool const have_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif

} // namespace

void multiply(const_rows a, const_rows b, std::size_t depth, float const* bias, mutable_rows into) {
#if defined(__x86_64__)
  if (have_avx2) return with_avx2(a, b, depth, bias, into);
#endif
  all(a, b, depth, bias, into);
}
