// One number for a whole set of tensors, to compare what two processes hold. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <string>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"

namespace ropeway::cli {

/// XXH3-128, as 32 hexadecimal digits, over each tensor in order: the length of its name (u64) and the name,
/// its dtype's safetensors spelling the same way, its rank (u64) and extents (u64 each), the length of its
/// bytes (u64) and the bytes; all numbers little-endian. Blocks: call it beside the event loop. Throws
/// `operation_aborted` when `stop` is set.
std::string digest(weights const& of, host_window& window, std::atomic<bool> const& stop);

} // namespace ropeway::cli
