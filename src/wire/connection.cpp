#include "wire/connection.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "ropeway/error.hpp"
#include "wire/socket.hpp"

namespace ropeway::wire {
namespace {

// Sets a flag while an operation runs; a second one is refused instead of mixing with it.
class only_one {
 public:
  only_one(bool& flag, char const* what) : flag_(flag) {
    if (flag_) throw transfer_error(errc::busy, std::string("the connection is already in a ") + what);
    flag_ = true;
  }
  only_one(only_one const&) = delete;
  only_one& operator=(only_one const&) = delete;
  ~only_one() { flag_ = false; }

 private:
  bool& flag_;
};

std::error_code system_code(int error) { return {error, std::system_category()}; }

// One descriptor to wait for two things: the socket, and the end of the peer's process.
descriptor wait_for(strand const& on, int socket, std::uint32_t events, int pidfd) {
  unique_fd both(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = events;
  bool made = both && ::epoll_ctl(both.get(), EPOLL_CTL_ADD, socket, &event) == 0;
  event.events = EPOLLIN;
  if (made && pidfd >= 0) made = ::epoll_ctl(both.get(), EPOLL_CTL_ADD, pidfd, &event) == 0;
  if (!made)
    throw transfer_error(system_code(errno), "no descriptor to watch a connection; raise RLIMIT_NOFILE, or "
                                             "fs.epoll.max_user_watches");
  descriptor watched(on, both.get());
  (void)both.release();
  return watched;
}

} // namespace

struct connection::state {
  strand on;
  unique_fd socket;
  peer_process peer;
  descriptor readable;
  descriptor* writable = nullptr; // of the send that waits
  bool sending = false;
  pid_t owner = ::getpid();
  std::mutex cutting; // keeps the socket open while another thread ends the connection

  state(strand const& its, unique_fd connected, peer_process who)
      : on(its)
      , socket(std::move(connected))
      , peer(std::move(who))
      , readable(wait_for(its, socket.get(), EPOLLIN, peer.pidfd.get())) {}
  ~state() { close(); }
  state(state const&) = delete;
  state& operator=(state const&) = delete;

  void close() noexcept {
    if (!socket) return;
    // Children that were forked keep the socket: end the connection, not only our descriptor. In such a
    // child, though, it is still the parent's.
    bool const ours = ::getpid() == owner;
    if (ours) ::shutdown(socket.get(), SHUT_RDWR);
    asio::error_code ignored;
    readable.close(ignored);
    if (writable != nullptr) writable->close(ignored);
    std::unique_lock lock(cutting, std::defer_lock);
    if (ours) lock.lock(); // in a child it may be locked for ever, by a thread that is not there
    socket.reset();
    peer.pidfd.reset();
  }
  void cut() noexcept {
    if (::getpid() != owner) return;
    std::scoped_lock const lock(cutting);
    if (socket) ::shutdown(socket.get(), SHUT_RDWR);
  }
  void check_open() const {
    if (!socket) throw transfer_error(errc::not_open, "the connection");
  }
  // True once the peer's process has ended.
  bool peer_ended() noexcept {
    peer.ended = peer.ended || (peer.pidfd && has_ended(peer.pidfd.get()));
    return peer.ended;
  }
  [[noreturn]] void gone() const {
    auto const name = to_string(peer.who);
    throw transfer_error(errc::peer_gone, name + (peer.ended ? " has ended" : " has closed the connection"))
        .peer(name);
  }
  [[noreturn]] void broke(std::string const& what) const {
    auto const name = to_string(peer.who);
    throw transfer_error(errc::protocol_error, name + " sent " + what).peer(name);
  }

