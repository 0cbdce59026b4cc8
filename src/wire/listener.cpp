#include "wire/listener.hpp"

#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

#include "ropeway/error.hpp"
#include "wire/path_lock.hpp"
#include "wire/socket.hpp"

namespace ropeway::wire {
namespace {

// How long to wait for a descriptor to become free before accepting is tried again.
constexpr std::chrono::milliseconds shortage_pause{50};

[[noreturn]] void fail(int error, std::string const& text) {
  if (error == EACCES || error == EPERM || error == EROFS) {
    throw transfer_error(errc::not_permitted, text + ": " + std::strerror(error));
  }
  throw transfer_error(std::error_code(error, std::system_category()), text);
}

// Throws if a living process listens at the path; otherwise nothing that lies there is of use to anybody.
void check_stale(std::string const& path) {
  unique_fd const probe = make_socket();
  int const error = connect_now(probe.get(), path);
  switch (error) {
  case ENOENT:
  case ECONNREFUSED: return;
  case EPROTOTYPE: throw transfer_error(errc::bad_path, "socket path " + path + ": another program's socket");
  case EAGAIN: // its queue is full
    throw transfer_error(errc::address_in_use, path);
  case 0: break;
  default: fail(error, "can't find out who listens at " + path);
  }
  peer_process const owner = look_at_peer(probe.get());
  // Children of a killed listener keep its socket open, but nobody accepts any more.
  if (owner.ended) return;
  throw transfer_error(errc::address_in_use, to_string(owner.who) + " listens at " + path);
}

struct inode {
  dev_t device;
  ino_t number;
  friend bool operator==(inode const&, inode const&) = default;
};

std::optional<inode> inode_of(std::string const& path) noexcept {
  struct stat about {};
  if (::lstat(path.c_str(), &about) != 0) return std::nullopt;
  return inode{about.st_dev, about.st_ino};
}

// Removes the file again if listening fails half way.
class bound_socket {
 public:
  bound_socket(std::string const& path, trust const& whom) : path_(path), socket_(make_socket()) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    if (::bind(socket_.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0) {
      int const error = errno;
      if (error == EADDRINUSE) throw transfer_error(errc::address_in_use, path + " has just been taken");
      fail(error, "can't make the socket " + path);
    }
    bound_ = true;
    // Nobody can connect before it listens.
    try {
      if (::chmod(path.c_str(), whom.group_access() ? 0660 : 0600) != 0)
        fail(errno, "can't set the mode of " + path);
      if (::listen(socket_.get(), SOMAXCONN) != 0) fail(errno, "can't listen at " + path);
    } catch (...) {
      ::unlink(path.c_str());
      throw;
    }
  }
  bound_socket(bound_socket const&) = delete;
  bound_socket& operator=(bound_socket const&) = delete;
  ~bound_socket() {
    if (bound_) ::unlink(path_.c_str());
  }
  int get() const noexcept { return socket_.get(); }
  unique_fd release() noexcept {
    bound_ = false;
    return std::move(socket_);
  }

 private:
  std::string path_;
  unique_fd socket_;
  bool bound_ = false;
};

} // namespace

struct listener::state {
  strand on;
  std::string path;
  trust whom;
  descriptor socket;
  inode own{};
  pid_t owner = ::getpid();
  bool accepting = false;
  timer pause;
  std::uint64_t refused = 0;

  state(strand const& its, std::string at, trust who)
      : on(its), path(std::move(at)), whom(std::move(who)), socket(its), pause(its) {
    prepare_directory(path, whom);
    path_lock const lock(path);
    prepare_directory(path, whom);
    check_stale(path);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail(errno, "can't replace the stale socket " + path);
    bound_socket bound(path, whom);
    own = inode_of(path).value_or(inode{});
    socket.assign(bound.get());
    bound_fd = bound.release().release();
  }
  ~state() { close(); }
  state(state const&) = delete;
  state& operator=(state const&) = delete;

  void retire() noexcept {
    std::lock_guard const lock(mutex);
    retire_locked();
  }
  void close() noexcept {
    std::lock_guard const lock(mutex);
    if (!socket.is_open()) return;
    retire_locked();
    asio::error_code ignored;
    socket.close(ignored);
    pause.cancel();
  }

 private:
  std::mutex mutex;
  int bound_fd = -1; // until it was retired

  void retire_locked() noexcept {
    int const fd = std::exchange(bound_fd, -1);
    // A child that was forked has the descriptor too, but the listener is its parent's.
    if (fd < 0 || ::getpid() != owner) return;
    ::shutdown(fd, SHUT_RDWR);
    try {
      path_lock const lock(path);
      if (inode_of(path) == own) ::unlink(path.c_str());
    } catch (std::exception const&) {
      // The directory is gone or not ours any more; whoever has the path now replaces a stale socket.
    }
  }
};

listener::listener(strand on, std::string path, trust whom)
    : state_(std::make_shared<state>(on, std::move(path), std::move(whom))) {}

listener& listener::operator=(listener&& other) noexcept {
  if (this != &other) {
    close();
    state_ = std::move(other.state_);
  }
  return *this;
}

listener::~listener() { close(); }

void listener::close() noexcept {
  if (state_) state_->close();
}

void listener::retire() noexcept {
  if (state_) state_->retire();
}

std::string const& listener::path() const noexcept { return state_->path; }
std::uint64_t listener::refused() const noexcept { return state_->refused; }

awaitable<connection> listener::accept() { return accept_on(state_); }

awaitable<connection> listener::accept_on(std::shared_ptr<state> self) {
  if (!self || !self->socket.is_open()) throw transfer_error(errc::not_open, "the listener");
  if (self->accepting) throw transfer_error(errc::busy, "the listener is already accepting");
  self->accepting = true;
  struct done {
    state& of;
    ~done() { of.accepting = false; }
  } const when_done{*self};
  for (;;) {
    auto const cancelled = co_await asio::this_coro::cancellation_state;
    if (cancelled.cancelled() != asio::cancellation_type::none || !self->socket.is_open()) {
      throw asio::system_error(asio::error::operation_aborted);
    }
    bool shortage = false;
    unique_fd accepted(
        ::accept4(self->socket.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    int const error = accepted ? 0 : errno;
    if (accepted) {
      try {
        connection peer(self->on, std::move(accepted), self->whom);
        co_return peer;
      } catch (transfer_error const& refusal) {
        if (refusal.code() == errc::not_permitted) ++self->refused;
        shortage = refusal.code() == std::errc::too_many_files_open;
      } catch (std::exception const&) {
        shortage = true; // of memory, or of what epoll may watch
      }
    }
    switch (error) {
    case 0:
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:
    case EPROTO: break;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case EPERM: shortage = true; break; // the last: refused by a filter, which may be lifted
    default:
      throw transfer_error(std::error_code(error, std::system_category()), "accepting at " + self->path);
    }
    if (shortage) {
      // The socket stays readable: waiting for it would spin.
      self->pause.expires_after(shortage_pause);
      co_await self->pause.async_wait(use_awaitable);
    } else {
      co_await self->socket.async_wait(descriptor::wait_read, use_awaitable);
    }
  }
}

} // namespace ropeway::wire
