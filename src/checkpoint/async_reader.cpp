#include "ropeway/checkpoint_async.hpp"

#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/error.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <cerrno>
#include <fcntl.h>
#include <map>
#include <utility>

#include "checkpoint/read_core.hpp"

namespace ropeway {
namespace {

using ticket = checkpoint_reader::ticket;

// Somebody who waits for one read; the handler's type is hidden.
class waiter {
 public:
  virtual ~waiter() = default;
  /// Posts the handler; once.
  virtual void complete(std::error_code code, std::optional<transfer_error> error) = 0;
  bool cancelled = false;
};

struct range {
  std::size_t tensor;
  std::uint64_t offset;
  std::span<std::byte> into;
};

template <class Handler, class Executor>
class handler_waiter final : public waiter {
 public:
  handler_waiter(Handler&& handler, std::optional<transfer_error>& error, Executor const& io)
      : handler_(std::move(handler)), error_(error), work_(asio::get_associated_executor(handler_, io)) {}

  void complete(std::error_code code, std::optional<transfer_error> error) override {
    // The cancellation slot is not cleared: we may be called from it, and a late signal finds nobody waiting.
    error_ = std::move(error);
    asio::post(work_.get_executor(),
               [handler = std::move(handler_), code]() mutable { std::move(handler)(code); });
    work_.reset();
  }

 private:
  Handler handler_;
  std::optional<transfer_error>& error_; // lives in the coroutine that the handler resumes
  asio::executor_work_guard<asio::associated_executor_t<Handler, Executor>> work_;
};

asio::posix::stream_descriptor watch(asio::any_io_executor const& executor, int fd) {
  unique_fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); // the descriptor closes what it gets
  if (!copy) throw transfer_error(std::error_code(errno, std::system_category()), "can't copy an eventfd");
  asio::posix::stream_descriptor result(executor, copy.get());
  copy.release();
  return result;
}

} // namespace

// A member of a class that is exported, and no part of what it exports.
struct __attribute__((visibility("hidden"))) async_checkpoint_reader::state
    : std::enable_shared_from_this<state> {
  state(asio::any_io_executor executor, checkpoint from, read_options const& options)
      : core(std::move(from), options), wake(watch(executor, core.event_fd())) {}

  template <class Token>
  auto read(range what, std::optional<transfer_error>& error, Token&& token);
  ticket begin(range what, std::unique_ptr<waiter> whose) noexcept;
  void deliver();
  void arm();
  void woken(std::error_code ec);
  void stop(ticket id);
  void close();
  void abandon();

  std::map<ticket, std::unique_ptr<waiter>> waiters; // first: their memory outlives the reads
  read_core core;
  asio::posix::stream_descriptor wake;
  bool armed = false, closed = false;
};

namespace {

// Stands in the event loop while reads are under way. A loop that is destroyed instead of run to its end
// destroys this, and with it everything that waits; else waiters and reader would keep each other alive for
// ever.
template <class State>
class loop_presence {
 public:
  explicit loop_presence(std::shared_ptr<State> owner) : owner_(std::move(owner)) {}
  loop_presence(loop_presence&&) noexcept = default;
  ~loop_presence() {
    if (owner_) owner_->abandon();
  }
  void operator()(std::error_code ec) { std::exchange(owner_, nullptr)->woken(ec); }

 private:
  std::shared_ptr<State> owner_;
};

} // namespace

template <class Token>
auto async_checkpoint_reader::state::read(range what, std::optional<transfer_error>& error, Token&& token) {
  // Starts only in here: a coroutine that is cancelled already does not come this far.
  auto initiate = [this, what, &error](auto&& handler) {
    using handler_type = std::decay_t<decltype(handler)>;
    using waiter_type = handler_waiter<handler_type, asio::any_io_executor>;
    auto slot = asio::get_associated_cancellation_slot(handler);
    ticket const id =
        begin(what, std::make_unique<waiter_type>(std::move(handler), error, wake.get_executor()));
    if (slot.is_connected())
      slot.assign([weak = weak_from_this(), id](asio::cancellation_type) {
        if (auto const self = weak.lock()) self->stop(id);
      });
  };
  return asio::async_initiate<Token, void(std::error_code)>(std::move(initiate), token);
}

ticket async_checkpoint_reader::state::begin(range what, std::unique_ptr<waiter> whose) noexcept {
  ticket id = 0;
  try {
    id = core.start(what.tensor, what.offset, what.into);
  } catch (transfer_error const& error) {
    whose->complete(error.code(), error);
    return 0;
  }
  waiters.emplace(id, std::move(whose));
  deliver();
  return id;
}

// Everything that has ended goes to whoever waits for it. The loop watches for more as long as somebody
// waits.
void async_checkpoint_reader::state::deliver() {
  core.progress(false);
  while (auto done = core.next_finished()) {
    auto node = waiters.extract(done->id);
    if (!node) continue;
    std::error_code code;
    if (done->error)
      code = done->error->code();
    else if (node.mapped()->cancelled)
      code = asio::error::operation_aborted;
    node.mapped()->complete(code, std::move(done->error));
  }
  if (!waiters.empty())
    arm();
  else if (armed)
    wake.cancel(); // nothing is expected: the loop may run dry
}

void async_checkpoint_reader::state::arm() {
  if (std::exchange(armed, true)) return;
  loop_presence<state> presence(shared_from_this());
  wake.async_wait(asio::posix::stream_descriptor::wait_read, std::move(presence));
}

void async_checkpoint_reader::state::woken(std::error_code) {
  armed = false;
  if (!closed) deliver();
}

// The read ends when what is in flight has ended.
void async_checkpoint_reader::state::stop(ticket id) {
  auto const at = waiters.find(id);
  if (at == waiters.end()) return;
  at->second->cancelled = true;
  core.drop(id);
  deliver();
}

void async_checkpoint_reader::state::close() {
  closed = true;
  core.cancel();
  for (auto& [id, waiting] : std::exchange(waiters, {}))
    waiting->complete(asio::error::operation_aborted, {});
  wake.close();
}

void async_checkpoint_reader::state::abandon() {
  closed = true;
  core.cancel();
  // This may destroy the coroutine that owns the reader; our caller still holds us.
  auto const gone = std::exchange(waiters, {});
}

async_checkpoint_reader::async_checkpoint_reader(asio::any_io_executor executor, checkpoint from,
                                                 read_options const& options)
    : state_(std::make_shared<state>(std::move(executor), std::move(from), options)) {}

async_checkpoint_reader::~async_checkpoint_reader() {
  if (state_ && !state_->closed) state_->close();
}

asio::awaitable<void> async_checkpoint_reader::read(std::size_t tensor, std::uint64_t offset,
                                                    std::span<std::byte> into) {
  std::shared_ptr<state> const self = state_; // the reader may go while we wait
  std::optional<transfer_error> error;
  std::error_code code;
  range const what{tensor, offset, into};
  self->core.check(tensor, offset, into.size());
  co_await self->read(what, error, asio::redirect_error(asio::use_awaitable, code));
  if (error) throw *error;
  if (code) throw std::system_error(code);
}

io_backend async_checkpoint_reader::backend() const noexcept { return state_->core.backend(); }
std::size_t async_checkpoint_reader::max_in_flight_seen() const noexcept {
  return state_->core.max_in_flight_seen();
}

} // namespace ropeway
