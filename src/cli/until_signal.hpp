// Ctrl-C ends what runs in good order. Part of ropeway; Apache-2.0.
#pragma once
#include "ropeway/asio.hpp"

namespace ropeway::cli {

/// Runs `body` to its end and gives 0, or until SIGINT or SIGTERM comes: `body` is then cancelled and waited
/// for, and the signal's number is given. A second signal ends the process on the spot. Throws what `body`
/// throws.
awaitable<int> until_signal(awaitable<void> body);

} // namespace ropeway::cli