  static void check_sizes(std::span<std::byte const> message, std::span<int const> fds) {
    if (message.empty())
      throw transfer_error(errc::invalid_argument, "an empty message means the end; send a byte");
    if (message.size() > max_message) {
      throw transfer_error(errc::overflow, "a message of " + std::to_string(message.size()) +
                                               " bytes; the limit is " + std::to_string(max_message));
    }
    if (fds.size() > max_fds) {
      throw transfer_error(errc::overflow, "a message with " + std::to_string(fds.size()) +
                                               " descriptors; the limit is " + std::to_string(max_fds));
    }
  }
  // False if the peer's queue is full.
  bool send(std::span<std::byte const> message, std::span<int const> fds) {
    int const error = send_now(socket.get(), message, fds);
    switch (error) {
    case 0: return true;
    case EAGAIN:
      if (peer_ended()) gone();
      return false;
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN: gone();
    case EMSGSIZE:
      throw transfer_error(errc::overflow, "the system refuses a message of " +
                                               std::to_string(message.size()) +
                                               " bytes; raise net.core.wmem_max");
    case ETOOMANYREFS:
      throw transfer_error(system_code(error), "too many descriptors are on their way; raise RLIMIT_NOFILE");
    default: throw transfer_error(system_code(error), "sending to " + to_string(peer.who) + " failed");
    }
  }
  // False if there is no message.
  bool receive(std::span<std::byte> buffer, std::size_t most_fds, received& into) {
    raw_message message;
    receive_now(socket.get(), buffer, message);
    // A peer that went without reading all that it had: what it sent before is still there, behind the error.
    if (message.error == ECONNRESET) receive_now(socket.get(), buffer, message);
    if (message.error == EAGAIN) return false;
    if (message.error == ECONNRESET || message.error == ENOTCONN) gone();
    if (message.error != 0) {
      throw transfer_error(system_code(message.error), "receiving from " + to_string(peer.who) + " failed");
    }
    if (message.bytes == 0) gone();
    if (message.bytes > buffer.size()) {
      broke("a message of " + std::to_string(message.bytes) + " bytes where " +
            std::to_string(buffer.size()) + " are allowed");
    }
    if (message.fd_count > most_fds) {
      broke(std::to_string(message.fd_count) + " descriptors where " + std::to_string(most_fds) +
            " are allowed");
    }
    if (message.descriptors_lost) {
      throw transfer_error(system_code(EMFILE), "descriptors that " + to_string(peer.who) +
                                                    " sent could not be taken; raise RLIMIT_NOFILE");
    }
    into.bytes = message.bytes;
    into.fds.reserve(message.fd_count);
    std::move(message.fds.begin(), message.fds.begin() + static_cast<std::ptrdiff_t>(message.fd_count),
              std::back_inserter(into.fds));
    return true;
  }
};

connection::connection(strand on, unique_fd socket, trust const& whom) {
  peer_process peer = look_at_peer(socket.get());
  if (!whom.allows(peer.who.uid)) {
    auto const name = to_string(peer.who);
    throw transfer_error(errc::not_permitted,
                         name + " is not trusted; allow that user, or run both as the same")
        .peer(name);
  }
  enlarge_buffer(socket.get());
  state_ = std::make_shared<state>(on, std::move(socket), std::move(peer));
}

connection& connection::operator=(connection&& other) noexcept {
  if (this != &other) {
    close();
    state_ = std::move(other.state_);
  }
  return *this;
}

connection::~connection() { close(); }

void connection::close() noexcept {
  if (state_) state_->close();
}

void connection::cut() noexcept {
  if (state_) state_->cut();
}

bool connection::is_open() const noexcept { return state_ && state_->socket; }

peer_credentials const& connection::peer() const noexcept {
  static constexpr peer_credentials nobody{};
  return state_ ? state_->peer.who : nobody;
}

bool connection::watches_process() const noexcept { return state_ && state_->peer.pidfd; }

descriptor& connection::readable() {
  if (!state_) throw transfer_error(errc::not_open, "the connection");
  state_->check_open();
  return state_->readable;
}

std::optional<received> connection::try_receive(std::span<std::byte> buffer, std::size_t most_fds) {
  if (!state_) throw transfer_error(errc::not_open, "the connection");
  state_->check_open();
  received message;
  if (state_->receive(buffer, most_fds, message)) return message;
  if (!state_->peer_ended()) return std::nullopt;
  // What it sent before it died is in the queue by now.
  if (state_->receive(buffer, most_fds, message)) return message;
  state_->gone();
}

awaitable<void> connection::send(std::span<std::byte const> message, std::span<int const> fds) {
  return send_on(state_, message, fds);
}

bool connection::try_send(std::span<std::byte const> message, std::span<int const> fds) {
  if (!state_) throw transfer_error(errc::not_open, "the connection");
  state_->check_open();
  state::check_sizes(message, fds);
  // A message must not overtake one that waits.
  return !state_->sending && state_->send(message, fds);
}

awaitable<void> connection::send_on(std::shared_ptr<state> self, std::span<std::byte const> message,
                                    std::span<int const> fds) {
  if (!self) throw transfer_error(errc::not_open, "the connection");
  self->check_open();
  state::check_sizes(message, fds);
  only_one const running(self->sending, "send");
  auto const cancelled = co_await asio::this_coro::cancellation_state;
  if (cancelled.cancelled() != asio::cancellation_type::none)
    throw asio::system_error(asio::error::operation_aborted);
  if (self->send(message, fds)) co_return;
  // Waiting is rare, so what it needs is made for it alone: a socket that is watched for writing all the time
  // would wake the loop for each message that the peer reads.
  auto writable = wait_for(self->on, self->socket.get(), EPOLLOUT, self->peer.pidfd.get());
  self->writable = &writable;
  struct forget {
    state& of;
    ~forget() { of.writable = nullptr; }
  } const forget_writable{*self};
  for (;;) {
    co_await writable.async_wait(descriptor::wait_read, use_awaitable);
    if (!self->socket) throw asio::system_error(asio::error::operation_aborted);
    auto const now = co_await asio::this_coro::cancellation_state;
    if (now.cancelled() != asio::cancellation_type::none)
      throw asio::system_error(asio::error::operation_aborted);
    if (self->send(message, fds)) co_return;
  }
}

namespace {

// Why a connect failed, if it may work later; throws if it can't.
std::string passing_reason(int error, std::string const& path) {
  switch (error) {
  case ENOENT: return "there is no socket yet";
  case EAGAIN: return "its queue of connections is full";
  case ECONNREFUSED: {
    struct stat about {};
    if (::stat(path.c_str(), &about) == 0 && !S_ISSOCK(about.st_mode)) {
      throw transfer_error(errc::bad_path,
                           "socket path " + path + ": there is something that is not a socket");
    }
    return "nobody listens at the socket";
  }
  case EACCES:
  case EPERM:
    throw transfer_error(errc::not_permitted, "socket path " + path +
                                                  ": this user may not connect; the sender must " +
                                                  "allow it, or run both as the same user");
  case EPROTOTYPE: throw transfer_error(errc::bad_path, "socket path " + path + ": another program's socket");
  case ENOTDIR:
  case ELOOP:
  case ENAMETOOLONG:
    throw transfer_error(errc::bad_path, "socket path " + path + ": " + std::strerror(error));
  default: throw transfer_error(system_code(error), "connecting to " + path + " failed");
  }
}

} // namespace

awaitable<connection> connect(strand on, std::string path, std::chrono::steady_clock::time_point deadline,
                              trust whom) {
  check_path(path);
  timer pause(on);
  std::chrono::milliseconds step{1};
  for (;;) {
    std::string reason;
    unique_fd socket = make_socket();
    int const error = connect_now(socket.get(), path);
    if (error != 0) {
      reason = passing_reason(error, path);
    } else if (look_at_peer(socket.get()).ended) {
      // The backlog of a dead listener, kept open by children that it forked.
      reason = "its listener has ended";
    } else {
      check_directory_of(path, whom);
      connection connected(on, std::move(socket), whom);
      co_return connected;
    }
    auto const now = std::chrono::steady_clock::now();
    if (now >= deadline) { throw transfer_error(errc::connect_timeout, path + ": " + reason); }
    pause.expires_at(std::min(now + step, deadline));
    co_await pause.async_wait(use_awaitable);
    step = std::min(step * 2, std::chrono::milliseconds(50));
  }
}

} // namespace ropeway::wire
