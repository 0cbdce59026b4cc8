#include "session/link.hpp"

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/post.hpp>
#include <optional>
#include <utility>

#include "protocol/text.hpp"
#include "session/offload.hpp"

namespace ropeway::session {
namespace {

// So many messages are handled before everything else on the loop gets its turn.
constexpr int most_at_once = 16;

} // namespace

class link::waiting {
 public:
  explicit waiting(std::shared_ptr<link> who) : who_(std::move(who)) {}
  waiting(waiting&&) noexcept = default;
  ~waiting() {
    if (who_ && who_->listening_ && who_->on_lost_) who_->on_lost_();
  }
  void operator()(std::error_code error) {
    auto const who = std::exchange(who_, nullptr);
    if (!error) return who->hear();
    who->end(std::make_exception_ptr(std::system_error(error))); // unless we have closed
  }

 private:
  std::shared_ptr<link> who_;
};

void link::listen(heard on_message, ended on_end, lost on_lost) {
  on_message_ = std::move(on_message);
  on_end_ = std::move(on_end);
  on_lost_ = std::move(on_lost);
  buffer_.resize(wire::max_message);
  listening_ = true;
  wait();
}

void link::wait() { connection_.wait(waiting(shared_from_this())); }

void link::hear() {
  auto const keep = shared_from_this(); // a message may end the session that owns us
  protocol::message what;
  unique_fd fd;
  for (int i = 0; listening_; ++i) {
    // What goes wrong with a message is the peer's end; what its handler throws is not.
    try {
      if (i == most_at_once || !hear_one(what, fd)) return wait();
    } catch (...) { return end(std::current_exception()); }
    try {
      on_message_(what, std::move(fd));
    } catch (...) {
      wait();
      throw;
    }
  }
}

void link::hear_now() {
  auto const keep = shared_from_this();
  protocol::message what;
  unique_fd fd;
  while (listening_) {
    try {
      if (!hear_one(what, fd)) {
        // It ends the connection for us first and then for itself: we may come in between.
        if (lost_) throw transfer_error(errc::peer_gone, to_string(peer()) + " has closed the connection");
        return;
      }
    } catch (...) { return end(std::current_exception()); }
    on_message_(what, std::move(fd));
  }
}

bool link::hear_one(protocol::message& what, unique_fd& fd) {
  auto got = connection_.try_receive(buffer_, 1);
  if (!got) return false;
  std::string wrong;
  auto const bytes = std::span<std::byte const>(buffer_).first(got->bytes);
  std::optional<protocol::message> read = protocol::decode(bytes, wrong);
  if (!read)
    throw transfer_error(errc::protocol_error, "the peer sent a message that can't be read: " + wrong);
  if (got->fds.size() != protocol::expected_fds(*read))
    throw transfer_error(errc::protocol_error, "the peer sent " + std::to_string(got->fds.size()) +
                                                   " descriptors with a message that has " +
                                                   std::to_string(protocol::expected_fds(*read)));
  what = std::move(*read);
  fd = got->fds.empty() ? unique_fd() : std::move(got->fds.front());
  return true;
}

void link::end(std::exception_ptr why) {
  if (!std::exchange(listening_, false)) return;
  auto const what = as_transfer_error(why, errc::no_resources);
  if (what.code() == errc::protocol_error) say_goodbye(words_of(what));
  // peer_gone: all that it had said was heard.
  on_end_(as_errc(what.code(), errc::no_resources), words_of(what));
}

/// Whoever wrote the peer wants to know. Once: it may be nobody who listens.
void link::say_goodbye(std::string const& why) noexcept {
  try {
    protocol::encode(
        protocol::goodbye{static_cast<std::uint16_t>(errc::protocol_error), protocol::one_line(why)},
        scratch_);
    if (!saying_) (void)connection_.try_send(scratch_);
  } catch (...) {}
}

void link::say(protocol::message const& what, int fd, std::shared_ptr<void const> keep) {
  try {
    protocol::encode(what, scratch_);
    auto const fds = fd >= 0 ? std::span<int const>(&fd, 1) : std::span<int const>();
    if (!saying_ && connection_.try_send(scratch_, fds)) return;
    if (std::holds_alternative<protocol::alive>(what)) return;
    std::size_t const cost = scratch_.size() + sizeof(outgoing);
    if (unread_ + cost > most_unread)
      throw transfer_error(errc::peer_silent, to_string(peer()) + " reads nothing, and more than " +
                                                  std::to_string(most_unread) +
                                                  " bytes wait for it; it was given up");
    rest_.push_back({scratch_, fd, std::move(keep)});
    unread_ += cost;
    if (saying_) return;
    saying_ = true;
    auto rest = say_the_rest(shared_from_this());
    asio::co_spawn(strand_, std::move(rest), asio::detached);
  } catch (...) {
    // Later: who says something is in the middle of a decision. A peer that is gone may have said something
    // before, which is still to be heard.
    auto const why = as_transfer_error(std::current_exception(), errc::no_resources);
    if (why.code() == errc::peer_gone) {
      lost_ = true;
      return;
    }
    asio::post(strand_, [self = shared_from_this(), why] { self->end(std::make_exception_ptr(why)); });
  }
}

awaitable<void> link::say_the_rest(std::shared_ptr<link> self) {
  std::exception_ptr why;
  try {
    while (!self->rest_.empty()) {
      auto& next = self->rest_.front();
      std::span<int const> fds;
      if (next.fd >= 0) fds = std::span<int const>(&next.fd, 1);
      co_await self->connection_.send(next.bytes, fds);
      self->unread_ -= next.bytes.size() + sizeof(outgoing);
      self->rest_.pop_front();
    }
  } catch (...) { why = std::current_exception(); }
  self->saying_ = false;
  self->give_up_.cancel();
  if (why) {
    self->rest_.clear();
    self->unread_ = 0;
    // One that is gone may have said something before: who hears finds the end behind it.
    self->lost_ = as_transfer_error(why, errc::no_resources).code() == errc::peer_gone;
    if (!self->lost_) self->end(why);
  }
  if (self->close_after_) self->close();
}

void link::close_when_said() {
  listening_ = false;
  if (!saying_) return close();
  close_after_ = true;
  give_up_.expires_after(std::chrono::seconds(5));
  give_up_.async_wait([self = shared_from_this()](std::error_code error) {
    if (!error) self->close();
  });
}

void link::close() noexcept {
  listening_ = false;
  connection_.close();
}

} // namespace ropeway::session
