#include "memory/host/queue.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "memory/host/box.hpp"
#include "memory/host/digests.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::host {
namespace {

// A list of more bytes than this passes the caches by anyway.
constexpr std::uint64_t streaming_list = 8 << 20;

// What the worker takes at once: copies, or digests, and the ticket that is reached when it is done (0:
// none).
struct batch {
  std::vector<copy_op> ops = {};
  host_digests* digests = nullptr;
  digest_run run = {};
  std::uint64_t ticket = 0;
};

// First in, first out. Slots are used again.
class batches {
 public:
  bool empty() const noexcept { return count_ == 0; }
  batch& front() noexcept { return ring_[first_]; }
  batch& back() noexcept { return ring_[(first_ + count_ - 1) % ring_.size()]; }
  void push_back(batch added) {
    if (count_ == ring_.size()) grow();
    ++count_;
    back() = std::move(added);
  }
  batch pop_front() noexcept {
    batch taken = std::move(front());
    first_ = (first_ + 1) % ring_.size();
    --count_;
    return taken;
  }

 private:
  void grow() {
    std::vector<batch> larger(std::max<std::size_t>(8, ring_.size() * 2));
    for (std::size_t i = 0; i < count_; ++i) larger[i] = std::move(ring_[(first_ + i) % ring_.size()]);
    ring_ = std::move(larger);
    first_ = 0;
  }
  std::vector<batch> ring_;
  std::size_t first_ = 0, count_ = 0;
};

// Vectors of lists that were carried out. The one that came back last is the next one used: a caller with one
// list at a time has one vector, as large as its largest list, and a queue allocates no more once it has as
// many as there ever were lists at once.
class spare_lists {
 public:
  std::vector<copy_op> take() {
    if (spare_.empty()) {
      spare_.reserve(made_ + 1); // so that giving back can't throw
      ++made_;
      return {};
    }
    auto taken = std::move(spare_.back());
    spare_.pop_back();
    return taken;
  }
  void give_back(std::vector<copy_op> list) noexcept {
    if (list.capacity() != 0) spare_.push_back(std::move(list));
  }

 private:
  std::vector<std::vector<copy_op>> spare_;
  std::size_t made_ = 0;
};

} // namespace

struct host_queue::shared {
  unique_fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<std::uint64_t> completed{0};
  std::mutex mutex;
  std::condition_variable work, idle;
  // Guarded by the mutex:
  batches waiting;
  spare_lists spare;
  bool busy = false, stop = false;
  std::uint64_t last_ticket = 0;

  void reached(std::uint64_t ticket) noexcept {
    completed.store(ticket, std::memory_order_release);
    // Fails only when the counter is full, and then the descriptor is readable already.
    ::eventfd_write(event.get(), 1);
  }
};

host_queue::host_queue() : shared_(std::make_shared<shared>()), owner_(::getpid()) {
  if (!shared_->event)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no descriptor for a copy queue; raise RLIMIT_NOFILE");
  // The program's signals are for the program's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread(work, shared_);
  } catch (std::system_error const& error) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw transfer_error(error.code(),
                         "no thread for copies can be started; raise RLIMIT_NPROC, or the limit "
                         "of processes of the container");
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread_.native_handle(), "ropeway-copy");
}

host_queue::~host_queue() {
  if (::getpid() != owner_) {
    thread_.detach();
    return;
  }
  bool const drained = drain(drain_limit);
  {
    std::lock_guard const lock(shared_->mutex);
    shared_->stop = true;
  }
  shared_->work.notify_one();
  // Memory so slow (a stopped disk behind a mapped file, say) that a copy hangs: the thread keeps what it
  // needs.
  if (drained) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void host_queue::start_after(ready_after const& when) {
  if (when.type() != ready_after::kind::nothing) {
    throw transfer_error(errc::invalid_argument,
                         "host copies can't wait for a CUDA stream or event; wait for it first");
  }
}

void host_queue::copy(std::span<copy_op const> ops, effort) {
  for (copy_op const& op : ops) check(op);
  if (ops.empty()) return;
  {
    std::lock_guard const lock(shared_->mutex);
    batch added{.ops = shared_->spare.take()};
    added.ops.assign(ops.begin(), ops.end());
    shared_->waiting.push_back(std::move(added));
  }
  shared_->work.notify_one();
}

void host_queue::digest(prepared_digests& list, digest_run what) {
  auto* const known = dynamic_cast<host_digests*>(&list);
  if (!known) throw transfer_error(errc::invalid_argument, "a list that another backend has prepared");
  {
    std::lock_guard const lock(shared_->mutex);
    shared_->waiting.push_back({.digests = known, .run = what});
  }
  shared_->work.notify_one();
}

std::uint64_t host_queue::mark() {
  std::lock_guard const lock(shared_->mutex);
  std::uint64_t const ticket = ++shared_->last_ticket;
  if (!shared_->waiting.empty()) {
    shared_->waiting.back().ticket = ticket;
  } else if (shared_->busy) {
    shared_->waiting.push_back({.ticket = ticket});
  } else {
    shared_->reached(ticket);
  }
  return ticket;
}

progress host_queue::poll() { return {shared_->completed.load(std::memory_order_acquire), {}}; }

int host_queue::event_fd() const noexcept { return shared_->event.get(); }

bool host_queue::drain(std::chrono::milliseconds limit) noexcept {
  if (::getpid() != owner_) return true; // and the mutex may be locked for ever
  std::unique_lock lock(shared_->mutex);
  return shared_->idle.wait_for(lock, limit, [this] { return shared_->waiting.empty() && !shared_->busy; });
}

void host_queue::work(std::shared_ptr<shared> self) {
  std::unique_lock lock(self->mutex);
  for (;;) {
    self->work.wait(lock, [&] { return self->stop || !self->waiting.empty(); });
    if (self->waiting.empty()) return;
    batch current = self->waiting.pop_front();
    self->busy = true;
    lock.unlock();

    std::uint64_t total = 0;
    for (copy_op const& op : current.ops) total += std::min(bytes_of(op), streaming_list);
    bool const streaming = total >= streaming_list;
    for (copy_op const& op : current.ops) host::copy(op, streaming);
    if (streaming) finish_streaming();
    if (current.digests != nullptr) current.digests->carry_out(current.run);

    lock.lock();
    self->spare.give_back(std::move(current.ops));
    // Under the lock, so that tickets given out on an idle queue can't overtake this one.
    if (current.ticket != 0) self->reached(current.ticket);
    self->busy = false;
    if (self->waiting.empty()) self->idle.notify_all();
  }
}

} // namespace ropeway::memory::host
