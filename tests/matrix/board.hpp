// The failpoints that were compiled in, and the board that the processes of one cell share: who passed which
// of them how often, and which of them is armed. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

namespace ropeway::matrix {

inline constexpr std::size_t most_points = 320, most_processes = 16;

/// All failpoints, by number.
std::vector<std::string> const& points();
/// Throws std::out_of_range if there is none of this name.
std::size_t point(std::string_view name);

using passings = std::array<std::uint32_t, most_points>;

/// Lies in shared memory, made before the processes are.
class board {
 public:
  using clock = std::chrono::steady_clock;
  struct trigger {
    std::uint32_t process = 0;
    std::uint32_t point = 0, passing = 0; ///< the passing that fires; 0: none does
    int signal = 0;
    bool leaves_child = false; ///< a child is forked just before, which keeps every descriptor open
    bool everybody = false;    ///< the signal goes to all processes of the cell
  };

  /// For the next cell. Nobody may play.
  void reset(trigger const& armed);
  /// This process plays `process`.
  void enlist(std::uint32_t process, pid_t pid) { pids_[process] = pid; }
  /// The calling process is `process` from now on.
  void enter(std::uint32_t process);
  /// It plays nobody any more: what it passes from now on is nobody's.
  static void leave();
  /// A failpoint is passed.
  void pass(std::size_t which);

  /// The calling process has said what became of an update that it was offered.
  void told();
  std::uint32_t told_by(std::uint32_t process) const { return told_[process]; }

  /// The loop of the calling process runs; told every `pulse`, so that a stall of it shows.
  static void runs();
  static constexpr std::chrono::milliseconds pulse{20};
  /// When it was told last; the clock's epoch of who plays nobody.
  clock::time_point ran_at(std::uint32_t process) const { return at(ran_at_[process]); }

  std::uint32_t passed(std::uint32_t process, std::string_view name) const;
  passings of(std::uint32_t process) const;
  bool fired() const { return fired_at_ != 0; }
  clock::time_point fired_at() const { return at(fired_at_); }
  pid_t child() const { return child_; }

  /// The one that this process passes its failpoints on, if it plays.
  static board* mine;

 private:
  static clock::time_point at(std::int64_t ticks) { return clock::time_point(clock::duration(ticks)); }
  void fire();

  trigger armed_;
  pid_t director_ = 0;
  std::array<std::array<std::atomic<std::uint32_t>, most_points>, most_processes> passed_;
  std::array<std::atomic<std::uint32_t>, most_processes> told_;
  std::array<std::atomic<pid_t>, most_processes> pids_;
  std::array<std::atomic<std::int64_t>, most_processes> ran_at_;
  std::atomic<std::int64_t> fired_at_ = 0;
  std::atomic<pid_t> child_ = 0;
};

} // namespace ropeway::matrix
