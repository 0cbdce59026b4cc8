// Plays one cell: makes the processes, tells them what to do, sees who falls, who ends when and how, brings
// the fallen back, and has one more update sent to everybody. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "board.hpp"
#include "intermission.hpp"
#include "scenario.hpp"

namespace ropeway::matrix {

/// What a process of the first life came to.
struct fate {
  bool exists = false;
  bool victim = false; ///< the signal came to it
  /// Questions and answers until the first update was over.
  std::vector<std::pair<std::string, std::string>> said;
  /// Whether take was still waiting when the first update was over for everybody.
  bool waits = false;
  /// From the signal, or from the question if that came later, to its first answer after the signal.
  std::optional<double> milliseconds;
  /// The longest of those that came after, from its question or from when those that slept were woken.
  double later_milliseconds = 0;
  passings passed{};  ///< when the first update was over
  passings at_fall{}; ///< when the victims had fallen, and before they were woken
  std::uint32_t times(std::string_view name) const { return passed[point(name)]; }
  std::uint32_t times_at_fall(std::string_view name) const { return at_fall[point(name)]; }
  /// Its answers to this question, in order.
  std::vector<std::string> answers(std::string_view question) const;
};

/// What is not as it must be.
struct finding {
  std::string text;
  bool late = false; ///< it is that something took too long, and nothing else
};

/// Everything that is judged.
struct play_bill {
  bool fired = false;
  /// The longest of the limits that ran, and how soon a death was to be seen.
  std::chrono::milliseconds longest_limit{}, seen_within{};
  /// What the first update between new processes may take beside that: on a device they map memory, in a
  /// driver that takes the contexts of the fallen apart meanwhile.
  std::chrono::milliseconds first_mapping{};
  /// How many milliseconds at a time its director, or a process that was to play on, did not get to run at
  /// most; or from the signal until it had taken effect.
  double stood_still = 0;
  std::vector<fate> fates; ///< by process
  /// What went wrong outside the rules: a process that does not answer, that leaves something behind, ...
  std::vector<finding> wrong;
};

/// How a director comes by its processes.
struct casting {
  places where;
  std::size_t spares = 0; ///< so many are started ahead, to take the place of those that are killed
  int limits = 1;         ///< all limits are so many times as long
  /// Where no process may be started while a cell is played, here or by another director. A cell that needs
  /// more than was expected starts them all the same.
  intermission* apart = nullptr;
};

/// Made once in a process without threads, for one cell after the other. Processes that have come through a
/// cell play in the next.
class director {
 public:
  explicit director(casting const& how);
  ~director();
  play_bill play(cell const& what);
  /// After a cell that failed: its processes play no other.
  void start_afresh();
  /// Those that are left leave; what is wrong with that.
  std::vector<finding> close();
  /// Processes that were started so far.
  std::size_t started() const;

 private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// What of this is not as it must be; empty if all is well.
std::vector<finding> judge(cell const& what, play_bill const& how);

} // namespace ropeway::matrix
