#include "watches.hpp"

#include <atomic>
#include <cerrno>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {
std::atomic<int> wanted{0}, refused{0};
[[maybe_unused]] std::atomic<int> left{0}; // until the one that is refused
} // namespace

#if !ROPEWAY_THREAD_SANITIZER
extern "C" int accept4(int socket, sockaddr* address, socklen_t* size, int flags) {
  auto const accepted = static_cast<int>(::syscall(SYS_accept4, socket, address, size, flags));
  if (accepted >= 0)
    if (int const number = wanted.exchange(0); number != 0) left = number;
  return accepted;
}
extern "C" int epoll_ctl(int epoll, int what, int fd, epoll_event* event) noexcept {
  if (what == EPOLL_CTL_ADD && left > 0 && --left == 0) {
    ++refused;
    errno = ENOSPC;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_epoll_ctl, epoll, what, fd, event));
}
#endif

namespace ropeway::testing {

void refuse_watch(int number) noexcept { wanted = number; }
int watches_refused() noexcept { return refused; }

} // namespace ropeway::testing
