// A queue is a lane and, once pageable memory came, a worker thread. As long as the worker has something to
// do, everything goes through it, so that the order stays. Part of ropeway; Apache-2.0.
#include "memory/cuda/queue.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <optional>
#include <pthread.h>
#include <thread>

#include "memory/cuda/gates.hpp"
#include "memory/cuda/jobs.hpp"
#include "memory/cuda/lane.hpp"
#include "memory/cuda/staging.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

/// What the worker shares with the queue, and what stays behind if a queue can't be drained.
class core : public std::enable_shared_from_this<core> {
 public:
  explicit core(std::shared_ptr<gpu> owner)
      : owner_(std::move(owner))
      , entered_(std::in_place, *owner_)
      , lane_(owner_)
      , gates_(owner_)
      , completion_(completion::make()) {
    entered_.reset();
    marks_.reserve(most_marks);
    spare_events_.reserve(most_marks);
  }
  ~core() { completion_->release(); }

  gpu const& owner() const noexcept { return *owner_; }
  completion const& progress_so_far() const noexcept { return *completion_; }
  bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  bool idle() const noexcept { return waiting_.load(std::memory_order_acquire) == 0; }

  void start_after(ready_after const& when);
  void copy(std::span<copy_op const> ops, effort how);
  void repeat(prepared const& list, portion what);
  void digest(device_digests const& list, digest_run const& what);
  void mark(std::uint64_t ticket, bool quietly);
  void notify();
  /// The newest ticket that the device has reached, at least `known`; `state` says what asking brought last.
  std::uint64_t reached(std::uint64_t known, CUresult& state) noexcept;
  /// Whether anything is under way on the device, notices of it included.
  bool busy() noexcept;
  void fail(std::error_code code, char const* what) noexcept;
  void fail(std::exception const& error) noexcept;
  std::error_code failure() noexcept;
  [[noreturn]] void throw_failure();
  bool wait_idle(std::chrono::steady_clock::time_point until) noexcept;
  /// Ends the worker; one that hangs is left behind with what it holds.
  void stop(bool drained) noexcept;

 private:
  void hand_over(std::span<copy_op const> ops, effort how);
  void hand_over(prepared::part const& some);
  void hand_over(CUevent gate);
  void hand_over(std::uint64_t ticket);
  template <class Add>
  void hand_over_what(Add const& add);
  void carry_out(jobs::job& next);
  void stage(std::span<copy_op const> ops);
  void start_worker();
  static void work(std::shared_ptr<core> self);

  std::shared_ptr<gpu> owner_;
  std::optional<scope> entered_; // while the members below are made
  lane lane_;
  gates gates_;
  completion* completion_;
  struct mark_event {
    std::uint64_t ticket;
    event recorded;
  };
  std::vector<mark_event> marks_;               // not seen to be reached yet; of the queue's user; a handful
  std::vector<event> spare_events_;             // to be recorded again
  static constexpr std::size_t most_marks = 64; // at a time, as a rule: more slots than any ring has
  std::uint64_t told_ = 0;                      // the newest ticket that a callback follows
  std::optional<staging> staging_;              // the worker's

  std::atomic<std::size_t> waiting_{0}; // jobs that the worker has not finished
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable work_, idle_;
  jobs incoming_;
  bool stop_ = false;
  std::error_code failure_code_;
  std::string failure_;
  std::thread worker_;
};

void core::start_after(ready_after const& when) {
  if (is_past(*owner_, when)) return;
  scope here(*owner_);
  if (idle() && when.type() == ready_after::kind::event) return lane_.wait(when.event());
  CUevent const gate = when.type() == ready_after::kind::stream ? gates_.behind(when.stream(), when.where())
                                                                : gates_.behind(when.event());
  if (!idle()) return hand_over(gate);
  lane_.wait(gate);
  gates_.give_back(gate);
}

void core::copy(std::span<copy_op const> ops, effort how) {
  if (!idle()) {
    // Refused here if it makes no sense: the worker could not tell the caller.
    for (copy_op const& op : ops) (void)simplify(op);
    return hand_over(ops, how);
  }
  scope here(*owner_);
  bool const staged = lane_.sort(ops, how);
  if (staged) start_worker(); // or nothing of the list is queued
  try {
    lane_.launch();
  } catch (transfer_error const& error) {
    fail(error); // a list half done is none
    throw;
  }
  if (staged) hand_over(std::span<copy_op const>(lane_.staged()), effort::full);
}

void core::repeat(prepared const& list, portion what) {
  prepared::part const some = list.of(what);
  if (some.empty()) return;
  if (!idle()) return hand_over(some);
  scope here(*owner_);
  if (!some.staged.empty()) start_worker(); // or nothing of the list is queued
  try {
    lane_.launch(some);
  } catch (transfer_error const& error) {
    fail(error); // a list half done is none
    throw;
  }
  if (!some.staged.empty()) hand_over(some.staged, effort::full);
}

