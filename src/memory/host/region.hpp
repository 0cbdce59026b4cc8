// Shared host memory: a sealed memfd, mapped. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <memory>

#include "memory/memory.hpp"

namespace ropeway::memory::host {

/// Makes a region whose memory is really there (nothing can fail later, as a SIGBUS) and whose descriptor
/// can't be resized, punched or written through: only the mapping made here writes. Throws
/// `errc::out_of_memory`, `errc::invalid_argument` for zero bytes.
backend::shared_region make_region(std::uint64_t bytes);

/// Maps such a region of a peer for reading. Throws `errc::bad_region` if the descriptor is anything else.
std::shared_ptr<region> import_region(unique_fd handle, std::uint64_t bytes);

} // namespace ropeway::memory::host
