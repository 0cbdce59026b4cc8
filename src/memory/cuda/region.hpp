// Device memory that processes share: cuMemCreate memory behind a file descriptor. Part of ropeway;
// Apache-2.0.
#pragma once
#include "memory/cuda/gpu.hpp"

namespace ropeway::memory::cuda {

backend::shared_region make_region(std::shared_ptr<gpu> owner, std::uint64_t bytes);
std::shared_ptr<region> import_region(std::shared_ptr<gpu> owner, unique_fd handle, std::uint64_t bytes,
                                      device_uuid const& origin);
bool can_reach(gpu const& owner, device_uuid const& origin) noexcept;

/// Pins a host region and maps it for the device. Null where the driver can't: copies then go the pageable
/// way.
std::shared_ptr<void> register_host(std::shared_ptr<gpu> owner, std::shared_ptr<region> memory);

} // namespace ropeway::memory::cuda
