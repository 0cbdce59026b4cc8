// What an update spends its time with, as it goes: the times of a report, and what an observer is told.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

#include "ropeway/observer.hpp"
#include "ropeway/stage.hpp"
#include "session/profiler.hpp"

namespace ropeway::session {

/// The embedder's observer, as long as what it watches lives: a core lives longer than its owner.
class observed {
 public:
  /// `who` may be null.
  explicit observed(observer* who) noexcept : who_(who) {}
  explicit operator bool() const noexcept { return who_.load() != nullptr; }
  template <class Tell>
  void tell(Tell const& how) const {
    if (auto* const who = who_.load()) how(*who);
  }
  void forget() noexcept { who_.store(nullptr); }

 private:
  std::atomic<observer*> who_;
};

/// Of one update. Allocates nothing.
class stage_log {
 public:
  using time_point = std::chrono::steady_clock::time_point;

  stage_log() = default;
  /// `by` must outlive this. An update begins, for profilers.
  stage_log(observed const& by, side whose, std::uint64_t version)
      : by_(&by), whose_(whose), version_(version) {
    update_.begin_update(whose, version);
  }

  /// For profilers: a stretch begins, one of each stage at a time; add() ends it, without a bucket or with
  /// its own, or ends() if that stretch does not count.
  void begins(update_stage what, std::optional<std::uint32_t> bucket = {}) noexcept {
    going_on_[std::size_t(what)].begin({whose_, what}, bucket);
  }
  void ends(update_stage what) noexcept { going_on_[std::size_t(what)].end(); }
  /// The update is over, for profilers.
  void close() noexcept {
    for (auto& one : going_on_) one.end();
    update_.end();
  }

  /// A stretch that overlaps no other one of its stage.
  void add(update_stage what, time_point began, time_point ended, std::optional<std::uint32_t> bucket = {},
           std::uint64_t bytes = 0) {
    ends(what);
    if (ended <= began) return;
    times[what] += ended - began;
    tell(what, began, ended, bucket, bytes);
  }
  /// One whose time is counted elsewhere.
  void tell(update_stage what, time_point began, time_point ended, std::optional<std::uint32_t> bucket = {},
            std::uint64_t bytes = 0, std::string_view receiver = {}) const {
    if (!by_ || ended <= began) return;
    stage_span span;
    span.what = what;
    span.version = version_;
    span.bucket = bucket;
    span.bytes = bytes;
    span.receiver = receiver;
    span.began = began;
    span.ended = ended;
    by_->tell([&](observer& who) { who.stage_ended(span); });
  }

  stage_times times;

 private:
  observed const* by_ = nullptr;
  side whose_ = side::sender;
  std::uint64_t version_ = 0;
  profiler_range update_;
  std::array<profiler_range, all_stages.size()> going_on_; // ends before its update
};

/// When at least one of several overlapping things was going on.
class activity {
 public:
  using time_point = stage_log::time_point;

  /// True if nothing went on until now, since ended().
  bool start(time_point now) noexcept {
    if (running_++ != 0) return false;
    began_ = now;
    return true;
  }
  /// How long something has been going on without a break, if nothing does any more; else nothing.
  std::chrono::nanoseconds stop(time_point now) noexcept {
    if (running_ == 0 || --running_ != 0) return {};
    ended_ = now;
    return now - began_;
  }
  /// Nothing goes on, and counts as having gone on, until `now`.
  void rest(time_point now) noexcept {
    running_ = 0;
    ended_ = now;
  }
  bool runs() const noexcept { return running_ != 0; }
  /// When the last stretch ended, or rest() was called; the clock's epoch before the first.
  time_point ended() const noexcept { return ended_; }

 private:
  std::uint32_t running_ = 0;
  time_point began_{}, ended_{};
};

} // namespace ropeway::session