void core::digest(device_digests const& list, digest_run const& what) {
  if (!idle())
    return hand_over_what([&] {
      auto& next = incoming_.add(jobs::kind::digest);
      next.digests = &list;
      next.run = what;
    });
  scope here(*owner_);
  try {
    lane_.launch(list, what);
  } catch (transfer_error const& error) {
    fail(error); // sums half done are none
    throw;
  }
}

void core::mark(std::uint64_t ticket, bool quietly) {
  if (failed()) return;
  if (!idle()) return hand_over(ticket);
  try {
    scope here(*owner_);
    if (spare_events_.empty()) spare_events_.emplace_back(owner_);
    lane_.record(spare_events_.back());
    marks_.push_back({ticket, std::move(spare_events_.back())});
    spare_events_.pop_back();
  } catch (transfer_error const& error) { fail(error); }
  if (!quietly) notify();
}

void core::notify() {
  if (failed() || marks_.empty() || told_ == marks_.back().ticket) return;
  try {
    scope here(*owner_);
    lane_.tell(*completion_, marks_.back().recorded, marks_.back().ticket);
    told_ = marks_.back().ticket;
  } catch (transfer_error const& error) { fail(error); }
}

std::uint64_t core::reached(std::uint64_t known, CUresult& state) noexcept {
  // What a callback told first gives its event back, too.
  auto next = marks_.begin();
  for (; next != marks_.end() && next->ticket <= known; ++next)
    spare_events_.push_back(std::move(next->recorded));
  marks_.erase(marks_.begin(), next);
  if (marks_.empty()) return known;
  scope here(*owner_, std::nothrow);
  if (!here.entered()) {
    state = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return known;
  }
  for (next = marks_.begin(); next != marks_.end(); ++next) {
    state = owner_->call().cuEventQuery(next->recorded.get());
    if (state != CUDA_SUCCESS) break;
    spare_events_.push_back(std::move(next->recorded));
  }
  std::uint64_t const newest = next == marks_.begin() ? known : std::prev(next)->ticket;
  marks_.erase(marks_.begin(), next);
  return newest;
}

bool core::busy() noexcept {
  scope here(*owner_, std::nothrow);
  return here.entered() &&
         (lane_.query() == CUDA_ERROR_NOT_READY || lane_.query_notices() == CUDA_ERROR_NOT_READY);
}

void core::fail(std::error_code code, char const* what) noexcept {
  {
    std::lock_guard lock(mutex_);
    if (failed_.load(std::memory_order_relaxed)) return;
    failure_code_ = code;
    try {
      failure_ = what;
    } catch (...) {}
    failed_.store(true, std::memory_order_release);
  }
  completion_->ring();
}

void core::fail(std::exception const& error) noexcept {
  auto const* known = dynamic_cast<transfer_error const*>(&error);
  fail(known ? known->code() : make_error_code(errc::device_failed), error.what());
}

std::error_code core::failure() noexcept {
  if (!failed()) return {};
  std::lock_guard lock(mutex_);
  return failure_code_;
}

void core::throw_failure() {
  std::lock_guard lock(mutex_);
  throw transfer_error(failure_code_, "copies on " + to_string(owner_->where()) + " ended: " + failure_);
}

template <class Add>
void core::hand_over_what(Add const& add) {
  start_worker();
  {
    std::lock_guard lock(mutex_);
    add();
    waiting_.fetch_add(1, std::memory_order_relaxed);
  }
  work_.notify_one();
}

void core::hand_over(std::span<copy_op const> ops, effort how) {
  hand_over_what([&] { incoming_.add(jobs::kind::copy, ops).how = how; });
}
void core::hand_over(prepared::part const& some) {
  hand_over_what([&] { incoming_.add(jobs::kind::repeat).some = some; });
}
void core::hand_over(CUevent gate) {
  hand_over_what([&] { incoming_.add(jobs::kind::wait).event = gate; });
}
void core::hand_over(std::uint64_t ticket) {
  hand_over_what([&] { incoming_.add(jobs::kind::mark).ticket = ticket; });
}

bool core::wait_idle(std::chrono::steady_clock::time_point until) noexcept {
  std::unique_lock lock(mutex_);
  return idle_.wait_until(lock, until, [&] { return idle(); });
}

void core::start_worker() {
  if (worker_.joinable()) return;
  // The program's signals are for the program's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    worker_ = std::thread(work, shared_from_this());
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(worker_.native_handle(), "ropeway-copy");
}

