// One connection with its messages: said in order, at once where the socket takes them, and heard by
// callback. Part of ropeway; Apache-2.0.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "protocol/codec.hpp"
#include "ropeway/error.hpp"
#include "wire/connection.hpp"

namespace ropeway::session {

using wire::strand;

/// Used on one strand. Errors in sending are not reported: the listening half sees the end of the connection.
class link : public std::enable_shared_from_this<link> {
 public:
  link(strand const& on, wire::connection connection) : strand_(on), connection_(std::move(connection)) {}

  /// A message, and the descriptor that came with it, if one did.
  using heard = std::function<void(protocol::message&, unique_fd)>;
  /// Why nothing more comes.
  using ended = std::function<void(errc, std::string)>;
  /// Calls `on_message` for each message, and `on_end` once, if the peer goes or breaks the protocol; neither
  /// after close(). Once. Neither may own the link.
  void listen(heard on_message, ended on_end);

  /// `fd` must stay open as long as `keep` lives.
  void say(protocol::message const& what, int fd = -1, std::shared_ptr<void const> keep = {});
  /// Closes once everything was said, or at once if nothing waits. Nothing more is heard from now on.
  void close_when_said();
  void close() noexcept;
  wire::peer_credentials const& peer() const noexcept { return connection_.peer(); }

 private:
  struct outgoing {
    std::vector<std::byte> bytes;
    int fd;
    std::shared_ptr<void const> keep;
  };
  static awaitable<void> say_the_rest(std::shared_ptr<link> self);
  void wait();
  void hear();
  /// False if there is no message for now.
  bool hear_one();

  strand strand_;
  wire::connection connection_;
  std::vector<std::byte> scratch_, buffer_;
  std::deque<outgoing> rest_;
  heard on_message_;
  ended on_end_;
  bool listening_ = false, saying_ = false, close_after_ = false;
};

} // namespace ropeway::session
