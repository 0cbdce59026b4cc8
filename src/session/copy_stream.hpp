// A copy queue as the event loop sees it: what was queued is reported in order, on the strand, once its
// copies were seen to finish. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "memory/memory.hpp"
#include "session/profiler.hpp"
#include "wire/strand.hpp"

namespace ropeway::session {

using wire::strand;

/// How long to poll a device's queue.
inline std::chrono::microseconds poll_time(device where) noexcept {
  return where.is_cuda() ? std::chrono::microseconds(1000) : std::chrono::microseconds(0);
}

/// What an owner wants to know again when copies have finished. No closure: a steady update allocates none.
struct copied {
  std::shared_ptr<void> whose; ///< the update that they belong to
  /// Live until then: the memory that they touch, and who owns it.
  std::shared_ptr<void const> from, to;
  std::uint64_t seq = 0, bytes = 0;
  std::uint32_t bucket = 0;
  std::byte const* slot = nullptr; ///< where the bucket lies, for who digests it
  std::uint64_t moved = 0;         ///< bytes that the copies write; `bytes` is how large the bucket is
  /// What a profiler is shown while they run, from `began` as it is filled in.
  std::optional<profiler_name> shown{};
  /// Filled in if it is not: when they were queued, or what was queued before them was seen to finish.
  std::chrono::steady_clock::time_point began{};
  std::chrono::steady_clock::time_point ended{}; ///< when that was seen
  bool overslept = false; ///< it was seen at once after a rest: it may have ended long before
  /// A bucket of ours, one whose views an embedder has read, or copies that a commit waits for.
  /// Or the mapped tensors, or nothing but the moment when the source is ready. Or digests: of a bucket that
  /// was one of ours or a view, of all that is to be digested, or of what is in the way on one of several
  /// devices.
  enum class kind : std::uint8_t {
    bucket,
    view,
    commit,
    mapped,
    source,
    source_to_digest,
    digest_of_bucket,
    digest_of_view,
    digest,
    joint
  } what = kind::bucket;
};

/// Owned by a session's core; used on its strand, but for shut().
class copy_stream : public std::enable_shared_from_this<copy_stream> {
 public:
  using callback = std::function<void(copied&, std::error_code)>;

  /// Calls `done` on the strand, never from inside a call, for each then(), in order.
  ///
  /// With `poll_for`, a queue that has work is asked again and again, one turn of the loop each, until it has
  /// finished nothing for so long; then its wake-up is waited for. Being told by the driver takes tens of
  /// microseconds longer than asking (docs/performance.md), and both processes pay that for every bucket.
  copy_stream(strand const& on, std::unique_ptr<memory::queue> queue, callback done,
              std::chrono::microseconds poll_for = {});

  void start_after(ready_after const& when);
  /// Throws transfer_error(errc::not_open) after shut().
  void copy(std::span<memory::copy_op const> ops, memory::effort how = memory::effort::full);
  void repeat(memory::prepared_copies const& list, memory::portion what);
  void digest(memory::prepared_digests& list, memory::digest_run const& what);
  /// Reports `what` once everything queued so far was seen to finish, with an error if the device failed.
  void then(copied what);
  /// What was queued last will take so long. If that is more than `poll_for`, it is asked for again around
  /// then, as if it had just been queued; if it is less, not before shortly before then, so that an adapter
  /// of some megabytes, in which most of the time goes to the GPU's turning to this process, does not cost
  /// all of that time of a processor as well. Of the longer ones `soon` hears when they are asked for again.
  void expect(std::chrono::steady_clock::duration so_long, std::function<void()> soon = {});
  /// The device has failed: nothing more will be copied here. Another stream may work. Asks the queue: a
  /// stream for which nobody waits has heard of nothing.
  bool failed();
  /// Lets nothing in any more and waits for what runs, until `end` at most. Any thread. False: it still runs.
  bool shut(std::chrono::steady_clock::time_point end) noexcept;
  /// Waits for what runs, until `end` at most. Any thread; for destructors only, since nobody else gets in
  /// meanwhile. False: it still runs.
  bool drain(std::chrono::steady_clock::time_point end) noexcept;
  /// Reports what still waits, and then watches nothing any more, so that the loop may run dry.
  void finish();
  /// Reports nothing more and stops watching; what waits is let go of. After a shut() that came to its end.
  void forget() noexcept;

 private:
  struct waiter {
    std::uint64_t ticket;
    copied what;
    std::chrono::steady_clock::time_point queued;
  };
  void ask_again();
  void watch_wakeups();
  void watch_clock();
  void watch_again();
  void look();
  void stop_watching() noexcept;
  void show_first() noexcept;

  strand strand_;
  std::mutex mutex_; // the queue is for one thread at a time, and shut() comes from the destructor's
  std::unique_ptr<memory::queue> queue_;
  bool shut_ = false;
  callback done_;
  wire::descriptor wakeups_;
  wire::timer expected_;
  wire::timer second_look_; // a CUDA host function is not called after a context error: ask now and then
  bool watching_wakeups_ = false, watching_clock_ = false, asking_ = false, finishing_ = false;
  bool failed_ = false;
  std::chrono::microseconds const poll_for_;
  std::chrono::steady_clock::time_point last_news_{}, last_end_{};
  bool resting_ = false, rested_ = false; // nothing is asked until expected_; and that has just passed
  std::vector<waiter> waiting_;           // in order; never more than a ring has slots
  profiler_range shown_;                  // the first of them
};

} // namespace ropeway::session
