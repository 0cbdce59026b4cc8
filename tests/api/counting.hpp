// Counts what a process asks for: shared memory, mappings, descriptors. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <string>

namespace ropeway::testing {

/// Calls of mmap and memfd_create so far; always 0 under a sanitizer, which has its own.
std::size_t mappings_made() noexcept;
std::size_t memory_files_made() noexcept;

/// What the process holds now.
struct holdings {
  std::size_t descriptors = 0, mappings = 0, resident_kib = 0;
  static holdings now();
};

} // namespace ropeway::testing
