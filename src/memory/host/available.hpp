// How much memory this process may still take. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>

namespace ropeway::memory::host {

/// What the machine has free or can free (swap included), or what the control groups of this process leave of
/// it, whichever is less. An estimate: nothing is reserved. The largest number if the system does not say.
std::uint64_t available_memory();

} // namespace ropeway::memory::host
