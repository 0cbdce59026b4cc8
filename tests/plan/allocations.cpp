// Counts what operator new is asked for. In a file of its own, so that no compiler sees through it.
// Part of ropeway; Apache-2.0.
#include <atomic>
#include <cstdlib>
#include <new>

#include "../support/thread_sanitizer.hpp"
#include "support.hpp"

namespace {
std::atomic<std::size_t> count{0};
}

std::size_t ropeway::test::allocations() noexcept { return count; }

#if !ROPEWAY_THREAD_SANITIZER
void* operator new(std::size_t n) {
  ++count;
  if (void* p = std::malloc(n != 0 ? n : 1)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t n, std::nothrow_t const&) noexcept {
  ++count;
  return std::malloc(n != 0 ? n : 1);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif
