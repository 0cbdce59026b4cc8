// Operations whose end is looked at as a value, and operations that run beside the test's body.
// Part of ropeway; Apache-2.0.
#pragma once
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "ropeway/asio.hpp"
#include "ropeway/report.hpp"

namespace ropeway::testing {

/// How an operation ended.
template <class T>
struct attempt {
  std::error_code error;
  std::string text;                  ///< what() of what it threw
  std::string words;                 ///< transfer_error::peer_words
  std::string tensor;                ///< transfer_error::tensor
  std::optional<send_report> report; ///< of a send that failed
  std::optional<T> value;            ///< if it succeeded

  bool ok() const { return value.has_value(); }
  /// All that was said, for messages.
  std::string said() const { return error.message() + " | " + text + " | " + words; }
};

template <class T>
using or_unit = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

/// Fills in the error that is being handled.
template <class T>
void note_exception(attempt<T>& end) {
  try {
    throw;
  } catch (send_failed const& e) {
    end.error = e.code(), end.text = e.what(), end.words = e.peer_words(), end.tensor = e.tensor();
    end.report = e.report();
  } catch (transfer_error const& e) {
    end.error = e.code(), end.text = e.what(), end.words = e.peer_words(), end.tensor = e.tensor();
  } catch (std::system_error const& e) {
    end.error = e.code(), end.text = e.what();
  } catch (std::exception const& e) {
    end.error = std::make_error_code(std::errc::state_not_recoverable), end.text = e.what();
  }
}

/// `auto sent = co_await try_to(sender.send_weights(1, views));`
template <class T>
awaitable<attempt<or_unit<T>>> try_to(awaitable<T> work) {
  attempt<or_unit<T>> end;
  try {
    if constexpr (std::is_void_v<T>) {
      co_await std::move(work);
      end.value.emplace();
    } else {
      end.value.emplace(co_await std::move(work));
    }
  } catch (...) { note_exception(end); }
  co_return end;
}

/// An operation that runs beside the test's body, on the same executor: `co_await join()` gives its end.
/// All types of cancellation reach it.
template <class T>
class task {
 public:
  using result = attempt<or_unit<T>>;

  task() = default;
  task(any_io_executor executor, awaitable<T> work) : state_(std::make_shared<state>(executor)) {
    auto kept = state_;
    auto finished = [kept](std::exception_ptr, result end) {
      kept->end = std::move(end);
      kept->done = true;
      kept->ended.cancel();
    };
    asio::co_spawn(executor, run(std::move(work)),
                   asio::bind_cancellation_slot(state_->stop.slot(), std::move(finished)));
  }

  bool done() const { return state_->done; }
  void cancel(asio::cancellation_type type = asio::cancellation_type::terminal) { state_->stop.emit(type); }

  awaitable<result> join() { return wait(state_); }

 private:
  struct state {
    explicit state(any_io_executor const& executor)
        : ended(executor, asio::steady_timer::time_point::max()) {}
    asio::cancellation_signal stop;
    asio::steady_timer ended;
    bool done = false;
    result end;
  };

  static awaitable<result> run(awaitable<T> work) {
    co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
    result end = co_await try_to(std::move(work));
    co_return end;
  }
  static awaitable<result> wait(std::shared_ptr<state> self) {
    while (!self->done) {
      auto [woken] = co_await self->ended.async_wait(compat::as_result);
      static_cast<void>(woken);
    }
    co_return std::move(self->end);
  }

  std::shared_ptr<state> state_;
};

template <class T>
task<T> beside(any_io_executor executor, awaitable<T> work) {
  return task<T>(std::move(executor), std::move(work));
}

/// Something that has happened, or not yet. Used from one thread.
class event {
 public:
  explicit event(any_io_executor executor) : state_(std::make_shared<state>(std::move(executor))) {}
  void set() const {
    state_->happened = true;
    state_->waiting.cancel();
  }
  void reset() const { state_->happened = false; }
  bool is_set() const { return state_->happened; }
  /// Cancellation: all types.
  awaitable<void> wait() const { return wait_on(state_); }

 private:
  struct state {
    explicit state(any_io_executor executor)
        : waiting(std::move(executor), asio::steady_timer::time_point::max()) {}
    asio::steady_timer waiting;
    bool happened = false;
  };
  static awaitable<void> wait_on(std::shared_ptr<state> self) {
    while (!self->happened) {
      auto [woken] = co_await self->waiting.async_wait(compat::as_result);
      auto const cancelled = co_await asio::this_coro::cancellation_state;
      if (!self->happened && woken && cancelled.cancelled() != asio::cancellation_type::none)
        throw std::system_error(woken);
    }
  }
  std::shared_ptr<state> state_;
};

/// Lets everything that is ready run, many times over: work that needs no outside event is done afterwards.
inline awaitable<void> settle(int rounds = 200) {
  auto const executor = co_await asio::this_coro::executor;
  for (int i = 0; i < rounds; ++i) co_await asio::post(executor, use_awaitable);
}

} // namespace ropeway::testing
