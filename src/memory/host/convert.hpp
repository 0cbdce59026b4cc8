// Conversions of one element between f32, bf16 and f16, in integers and selects so that compilers vectorise
// them. The CUDA kernels convert bit for bit the same. Part of ropeway; Apache-2.0.
//
// Narrowing rounds to nearest, ties to even; too large becomes infinity. A NaN stays a NaN of the same sign,
// quiet, with the upper bits of its payload. Widening is exact for every value and keeps the bits of a NaN.
#pragma once
#include <bit>
#include <cstdint>

namespace ropeway::memory::host {

constexpr std::uint16_t f32_to_bf16(std::uint32_t bits) noexcept {
  // Adding just under half of the last place kept, plus one if that place is odd, carries exactly when
  // rounding to even goes up; the carry may run into the exponent, up to infinity.
  std::uint32_t const rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  std::uint32_t const nan = (bits >> 16) | 0x40U;
  return static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
}

constexpr std::uint32_t bf16_to_f32(std::uint16_t bits) noexcept { return std::uint32_t{bits} << 16; }

constexpr std::uint16_t f32_to_f16(std::uint32_t bits) noexcept {
  std::uint32_t const sign = (bits >> 16) & 0x8000U;
  std::uint32_t const magnitude = bits & 0x7fffffffU;
  // Normal results: rebias the exponent (127 to 15), round as above. 65520 and more carries into infinity.
  std::uint32_t const normal = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  // Subnormal results, below 2^-14: adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded to even by
  // the FPU.
  float const shifted = std::bit_cast<float>(magnitude) + 0.5F;
  std::uint32_t const subnormal = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U;
  std::uint32_t const nan = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  std::uint32_t result = magnitude < (113U << 23) ? subnormal : normal;
  result = magnitude >= (143U << 23) ? 0x7c00U : result;
  result = magnitude > 0x7f800000U ? nan : result;
  return static_cast<std::uint16_t>(sign | result);
}

constexpr std::uint32_t f16_to_f32(std::uint16_t bits) noexcept {
  std::uint32_t const sign = std::uint32_t{bits & 0x8000U} << 16;
  std::uint32_t const magnitude = bits & 0x7fffU;
  std::uint32_t const normal = (magnitude << 13) + (112U << 23);
  std::uint32_t const special = (magnitude << 13) | 0x7f800000U;
  // A subnormal is a whole number of 2^-24, and every such product is exact.
  std::uint32_t const subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
  std::uint32_t result = magnitude < 0x400U ? subnormal : normal;
  result = magnitude >= 0x7c00U ? special : result;
  return sign | result;
}

} // namespace ropeway::memory::host
