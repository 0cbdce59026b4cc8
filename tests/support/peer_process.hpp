// The other side in a process of its own: a coroutine on its own io_context, and words between the two.
// Part of ropeway; Apache-2.0.
//
// Make it before anything that does not survive fork: sockets, senders, receivers, threads, CUDA.
#pragma once
#include <array>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <system_error>

#include "base/unique_fd.hpp"
#include "fork_child.hpp"
#include "ropeway/asio.hpp"

namespace ropeway::testing {

/// One end of a line over which two processes say short words.
class words {
 public:
  explicit words(unique_fd socket) : socket_(std::move(socket)) {}

  void say(std::string_view word) const {
    if (::send(socket_.get(), word.data(), word.size(), MSG_NOSIGNAL) < 0)
      throw std::system_error(errno, std::generic_category(), "saying a word");
  }
  /// The next word; throws when the other process is gone. Cancellation: all types.
  awaitable<std::string> hear() {
    auto const executor = co_await asio::this_coro::executor;
    asio::posix::stream_descriptor readable(executor, ::dup(socket_.get())); // gone with the executor
    std::array<char, 4096> buffer{};
    for (;;) {
      ssize_t const got = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got > 0) co_return std::string(buffer.data(), std::size_t(got));
      if (got == 0) throw std::runtime_error("the other process is gone");
      if (errno != EAGAIN && errno != EINTR)
        throw std::system_error(errno, std::generic_category(), "hearing a word");
      co_await readable.async_wait(asio::posix::stream_descriptor::wait_read, use_awaitable);
    }
  }
  /// Hears this word and no other.
  awaitable<void> expect(std::string word) {
    std::string const heard = co_await hear();
    if (heard != word) throw std::runtime_error("heard '" + heard + "' instead of '" + word + "'");
  }

 private:
  unique_fd socket_;
};

class peer_process {
 public:
  using body = std::function<awaitable<void>(std::shared_ptr<words> parent)>;

  /// Runs `what` in a child. What it throws is said as its last word, and makes it exit with 1.
  explicit peer_process(body const& what) : peer_process(pair_of_sockets(), what) {}

  words& line() { return line_; }
  fork_child& process() { return child_; }

 private:
  using sockets = std::array<unique_fd, 2>;
  static sockets pair_of_sockets() {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
      throw std::runtime_error("socketpair");
    return {unique_fd(ends[0]), unique_fd(ends[1])};
  }
  peer_process(sockets ends, body const& what)
      : child_([&] {
        ends[0].reset();
        return run(what, std::make_shared<words>(std::move(ends[1])));
      })
      , line_(std::move(ends[0])) {}

  static int run(body const& what, std::shared_ptr<words> parent) {
    asio::io_context io(1);
    std::exception_ptr thrown;
    asio::co_spawn(io, what(parent), [&](std::exception_ptr e) { thrown = e; });
    io.run();
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (std::exception const& e) {
      std::fprintf(stderr, "the other process: %s\n", e.what());
      parent->say(std::string("failed: ") + e.what());
      return 1;
    }
    return 0;
  }

  fork_child child_;
  words line_;
};

} // namespace ropeway::testing
