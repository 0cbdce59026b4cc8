// One connection with its outgoing messages: said in order, at once where the socket takes them.
// Part of ropeway; Apache-2.0.
#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/codec.hpp"
#include "session/copy_stream.hpp"
#include "wire/connection.hpp"

namespace ropeway::session {

/// Used on one strand. Errors in sending are not reported: the receiving half sees the end of the connection.
class link : public std::enable_shared_from_this<link> {
 public:
  link(strand const& on, wire::connection connection) : strand_(on), connection_(std::move(connection)) {}

  /// `fd` must stay open as long as `keep` lives.
  void say(protocol::message const& what, int fd = -1, std::shared_ptr<void const> keep = {});
  /// The next message and what came with it; throws transfer_error (peer_gone, protocol_error, ...).
  struct incoming {
    protocol::message what;
    unique_fd fd;
  };
  awaitable<incoming> hear();
  /// Closes once everything was said, or at once if nothing waits.
  void close_when_said();
  void close() noexcept { connection_.close(); }
  wire::peer_credentials const& peer() const noexcept { return connection_.peer(); }

 private:
  struct outgoing {
    std::vector<std::byte> bytes;
    int fd;
    std::shared_ptr<void const> keep;
  };
  static awaitable<void> say_the_rest(std::shared_ptr<link> self);
  static awaitable<incoming> hear_on(std::shared_ptr<link> self);

  strand strand_;
  wire::connection connection_;
  std::vector<std::byte> scratch_, buffer_;
  std::deque<outgoing> rest_;
  bool saying_ = false, close_after_ = false;
};

} // namespace ropeway::session
