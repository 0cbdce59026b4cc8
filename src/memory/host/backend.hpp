// Host memory as a backend. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>

#include "memory/memory.hpp"

namespace ropeway::memory::host {

std::shared_ptr<backend> make_backend();

} // namespace ropeway::memory::host
