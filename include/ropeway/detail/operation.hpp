// How an operation of the compiled library meets any completion token. Not for users. Part of ropeway;
// Apache-2.0.
#pragma once
#include <asio/any_io_executor.hpp>
#include <asio/associated_allocator.hpp>
#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/dispatch.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "ropeway/error.hpp"

namespace ropeway::detail {

/// An error on its way to a handler: a code for machines and words for people. No error: code is empty.
class failure {
 public:
  failure() = default;
  explicit failure(std::error_code code, std::string text = {})
      : error_(code ? std::make_shared<transfer_error const>(code, text) : nullptr) {}
  explicit failure(transfer_error const& error) : error_(std::make_shared<transfer_error const>(error)) {}
  explicit operator bool() const noexcept { return error_ != nullptr; }
  std::error_code code() const noexcept { return error_ ? error_->code() : std::error_code(); }
  transfer_error const& error() const noexcept { return *error_; }
  /// One line; empty if nothing failed.
  std::string text() const { return error_ ? error_->what() : std::string(); }

 private:
  std::shared_ptr<transfer_error const> error_;
};

/// Carries "please stop" from a cancellation slot, on whatever thread that is, to the operation.
class stop_request {
 public:
  /// `hook` is called at most once; at once if the request was made already.
  void attach(std::function<void()> hook) {
    std::unique_lock lock(mutex_);
    if (!requested_) {
      hook_ = std::move(hook);
      return;
    }
    lock.unlock();
    hook();
  }
  void request() {
    std::unique_lock lock(mutex_);
    requested_ = true;
    auto const hook = std::exchange(hook_, nullptr);
    lock.unlock();
    if (hook) hook();
  }
  bool requested() const {
    std::scoped_lock lock(mutex_);
    return requested_;
  }

 private:
  mutable std::mutex mutex_;
  bool requested_ = false;
  std::function<void()> hook_;
};

/// The result of operations that have none: their signature is void(Error).
struct nothing {};

/// The handler of one operation, type-erased. complete() may be called from any thread, once; the handler
/// then runs on its associated executor, never inside complete(). Destroying it uncalled drops the handler.
template <class T>
class completion {
 public:
  virtual ~completion() = default;
  virtual void complete(failure error, T result) = 0;
};

/// `Error` is what the handler takes: std::error_code, or failure (the throwing forms).
template <class T, class Error, class Handler>
class handler_completion final : public completion<T> {
  using executor = asio::associated_executor_t<Handler, asio::any_io_executor>;

 public:
  handler_completion(Handler handler, asio::any_io_executor const& fallback)
      : handler_(std::move(handler))
      , work_(asio::get_associated_executor(handler_, fallback))
      , io_work_(fallback) {}

  void complete(failure error, T result) override {
    auto deliver = [handler = std::move(handler_), error = std::move(error),
                    result = std::move(result)]() mutable {
      // The slot must forget the operation before the handler can reuse or destroy it.
      if (auto slot = asio::get_associated_cancellation_slot(handler); slot.is_connected()) slot.clear();
      auto take = [](failure taken) {
        if constexpr (std::is_same_v<Error, failure>)
          return taken;
        else
          return taken.code();
      };
      static_cast<void>(result); // of operations that have none
      if constexpr (std::is_same_v<T, nothing>)
        std::move(handler)(take(std::move(error)));
      else
        std::move(handler)(take(std::move(error)), std::move(result));
    };
    // Off the session's strand first; then where the handler belongs, without a second hop if that is here.
    auto hand_over = [work = std::move(work_), deliver = std::move(deliver)]() mutable {
      asio::dispatch(work.get_executor(), std::move(deliver));
    };
    asio::post(io_work_.get_executor(), std::move(hand_over));
    io_work_.reset();
  }

 private:
  Handler handler_;
  asio::executor_work_guard<executor> work_;
  asio::executor_work_guard<asio::any_io_executor> io_work_;
};

template <class Error, class T>
struct signature {
  using type = void(Error, T);
};
template <class Error>
struct signature<Error, nothing> {
  using type = void(Error);
};

/// Starts `start(std::unique_ptr<completion<T>>, std::shared_ptr<stop_request>)` for any token with signature
/// void(Error, T) (void(Error) where T is nothing), where Error is std::error_code (users) or failure (the
/// throwing forms).
template <class T, class Error, class Start, class Token>
auto initiate(asio::any_io_executor executor, Start start, Token&& token) {
  return asio::async_initiate<Token, typename signature<Error, T>::type>(
      [](auto handler, asio::any_io_executor const& fallback, Start begin) {
        auto stop = std::make_shared<stop_request>();
        if (auto slot = asio::get_associated_cancellation_slot(handler); slot.is_connected())
          slot.assign([stop](asio::cancellation_type) { stop->request(); });
        using handler_type = std::decay_t<decltype(handler)>;
        std::unique_ptr<completion<T>> done =
            std::make_unique<handler_completion<T, Error, handler_type>>(std::move(handler), fallback);
        std::move(begin)(std::move(done), std::move(stop));
      },
      token, std::move(executor), std::move(start));
}

} // namespace ropeway::detail
