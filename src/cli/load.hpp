// A checkpoint's bytes, from the disk into the memory where they stay. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway::cli {

/// Reads all tensors of `from` into `into`, which was made for it; several requests are in flight. Blocks.
/// Tells how many bytes are there, from the same thread. Throws what the reader throws, and
/// `operation_aborted` when `stop` is set.
void load(checkpoint const& from, weights const& into, host_window& window,
          std::function<void(std::uint64_t bytes)> const& progress, std::atomic<bool> const& stop,
          read_options const& options = {});

} // namespace ropeway::cli
