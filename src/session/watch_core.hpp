// A connection to a sender that only asks. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "ropeway/watch.hpp"
#include "session/connecting.hpp"
#include "session/link.hpp"

namespace ropeway::detail {

/// Everything but post_* runs on one strand.
class watch_core : public std::enable_shared_from_this<watch_core> {
 public:
  watch_core(asio::any_io_executor executor, receiver_options options);
  ~watch_core();

  // Any thread.
  asio::any_io_executor executor() const { return executor_; }
  void post_connect(std::string path, std::unique_ptr<completion<nothing>> done,
                    std::shared_ptr<stop_request> stop);
  void post_look(std::unique_ptr<completion<watched_sender>> done, std::shared_ptr<stop_request> stop);
  void post_close() noexcept;
  /// The event loop is destroyed: lets go of every handler.
  void dissolve() noexcept;

 private:
  void connected(wire::connection connection);
  void heard(protocol::message const& what);
  /// Ends connection and operations.
  void end(failure why);

  asio::any_io_executor executor_;
  receiver_options options_;
  session::strand strand_;
  std::shared_ptr<session::link> link_;
  std::shared_ptr<connect_attempt> attempt_;
  wire::timer answer_limit_;
  watched_sender seen_; // of the answer that arrives
  failure gone_;        // why the connection ended, while nobody waited for anything
  std::unique_ptr<completion<nothing>> on_connected_;
  std::unique_ptr<completion<watched_sender>> on_seen_;
};

} // namespace ropeway::detail
