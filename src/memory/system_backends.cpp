#include <map>
#include <mutex>

#include "memory/cuda/cuda.hpp"
#include "memory/host/backend.hpp"
#include "memory/memory.hpp"

namespace ropeway::memory {
namespace {

class system final : public backends {
 public:
  std::shared_ptr<backend> get(device where) override {
    // Held while a backend is made: making a CUDA context twice would cost more than waiting for the first.
    std::lock_guard const lock(mutex_);
    std::shared_ptr<backend>& known = where.is_cuda() ? cuda_[where.ordinal()] : host_;
    if (!known) known = where.is_cuda() ? cuda::make_backend(where.ordinal()) : host::make_backend();
    return known;
  }
  std::vector<device_uuid> cuda_devices() override { return cuda::visible_devices(); }

 private:
  std::mutex mutex_;
  std::shared_ptr<backend> host_;
  std::map<int, std::shared_ptr<backend>> cuda_;
};

} // namespace

std::string to_string(device_uuid const& id) {
  if (id == device_uuid{}) return "host";
  constexpr char digits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits[id[i] >> 4];
    text += digits[id[i] & 15];
  }
  return text;
}

std::shared_ptr<backends> system_backends() {
  // One for all senders and receivers of the process, as long as there is one.
  static std::mutex mutex;
  static std::weak_ptr<backends> current;
  std::lock_guard const lock(mutex);
  auto known = current.lock();
  if (!known) current = known = std::make_shared<system>();
  return known;
}

} // namespace ropeway::memory
