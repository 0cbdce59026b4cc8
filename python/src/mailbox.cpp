#include "mailbox.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

namespace ropeway::python {
namespace {

std::atomic<std::uint64_t> last_id{0};

} // namespace

mailbox::mailbox() : descriptor_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (descriptor_ < 0)
    throw std::system_error(errno, std::system_category(), "no descriptor for an event (raise `ulimit -n`)");
}

mailbox::~mailbox() { close(descriptor_); }

void mailbox::put(std::uint64_t id) {
  std::scoped_lock const lock(mutex_);
  ended_.push_back(id);
  eventfd_write(descriptor_, 1); // can't fail: the counter holds 2^64 - 2
}

std::vector<std::uint64_t> mailbox::take() {
  std::scoped_lock const lock(mutex_);
  eventfd_t count = 0;
  eventfd_read(descriptor_, &count); // nothing to read is no error here
  return std::exchange(ended_, {});
}

task::task() : id_(++last_id) {}

bool task::ended() const {
  std::scoped_lock const lock(mutex_);
  return ended_;
}

void task::wait() const {
  std::unique_lock lock(mutex_);
  ends_.wait(lock, [&] { return ended_; });
}

bool task::tell(std::shared_ptr<mailbox> whom) {
  std::scoped_lock const lock(mutex_);
  if (ended_) return false;
  told_.push_back(std::move(whom));
  return true;
}

void task::stop() {
  std::function<void()> hook;
  {
    std::scoped_lock const lock(mutex_);
    if (ended_) return;
    hook = stop_;
  }
  if (hook) hook();
}

void task::end(std::exception_ptr error) {
  std::vector<std::shared_ptr<mailbox>> told;
  std::function<void()> hook; // what it holds goes outside the lock
  {
    std::scoped_lock const lock(mutex_);
    error_ = std::move(error);
    ended_ = true;
    told.swap(told_);
    hook.swap(stop_);
  }
  ends_.notify_all();
  for (auto const& one : told) one->put(id_);
}

} // namespace ropeway::python
