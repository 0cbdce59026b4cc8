// Tensor sources that misbehave, and one that waits. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/steady_timer.hpp>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ropeway/source.hpp"
#include "support/attempt.hpp"
#include "support/weights.hpp"

namespace ropeway::testing {

/// Gives a model's tensors, and throws instead of the one with index `good`.
class failing_source final : public tensor_source {
 public:
  failing_source(model const& whole, std::uint32_t good, std::string why)
      : whole_(whole), good_(good), why_(std::move(why)) {}
  std::vector<tensor_info> manifest() override { return whole_.specs(); }
  awaitable<source_tensor> next(std::uint32_t index) override {
    if (index == good_) throw std::runtime_error(why_);
    co_return source_tensor(whole_.view(index));
  }

 private:
  model const& whole_;
  std::uint32_t good_;
  std::string why_;
};

/// Announces a model and gives something else for its fourth tensor.
class wrong_source final : public tensor_source {
 public:
  enum class kind { nothing, other_name, other_shape, other_dtype, throws_in_manifest, null_memory };
  wrong_source(model const& whole, kind what) : whole_(whole), what_(what) {}
  std::vector<tensor_info> manifest() override {
    if (what_ == kind::throws_in_manifest) throw std::runtime_error("there is no model");
    return whole_.specs();
  }
  awaitable<source_tensor> next(std::uint32_t index) override {
    auto const right = whole_.view(index);
    tensor_view given = right;
    if (index == 3) {
      if (what_ == kind::nothing) given = tensor_view();
      if (what_ == kind::other_name) given = whole_.view(4);
      if (what_ == kind::other_shape) given = tensor_view(right.name(), right.type(), {250, 2}, right.data());
      if (what_ == kind::other_dtype)
        given = tensor_view(right.name(), dtype::i32, right.dims(), right.data());
      if (what_ == kind::null_memory) given = tensor_view(right.name(), right.type(), right.dims(), nullptr);
    }
    co_return source_tensor(given);
  }

 private:
  model const& whole_;
  kind what_;
};

/// Gives a model's tensors; the one with index `gate` only after the event. Notes when it was cancelled.
class gated_source final : public tensor_source {
 public:
  gated_source(model const& whole, std::uint32_t gate, event open)
      : whole_(whole), gate_(gate), open_(std::move(open)), reached_(open_) {}
  /// `reached` is set when the gate is reached.
  gated_source(model const& whole, std::uint32_t gate, event open, event reached)
      : whole_(whole), gate_(gate), open_(std::move(open)), reached_(std::move(reached)), tells_(true) {}
  std::vector<tensor_info> manifest() override { return whole_.specs(); }
  awaitable<source_tensor> next(std::uint32_t index) override {
    if (index == gate_) {
      if (tells_) reached_.set();
      try {
        co_await open_.wait();
      } catch (std::system_error const&) {
        cancelled_ = true;
        throw;
      }
    }
    co_return source_tensor(whole_.view(index));
  }
  bool cancelled() const { return cancelled_; }

 private:
  model const& whole_;
  std::uint32_t gate_;
  event open_, reached_;
  bool tells_ = false, cancelled_ = false;
};

/// Writes a model's bytes into the slots; at the bucket `gate` it throws, or waits for the event. When it is
/// cancelled there, it still writes for a while, as a writer may that has threads of its own.
class gated_writer final : public slot_writer {
 public:
  gated_writer(model const& whole, std::uint32_t gate, event open, event reached)
      : whole_(whole), gate_(gate), open_(std::move(open)), reached_(std::move(reached)) {}
  gated_writer(model const& whole, std::uint32_t gate, event never, std::string why)
      : whole_(whole), gate_(gate), open_(never), reached_(never), why_(std::move(why)) {}
  std::vector<tensor_info> manifest() override {
    next_ = 0;
    return whole_.specs();
  }
  awaitable<ready_after> fill(std::span<slot_piece const> pieces) override {
    if (next_++ == gate_) {
      if (!why_.empty()) throw std::runtime_error(why_);
      reached_.set();
      try {
        co_await open_.wait();
      } catch (std::system_error const&) { cancelled_ = true; }
      if (cancelled_) {
        co_await asio::this_coro::reset_cancellation_state();
        co_await asio::this_coro::throw_if_cancelled(false);
        asio::steady_timer pause(co_await asio::this_coro::executor);
        for (int i = 0; i < 10; ++i) { // long enough for memory that is not kept to be gone
          pause.expires_after(std::chrono::milliseconds(2));
          co_await pause.async_wait(use_awaitable);
          for (auto const& piece : pieces) std::memset(piece.data, i, piece.bytes);
        }
        ended_ = true;
        throw std::runtime_error("cancelled");
      }
    }
    for (auto const& piece : pieces)
      std::memcpy(piece.data, whole_.bytes(piece.tensor).data() + piece.tensor_offset, piece.bytes);
    co_return ready_after();
  }
  bool cancelled() const { return cancelled_; }
  bool ended() const { return ended_; }

 private:
  model const& whole_;
  std::uint32_t gate_;
  event open_, reached_;
  std::string why_;
  std::uint32_t next_ = 0;
  bool cancelled_ = false, ended_ = false;
};

} // namespace ropeway::testing
