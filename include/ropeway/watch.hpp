// Looks at a sender and its receivers from another process. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <string>

#include "ropeway/asio.hpp"
#include "ropeway/detail/operation.hpp"
#include "ropeway/detail/visibility.hpp"
#include "ropeway/options.hpp"
#include "ropeway/watch_status.hpp"

namespace ropeway {

namespace detail {
class watch_core;
}

/// A connection that only asks. It is no receiver: it takes no part in updates, and nothing waits for it.
///
/// Thread-safety: all members may be called from any thread; operations complete on the caller's executor.
/// One runs at a time (`errc::busy`).
///
/// Lifetime: destroy it before the loop. That ends the connection, and what runs with
/// `asio::error::operation_aborted`, when the loop turns next.
class ROPEWAY_API watcher {
 public:
  /// Of the options it uses `connect_limit`, `handshake_limit` (for an answer), `allowed_users` and
  /// `allow_shared_directory`. Throws transfer_error: `errc::invalid_argument` for a limit that is not
  /// positive.
  explicit watcher(asio::any_io_executor executor, receiver_options options = {});
  watcher(watcher&&) noexcept = default;        ///< the other may then only be assigned to and destroyed
  watcher& operator=(watcher&& other) noexcept; ///< ends this one's connection
  ~watcher();

  /// Connects to the sender at `path`, waiting for it like `receiver::connect`. Errors: those of that, and
  /// `busy` if the sender has as many watchers as it takes. Cancellation: all types.
  /// @{
  awaitable<void> connect(std::string path);
  template <class Token>
  auto connect(std::string path, Token&& token) {
    auto start = [core = core_, path = std::move(path)](auto done, auto stop) {
      begin_connect(core, path, std::move(done), std::move(stop));
    };
    return detail::initiate<detail::nothing, std::error_code>(executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

  /// Asks once. Errors: `not_open` if there is no connection, `peer_gone` if the sender has closed or died,
  /// `peer_silent` if it does not answer in time, `protocol_error`, `version_mismatch`; the connection is
  /// closed then. Cancellation: all types; closes the connection.
  /// @{
  awaitable<watched_sender> look();
  template <class Token>
  auto look(Token&& token) {
    auto start = [core = core_](auto done, auto stop) { begin_look(core, std::move(done), std::move(stop)); };
    return detail::initiate<watched_sender, std::error_code>(executor(), std::move(start),
                                                             std::forward<Token>(token));
  }
  /// @}

  /// Ends the connection at once.
  void close() noexcept;

 private:
  using core_pointer = std::shared_ptr<detail::watch_core>;
  static void begin_connect(core_pointer const& core, std::string path,
                            std::unique_ptr<detail::completion<detail::nothing>> done,
                            std::shared_ptr<detail::stop_request> stop);
  static void begin_look(core_pointer const& core, std::unique_ptr<detail::completion<watched_sender>> done,
                         std::shared_ptr<detail::stop_request> stop);
  asio::any_io_executor executor() const;
  core_pointer core_;
};

} // namespace ropeway
