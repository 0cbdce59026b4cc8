// Digests of a set of tensors, to compare what two processes, or two files, hold: those that updates carry
// (ropeway/digest.hpp). Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <span>
#include <string>
#include <vector>

#include "cli/host_window.hpp"
#include "cli/weights.hpp"
#include "ropeway/digest.hpp"

namespace ropeway::cli {

/// Of each tensor. Blocks: call it beside the event loop. Throws `operation_aborted` when `stop` is set.
std::vector<digest128> digests(weights const& of, host_window& window, std::atomic<bool> const& stop);
/// What they come to, with names, types and shapes, in any order: the digest of an update that sends them.
digest128 whole(weights const& of, std::span<digest128 const> tensors);
/// The two of them, as text.
std::string digest(weights const& of, host_window& window, std::atomic<bool> const& stop);

} // namespace ropeway::cli
