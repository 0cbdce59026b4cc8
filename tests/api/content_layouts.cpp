// Strided sources, and values that are converted while they are packed. Part of ropeway; Apache-2.0.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "content_suite.hpp"
#include "support/co_test.hpp"

namespace ropeway::testing {
namespace {

/// The same memory under another name, shape and strides; `first` elements are skipped.
tensor_view restrided(tensor_view const& from, std::string_view name, shape const& dims,
                      std::initializer_list<std::int64_t> strides, std::uint64_t first = 0) {
  auto const* data = from.data() + first * (bits(from.type()) / 8);
  tensor_view view(name, from.type(), dims, data, from.where());
  view.strides(strides);
  return view;
}

std::vector<tensor_view> strided_views(model const& source) {
  auto const matrix = source.view(0); // 24 x 40
  auto const block = source.view(1);  // 6 x 10 x 14
  auto const vector = source.view(2); // 100
  std::vector<tensor_view> views;
  views.push_back(restrided(matrix, "transposed", {40, 24}, {1, 40}));
  views.push_back(restrided(matrix, "every second row", {12, 40}, {80, 1}));
  views.push_back(restrided(matrix, "columns 3 to 10", {24, 7}, {40, 1}, 3));
  views.push_back(matrix);
  views.push_back(restrided(block, "permuted", {14, 6, 10}, {1, 140, 14}));
  views.push_back(restrided(block, "inner planes", {6, 10, 3}, {140, 14, 5}, 2));
  views.push_back(restrided(vector, "reversed", {100}, {-1}, 99));
  views.push_back(restrided(vector, "broadcast", {5, 20}, {0, 1}, 7));
  views.push_back(restrided(vector, "one value", {3, 4}, {0, 0}, 50));
  return views;
}

/// The nearest value that `digits` binary digits and exponents from `lowest` up can hold, ties to even,
/// worked out in doubles, where both neighbours are exact: nothing in common with the bit tricks under test.
double nearest(double x, int digits, int lowest) {
  if (x == 0 || std::isinf(x)) return x;
  int const exponent = std::max(std::ilogb(x), lowest);
  double const quantum = std::ldexp(1.0, exponent - (digits - 1));
  return std::nearbyint(x / quantum) * quantum;
}

std::uint16_t wanted_bf16(float x) {
  double const rounded = nearest(x, 8, -126);
  float const kept = std::abs(rounded) >= std::ldexp(1.0, 128) ? std::copysign(HUGE_VALF, x) : float(rounded);
  return std::uint16_t(std::bit_cast<std::uint32_t>(kept) >> 16);
}

std::uint16_t wanted_f16(float x) {
  std::uint16_t const sign = std::signbit(x) ? 0x8000 : 0;
  double const rounded = std::isinf(x) ? HUGE_VAL : std::abs(nearest(x, 11, -14));
  if (rounded >= 65536.0) return sign | 0x7c00;
  if (rounded == 0) return sign;
  int const exponent = std::max(std::ilogb(rounded), -14);
  auto const mantissa =
      static_cast<std::uint16_t>(std::ldexp(rounded, 10 - exponent)); // 1024 to 2047, or subnormal
  std::uint16_t const biased = mantissa >= 1024 ? std::uint16_t(exponent + 15) : std::uint16_t(0);
  return std::uint16_t(sign | (biased << 10) | (mantissa & 1023));
}

/// Ties, neighbours of ties, subnormals, the largest values of either type, infinities, NaNs, and random
/// bits.
std::vector<float> telling_values() {
  std::vector<float> values;
  for (double base :
       {1.0, 1.5, 3.1415926, 65504.0, 65519.996, 65520.0, 1e-8, 5.960464477539063e-8, 2.98e-8,
        6.097555160522461e-5, 6.103515625e-5, 1e38, 3.3895313892515355e38, 3.4e38, 1e-40, 1.4e-45, 0.0}) {
    auto const x = float(base);
    for (float near : {x, std::nextafter(x, HUGE_VALF), std::nextafter(x, -HUGE_VALF)}) {
      values.push_back(near);
      values.push_back(-near);
    }
  }
  for (std::uint32_t high = 0x3f80; high < 0x3f90; ++high) // halfway between two bf16 values, and beside
    for (std::uint32_t low : {0x7fffu, 0x8000u, 0x8001u})
      values.push_back(std::bit_cast<float>(high << 16 | low));
  for (std::uint32_t high = 0x47000; high < 0x47010; ++high) // halfway between two f16 values, and beside
    for (std::uint32_t low : {0x0fffu, 0x1000u, 0x1001u, 0x3000u})
      values.push_back(std::bit_cast<float>(high << 12 | low));
  for (std::uint32_t raw :
       {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu})
    values.push_back(std::bit_cast<float>(raw));
  auto const random = random_bytes(4 * 3'000, 77);
  for (std::size_t i = 0; i < random.size(); i += 4) {
    std::uint32_t raw = 0;
    std::memcpy(&raw, random.data() + i, 4);
    values.push_back(std::bit_cast<float>(raw));
  }
  return values;
}

std::span<std::byte const> bytes_of(auto const& values) { return std::as_bytes(std::span(values)); }

/// Sends `values` as `as`, contiguous and reversed, and gives what arrived: both orders one after the other.
template <class To, class From>
awaitable<std::vector<To>> converted(setting const& how, std::vector<From> const& values, dtype from,
                                     dtype as) {
  auto const count = std::uint64_t(values.size());
  std::vector<tensor_info> const specs{{"values", from, {count}}};
  model source(how.how.from, specs, 0);
  source.put(0, bytes_of(values));
  std::vector<tensor_view> views{source.view(0),
                                 restrided(source.view(0), "reversed", {count}, {-1}, count - 1)};
  for (auto& view : views) view.sent_as(as);
  line over(co_await asio::this_coro::executor, how, quick_sender(4 * kib));
  co_await over.connect();
  auto held = blanks(how, specs_of(views));
  auto into = into_all(held);
  co_await deliver(over, 1, views, into);
  co_await over.close();
  std::vector<To> got;
  for (auto const& each : held) {
    CHECK(each.guards_intact());
    for (std::size_t tensor : {0u, 1u}) {
      auto const bytes = each.bytes(tensor);
      std::vector<To> one(bytes.size() / sizeof(To));
      std::memcpy(one.data(), bytes.data(), bytes.size());
      if (tensor == 1) std::reverse(one.begin(), one.end());
      got.insert(got.end(), one.begin(), one.end());
    }
  }
  co_return got;
}

/// `nan`: whether the converted bits are a NaN's.
void check_rounding(std::vector<float> const& values, std::vector<std::uint16_t> const& got, auto wanted,
                    auto nan) {
  CHECK(got.size() % values.size() == 0);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    float const x = values[i % values.size()];
    bool const right =
        std::isnan(x) ? nan(got[i]) && bool(got[i] >> 15) == std::signbit(x) : got[i] == wanted(x);
    if (!right && ++wrong <= 5) CHECK_MESSAGE(right, x, " became ", got[i], ", wanted ", wanted(x));
  }
  CHECK(wrong == 0);
}

} // namespace

awaitable<void> strided_sources(setting const& how) {
  for (auto const type : {dtype::f32, dtype::bf16, dtype::u8, dtype::f64}) {
    std::vector<tensor_info> specs{
        {"matrix", type, {24, 40}}, {"block", type, {6, 10, 14}}, {"vector", type, {100}}};
    model source(how.how.from, std::move(specs), 1);
    auto views = strided_views(source);
    co_await crosses(how, source, std::move(views), 64 * kib);
  }
}

awaitable<void> strided_and_large(setting const& how) {
  std::vector<tensor_info> specs{{"matrix", dtype::f32, {24, 40}},
                                 {"block", dtype::f32, {6, 10, 14}},
                                 {"vector", dtype::f32, {100}},
                                 {"large", dtype::bf16, {300, 500}}};
  model source(how.how.from, std::move(specs), 1);
  auto views = strided_views(source);
  views.push_back(restrided(source.view(3), "large, transposed", {500, 300}, {1, 500}));
  views.push_back(restrided(source.view(3), "large, a part", {299, 251}, {500, 1}, 130));
  co_await crosses(how, source, std::move(views), kib);
}

awaitable<void> cast_to_bf16(setting const& how) {
  auto const values = telling_values();
  auto const got = co_await converted<std::uint16_t>(how, values, dtype::f32, dtype::bf16);
  auto const nan = [](std::uint16_t x) { return (x & 0x7f80) == 0x7f80 && (x & 0x007f) != 0; };
  check_rounding(values, got, wanted_bf16, nan);
}

awaitable<void> cast_to_f16(setting const& how) {
  auto const values = telling_values();
  auto const got = co_await converted<std::uint16_t>(how, values, dtype::f32, dtype::f16);
  auto const nan = [](std::uint16_t x) { return (x & 0x7c00) == 0x7c00 && (x & 0x03ff) != 0; };
  check_rounding(values, got, wanted_f16, nan);
}

awaitable<void> cast_to_f32(setting const& how) {
  // Exact in this direction: casting back must give the same bits, NaNs apart.
  std::vector<std::uint16_t> all(65'536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::uint16_t(i);
  auto const wide = co_await converted<float>(how, all, dtype::bf16, dtype::f32);
  auto const half = co_await converted<float>(how, all, dtype::f16, dtype::f32);
  std::size_t wrong_bf16 = 0, wrong_f16 = 0;
  for (std::size_t i = 0; i < wide.size(); ++i) {
    std::uint16_t const bits = all[i % all.size()];
    bool const nan_bf16 = (bits & 0x7f80) == 0x7f80 && (bits & 0x007f),
               nan_f16 = (bits & 0x7c00) == 0x7c00 && (bits & 0x03ff);
    wrong_bf16 += nan_bf16 ? !std::isnan(wide[i]) : wanted_bf16(wide[i]) != bits;
    wrong_f16 += nan_f16 ? !std::isnan(half[i]) : wanted_f16(half[i]) != bits;
  }
  CHECK(wrong_bf16 == 0);
  CHECK(wrong_f16 == 0);
}

awaitable<void> cast_unknown(setting const& how) {
  model source(how.how.from, many(2, "layer", dtype::f32, {64}), 1);
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  auto views = source.views();
  views[1].sent_as(dtype::i8);
  auto const sent = co_await try_to(over.sender().send_weights(1, views));
  CHECK(sent.error == make_error_code(errc::unsupported));
  CHECK_MESSAGE(sent.text.find("layer.1") != std::string::npos, sent.text);
  auto held = blanks(how, source.specs());
  auto into = into_all(held);
  co_await deliver(over, 2, source.views(), into);
  for (auto& each : held) CHECK(difference(source.images(), each) == "");
  co_await over.close();
}

} // namespace ropeway::testing
