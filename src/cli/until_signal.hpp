// Ctrl-C ends what runs in good order. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/io_context.hpp>

#include "ropeway/asio.hpp"

namespace ropeway::cli {

/// Runs `loop` with `body` to its end, or until SIGINT or SIGTERM comes: `body` is then cancelled and waited
/// for. `goodbye` follows either way. Gives 0, or the signal's number. A second signal ends the process on
/// the spot. Throws what `body` throws, after `goodbye`.
int run_until_signal(asio::io_context& loop, awaitable<void> body, awaitable<void> goodbye);

} // namespace ropeway::cli
