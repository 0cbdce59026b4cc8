#include "cli/until_signal.hpp"

#include <asio/signal_set.hpp>
#include <csignal>
#include <exception>
#include <variant>

namespace ropeway::cli {
namespace {

/// `||` waits for a success, so a failure has to look like one.
awaitable<void> caught(awaitable<void> body, std::exception_ptr& error) {
  try {
    co_await std::move(body);
  } catch (...) { error = std::current_exception(); }
}

awaitable<int> until_signal(awaitable<void> body) {
  using namespace compat::awaitable_operators;
  auto const executor = co_await asio::this_coro::executor;
  asio::signal_set signals(executor, SIGINT, SIGTERM);
  std::exception_ptr error;
  auto const first = co_await (caught(std::move(body), error) || signals.async_wait(use_awaitable));
  if (first.index() == 1) co_return std::get<1>(first);
  if (error) std::rethrow_exception(error);
  co_return 0;
}

awaitable<void> whole(awaitable<void> body, awaitable<void> goodbye, int& signal) {
  std::exception_ptr failed;
  try {
    signal = co_await until_signal(std::move(body));
  } catch (...) { failed = std::current_exception(); }
  co_await std::move(goodbye);
  if (failed) std::rethrow_exception(failed);
}

} // namespace

int run_until_signal(asio::io_context& loop, awaitable<void> body, awaitable<void> goodbye) {
  int signal = 0;
  std::exception_ptr failed;
  auto all = whole(std::move(body), std::move(goodbye), signal);
  asio::co_spawn(loop, std::move(all), [&](std::exception_ptr error) { failed = error; });
  loop.run();
  if (failed) std::rethrow_exception(failed);
  return signal;
}

} // namespace ropeway::cli
