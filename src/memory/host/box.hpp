// Carries out one copy_op in host memory: contiguous bytes, strided boxes, conversions. Part of ropeway;
// Apache-2.0.
#pragma once
#include <cstdint>

#include "memory/copy.hpp"

namespace ropeway::memory::host {

/// Throws `errc::invalid_argument` unless the operation is between host memory and its ranks, element sizes
/// and conversion fit together, or `errc::overflow` if its extents do not fit in memory.
void check(copy_op const& op);

/// Copies what `check` accepted. `streaming` says that the whole list is larger than the caches: the target
/// is then written past them, which leaves the bandwidth of the cache lines that would be read first to the
/// other process. Such writes are ordered only by `finish_streaming`.
void copy(copy_op const& op, bool streaming) noexcept;
void finish_streaming() noexcept;

} // namespace ropeway::memory::host