void core::stop(bool drained) noexcept {
  if (!worker_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_one();
  if (drained)
    worker_.join();
  else
    worker_.detach();
}

void core::work(std::shared_ptr<core> self) {
  jobs mine;
  std::unique_lock lock(self->mutex_);
  for (;;) {
    self->work_.wait(lock, [&] { return self->stop_ || !self->incoming_.empty(); });
    if (self->incoming_.empty()) return;
    swap(mine, self->incoming_);
    lock.unlock();
    for (jobs::job& next : mine.get()) {
      try {
        if (!self->failed()) self->carry_out(next);
      } catch (std::exception const& error) { self->fail(error); }
    }
    std::size_t const done = mine.get().size();
    mine.clear();
    lock.lock();
    self->waiting_.fetch_sub(done, std::memory_order_release);
    if (self->idle()) self->idle_.notify_all();
  }
}

void core::carry_out(jobs::job& next) {
  scope here(*owner_);
  switch (next.what) {
  case jobs::kind::wait:
    lane_.wait(next.event);
    gates_.give_back(next.event);
    break;
  case jobs::kind::mark: lane_.mark(*completion_, next.ticket); break;
  case jobs::kind::copy:
    if (lane_.sort(next.ops, next.how))
      std::swap(next.ops, lane_.staged());
    else
      next.ops.clear();
    lane_.launch();
    stage(next.ops);
    break;
  case jobs::kind::repeat:
    lane_.launch(next.some);
    stage(next.some.staged);
    break;
  case jobs::kind::digest: lane_.launch(*next.digests, next.run); break;
  }
}

void core::stage(std::span<copy_op const> ops) {
  if (ops.empty()) return;
  if (!staging_) staging_.emplace(owner_);
  staging_->run(ops, lane_);
}

class device_queue final : public queue {
 public:
  explicit device_queue(std::shared_ptr<gpu> owner) : core_(std::make_shared<core>(std::move(owner))) {}

  ~device_queue() override {
    bool const drained = drain(drain_limit);
    core_->stop(drained);
    // What the device may still touch stays as long as the process.
    if (!drained) (void)new (std::nothrow) std::shared_ptr<core>(core_);
  }

  void start_after(ready_after const& when) override {
    if (core_->failed()) core_->throw_failure();
    core_->start_after(when);
  }

  void copy(std::span<copy_op const> ops, effort how) override {
    if (core_->failed()) core_->throw_failure();
    if (!ops.empty()) core_->copy(ops, how);
  }

  void repeat(prepared_copies const& list, portion what) override {
    if (core_->failed()) core_->throw_failure();
    auto const* const known = dynamic_cast<prepared const*>(&list);
    if (!known || known->owner() != &core_->owner())
      throw transfer_error(errc::invalid_argument, "a list that another backend has prepared");
    core_->repeat(*known, what);
  }

  void digest(prepared_digests& list, digest_run what) override {
    if (core_->failed()) core_->throw_failure();
    auto const* const known = dynamic_cast<device_digests const*>(&list);
    if (!known || known->owner() != &core_->owner())
      throw transfer_error(errc::invalid_argument, "a list that another backend has prepared");
    core_->digest(*known, what);
  }

  std::uint64_t mark() override {
    core_->mark(++marked_, false);
    return marked_;
  }

  std::uint64_t mark_quietly() override {
    core_->mark(++marked_, true);
    return marked_;
  }

  void notify() override { core_->notify(); }

  progress poll() override {
    completion const& seen = core_->progress_so_far();
    completed_ = std::max(completed_, seen.done());
    CUresult state = seen.status();
    if (state == CUDA_SUCCESS && !core_->failed()) completed_ = core_->reached(completed_, state);
    if (state != CUDA_SUCCESS && state != CUDA_ERROR_NOT_READY)
      core_->fail(make_error_code(errc::device_failed), core_->owner().call().text(state).c_str());
    // An error says that nothing runs any more: a list that was refused says nothing of those before it.
    bool const over = core_->failed() && core_->idle() && !core_->busy();
    return {completed_, over ? core_->failure() : std::error_code()};
  }

  int event_fd() const noexcept override { return core_->progress_so_far().fd(); }

  bool drain(std::chrono::milliseconds limit) noexcept override {
    auto const until = std::chrono::steady_clock::now() + limit;
    if (!core_->wait_idle(until)) return false;
    auto pause = std::chrono::microseconds(20);
    // A context that failed runs nothing any more: drained, too.
    while (core_->busy()) {
      if (std::chrono::steady_clock::now() >= until) return false;
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::microseconds(1000));
    }
    return true;
  }

 private:
  std::shared_ptr<core> core_;
  std::uint64_t marked_ = 0, completed_ = 0;
};

} // namespace

std::unique_ptr<queue> make_queue(std::shared_ptr<gpu> owner) {
  return std::make_unique<device_queue>(std::move(owner));
}

} // namespace ropeway::memory::cuda
