// Hooks for progress bars, tracing and metrics. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/stage.hpp"

namespace ropeway {

struct load_report;
struct send_report;

/// Derive and override what you want to hear. Called on the strand of the object that is watched, between its
/// own steps: return quickly, throw nothing, call nothing of that object. Nothing is heard once that object's
/// destructor has begun, but for a call that runs on another thread then.
class ROPEWAY_API observer {
 public:
  virtual ~observer() = default;
  /// A receiver finished its handshake. Heard by senders only.
  virtual void receiver_joined(std::string_view /*name*/) {}
  /// A receiver is gone, with the reason in one line. Heard by senders only.
  virtual void receiver_left(std::string_view /*name*/, std::string_view /*why*/) {}
  /// Sender: an update is about to be announced. Receiver: one was accepted.
  virtual void update_began(std::uint64_t /*version*/, std::uint64_t /*bytes*/, std::uint32_t /*buckets*/) {}
  /// Sender: a bucket is packed. Receiver: a bucket is loaded. `bytes` counts from the update's begin.
  virtual void bucket_moved(std::uint64_t /*version*/, std::uint32_t /*buckets*/, std::uint64_t /*bytes*/) {}
  /// A stretch of a stage is over. Heard between update_began and update_ended, also of what a receiver did
  /// before it accepted; a sender's stretches of its receivers all come at the end. Text in it is valid
  /// during the call only.
  virtual void stage_ended(stage_span const& /*what*/) {}
  /// What came of an update, just before update_ended, for metrics that are gathered in one place. Senders
  /// hear of every update that began, receivers of those that they committed.
  /// @{
  virtual void update_sent(send_report const& /*report*/) {}
  virtual void update_loaded(load_report const& /*report*/) {}
  /// @}
  /// The update is over, here.
  virtual void update_ended(std::uint64_t /*version*/, bool /*committed*/) {}
};

/// Several observers in the place of one. They must outlive it.
class observers final : public observer {
 public:
  /// Null pointers are left out.
  observers(std::initializer_list<observer*> all) {
    for (auto* const one : all)
      if (one) all_.push_back(one);
  }
  void receiver_joined(std::string_view name) override {
    for (auto* const one : all_) one->receiver_joined(name);
  }
  void receiver_left(std::string_view name, std::string_view why) override {
    for (auto* const one : all_) one->receiver_left(name, why);
  }
  void update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t buckets) override {
    for (auto* const one : all_) one->update_began(version, bytes, buckets);
  }
  void bucket_moved(std::uint64_t version, std::uint32_t buckets, std::uint64_t bytes) override {
    for (auto* const one : all_) one->bucket_moved(version, buckets, bytes);
  }
  void stage_ended(stage_span const& what) override {
    for (auto* const one : all_) one->stage_ended(what);
  }
  void update_sent(send_report const& report) override {
    for (auto* const one : all_) one->update_sent(report);
  }
  void update_loaded(load_report const& report) override {
    for (auto* const one : all_) one->update_loaded(report);
  }
  void update_ended(std::uint64_t version, bool committed) override {
    for (auto* const one : all_) one->update_ended(version, committed);
  }

 private:
  std::vector<observer*> all_;
};

} // namespace ropeway
