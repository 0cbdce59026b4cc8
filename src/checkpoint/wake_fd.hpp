// An eventfd that is made when somebody first asks for it. Part of ropeway; Apache-2.0.
#pragma once
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/unique_fd.hpp"
#include "ropeway/error.hpp"

namespace ropeway {

class wake_fd {
 public:
  /// Readable at first, because something may have happened before.
  int get() {
    if (!fd_) {
      fd_.reset(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
      if (!fd_) throw transfer_error(std::error_code(errno, std::system_category()), "can't make an eventfd");
      raised_.store(fd_.get(), std::memory_order_release);
    }
    return fd_.get();
  }
  /// From any thread.
  void raise() noexcept {
    int const fd = raised_.load(std::memory_order_acquire);
    std::uint64_t const one = 1;
    if (fd >= 0) [[maybe_unused]]
      auto const written = ::write(fd, &one, sizeof one);
  }
  void clear() noexcept {
    std::uint64_t count = 0;
    if (fd_) [[maybe_unused]]
      auto const got = ::read(fd_.get(), &count, sizeof count);
  }

 private:
  unique_fd fd_;
  std::atomic<int> raised_{-1};
};

} // namespace ropeway
