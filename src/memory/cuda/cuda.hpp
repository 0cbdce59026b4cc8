// The way into CUDA memory. In a build without CUDA the same two functions say that there is none
// (absent.cpp). Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <vector>

#include "memory/memory.hpp"

namespace ropeway::memory::cuda {

/// The backend of the device with this ordinal among those that this process sees. Throws
/// `transfer_error(errc::no_device)` with the reason: no CUDA in the build, no driver, no such device. Slow
/// the first time (it loads the driver and makes the device's primary context); make one a device and share
/// it.
std::shared_ptr<backend> make_backend(int ordinal);

/// The devices that this process sees, by ordinal; empty without a driver. Makes no context.
std::vector<device_uuid> visible_devices() noexcept;

} // namespace ropeway::memory::cuda
