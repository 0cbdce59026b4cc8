#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include "checkpoint/engine.hpp"
#include "checkpoint/wake_fd.hpp"

namespace ropeway {
namespace {

// More threads than this gain nothing on one disk.
constexpr std::uint32_t most_threads = 4;

class pread_engine final : public io_engine {
 public:
  explicit pread_engine(std::uint32_t depth) {
    threads_.reserve(most_threads);
    // Signals are the embedder's: none may land on these threads.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (std::uint32_t i = 0; i < std::min(depth, most_threads); ++i)
        threads_.emplace_back([this] { work(); });
    } catch (std::system_error const& error) {
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (threads_.empty()) throw transfer_error(error.code(), "can't start a thread to read the checkpoint");
      return; // fewer threads do as well
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~pread_engine() override {
    {
      std::lock_guard const lock(mutex_);
      stopping_ = true;
    }
    work_came_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  io_backend backend() const noexcept override { return io_backend::pread; }

  void queue(std::uint32_t slot, io_request const& request) override { queued_.emplace_back(slot, request); }

  void submit() override {
    if (queued_.empty()) return;
    {
      std::lock_guard const lock(mutex_);
      waiting_.insert(waiting_.end(), queued_.begin(), queued_.end());
    }
    queued_.clear();
    work_came_.notify_all();
  }

  std::size_t take(std::span<io_outcome> into, bool block) override {
    submit();
    wake_.clear(); // before looking, so that what comes later raises it again
    std::unique_lock lock(mutex_);
    if (block) outcome_came_.wait(lock, [&] { return !outcomes_.empty(); });
    std::size_t count = 0;
    for (; count < into.size() && !outcomes_.empty(); outcomes_.pop_front())
      into[count++] = outcomes_.front();
    return count;
  }

  int event_fd() override { return wake_.get(); }

  std::size_t max_in_flight_seen() const noexcept override {
    std::lock_guard const lock(mutex_);
    return most_;
  }

 private:
  static std::int32_t read(io_request const& request) {
    ssize_t const got = ::pread(request.fd, request.into, request.bytes, static_cast<off_t>(request.offset));
    return static_cast<std::int32_t>(got < 0 ? -errno : got);
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_came_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      auto const [slot, request] = waiting_.front();
      waiting_.pop_front();
      most_ = std::max(most_, ++reading_);
      lock.unlock();
      std::int32_t const result = read(request);
      lock.lock();
      --reading_;
      outcomes_.push_back({.slot = slot, .result = result});
      outcome_came_.notify_one();
      wake_.raise();
    }
  }

  std::vector<std::pair<std::uint32_t, io_request>> queued_; // the owner's alone
  wake_fd wake_;
  mutable std::mutex mutex_;
  std::condition_variable work_came_, outcome_came_;
  std::deque<std::pair<std::uint32_t, io_request>> waiting_;
  std::deque<io_outcome> outcomes_;
  std::size_t reading_ = 0, most_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_; // last: they use all of the above
};

} // namespace

std::unique_ptr<io_engine> make_pread_engine(std::uint32_t depth) {
  return std::make_unique<pread_engine>(depth);
}

} // namespace ropeway
