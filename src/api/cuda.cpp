// Part of ropeway; Apache-2.0.
#include "ropeway/cuda.hpp"

#include "memory/memory.hpp"

namespace ropeway {

bool is_past(ready_after const& when) noexcept {
  if (when.type() == ready_after::kind::nothing) return true;
  try {
    return memory::system_backends()->get(when.where())->is_past(when);
  } catch (...) { return false; } // no such device
}

} // namespace ropeway
