#include "ropeway/source.hpp"

namespace ropeway {
namespace {

class function_source final : public tensor_source {
 public:
  function_source(std::vector<tensor_info> stated, std::function<source_tensor(std::uint32_t)> next,
                  device where)
      : stated_(std::move(stated)), next_(std::move(next)), where_(where) {}
  device where() const override { return where_; }
  std::vector<tensor_info> manifest() override { return stated_; }
  awaitable<source_tensor> next(std::uint32_t index) override {
    source_tensor made = next_(index);
    co_return made;
  }

 private:
  std::vector<tensor_info> stated_;
  std::function<source_tensor(std::uint32_t)> next_;
  device where_;
};

} // namespace

std::unique_ptr<tensor_source> make_source(std::vector<tensor_info> manifest,
                                           std::function<source_tensor(std::uint32_t)> next, device where) {
  return std::make_unique<function_source>(std::move(manifest), std::move(next), where);
}

} // namespace ropeway
