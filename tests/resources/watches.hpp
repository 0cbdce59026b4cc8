// Lets epoll refuse to watch a descriptor. Part of ropeway; Apache-2.0.
#pragma once
#include "support/thread_sanitizer.hpp"

namespace ropeway::testing {

/// ThreadSanitizer has an epoll_ctl of its own.
inline constexpr bool can_refuse_watches = ROPEWAY_THREAD_SANITIZER == 0;

/// From the next accepted connection on, the watch with this number (from 1) fails with ENOSPC, once.
void refuse_watch(int number) noexcept;
/// So many did so far.
int watches_refused() noexcept;

} // namespace ropeway::testing
