// The primary context and the kernels of one device. Part of ropeway; Apache-2.0.
#include "memory/cuda/gpu.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels_image.h" // made of kernels.cu by the build

namespace ropeway::memory::cuda {

scope::scope(driver const& table, CUcontext context, unsigned long long id) : driver_(table) {
  driver_.check(enter(context, id), "the CUDA context can't be used any more");
}

scope::scope(gpu const& owner, std::nothrow_t) noexcept : driver_(owner.call()) {
  (void)enter(owner.context(), owner.context_id());
}

CUresult scope::enter(CUcontext context, unsigned long long id) noexcept {
  if (id == 0 || driver_.id_of(context) != id) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  CUresult const result = driver_.cuCtxPushCurrent(context);
  if (result != CUDA_SUCCESS) return result;
  entered_ = true;
  if (driver_.cuThreadExchangeStreamCaptureMode(&mode_) != CUDA_SUCCESS)
    mode_ = CU_STREAM_CAPTURE_MODE_GLOBAL;
  return CUDA_SUCCESS;
}

scope::~scope() {
  if (!entered_) return;
  (void)driver_.cuThreadExchangeStreamCaptureMode(&mode_);
  CUcontext mine = nullptr;
  (void)driver_.cuCtxPopCurrent(&mine);
}

gpu::gpu(std::shared_ptr<driver const> table, int ordinal) : driver_(std::move(table)), ordinal_(ordinal) {
  driver const& d = *driver_;
  int count = 0;
  d.check(d.cuDeviceGetCount(&count), "the CUDA devices can't be counted", errc::no_device);
  if (ordinal < 0 || ordinal >= count)
    throw transfer_error(errc::no_device, "there is no CUDA device " + std::to_string(ordinal) +
                                              ": this process sees " + std::to_string(count) +
                                              " (CUDA_VISIBLE_DEVICES chooses among them)");
  d.check(d.cuDeviceGet(&device_, ordinal), "the CUDA device can't be opened", errc::no_device);
  CUuuid name{};
  d.check(d.cuDeviceGetUuid(&name, device_), "the CUDA device has no UUID", errc::no_device);
  std::memcpy(uuid_.data(), name.bytes, uuid_.size());
  multiprocessors_ =
      static_cast<std::uint32_t>(std::max(1, attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)));
  d.check(d.cuDevicePrimaryCtxRetain(&context_, device_), "the CUDA device can't be used", errc::no_device);
  context_id_ = d.id_of(context_);
  try {
    load_kernels();
  } catch (...) {
    (void)d.cuDevicePrimaryCtxRelease(device_);
    throw;
  }
}

gpu::~gpu() {
  if (scope here(*this, std::nothrow); here.entered()) (void)driver_->cuModuleUnload(module_);
  // Also when the application has reset the context: that keeps the count of those who retain it.
  (void)driver_->cuDevicePrimaryCtxRelease(device_);
}

int gpu::attribute(CUdevice_attribute which) const {
  int value = 0;
  if (driver_->cuDeviceGetAttribute(&value, which, device_) != CUDA_SUCCESS) return 0;
  return value;
}

void gpu::load_kernels() {
  scope here(*this);
  driver const& d = *driver_;
  d.check(d.cuModuleLoadData(&module_, ropeway_kernels),
          "the copy kernels don't run on this device; build for its architecture (see "
          "src/memory/cuda/meson.build)",
          errc::no_device);
  constexpr std::array names{"ropeway_copy_pieces_small",    "ropeway_copy_pieces_large",
                             "ropeway_copy_boxes_small",     "ropeway_copy_boxes_large",
                             "ropeway_copy_prepared_pieces", "ropeway_copy_prepared_boxes",
                             "ropeway_digest_runs",          "ropeway_digest_boxes"};
  static_assert(names.size() == copy_lists::kernels);
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (d.cuModuleGetFunction(&kernels_[i], module_, names[i]) != CUDA_SUCCESS) kernels_[i] = nullptr;
    // Loads the code now: lazy loading would stop the device in the middle of the first update.
    int registers = 0;
    if (kernels_[i]) (void)d.cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, kernels_[i]);
  }
  // All but those with large parameters, which old compilers can't make.
  using which = copy_lists::kernel;
  if (kernel(which::small_pieces) && kernel(which::small_boxes) && kernel(which::prepared_pieces) &&
      kernel(which::prepared_boxes) && kernel(which::digest_runs) && kernel(which::digest_boxes))
    return;
  (void)d.cuModuleUnload(module_);
  throw transfer_error(errc::no_device, "the copy kernels are missing in this build");
}

void gpu::add_peer_memory(std::uintptr_t begin, std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  peer_memory_.push_back({begin, begin + bytes});
  peer_ranges_.store(peer_memory_.size(), std::memory_order_release);
}

void gpu::remove_peer_memory(std::uintptr_t begin) noexcept {
  std::lock_guard lock(mutex_);
  std::erase_if(peer_memory_, [&](range const& r) { return r.begin == begin; });
  peer_ranges_.store(peer_memory_.size(), std::memory_order_release);
}

bool gpu::is_peer_memory(std::uintptr_t address) const noexcept {
  if (!has_peer_memory()) return false;
  std::lock_guard lock(mutex_);
  return std::any_of(peer_memory_.begin(), peer_memory_.end(),
                     [&](range const& r) { return r.begin <= address && address < r.end; });
}

bool gpu::add_handle(legacy_handle const& handle) {
  std::lock_guard lock(mutex_);
  if (std::find(handles_.begin(), handles_.end(), handle) != handles_.end()) return false;
  handles_.push_back(handle);
  return true;
}

void gpu::remove_handle(legacy_handle const& handle) noexcept {
  std::lock_guard lock(mutex_);
  std::erase(handles_, handle);
}

std::vector<device_uuid> list_devices(driver const& table) {
  int count = 0;
  if (table.cuDeviceGetCount(&count) != CUDA_SUCCESS || count < 0) return {};
  std::vector<device_uuid> found(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    CUdevice id = 0;
    CUuuid name{};
    if (table.cuDeviceGet(&id, i) != CUDA_SUCCESS || table.cuDeviceGetUuid(&name, id) != CUDA_SUCCESS)
      continue;
    std::memcpy(found[static_cast<std::size_t>(i)].data(), name.bytes, sizeof name.bytes);
  }
  return found;
}

} // namespace ropeway::memory::cuda
