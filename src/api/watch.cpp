#include "ropeway/watch.hpp"

#include <utility>

#include "api/await.hpp"
#include "session/watch_core.hpp"

namespace ropeway {

using detail::await;
using detail::completion;
using detail::nothing;
using detail::stop_request;
using detail::without_result;

watcher::watcher(asio::any_io_executor executor, receiver_options options)
    : core_(std::make_shared<detail::watch_core>(std::move(executor), std::move(options))) {}

watcher& watcher::operator=(watcher&& other) noexcept {
  if (this == &other) return *this;
  close();
  core_ = std::move(other.core_);
  return *this;
}
watcher::~watcher() { close(); }

void watcher::close() noexcept {
  if (core_) core_->post_close();
}

asio::any_io_executor watcher::executor() const { return core_->executor(); }

void watcher::begin_connect(core_pointer const& core, std::string path,
                            std::unique_ptr<completion<nothing>> done, std::shared_ptr<stop_request> stop) {
  core->post_connect(std::move(path), std::move(done), std::move(stop));
}
void watcher::begin_look(core_pointer const& core, std::unique_ptr<completion<watched_sender>> done,
                         std::shared_ptr<stop_request> stop) {
  core->post_look(std::move(done), std::move(stop));
}

awaitable<void> watcher::connect(std::string path) {
  auto start = [core = core_, path = std::move(path)](auto done, auto stop) {
    begin_connect(core, path, std::move(done), std::move(stop));
  };
  return without_result(await<nothing>(core_->executor(), std::move(start)));
}
awaitable<watched_sender> watcher::look() {
  auto start = [core = core_](auto done, auto stop) { begin_look(core, std::move(done), std::move(stop)); };
  return await<watched_sender>(core_->executor(), std::move(start));
}

} // namespace ropeway
