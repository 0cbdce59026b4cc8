// The loop on which a Python process's sender or receiver runs. Part of ropeway; Apache-2.0.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <asio/cancellation_signal.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "keeping.hpp"
#include "mailbox.hpp"
#include "ropeway/asio.hpp"

namespace ropeway::python {

/// Releases the GIL while it lives, if this thread has it.
class without_gil {
 public:
  without_gil() : state_(has_gil() ? PyEval_SaveThread() : nullptr) {}
  without_gil(without_gil const&) = delete;
  without_gil& operator=(without_gil const&) = delete;
  ~without_gil() {
    if (!state_) return;
    // While the interpreter ends, Python before 3.14 unwinds a thread (a daemon one) that wants to go on,
    // which no frame of C++ may let through; since 3.14 it lets the thread stand still, as is done here.
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

/// An event loop and the thread that runs it, until the engine is destroyed (on any other thread). It belongs
/// to the process that made it: after a fork the child has no such thread, and must leave everything on the
/// loop alone.
class engine {
 public:
  engine() : work_(asio::make_work_guard(context_)), process_(getpid()) {
    // Signals are Python's: its main thread must be the one that they interrupt.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread(&engine::run, this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "ropeway");
  }
  engine(engine const&) = delete;
  engine& operator=(engine const&) = delete;
  ~engine() {
    without_gil const released;
    work_.reset();
    thread_.join();
  }

  asio::io_context& context() noexcept { return context_; }
  asio::any_io_executor executor() { return context_.get_executor(); }
  bool forked() const noexcept { return getpid() != process_; }
  /// Whether this is the thread that runs the loop.
  bool inside() const noexcept { return std::this_thread::get_id() == thread_.get_id(); }

  /// Starts `operation` (an awaitable) as a task. The task keeps `owner` until it has ended and its result
  /// was taken, or it was let go of.
  template <class T, class Owner>
  std::shared_ptr<task_of<T>> start(awaitable<T> operation, Owner owner);

 private:
  void run() { context_.run(); }

  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  pid_t process_;
  std::thread thread_;
};

/// An engine's owner: in a child that was forked off it forgets it instead of waiting for a thread that is
/// not there, and on the engine's own thread, which can't wait for itself, it leaves the end to another.
inline std::shared_ptr<engine> make_engine() {
  return {new engine, [](engine* made) {
            if (made->forked()) return;
            if (made->inside())
              std::thread([made] { delete made; }).detach();
            else
              delete made;
          }};
}

namespace detail {

/// A task that an awaitable ends. Its signal is touched on the loop's thread only.
template <class T, class Owner>
class spawned final : public task_of<T> {
 public:
  explicit spawned(Owner owner) : owner_(std::in_place, std::move(owner)) {}
  void release() override { owner_.reset(); }
  asio::cancellation_signal signal;
  bool over = false;

 private:
  std::optional<Owner> owner_;
};

template <class T, class Owner>
class ending {
 public:
  using cancellation_slot_type = asio::cancellation_slot;
  explicit ending(std::shared_ptr<spawned<T, Owner>> what) : what_(std::move(what)) {}
  cancellation_slot_type get_cancellation_slot() const noexcept { return what_->signal.slot(); }
  void operator()(std::exception_ptr error, T value) {
    what_->over = true;
    what_->end(std::move(error), std::move(value));
  }

 private:
  std::shared_ptr<spawned<T, Owner>> what_;
};

} // namespace detail

template <class T, class Owner>
std::shared_ptr<task_of<T>> engine::start(awaitable<T> operation, Owner owner) {
  using spawned = detail::spawned<T, Owner>;
  auto const made = std::make_shared<spawned>(std::move(owner));
  std::weak_ptr<spawned> const watched = made;
  made->stopped_by([this, watched] {
    asio::post(context_, [watched] {
      // Asio before 1.28 forbids a signal after the end.
      if (auto const running = watched.lock(); running && !running->over)
        running->signal.emit(asio::cancellation_type::terminal);
    });
  });
  detail::ending<T, Owner> handler(made);
  asio::co_spawn(context_, std::move(operation), std::move(handler));
  return made;
}

/// What an operation without a result gives.
struct done {};
/// The same operation, with one.
inline awaitable<done> with_result(awaitable<void> operation) {
  done const nothing;
  co_await std::move(operation);
  co_return nothing;
}

} // namespace ropeway::python
