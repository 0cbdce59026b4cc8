// A build without CUDA. Part of ropeway; Apache-2.0.
#include <stdexcept>

#include "device_holdings.hpp"
#include "training_stream.hpp"

namespace ropeway::matrix {

device_holdings device_holdings::now() { return {}; }
bool device_holdings::as_much_as(device_holdings const&) const noexcept { return true; }
std::string device_holdings::words() const { return "no devices"; }
std::shared_ptr<memory::backends> counted_devices() { return memory::system_backends(); }
std::shared_ptr<training_stream> training_on(device) {
  throw std::runtime_error("this build has no CUDA devices");
}

} // namespace ropeway::matrix
