// The system calls of the wire, without waiting: one message, one connect, who the peer is. Part of ropeway;
// Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "base/unique_fd.hpp"
#include "wire/connection.hpp"

namespace ropeway::wire {

/// A non-blocking, close-on-exec SEQPACKET socket. Throws EMFILE and the like.
unique_fd make_socket();

/// 0, or the errno of the connect.
int connect_now(int socket, std::string const& path) noexcept;

/// Lets one message of `max_message` bytes always fit, whatever the system's defaults are.
void enlarge_buffer(int socket) noexcept;

/// What one recvmsg brought. All descriptors that came are owned before anything is looked at.
struct raw_message {
  int error = 0;                 ///< errno; nothing else counts then
  std::size_t bytes = 0;         ///< of the message, also those that did not fit; 0 at the end
  bool descriptors_lost = false; ///< this process could not take all
  std::size_t fd_count = 0;
  std::array<unique_fd, max_fds> fds;
};
void receive_now(int socket, std::span<std::byte> buffer, raw_message& into) noexcept;

/// 0, or the errno of the sendmsg.
int send_now(int socket, std::span<std::byte const> message, std::span<int const> fds) noexcept;

/// Who is at the other end, and a descriptor that becomes readable when that process ends.
struct peer_process {
  peer_credentials who;
  unique_fd pidfd;    ///< empty if it can't be had, or for this process itself
  bool ended = false; ///< it is gone already
};
peer_process look_at_peer(int socket);

/// Whether the process behind a pidfd has ended.
bool has_ended(int pidfd) noexcept;

} // namespace ropeway::wire
