// Finding the sender at a path. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "session/initiating.hpp"
#include "session/offload.hpp"
#include "wire/connection.hpp"

namespace ropeway::detail {

/// One call of connect; a later one is another.
struct connect_attempt {
  asio::cancellation_signal stop;
  bool runs = false; ///< as a coroutine

  void give_up() {
    // A signal must not be emitted to a coroutine that has ended (Asio before 1.28).
    if (runs) stop.emit(asio::cancellation_type::terminal);
  }
};

/// Runs on the core's strand, and ends with `then`: a connection, or why there is none. The core lives until
/// then, and hears of it if the loop is destroyed before.
template <class Core>
awaitable<void> find_sender(std::shared_ptr<Core> core, wire::strand on, std::string path,
                            std::chrono::milliseconds limit, wire::trust whom,
                            std::function<void(failure, std::optional<wire::connection>)> then) {
  loop_anchor<Core> anchor(core->weak_from_this());
  failure error;
  std::optional<wire::connection> made;
  try {
    auto const end = std::chrono::steady_clock::now() + limit;
    made = co_await wire::connect(on, std::move(path), end, std::move(whom));
  } catch (...) {
    error = failure(session::as_transfer_error(std::current_exception(), errc::connect_timeout));
  }
  anchor.lift();
  then(std::move(error), std::move(made));
}

/// Starts that, as `which` may give it up.
template <class Core, class Then>
void start_finding(std::shared_ptr<Core> core, std::shared_ptr<connect_attempt> which, wire::strand const& on,
                   std::string path, std::chrono::milliseconds limit, wire::trust whom, Then then) {
  auto run = find_sender<Core>(std::move(core), on, std::move(path), limit, std::move(whom), std::move(then));
  which->runs = true;
  auto ended = [which](std::exception_ptr) { which->runs = false; };
  asio::co_spawn(on, std::move(run), asio::bind_cancellation_slot(which->stop.slot(), std::move(ended)));
}

} // namespace ropeway::detail
