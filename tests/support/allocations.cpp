#include "allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

#include "thread_sanitizer.hpp"

// In a file of its own: a compiler that sees through a replaced operator new warns of its free().
namespace {
std::atomic<std::size_t> count{0}, deleted{0};
thread_local std::size_t count_here = 0;
} // namespace

namespace ropeway::testing {

std::size_t allocations() noexcept { return count; }
std::size_t allocations_of_this_thread() noexcept { return count_here; }
std::size_t blocks_in_use() noexcept {
  std::size_t const gone = deleted; // read first: what is deleted meanwhile was made before
  return count - gone;
}

} // namespace ropeway::testing

#if !ROPEWAY_THREAD_SANITIZER
namespace {

void* counted(std::size_t bytes) {
  ++count, ++count_here;
  return std::malloc(bytes != 0 ? bytes : 1);
}
void* counted(std::size_t bytes, std::align_val_t align) {
  ++count, ++count_here;
  auto const unit = static_cast<std::size_t>(align);
  return std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}

void give_back(void* p) noexcept {
  if (p != nullptr) ++deleted;
  std::free(p);
}

} // namespace

void* operator new(std::size_t bytes) {
  if (void* p = counted(bytes)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  if (void* p = counted(bytes, align)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept { return counted(bytes); }
void operator delete(void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }
#endif
