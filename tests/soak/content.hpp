// What a soak sends: layouts and bytes that follow from a seed, so that every process makes them by itself.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ropeway/tensor.hpp"

namespace ropeway::soak {

/// One number from several; the same on every machine.
std::uint64_t mix(std::initializer_list<std::uint64_t> parts) noexcept;

/// Random numbers that follow from a seed alone (std's distributions differ between libraries).
class chance {
 public:
  explicit chance(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() noexcept;
  /// 0 up to `limit` - 1.
  std::uint64_t below(std::uint64_t limit) noexcept { return limit == 0 ? 0 : next() % limit; }
  std::uint64_t between(std::uint64_t low, std::uint64_t high) noexcept {
    return low + below(high - low + 1);
  }
  bool one_in(std::uint64_t n) noexcept { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

std::uint64_t hash_of(std::string_view text) noexcept;

/// How a source's elements lie in the sender's memory.
enum class lie : std::uint8_t { plain, transposed, every_second_row, reversed, backwards, repeated, tied };

struct tensor_plan {
  tensor_info sent;         ///< as receivers see it
  dtype source = dtype::u8; ///< as it lies at the sender; another one is converted while packing
  lie how = lie::plain;
  std::uint32_t tied_to = 0; ///< for lie::tied: the tensor whose memory this is, too
};

struct layout {
  std::uint64_t number = 0;
  std::vector<tensor_plan> tensors;
  std::uint64_t bytes = 0; ///< as sent
};
/// The layout with this number. `even`: only moderate sizes, for measurements; otherwise anything goes.
layout make_layout(std::uint64_t seed, std::uint64_t number, bool even);
/// Which tensors an update sends that leaves some out; never all, and never none.
std::vector<bool> part_of(layout const& whole, std::uint64_t seed, std::uint64_t update);

/// The contiguous bytes of a tensor in an update, as they lie at the sender and as they must arrive.
void make_source(std::uint64_t seed, std::uint64_t update, layout const& of, std::uint32_t tensor,
                 std::vector<std::byte>& out);
void make_wanted(std::uint64_t seed, std::uint64_t update, layout const& of, std::uint32_t tensor,
                 std::vector<std::byte>& out);

/// The sender's memory for a tensor: how much, and how a view of it at `base` is made.
std::uint64_t source_bytes(tensor_plan const& of);
tensor_view source_view(tensor_plan const& of, std::byte* base, device where);
/// Puts a contiguous image where the view will find it.
void lay_out(tensor_plan const& of, std::span<std::byte const> image, std::byte* base);

/// A box of a tensor.
struct part {
  std::array<std::uint64_t, max_rank> start{};
  shape dims;
};
/// Cuts that box out of a contiguous image.
void cut_out(tensor_info const& of, part const& box, std::span<std::byte const> image,
             std::vector<std::byte>& out);
/// The first difference in words; empty if there is none.
std::string difference(std::span<std::byte const> wanted, std::span<std::byte const> got);

} // namespace ropeway::soak
