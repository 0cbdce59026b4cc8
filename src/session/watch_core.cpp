#include "session/watch_core.hpp"

#include <algorithm>
#include <asio/post.hpp>
#include <utility>

#include "protocol/text.hpp"
#include "session/digester.hpp"
#include "session/initiating.hpp"

namespace ropeway::detail {
namespace {

using namespace protocol;
using clock = std::chrono::steady_clock;
/// No sender has more receivers.
constexpr std::size_t most_receivers = 1000;

receiver_options checked(receiver_options options) {
  for (auto const limit : {options.connect_limit(), options.handshake_limit()})
    if (limit.count() <= 0) throw transfer_error(errc::invalid_argument, "every limit must be positive");
  options.connect_limit(countable(options.connect_limit()));
  options.handshake_limit(countable(options.handshake_limit()));
  return options;
}

std::chrono::nanoseconds nanoseconds_of(std::uint64_t count) {
  return std::chrono::nanoseconds(
      static_cast<std::int64_t>(std::min<std::uint64_t>(count, std::uint64_t(INT64_MAX))));
}

watched_receiver read(seen_receiver const& seen) {
  watched_receiver one;
  one.name = one_line(seen.name);
  one.doing = static_cast<receiver_activity>(
      std::min(seen.doing, static_cast<std::uint8_t>(receiver_activity::committing)));
  if (seen.holds_version) one.version = seen.version;
  one.bytes_released = seen.bytes_released;
  one.last_bytes = seen.last_bytes;
  one.last_took = nanoseconds_of(seen.last_ns);
  one.last_error = one_line(seen.last_error);
  if (seen.holds_version && seen.has_digest) one.digest = session::digest_of(seen.digest);
  return one;
}

} // namespace

watch_core::watch_core(asio::any_io_executor executor, receiver_options options)
    : executor_(executor)
    , options_(checked(std::move(options)))
    , strand_(wire::make_strand(executor))
    , answer_limit_(strand_) {}

watch_core::~watch_core() {
  if (link_) link_->close();
}

void watch_core::post_connect(std::string path, std::unique_ptr<completion<nothing>> done,
                              std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), path = std::move(path), shared = share(std::move(done)),
                       stop] {
    if (self->attempt_ || self->link_)
      return (*shared)->complete(failure(errc::busy, "there is a connection already; close it first"), {});
    if (stop->requested()) return (*shared)->complete(failure(aborted_by_caller()), {});
    auto const which = std::make_shared<connect_attempt>();
    self->attempt_ = which;
    self->on_connected_ = std::move(*shared);
    stop->attach([weak = self->weak_from_this(), which] {
      auto const alive = weak.lock();
      if (!alive) return;
      asio::post(alive->strand_, [alive, which] {
        if (alive->attempt_ == which) alive->end(failure(aborted_by_caller(), "the connect was cancelled"));
      });
    });
    auto connected = [self, which](failure why, std::optional<wire::connection> made) {
      if (self->attempt_ != which) return; // cancelled meanwhile
      if (why) return self->end(std::move(why));
      self->connected(std::move(*made));
    };
    start_finding(self, which, self->strand_, path, self->options_.connect_limit(), trust_of(self->options_),
                  std::move(connected));
  });
}

void watch_core::connected(wire::connection connection) {
  attempt_.reset();
  gone_ = {};
  link_ = std::make_shared<session::link>(strand_, std::move(connection));
  auto const current = std::weak_ptr<session::link>(link_);
  auto on_message = [weak = weak_from_this(), current](message& what, unique_fd) {
    auto const self = weak.lock();
    if (self && self->link_ == current.lock()) self->heard(what);
  };
  auto on_end = [weak = weak_from_this(), current](errc code, std::string words) {
    auto const self = weak.lock();
    if (self && self->link_ == current.lock()) self->end(failure(make_error_code(code), std::move(words)));
  };
  auto on_lost = [weak = weak_from_this()] {
    if (auto const self = weak.lock()) self->dissolve();
  };
  link_->listen(std::move(on_message), std::move(on_end), std::move(on_lost));
  std::exchange(on_connected_, nullptr)->complete({}, {});
}

