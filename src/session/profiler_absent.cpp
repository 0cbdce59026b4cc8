#include "session/profiler.hpp"

namespace ropeway::session {

void profiler_range::begin(profiler_name, std::optional<std::uint32_t>) noexcept {}
void profiler_range::begin_update(side, std::uint64_t) noexcept {}
void profiler_range::end_range(std::uint64_t) noexcept {}

} // namespace ropeway::session
