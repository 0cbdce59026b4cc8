// What the conformance suite and its importing process say to each other. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ropeway::testing {

/// Asks for a region or for a step of a segment's import; each is answered.
struct import_request {
  enum class kind : std::uint8_t {
    look_again, ///< at the last region
    region,     ///< comes with its descriptor
    segment,    ///< of so many bytes and parts
    part,       ///< comes with a descriptor, or with 64 bytes
    finish,     ///< the segment is whole: it is looked at like a region
    let_go,     ///< unmaps the last region
  } what = kind::look_again;
  std::uint8_t part_kind = 0; ///< memory::part_kind
  std::uint32_t parts = 0;
  std::uint64_t bytes = 0;
  std::array<std::uint8_t, 16> origin{};
  std::array<std::uint8_t, 64> legacy{};
};

struct import_reply {
  std::uint64_t hash = 0;
  std::array<char, 512> error{}; ///< empty: it worked
};

/// Order matters, length matters.
inline std::uint64_t hash_of(std::span<std::byte const> bytes) noexcept {
  std::uint64_t hash = 0x9e3779b97f4a7c15U ^ bytes.size();
  for (std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3U;
  return hash;
}

/// The descriptor that the importing process finds its end of the socket at.
inline constexpr int import_socket = 3;

} // namespace ropeway::testing
