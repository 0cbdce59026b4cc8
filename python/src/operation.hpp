// What stands for a running operation in Python. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <functional>
#include <memory>

#include "engine.hpp"
#include "ropeway/error.hpp"

namespace nb = nanobind;

namespace ropeway::python {

/// Throws in a child of the process that made the loop: nothing runs it there.
inline void refuse_children(engine const& loop) {
  if (loop.forked())
    throw transfer_error(errc::not_open,
                         "this operation belongs to the process that this one was forked from");
}

/// A task and how its result is made a Python object.
class operation {
 public:
  operation(std::shared_ptr<engine> loop, std::shared_ptr<task> what, std::function<nb::object()> result)
      : loop_(std::move(loop)), task_(std::move(what)), result_(std::move(result)) {}

  // In a child of the process that started it, where nothing will end it, those that have nothing to tell
  // raise.
  std::uint64_t id() const noexcept { return task_->id(); }
  bool ended() const { return !loop_->forked() && task_->ended(); }
  void stop() {
    if (!loop_->forked()) task_->stop();
  }
  bool tell(std::shared_ptr<mailbox> const& whom) {
    refuse_children(*loop_);
    return task_->tell(whom);
  }
  /// Sleeps until it has ended, for `seconds` at most (below 0: without limit), and says whether it has. What
  /// a signal's handler raises, or a lack of descriptors, ends it once the operation was given up and has
  /// ended.
  bool wait(double seconds);
  /// Stops it, and sleeps until it has ended, whatever comes.
  void give_up();
  /// Once, after it has ended. Raises what it failed with.
  nb::object result() {
    refuse_children(*loop_);
    // The tensors are the caller's alone from here on. The library's thread, which ended the task, may hold
    // it for a moment yet.
    struct release_at_end {
      task& what;
      ~release_at_end() { what.release(); }
    } const ends{*task_};
    task_->check();
    return result_();
  }

 private:
  std::shared_ptr<engine> loop_; // goes last
  std::shared_ptr<task> task_;
  std::function<nb::object()> result_;
};

/// Starts an awaitable; `make` turns its result into a Python object. `owner` is kept until its result was
/// taken, or it is let go.
template <class T, class Owner, class Make>
operation begin(std::shared_ptr<engine> const& loop, awaitable<T> what, Owner owner, Make make) {
  refuse_children(*loop);
  let_go(); // of what was put aside: the interpreter may not get to it for long
  auto const running = loop->start<T>(std::move(what), std::move(owner));
  return {loop, running, [running = running.get(), make] { return make(running->take()); }};
}

inline nb::object no_result(done) { return nb::none(); }

void bind_operations(nb::module_& module);
void bind_sending(nb::module_& module);
void bind_receiving(nb::module_& module);
void bind_lending(nb::module_& module);

} // namespace ropeway::python
