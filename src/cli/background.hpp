// Work that takes long, beside the event loop instead of on it. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <functional>

#include "ropeway/asio.hpp"

namespace asio {
class thread_pool;
}

namespace ropeway::cli {

/// Runs `work` on the pool and comes back when it is done; throws what it threw. `work` is given a flag that
/// a cancellation (any type) sets; it is waited for, cancelled or not.
awaitable<void> in_background(asio::thread_pool& pool,
                              std::function<void(std::atomic<bool> const& stop)> work);

} // namespace ropeway::cli
