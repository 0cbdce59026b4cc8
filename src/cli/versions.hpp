// Versions of one checkpoint that differ in every element, for trying ropeway out. Part of ropeway;
// Apache-2.0.
#pragma once
#include <atomic>
#include <cstdint>
#include <span>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"

namespace ropeway::cli {

/// Version 1 is the checkpoint as it is. In version v > 1 the first byte of every element (for floating point
/// the end of the mantissa) is XORed with 1 + (v - 2) mod 255: no two versions less than 255 apart share an
/// element.
std::uint8_t version_mask(std::uint64_t version) noexcept;

/// XORs the first byte of every element with `mask`. `element` is 1, 2, 4 or 8 bytes; the memory begins with
/// an element.
void change_elements(std::span<std::byte> memory, std::uint32_t element, std::uint8_t mask) noexcept;

/// Turns one version into another, in place. Blocks. Throws `operation_aborted` when `stop` is set: the
/// weights are then of no version.
void change_version(weights const& of, host_window& window, std::uint64_t from, std::uint64_t to,
                    std::atomic<bool> const& stop);

} // namespace ropeway::cli