void watch_core::post_look(std::unique_ptr<completion<watched_sender>> done,
                           std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), shared = share(std::move(done)), stop] {
    if (!self->link_) {
      if (auto const why = std::exchange(self->gone_, {})) return (*shared)->complete(why, {});
      return (*shared)->complete(failure(errc::not_open, "connect first"), {});
    }
    if (self->on_seen_) return (*shared)->complete(failure(errc::busy, "look is awaited already"), {});
    if (stop->requested()) return (*shared)->complete(failure(aborted_by_caller()), {});
    self->on_seen_ = std::move(*shared);
    self->seen_ = {};
    auto const key = self->on_seen_.get();
    auto const give_up = [weak = self->weak_from_this(), key](failure const& why) {
      auto const alive = weak.lock();
      if (alive && alive->on_seen_.get() == key) alive->end(why);
    };
    stop->attach([strand = self->strand_, give_up] {
      asio::post(strand, [give_up] { give_up(failure(aborted_by_caller())); });
    });
    self->answer_limit_.expires_after(self->options_.handshake_limit());
    self->answer_limit_.async_wait([give_up](std::error_code error) {
      if (!error)
        give_up(failure(make_error_code(errc::peer_silent), "the sender did not say how it is in time"));
    });
    watch question;
    question.magic = hello_magic;
    question.oldest = version_min;
    question.newest = version_max;
    question.schema = schema_hash();
    self->link_->say(question);
  });
}

void watch_core::heard(message const& what) {
  auto const broken = [&](std::string const& text) {
    end(failure(make_error_code(errc::protocol_error), "the sender " + text));
  };
  if (auto const* no = std::get_if<turned_away>(&what))
    return end(
        failure(transfer_error(static_cast<errc>(no->code), "the sender said no: " + one_line(no->text))
                    .peer_words(one_line(no->text))));
  if (auto const* bye = std::get_if<goodbye>(&what)) {
    auto const code = bye->code == 0 ? errc::peer_gone : static_cast<errc>(bye->code);
    return end(failure(transfer_error(code, "the sender said goodbye: " + one_line(bye->text))
                           .peer_words(one_line(bye->text))));
  }
  if (!on_seen_) return broken("said " + std::string(name_of(what)) + " without a question");
  if (auto const* one = std::get_if<seen_receiver>(&what)) {
    if (seen_.receivers.size() == most_receivers) return broken("has more receivers than it can have");
    seen_.receivers.push_back(read(*one));
    return;
  }
  auto const* whole = std::get_if<seen_sender>(&what);
  if (!whole) return broken("answered with " + std::string(name_of(what)));
  if (whole->receivers != seen_.receivers.size())
    return broken("told of " + std::to_string(seen_.receivers.size()) + " receivers and says that it has " +
                  std::to_string(whole->receivers));
  seen_.id = hex(whole->sender);
  if (whole->updating) {
    watched_update running;
    running.version = whole->version;
    running.bytes = whole->total_bytes;
    running.tensors = whole->tensors;
    running.buckets = whole->buckets;
    running.packed = whole->packed;
    running.since = nanoseconds_of(whole->running_ns);
    seen_.updating = running;
  }
  if (whole->has_digest) seen_.last = {whole->digest_version, session::digest_of(whole->digest)};
  answer_limit_.cancel();
  std::exchange(on_seen_, nullptr)->complete({}, std::exchange(seen_, {}));
}

void watch_core::end(failure why) {
  auto const which = std::exchange(attempt_, nullptr);
  if (which) which->give_up();
  if (link_) std::exchange(link_, nullptr)->close();
  answer_limit_.cancel();
  gone_ = on_connected_ || on_seen_ ? failure() : why;
  if (on_connected_) std::exchange(on_connected_, nullptr)->complete(why, {});
  if (on_seen_) std::exchange(on_seen_, nullptr)->complete(std::move(why), {});
}

void watch_core::post_close() noexcept {
  asio::post(strand_, [self = shared_from_this()] {
    self->end(failure(aborted_by_caller(), "the watcher was closed"));
    self->gone_ = {};
  });
}

void watch_core::dissolve() noexcept {
  attempt_.reset();
  auto const connected = std::move(on_connected_);
  auto const seen = std::move(on_seen_);
}

} // namespace ropeway::detail
