#include "training_stream.hpp"

#include <chrono>
#include <thread>

#include "memory/cuda/handles.hpp"

namespace ropeway::matrix {
namespace {

using namespace memory::cuda;

class training final : public training_stream {
 public:
  explicit training(int ordinal) : gpu_(std::make_shared<gpu>(load_driver(), ordinal)) {
    scope const here(*gpu_);
    stream_ = std::make_unique<stream>(gpu_);
  }
  ready_after step() override {
    scope const here(*gpu_);
    gpu_->call().check(gpu_->call().cuStreamAddCallback(stream_->get(), &take_a_moment, nullptr, 0),
                       "no work can be queued");
    return after(stream_->get(), gpu_->where());
  }

 private:
  static void CUDA_CB take_a_moment(CUstream, CUresult, void*) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::shared_ptr<gpu> gpu_;
  std::unique_ptr<stream> stream_;
};

} // namespace

std::shared_ptr<training_stream> training_on(device where) {
  return std::make_shared<training>(where.ordinal());
}

} // namespace ropeway::matrix
