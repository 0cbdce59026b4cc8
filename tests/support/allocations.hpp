// Counts what a test program asks operator new for. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>

namespace ropeway::testing {

/// Calls of operator new so far. 0 for ever under ThreadSanitizer, which can't have another one beside its
/// own.
std::size_t allocations() noexcept;
std::size_t allocations_of_this_thread() noexcept;
/// Blocks of operator new that nobody has deleted yet.
std::size_t blocks_in_use() noexcept;

} // namespace ropeway::testing
