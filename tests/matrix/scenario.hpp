// What the processes of a cell do, and what befalls one of them. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "board.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway::matrix {

/// Processes, by their number on the board. A restarted one is another: its number is `reborn` higher.
inline constexpr std::uint32_t the_sender = 0, first_receiver = 1, odd_one = 2, filler = 6, reborn = 8;

/// How the first update goes when nothing befalls anybody. The second is always a plain one.
struct scenario {
  std::string_view name;
  enum class sending { plain, on_a_stream, source_fails, source_is_slow } sends = sending::plain;
  /// What one receiver does, the odd one, while the others load; `by_hand`: all take it bucket by bucket.
  enum class taking { load, by_hand, refuse, not_now, give_up } odd_takes = taking::load;
  /// What the system refuses one of them; `relays`: the sender's tensors lie on a (scripted) device that
  /// no receiver maps.
  enum class trouble {
    none,
    ring_refused,
    manifest_lost,
    placement_lost,
    ring_fails,
    relays
  } has = trouble::none;
  /// Where the sender's tensors lie: in memory that the receivers map, all or every second one; or not.
  enum class memory { own, shared, partly } lies = memory::own;
  /// What comes after the first update.
  enum class ending {
    none,
    odd_leaves,
    sender_closes,
    sender_is_lost,
    memory_wanted_back
  } then = ending::none;
  /// One more receiver: it takes the last place and then leaves, or is lost before the update.
  enum class extra { none, fills_the_last_place, is_lost } more = extra::none;
  bool digests = false; ///< updates carry them
  bool holds = false;   ///< the first version is held from before it is sent until that is over

  /// Whether it can be played with the weights on a device: nothing of it is scripted, or needs host memory.
  bool fits_devices() const { return has == trouble::none && lies != memory::partly; }
};
std::vector<scenario> const& scenarios();

enum class victim { nobody, sender, sender_with_child, receiver, member, everybody };
std::string_view name(victim who);

struct cell {
  scenario const* what = nullptr;
  victim who = victim::nobody;
  board::trigger trigger;

  bool group() const { return who == victim::member; }
  std::uint32_t receivers() const { return group() ? 4 : 3; }
  bool stops() const;
  std::string_view signal_name() const { return stops() ? "STOP" : "KILL"; }
  std::string transition() const { return points().at(trigger.point); }
  /// "sender: say begin | KILL | sender | plain | 1"
  std::string full_name() const;
};

/// Where the weights lie.
struct places {
  device sender = device::host(), receivers = device::host();
  bool has_devices() const { return sender.is_cuda() || receivers.is_cuda(); }
  /// The one that bytes take in this scenario: all of them, or all that can.
  std::string_view route(scenario const& how) const {
    if (how.lies != scenario::memory::own && sender.is_cuda() == receivers.is_cuda()) return "mapped";
    return sender.is_cuda() && receivers.is_cuda() ? "staged" : "host";
  }
};

/// What one walk through a scenario came to, by the process that did.
struct walk {
  scenario const* what = nullptr;
  bool group = false;
  passings by_sender{}, by_odd_one{};
  /// Once more: what it came to in any of the walks counts.
  void add(passings const& sender, passings const& odd);
};

/// All cells: for each failpoint that a walk reached, and for each route on which one did, the first scenario
/// in which it did; where a receiver is told to read, both orders.
std::vector<cell> cells_of(std::vector<walk> const& walks, places const& where);

/// What is wrong with the coverage: failpoints that no walk reached, although nothing excuses them; excuses
/// for failpoints that were reached; messages that nobody said.
std::vector<std::string> gaps(std::vector<walk> const& walks);

/// Why a failpoint can't be reached here; empty if it can.
std::string excuse(std::string const& point);

} // namespace ropeway::matrix
