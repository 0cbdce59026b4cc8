// A copy queue in host memory: a worker thread that carries out lists in order. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <sys/types.h>
#include <thread>

#include "memory/memory.hpp"

namespace ropeway::memory::host {

class host_queue final : public queue {
 public:
  host_queue();
  ~host_queue() override;

  /// Host copies wait for nothing: anything else throws `errc::invalid_argument`.
  void start_after(ready_after const& when) override;
  /// Throws like `check`, and then nothing of the list was queued.
  void copy(std::span<copy_op const> ops, effort how) override;
  void digest(prepared_digests& list, digest_run what) override;
  std::uint64_t mark() override;
  progress poll() override;
  int event_fd() const noexcept override;
  bool drain(std::chrono::milliseconds limit) noexcept override;

 private:
  struct shared;
  static void work(std::shared_ptr<shared> self);
  std::shared_ptr<shared> shared_; // with the thread, which outlives the queue if it can't be drained
  std::thread thread_;
  pid_t owner_; // a child that was forked has no such thread
};

} // namespace ropeway::memory::host
