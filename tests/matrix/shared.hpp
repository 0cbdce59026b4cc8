// Objects that several processes of the matrix share. Part of ropeway; Apache-2.0.
#pragma once
#include <cerrno>
#include <memory>
#include <new>
#include <sys/mman.h>
#include <system_error>

namespace ropeway::matrix {

template <class T>
struct unmaps {
  void operator()(T* object) const noexcept { ::munmap(object, sizeof(T)); }
};
/// Unmapped in the process that destroys this; the others keep it.
template <class T>
using shared_with_children = std::unique_ptr<T, unmaps<T>>;

/// In memory that processes which are forked from now on share.
template <class T>
shared_with_children<T> share_with_children() {
  void* const at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  return shared_with_children<T>(new (at) T());
}

} // namespace ropeway::matrix
