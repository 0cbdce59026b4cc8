#include "session/link.hpp"

#include <asio/detached.hpp>

#include "ropeway/error.hpp"

namespace ropeway::session {

void link::say(protocol::message const& what, int fd, std::shared_ptr<void const> keep) {
  protocol::encode(what, scratch_);
  auto const fds = fd >= 0 ? std::span<int const>(&fd, 1) : std::span<int const>();
  if (!saying_) {
    try {
      if (connection_.try_send(scratch_, fds)) return;
    } catch (transfer_error const&) {
      return; // gone; hear() tells
    }
  }
  rest_.push_back({scratch_, fd, std::move(keep)});
  if (saying_) return;
  saying_ = true;
  auto rest = say_the_rest(shared_from_this());
  asio::co_spawn(strand_, std::move(rest), asio::detached);
}

awaitable<void> link::say_the_rest(std::shared_ptr<link> self) {
  try {
    while (!self->rest_.empty()) {
      auto& next = self->rest_.front();
      std::span<int const> fds;
      if (next.fd >= 0) fds = std::span<int const>(&next.fd, 1);
      co_await self->connection_.send(next.bytes, fds);
      self->rest_.pop_front();
    }
  } catch (std::exception const&) { self->rest_.clear(); }
  self->saying_ = false;
  if (self->close_after_) self->close();
}

void link::close_when_said() {
  if (saying_)
    close_after_ = true;
  else
    close();
}

awaitable<link::incoming> link::hear() { return hear_on(shared_from_this()); }

awaitable<link::incoming> link::hear_on(std::shared_ptr<link> self) {
  if (self->buffer_.empty()) self->buffer_.resize(wire::max_message);
  wire::received got = co_await self->connection_.receive(self->buffer_, 1);
  std::string wrong;
  auto const bytes = std::span<std::byte const>(self->buffer_).first(got.bytes);
  std::optional<protocol::message> what = protocol::decode(bytes, wrong);
  if (!what)
    throw transfer_error(errc::protocol_error, "the peer sent a message that can't be read: " + wrong);
  if (got.fds.size() != protocol::expected_fds(*what))
    throw transfer_error(errc::protocol_error, "the peer sent " + std::to_string(got.fds.size()) +
                                                   " descriptors with a message that has " +
                                                   std::to_string(protocol::expected_fds(*what)));
  incoming result;
  result.what = std::move(*what);
  if (!got.fds.empty()) result.fd = std::move(got.fds.front());
  co_return result;
}

} // namespace ropeway::session
