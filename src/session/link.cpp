#include "session/link.hpp"

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/post.hpp>
#include <optional>
#include <utility>

#include "session/offload.hpp"

namespace ropeway::session {
namespace {

// So many messages are handled before everything else on the loop gets its turn.
constexpr int most_at_once = 16;

} // namespace

void link::listen(heard on_message, ended on_end) {
  on_message_ = std::move(on_message);
  on_end_ = std::move(on_end);
  buffer_.resize(wire::max_message);
  listening_ = true;
  wait();
}

void link::wait() {
  connection_.wait([self = shared_from_this()](std::error_code error) {
    if (!error) self->hear();
  });
}

void link::hear() {
  auto const keep = shared_from_this(); // a message may end the session that owns us
  errc code = errc::peer_gone;
  std::string words;
  try {
    for (int i = 0; listening_; ++i) {
      if (i == most_at_once) return asio::post(strand_, [keep] { keep->hear(); });
      if (!hear_one()) return wait();
    }
    return;
  } catch (std::system_error const& error) {
    code = as_errc(error.code(), errc::peer_gone);
    words = error.what();
  } catch (std::exception const& error) { words = error.what(); }
  if (std::exchange(listening_, false)) on_end_(code, std::move(words));
}

bool link::hear_one() {
  auto got = connection_.try_receive(buffer_, 1);
  if (!got) return false;
  std::string wrong;
  auto const bytes = std::span<std::byte const>(buffer_).first(got->bytes);
  std::optional<protocol::message> what = protocol::decode(bytes, wrong);
  if (!what)
    throw transfer_error(errc::protocol_error, "the peer sent a message that can't be read: " + wrong);
  if (got->fds.size() != protocol::expected_fds(*what))
    throw transfer_error(errc::protocol_error, "the peer sent " + std::to_string(got->fds.size()) +
                                                   " descriptors with a message that has " +
                                                   std::to_string(protocol::expected_fds(*what)));
  on_message_(*what, got->fds.empty() ? unique_fd() : std::move(got->fds.front()));
  return true;
}

void link::say(protocol::message const& what, int fd, std::shared_ptr<void const> keep) {
  protocol::encode(what, scratch_);
  auto const fds = fd >= 0 ? std::span<int const>(&fd, 1) : std::span<int const>();
  if (!saying_) {
    try {
      if (connection_.try_send(scratch_, fds)) return;
    } catch (transfer_error const&) {
      return; // gone; who listens is told
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
  listening_ = false;
  if (saying_)
    close_after_ = true;
  else
    close();
}

void link::close() noexcept {
  listening_ = false;
  connection_.close();
}

} // namespace ropeway::session
