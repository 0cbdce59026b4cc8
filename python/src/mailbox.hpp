// How the end of an operation reaches whoever waits for it in Python. Part of ropeway; Apache-2.0.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "sharing.hpp"

namespace ropeway::python {

/// What has ended, and a descriptor that is readable while there is something to take: for a loop's reader,
/// or for a thread that sleeps in poll(2), which a signal wakes. Any thread.
class mailbox : public shareable<mailbox> {
 public:
  /// Throws std::system_error when there are no descriptors left.
  mailbox();
  mailbox(mailbox const&) = delete;
  mailbox& operator=(mailbox const&) = delete;
  ~mailbox();
  int descriptor() const noexcept { return descriptor_; }
  void put(std::uint64_t id);
  /// The identities of what was put there since the last call.
  std::vector<std::uint64_t> take();

 private:
  int descriptor_;
  std::mutex mutex_;
  std::vector<std::uint64_t> ended_;
};

/// An operation that runs, or has ended: shared by the library's thread, which ends it, and the Python object
/// that stands for it. Any thread.
class task {
 public:
  task();
  virtual ~task() = default;
  task(task const&) = delete;
  task& operator=(task const&) = delete;

  std::uint64_t id() const noexcept { return id_; }
  bool ended() const;
  /// Blocks until it has ended. It takes no descriptor, and hears no signal.
  void wait() const;
  /// Puts the identity into the mailbox when the operation ends. False: it has ended, and nothing will come.
  bool tell(std::shared_ptr<mailbox> whom);
  /// Asks it to stop; it ends when its copies have. Does nothing once it has ended.
  void stop();
  /// What stop() does; before anyone may call that.
  void stopped_by(std::function<void()> hook) { stop_ = std::move(hook); }
  /// Rethrows what it failed with; only after it has ended.
  void check() const {
    if (error_) std::rethrow_exception(error_);
  }
  /// Lets go of what the operation needed; with the GIL, only after it has ended.
  virtual void release() {}

 protected:
  /// After the result was stored.
  void end(std::exception_ptr error);

 private:
  std::uint64_t const id_;
  mutable std::mutex mutex_;
  mutable std::condition_variable ends_;
  bool ended_ = false;
  std::exception_ptr error_;
  std::vector<std::shared_ptr<mailbox>> told_;
  std::function<void()> stop_;
};

/// One with a result.
template <class T>
class task_of : public task {
 public:
  void end(std::exception_ptr error, T value) {
    value_ = std::move(value);
    task::end(std::move(error));
  }
  /// Only after it has ended, once.
  T take() { return std::move(value_); }

 private:
  T value_{};
};

} // namespace ropeway::python
