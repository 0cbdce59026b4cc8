// A false peer in a thread of its own, which a coroutine waits for. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/post.hpp>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "support/attempt.hpp"

namespace ropeway::testing {

/// A false peer's thread. What it does is bounded, so that the destructor can wait for it.
class beside_us {
 public:
  beside_us(any_io_executor executor, std::function<std::string()> what)
      : state_(std::make_shared<state>(executor)), thread_([executor, s = state_, what = std::move(what)] {
        std::string said;
        try {
          said = what();
        } catch (std::exception const& error) { said = std::string("threw: ") + error.what(); }
        asio::post(executor, [s, said = std::move(said)]() mutable {
          s->said = std::move(said);
          s->over.set();
        });
      }) {}
  beside_us(beside_us const&) = delete;
  beside_us& operator=(beside_us const&) = delete;
  ~beside_us() { thread_.join(); }
  /// What was not as it should be.
  awaitable<std::string> end() { return wait(state_); }

 private:
  struct state {
    explicit state(any_io_executor executor) : over(std::move(executor)) {}
    event over;
    std::string said;
  };
  static awaitable<std::string> wait(std::shared_ptr<state> self) {
    co_await self->over.wait();
    co_return self->said;
  }
  std::shared_ptr<state> state_;
  std::thread thread_;
};

} // namespace ropeway::testing
