#include "cli/versions.hpp"

#include <algorithm>
#include <asio/error.hpp>
#include <cstring>

#include "ropeway/error.hpp"

namespace ropeway::cli {

std::uint8_t version_mask(std::uint64_t version) noexcept {
  return version < 2 ? std::uint8_t(0) : static_cast<std::uint8_t>(1 + (version - 2) % 255);
}

void change_elements(std::span<std::byte> memory, std::uint32_t element, std::uint8_t mask) noexcept {
  std::uint64_t pattern = 0;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(&pattern);
  for (std::uint32_t i = 0; i < sizeof pattern; i += element) bytes[i] = mask;
  std::size_t at = 0;
  for (; at + sizeof pattern <= memory.size(); at += sizeof pattern) {
    std::uint64_t word;
    std::memcpy(&word, memory.data() + at, sizeof word);
    word ^= pattern;
    std::memcpy(memory.data() + at, &word, sizeof word);
  }
  for (std::size_t i = 0; at < memory.size(); ++at, ++i) memory[at] ^= std::byte{bytes[i]};
}

void change_version(weights const& of, host_window& window, std::uint64_t from, std::uint64_t to,
                    std::atomic<bool> const& stop) {
  auto const mask = static_cast<std::uint8_t>(version_mask(from) ^ version_mask(to));
  if (mask == 0) return;
  for (auto const& tensor : of.entries()) {
    // Elements of less than a byte are carried as bytes.
    auto const element = std::clamp<std::uint32_t>(bits(tensor.info.type) / 8, 1, 8);
    window.change(tensor.data, tensor.bytes, [&](std::span<std::byte> piece, std::uint64_t) {
      if (stop) throw transfer_error(asio::error::operation_aborted, "interrupted");
      change_elements(piece, element, mask);
    });
  }
}

} // namespace ropeway::cli
