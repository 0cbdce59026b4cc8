// Device memory of the application's own that other processes map: found, exported, imported. Part of
// ropeway; Apache-2.0.
#pragma once
#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

/// As `backend` has them; the memory may lie on any GPU of the process.
allocation find_allocation(gpu const& owner, std::byte const* address) noexcept;
bool are_there(gpu const& owner, std::span<allocation const> known) noexcept;
part_handle export_allocation(gpu const& owner, allocation const& what);
std::unique_ptr<segment_importer> start_import(std::shared_ptr<gpu> owner, part_kind kind,
                                               std::uint64_t bytes, std::uint32_t parts,
                                               device_uuid const& origin);

} // namespace ropeway::memory::cuda
