// The process of a soak that starts the others, says what happens, and judges what came of it. It uses
// nothing of the library but its words, and has one thread. Part of ropeway; Apache-2.0.
#pragma once
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "channel.hpp"
#include "content.hpp"
#include "roles.hpp"
#include "ropeway/report.hpp"
#include "support/sanitized.hpp"
#include "support/scratch.hpp"

namespace ropeway::soak {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

inline constexpr unsigned slow = testing::sanitized ? 3 : 1;
inline constexpr milliseconds watchdog = std::chrono::seconds(60) * slow;
inline constexpr milliseconds long_silence = std::chrono::seconds(20) * slow;
/// In some rings, so that a stall need not last long; more than the machine itself may stand still.
inline constexpr milliseconds short_silence = std::chrono::seconds(6) * slow;

char const* name(way what);
char const* name(sharing what);
char const* name(style what);
char const* name(fault what);
char const* name(moment what);

struct wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// There is no such device here.
struct no_device : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A process of the soak.
struct child {
  std::string name;
  bool leads = false;
  std::size_t slot = 0;
  pid_t pid = -1;
  unique_fd control;
  bool ready = false, gone = false, stopped = false;
  bool may_die = false, may_exit = false; ///< by SIGKILL; with status 0
  // What it has said.
  bool opened = false, closed = false, reported = false, listed = false, sampled = false;
  bool armed = false, came = false, connected = false;
  bool may_lose = false; ///< its session may end
  answer report, list, sample, what_came;
  // Of a receiver.
  order now;
  bool late = false, told_to_connect = false;
  bool unconfirmed = false;         ///< its last update, at this sender; its next hello settles it
  std::uint32_t committed_from = 0; ///< the sender instance that it committed from last
  std::uint64_t committed_version = 0;
  bool may_be_torn =
      false; ///< an update ended half-way since: if it came back, it may have said that it holds none
  bool grouped() const { return !leads && slot >= 3; }

  child() = default;
  child(child const&) = delete;
  child& operator=(child const&) = delete;
  ~child();
};

struct row {
  std::uint64_t step = 0, update = 0; ///< step: the update, or round, that is counted for `--every`
  double seconds = 0;
  std::string process;
  std::uint32_t life = 0;
  figures of;
};

struct counts {
  std::uint64_t updates = 0, layouts = 0, rings = 0, senders = 0, receivers = 0;
  std::uint64_t bytes_sent = 0, bytes_compared = 0, buckets = 0, checks = 0, held = 0, settled = 0;
  std::map<std::string, std::uint64_t> outcomes, faults, ways, styles, memories, routes, errors;
};

class conductor {
 public:
  explicit conductor(wishes const& of);
  ~conductor();

  void run();
  void print(std::FILE* to) const;
  void write_samples() const;
  std::uint64_t update() const { return update_; }
  /// Who was to do what, for the reader of a failure.
  std::string orders_in_words() const;

 private:
  // ---- processes ----
  child& spawn(bool leads, std::size_t slot);
  void until(std::function<bool()> const& done, char const* what, milliseconds limit = watchdog);
  bool wait_for(std::function<bool()> const& done, milliseconds limit);
  void listen(child& from);
  void reap();
  void wake();
  void heard(child& from, answer const& what);
  void tell_child(child& to, order const& what);
  void order_only(child& to, verb what) {
    order said;
    said.what = what;
    tell_child(to, said);
  }
  void kill_now(child& who);
  void bury();

  // ---- steps ----
  void start_sender();
  void open_ring(std::uint64_t bucket_bytes, std::uint32_t slots, milliseconds silence);
  void close_ring();
  void open_some_ring(chance& luck);
  void leave_now(child& who);
  /// Until the sender lists exactly the receivers that should be there, and they agree.
  void settle();
  void check_list(answer const& list);
  /// Carries one update out and judges it. The orders of the receivers stand in `now`.
  void carry_out(order const& to_sender);
  void judge(order const& to_sender);
  void judge_receiver(child& who, peer_line const* line, order const& to_sender);
  /// It allows the mapped route only, so that an update may be refused: what has no bytes in shared memory,
  /// or is taken bucket by bucket.
  bool may_find_no_way(child const& who) const;
  bool must_commit(child const& who, order const& to_sender) const;

  // ---- modes ----
  void run_random();
  void random_update(chance& luck);
  void plan_sender(order& to_sender, chance& luck);
  /// Where the sender's tensors lie.
  void plan_memory(order& to_sender, chance& luck);
  void plan_receiver(child& who, order const& to_sender, chance& luck);
  void run_flat();
  void run_restarts();
  order plain_order(std::uint64_t layout, way how);
  static void take_plainly(child& who);
  void send_plainly(std::uint64_t layout, way how);
  void end_all();

  // ---- samples ----
  figures sample_of(child& who);
  void take_samples(std::uint64_t step);
  void add_row(child& who, std::uint64_t step, std::string const& as, figures const& of);
  void compare_samples(child& who, std::uint64_t warm);

  child* receiver_in(std::size_t slot) {
    for (auto& one : receivers_)
      if (one->slot == slot) return one.get();
    return nullptr;
  }
  double seconds() const { return std::chrono::duration<double>(clock::now() - began_).count(); }

  wishes of_;
  clock::time_point began_;
  testing::scratch directory_;
  unique_fd signals_;
  std::unique_ptr<child> sender_;
  std::vector<std::unique_ptr<child>> receivers_;
  std::map<std::size_t, std::uint32_t> lives_;
  std::uint64_t update_ = 0;
  std::uint32_t instance_ = 0; ///< of the sender; counts
  milliseconds silence_{};
  std::deque<std::uint64_t> recent_layouts_;
  bool report_is_in_ = false;
  order to_sender_;
  counts counted_;
  std::vector<row> rows_;
  std::uint64_t every_ = 1;
  struct baseline {
    std::uint64_t seen = 0;
    std::optional<figures> at;
  };
  std::map<std::string, baseline> baselines_;
  std::map<std::string, std::pair<figures, figures>> flat_; ///< by process: after the warm-up, and the last
};

} // namespace ropeway::soak
