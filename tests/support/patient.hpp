// Limits of tests, longer where everything is slower. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>

#include "support/sanitized.hpp"

namespace ropeway::testing {

/// Three times as long under a sanitizer.
inline std::chrono::milliseconds patient(std::chrono::milliseconds limit) noexcept {
  return sanitized ? 3 * limit : limit;
}

} // namespace ropeway::testing
