// One connection with its messages: said in order, at once where the socket takes them, and heard by
// callback. Part of ropeway; Apache-2.0.
#pragma once
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "protocol/codec.hpp"
#include "ropeway/error.hpp"
#include "wire/connection.hpp"

namespace ropeway::session {

using wire::strand;

/// What may wait for a peer that does not read, each message's own keeping included. No state of the protocol
/// has so much to say.
inline constexpr std::size_t most_unread = 1024 * 1024;

/// Used on one strand. A message that can't be sent ends the session, as one that can't be read does.
class link : public std::enable_shared_from_this<link> {
 public:
  link(strand const& on, wire::connection connection)
      : strand_(on), connection_(std::move(connection)), give_up_(on) {}

  /// A message, and the descriptor that came with it, if one did.
  using heard = std::function<void(protocol::message&, unique_fd)>;
  /// Why nothing more comes.
  using ended = std::function<void(errc, std::string)>;
  /// The event loop is destroyed with everything that waits on it.
  using lost = std::function<void()>;
  /// Calls `on_message` for each message, and `on_end` once, if the peer goes, breaks the protocol or can't
  /// be told something; none of them from inside a call, nor after close(). To be called once. None of the
  /// three may own the link.
  void listen(heard on_message, ended on_end, lost on_lost);

  /// What has come by now, at once; and the end, if that has, or if something could not be said for it.
  void hear_now();

  /// `fd` must stay open as long as `keep` lives. A peer for which more than `most_unread` bytes wait is
  /// given up: `errc::peer_silent`. To such a peer `alive` says nothing that waits not already, and is left
  /// out.
  void say(protocol::message const& what, int fd = -1, std::shared_ptr<void const> keep = {});
  /// Whether something that was said waits for the peer to read what it has.
  bool has_more_to_say() const noexcept { return saying_; }
  /// Closes once everything was said, or at once if nothing waits; after five seconds in any case. Nothing
  /// more is heard from now on.
  void close_when_said();
  void close() noexcept;
  /// From any thread: the peer finds the connection ended from now on. As if the peer had closed it, here.
  void cut() noexcept { connection_.cut(); }
  wire::peer_credentials const& peer() const noexcept { return connection_.peer(); }

 private:
  struct outgoing {
    std::vector<std::byte> bytes;
    int fd;
    std::shared_ptr<void const> keep;
  };
  /// Stands in the event loop while we wait for a message.
  class waiting;
  static awaitable<void> say_the_rest(std::shared_ptr<link> self);
  void wait();
  void hear();
  bool hear_one(protocol::message& what, unique_fd& fd);
  void end(std::exception_ptr why);
  void say_goodbye(std::string const& why) noexcept;

  strand strand_;
  wire::connection connection_;
  std::vector<std::byte> scratch_, buffer_;
  std::deque<outgoing> rest_;
  std::size_t unread_ = 0; // of rest_
  heard on_message_;
  ended on_end_;
  lost on_lost_;
  wire::timer give_up_; // on a peer that takes nothing any more
  bool listening_ = false, saying_ = false, close_after_ = false;
  bool lost_ = false; // something could not be said: the peer has ended the connection
};

} // namespace ropeway::session
