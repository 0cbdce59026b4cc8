#include "wire/socket.hpp"

#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <system_error>
#include <unistd.h>

#include "ropeway/error.hpp"

// Linux 6.5; newer than the C library of the oldest system that we build on.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace ropeway::wire {

unique_fd make_socket() {
  unique_fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         errno == EMFILE ? "can't make a Unix socket; raise RLIMIT_NOFILE"
                                         : "can't make a Unix socket");
  enlarge_buffer(socket.get());
  return socket;
}

int connect_now(int socket, std::string const& path) noexcept {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  return ::connect(socket, reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0 ? 0 : errno;
}

void enlarge_buffer(int socket) noexcept {
  int const bytes = 256 * 1024;
  (void)::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

void receive_now(int socket, std::span<std::byte> buffer, raw_message& into) noexcept {
  iovec part{buffer.data(), buffer.size()};
  // Room for all that can come: what does not fit would be lost, and a smaller room can hold more than asked
  // for.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * max_fds)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = -1;
  do got = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
  while (got < 0 && errno == EINTR);
  into.error = got < 0 ? errno : 0;
  if (got < 0) return;
  into.bytes = static_cast<std::size_t>(got);
  into.descriptors_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    std::size_t const count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count && into.fd_count < max_fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      into.fds[into.fd_count++].reset(fd);
    }
  }
}

int send_now(int socket, std::span<std::byte const> bytes, std::span<int const> fds) noexcept {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * max_fds)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    std::memset(control, 0, sizeof control);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  ssize_t sent = -1;
  do sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return sent < 0 ? errno : 0;
}

peer_process look_at_peer(int socket) {
  peer_process peer;
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "the peer's credentials can't be read");
  }
  peer.who = {credentials.pid, credentials.uid, credentials.gid};
  if (credentials.pid == ::getpid()) return peer;
  int fd = -1;
  size = sizeof fd;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0) {
    peer.pidfd.reset(fd);
  } else if (errno == ESRCH) {
    peer.ended = true;
  } else if (credentials.pid > 0) {
    // Before Linux 6.5. If the process ended since and its number was given out anew, the wrong one is
    // watched: then only the end of the connection is noticed, as without a pidfd.
    peer.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, credentials.pid, 0)));
    peer.ended = !peer.pidfd && errno == ESRCH;
  }
  peer.ended = peer.ended || (peer.pidfd && has_ended(peer.pidfd.get()));
  return peer;
}

bool has_ended(int pidfd) noexcept {
  pollfd waiting{pidfd, POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 1;
}

std::string to_string(peer_credentials const& who) {
  std::string const process =
      who.pid > 0 ? "process " + std::to_string(who.pid) : "a process of another container";
  return process + " of user " + std::to_string(who.uid);
}

} // namespace ropeway::wire
