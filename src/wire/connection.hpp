// One connection between two processes: messages and file descriptors together, kept in order, over a
// SOCK_SEQPACKET Unix socket. Knows bytes and descriptors only. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "ropeway/asio.hpp"
#include "wire/address.hpp"
#include "wire/strand.hpp"

namespace ropeway::wire {

/// The longest message. The kernel takes 128 KiB with its usual socket buffers, its own bookkeeping included.
inline constexpr std::size_t max_message = 127 * 1024;
/// The most descriptors in one message (the kernel's limit).
inline constexpr std::size_t max_fds = 253;

/// Who is at the other end, as the kernel says.
struct peer_credentials {
  pid_t pid = 0; ///< 0: a process that this one can't see (another pid namespace)
  uid_t uid = 0;
  gid_t gid = 0;
};
/// "process 123 of user 1000"
std::string to_string(peer_credentials const& who);

/// What one `try_receive` brought.
struct received {
  std::size_t bytes = 0;      ///< at the front of the buffer that was given
  std::vector<unique_fd> fds; ///< at most as many as were asked for; close-on-exec
};

/// One end of a connection. Movable at any time. Used on the strand that it was made with: at most one `wait`
/// and one `send` run at a time (a second `send` throws `errc::busy`); `try_send` may be called while a
/// `send` waits, and then says no.
class connection {
 public:
  connection() = default;
  /// Takes over a connected socket. Throws `errc::not_permitted` if the peer's user is not trusted.
  connection(strand on, unique_fd socket, trust const& whom);
  connection(connection&&) noexcept = default;
  connection& operator=(connection&& other) noexcept;
  ~connection();

  /// The next message, put into `buffer`; nothing if there is none yet. Errors: `errc::peer_gone` once the
  /// peer has closed or died and everything that it sent before was received, also if children that it forked
  /// keep its socket; `errc::protocol_error` for a message longer than `buffer` or with more than `most_fds`
  /// descriptors (all of them are closed); EMFILE if this process has no descriptor left for one that came;
  /// `errc::not_open` after `close`.
  std::optional<received> try_receive(std::span<std::byte> buffer, std::size_t most_fds = 0);
  /// Waits until `try_receive` may have news, for a token with signature void(std::error_code). Cancellation:
  /// all types; no message is lost by it. Ends with `operation_aborted` when the connection is closed or
  /// destroyed.
  template <class Token>
  auto wait(Token&& token) {
    return readable().async_wait(descriptor::wait_read, std::forward<Token>(token));
  }

  /// Sends one message, waiting while the peer's queue is full. `message` and `fds` must stay valid until
  /// completion; the descriptors remain the caller's. Errors: `errc::overflow` for more than `max_message`
  /// bytes or `max_fds` descriptors; `errc::invalid_argument` for an empty message; `errc::peer_gone`;
  /// `errc::not_open`. Cancellation: all types; `operation_aborted`, nothing was sent, and the connection
  /// stays usable.
  awaitable<void> send(std::span<std::byte const> message, std::span<int const> fds = {});

  /// The same at once; false if the peer's queue is full. Throws like `send`.
  bool try_send(std::span<std::byte const> message, std::span<int const> fds = {});

  /// Ends the connection. What was sent still arrives. Operations that run end with `operation_aborted`.
  void close() noexcept;
  /// From any thread, also while another one uses or closes it: both peers find that it has ended, behind
  /// what was sent before. In a child that was forked nothing.
  void cut() noexcept;
  bool is_open() const noexcept;
  peer_credentials const& peer() const noexcept;
  /// Whether the peer's process can be watched (by its pidfd), so that its death is noticed although a child
  /// that it forked keeps the socket open.
  bool watches_process() const noexcept;

 private:
  struct state;
  descriptor& readable();
  static awaitable<void> send_on(std::shared_ptr<state> self, std::span<std::byte const> message,
                                 std::span<int const> fds);
  std::shared_ptr<state>
      state_; // shared with the operations that run, so that closing and moving are always safe
};

/// Connects to the listener at `path`, for use on the strand `on`. While the socket is missing, refuses, or
/// is not accepting fast enough, tries again until `deadline`. Cancellation: all types. Errors:
/// `errc::connect_timeout`, with the last reason; `errc::bad_path` if the path is too long or something else
/// than a listening SEQPACKET socket; `errc::not_permitted` if the directory can't be entered or is not
/// private (see `check_directory_of`), or the listener's user is not trusted.
awaitable<connection> connect(strand on, std::string path, std::chrono::steady_clock::time_point deadline,
                              trust whom = {});

} // namespace ropeway::wire
