// Limits of tests, longer where everything is slower. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>

namespace ropeway::testing {

/// Three times as long under a sanitizer.
inline std::chrono::milliseconds patient(std::chrono::milliseconds limit) noexcept {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 3 * limit;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  return 3 * limit;
#else
  return limit;
#endif
#else
  return limit;
#endif
}

} // namespace ropeway::testing
