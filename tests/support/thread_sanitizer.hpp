// Whether this is built with ThreadSanitizer, whose own operator new can't be replaced beside it.
// Part of ropeway; Apache-2.0.
#pragma once
#if defined(__SANITIZE_THREAD__)
#define ROPEWAY_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ROPEWAY_THREAD_SANITIZER 1
#endif
#endif
#if !defined(ROPEWAY_THREAD_SANITIZER)
#define ROPEWAY_THREAD_SANITIZER 0
#endif
