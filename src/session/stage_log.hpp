// What an update spends its time with, as it goes: the times of a report, and what an observer is told.
// Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>

#include "ropeway/observer.hpp"
#include "ropeway/stage.hpp"

namespace ropeway::session {

/// Of one update. Allocates nothing.
class stage_log {
 public:
  using time_point = std::chrono::steady_clock::time_point;

  stage_log() = default;
  /// `watched_by` may be null.
  stage_log(observer* watched_by, std::uint64_t version) : watched_by_(watched_by), version_(version) {}

  /// A stretch that overlaps no other one of its stage.
  void add(update_stage what, time_point began, time_point ended, std::optional<std::uint32_t> bucket = {},
           std::uint64_t bytes = 0) {
    if (ended <= began) return;
    times[what] += ended - began;
    tell(what, began, ended, bucket, bytes);
  }
  /// The same of a stretch that does, whose time is counted elsewhere.
  void tell(update_stage what, time_point began, time_point ended, std::optional<std::uint32_t> bucket = {},
            std::uint64_t bytes = 0, std::string_view receiver = {}) const {
    if (!watched_by_ || ended <= began) return;
    stage_span span;
    span.what = what;
    span.version = version_;
    span.bucket = bucket;
    span.bytes = bytes;
    span.receiver = receiver;
    span.began = began;
    span.ended = ended;
    watched_by_->stage_ended(span);
  }

  stage_times times;

 private:
  observer* watched_by_ = nullptr;
  std::uint64_t version_ = 0;
};

/// When at least one of several overlapping things was going on.
class activity {
 public:
  using time_point = stage_log::time_point;

  /// True if nothing went on until now, since `changed()`.
  bool start(time_point now) noexcept {
    if (running_++ != 0) return false;
    began_ = now;
    return true;
  }
  /// True if nothing goes on from now on; the last stretch began at `began()`.
  bool stop(time_point now) noexcept {
    if (running_ == 0 || --running_ != 0) return false;
    ended_ = now;
    return true;
  }
  /// Nothing goes on, and counts as having gone on, until `now`.
  void rest(time_point now) noexcept {
    running_ = 0;
    ended_ = now;
  }
  time_point began() const noexcept { return began_; }
  /// When the last stretch ended, or rest() was called.
  time_point ended() const noexcept { return ended_; }

 private:
  std::uint32_t running_ = 0;
  time_point began_{}, ended_{};
};

} // namespace ropeway::session
