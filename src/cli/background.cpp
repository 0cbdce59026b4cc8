#include "cli/background.hpp"

#include <asio/post.hpp>
#include <asio/thread_pool.hpp>
#include <exception>
#include <memory>

#include "ropeway/detail/operation.hpp"

namespace ropeway::cli {
namespace {

struct job {
  std::function<void(std::atomic<bool> const&)> work;
  std::atomic<bool> stop{false};
  std::exception_ptr failed;
};

} // namespace

awaitable<void> in_background(asio::thread_pool& pool, std::function<void(std::atomic<bool> const&)> work) {
  auto const shared = std::make_shared<job>();
  shared->work = std::move(work);
  auto start = [&pool, shared](std::unique_ptr<detail::completion<detail::nothing>> done,
                               std::shared_ptr<detail::stop_request> stop) {
    stop->attach([shared] { shared->stop = true; });
    asio::post(pool, [shared, done = std::shared_ptr(std::move(done))] {
      try {
        shared->work(shared->stop);
      } catch (...) { shared->failed = std::current_exception(); }
      done->complete({}, {});
    });
  };
  auto const home = co_await asio::this_coro::executor;
  co_await detail::initiate<detail::nothing, std::error_code>(home, std::move(start), use_awaitable);
  if (shared->failed) std::rethrow_exception(shared->failed);
}

} // namespace ropeway::cli
