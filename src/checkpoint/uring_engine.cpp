#include "checkpoint/engine.hpp"

#include <algorithm>
#include <cerrno>
#include <string>

#include "checkpoint/wake_fd.hpp"

#if ROPEWAY_HAS_IO_URING
#include <liburing.h>
#include <sched.h>
#endif

namespace ropeway {
namespace {

[[noreturn]] void fail(int number, std::string const& what) {
  throw transfer_error(std::error_code(number, std::system_category()), what);
}

#if ROPEWAY_HAS_IO_URING

class uring {
 public:
  explicit uring(std::uint32_t depth) {
    if (int const result = ::io_uring_queue_init(depth, &ring_, 0); result < 0)
      fail(-result, "io_uring is not available here; use the pread backend");
  }
  ~uring() { ::io_uring_queue_exit(&ring_); }
  uring(uring const&) = delete;
  uring& operator=(uring const&) = delete;
  ::io_uring* get() noexcept { return &ring_; }

 private:
  ::io_uring ring_{};
};

class uring_engine final : public io_engine {
 public:
  explicit uring_engine(std::uint32_t depth) : ring_(depth) {
    // Plain reads came to io_uring later than io_uring itself.
    ::io_uring_probe* const probe = ::io_uring_get_probe_ring(ring_.get());
    bool const known = probe != nullptr && ::io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    ::io_uring_free_probe(probe);
    if (!known) fail(ENOSYS, "this kernel's io_uring can't read files; use the pread backend");
  }

  io_backend backend() const noexcept override { return io_backend::io_uring; }

  void queue(std::uint32_t slot, io_request const& request) override {
    ::io_uring_sqe* const entry = ::io_uring_get_sqe(ring_.get());
    if (entry == nullptr) fail(EBUSY, "io_uring has no free entry"); // never: there are as many as slots
    ::io_uring_prep_read(entry, request.fd, request.into, request.bytes, request.offset);
    // Data in the page cache would be copied inside submit(), one request after the other; let workers do it.
    if (!request.direct) ::io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    ::io_uring_sqe_set_data(entry, reinterpret_cast<void*>(static_cast<std::uintptr_t>(slot)));
    ++queued_;
  }

  void submit() override {
    while (queued_ > 0) {
      int const taken = ::io_uring_submit(ring_.get());
      if (taken == -EINTR) continue;
      if (taken == -EAGAIN || taken == -EBUSY || taken == 0) {
        if (in_kernel_ > 0) return; // goes on when some of these have ended
        ::sched_yield();            // the kernel is short of memory for now
        continue;
      }
      if (taken < 0) fail(-taken, "io_uring takes no requests");
      queued_ -= static_cast<std::size_t>(taken);
      in_kernel_ += static_cast<std::size_t>(taken);
    }
    // What has ended already does not count as being in flight.
    std::size_t const ended = ::io_uring_cq_ready(ring_.get());
    if (in_kernel_ > ended) most_ = std::max(most_, in_kernel_ - ended);
  }

  std::size_t take(std::span<io_outcome> into, bool block) override {
    wake_.clear(); // before looking, so that what comes later raises it again
    if (queued_ > 0) submit();
    ::io_uring_cqe* entry = nullptr;
    while (block && in_kernel_ > 0) {
      int const result = ::io_uring_wait_cqe(ring_.get(), &entry);
      if (result == 0) break;
      if (result != -EINTR && result != -EAGAIN) fail(-result, "can't wait for io_uring");
    }
    std::size_t count = 0;
    while (count < into.size() && ::io_uring_peek_cqe(ring_.get(), &entry) == 0) {
      auto const slot = reinterpret_cast<std::uintptr_t>(::io_uring_cqe_get_data(entry));
      into[count++] = {.slot = static_cast<std::uint32_t>(slot), .result = entry->res};
      ::io_uring_cqe_seen(ring_.get(), entry);
      --in_kernel_;
    }
    if (queued_ > 0) submit(); // else nothing might be left that could raise the eventfd
    return count;
  }

  int event_fd() override {
    if (!registered_) {
      int const fd = wake_.get();
      if (int const result = ::io_uring_register_eventfd(ring_.get(), fd); result < 0)
        fail(-result, "io_uring takes no eventfd");
      registered_ = true;
    }
    return wake_.get();
  }

  std::size_t max_in_flight_seen() const noexcept override { return most_; }

 private:
  wake_fd wake_;
  uring ring_;
  bool registered_ = false;
  std::size_t queued_ = 0, in_kernel_ = 0, most_ = 0;
};

#endif

} // namespace

std::unique_ptr<io_engine> make_uring_engine([[maybe_unused]] std::uint32_t depth) {
#if ROPEWAY_HAS_IO_URING
  return std::make_unique<uring_engine>(depth);
#else
  fail(ENOSYS, "this build has no io_uring; use the pread backend");
#endif
}

std::unique_ptr<io_engine> make_engine(read_options const& options) {
  if (options.backend() == io_backend::io_uring) return make_uring_engine(options.queue_depth());
  if (options.backend() == io_backend::automatic) {
    try {
      return make_uring_engine(options.queue_depth());
    } catch (transfer_error const&) {
      // Refused by the kernel, by the container or by a limit: the other way works everywhere.
    }
  }
  return make_pread_engine(options.queue_depth());
}

} // namespace ropeway
