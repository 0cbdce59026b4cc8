// Runs a coroutine on an event loop until it is done. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/io_context.hpp>
#include <chrono>
#include <exception>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "ropeway/asio.hpp"

namespace ropeway::testing {

/// What an awaitable came to; ask after the loop has run.
template <class T>
class outcome {
 public:
  bool done() const noexcept { return done_; }
  /// The result, or its exception is thrown.
  T get() {
    if (!done_) throw std::runtime_error("the coroutine is not done");
    if (error_) std::rethrow_exception(error_);
    if constexpr (!std::is_void_v<T>) return std::move(*value_);
  }
  void fail(std::exception_ptr error) noexcept { error_ = std::move(error), done_ = true; }
  template <class... Value>
  void succeed(Value&&... value) {
    if constexpr (!std::is_void_v<T>) value_.emplace(std::forward<Value>(value)...);
    done_ = true;
  }

 private:
  bool done_ = false;
  std::exception_ptr error_;
  std::optional<std::conditional_t<std::is_void_v<T>, char, T>> value_;
};

/// Starts it; `into` must outlive the coroutine. `slot` cancels it.
template <class T>
awaitable<void> settle(awaitable<T> work, outcome<T>& into) {
  try {
    if constexpr (std::is_void_v<T>) {
      co_await std::move(work);
      into.succeed();
    } else {
      T value = co_await std::move(work);
      into.succeed(std::move(value));
    }
  } catch (...) { into.fail(std::current_exception()); }
}
inline constexpr auto ignore_end = [](std::exception_ptr) {};

template <class T>
void start(asio::io_context& io, awaitable<T> work, outcome<T>& into) {
  asio::co_spawn(io, settle(std::move(work), into), ignore_end);
}

/// Runs the loop until `done()`; false if that takes longer than `limit`.
template <class Done>
bool run_until(asio::io_context& io, Done const& done,
               std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  auto const end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    io.restart();
    io.run_one_for(std::chrono::milliseconds(100));
  }
  return true;
}

/// Runs it to its end and returns what it returns, or throws what it throws.
template <class T>
T run(asio::io_context& io, awaitable<T> work) {
  outcome<T> result;
  start(io, std::move(work), result);
  if (!run_until(io, [&] { return result.done(); })) {
    // The frame refers to `result`: nothing can go on.
    std::terminate();
  }
  return result.get();
}

} // namespace ropeway::testing
