// Whether this is built with a sanitizer of memory or threads, under which everything takes several times as
// long. Part of ropeway; Apache-2.0.
#pragma once

namespace ropeway::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif
#else
inline constexpr bool sanitized = false;
#endif

/// How often something random or large is tried: the sanitizers look at each path, and need not see it as
/// often as the checks of its results do.
template <class Count>
constexpr Count rounds(Count plainly) noexcept {
  return sanitized ? static_cast<Count>((plainly + 4) / 5) : plainly;
}

} // namespace ropeway::testing
