// Sentence embeddings over HTTP, from weights that a trainer sends: docs/serving.md says what it answers and
// what it promises. A sample of ropeway; Apache-2.0.
#pragma once
#include <asio/thread_pool.hpp>
#include <cstdint>
#include <memory>
#include <ropeway/asio.hpp>

#include "settings.hpp"

/// The server on a caller's loop. Everything but the computing, which happens on `pool`, is done on the loop,
/// which one thread must run. The pool must end before the loop does.
class inference_server {
 public:
  /// Listens at once. Throws what the system says, and std::runtime_error for settings that make no sense.
  inference_server(asio::any_io_executor loop, asio::thread_pool& pool, server_settings const& settings);
  ~inference_server();
  inference_server(inference_server const&) = delete;
  inference_server& operator=(inference_server const&) = delete;

  std::uint16_t port() const;
  /// Answers what runs, closes what waits, says goodbye to the trainer. Nothing is left on the loop then.
  ropeway::awaitable<void> close();

 private:
  class state;
  std::shared_ptr<state> state_;
};
