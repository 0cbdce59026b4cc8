// What is explored: who takes part, how much of everything, and what may go wrong how often.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ropeway::explorer {

/// What may go wrong, or be decided against the update, at any point.
enum class fault : std::uint8_t {
  refuse,           ///< the embedder refuses an update
  not_now,          ///< or puts it off
  ring_refused,     ///< a receiver can't map a ring
  ring_fails,       ///< the sender can't make one
  import_fails,     ///< a receiver can't map the sender's memory, or does not want to
  export_fails,     ///< the sender can't say what maps it
  manifest_bad,     ///< a manifest, or a placement, can't be read
  load_fails,       ///< a bucket can't be loaded
  commit_fails,     ///< the embedder's commit throws
  receiver_cancels, ///< a receiver gives the update up
  receiver_closes,
  kill,           ///< a receiver dies
  stop,           ///< a receiver sleeps; it may continue at any later time, or never
  sender_cancels, ///< the sender gives the update up
  sender_closes,
  sender_dies,
  sender_stops, ///< the sender sleeps; it continues at any later time
  time_jumps,   ///< time passes although someone could work
  count,
};
inline constexpr std::size_t fault_kinds = static_cast<std::size_t>(fault::count);
std::string_view name(fault what);

struct receiver_wish {
  bool grouped = false; ///< all grouped ones are one group, of all unless `group_size` says less
  bool on_device = false;
  bool late = false; ///< connects at any time; the others have been greeted before the exploration starts
  bool knows_layout = true;
  bool maps = false; ///< it may read the sender's tensors
};

struct bounds {
  std::string name;
  std::vector<receiver_wish> receivers;
  std::vector<std::uint8_t> buckets; ///< of each update
  std::uint32_t slots = 2;
  std::uint32_t group_size = 0;
  bool device_ring = false; ///< updates are packed into device memory; who is not on the device needs relays
  /// Rings are made and mapped before the exploration starts: the first of the updates has gone through.
  bool ring_exists = true;
  /// Updates after the one that makes the rings have a placement: one segment, of so many parts; 0 for none.
  std::uint8_t parts = 0;
  std::uint8_t needed = 0;  ///< buckets that receivers which map need as well, a bit each
  std::uint8_t retires = 0; ///< so often the sender's memory lies elsewhere from now on
  bool only_mapped = false; ///< who can't map is refused
  bool ready = false;       ///< the tensors of a placement are ready when an update begins
  /// The version that was sent last is held from some moment on, and perhaps until another. All updates are
  /// of the same size then.
  bool holds = false;
  std::uint32_t turnover = 64; ///< so many may leave after a delivery of it before there is a rest
  bool digests = false;        ///< updates have digests, in tables of as many bytes as there are buckets
  bool by_hand = false;        ///< embedders that take buckets themselves, and release them in any order
  /// Drivers look manifests up and commit at once, as src/session does. Else each is a step of its own, and
  /// loads are told of also while an update winds down.
  bool prompt = true;
  std::vector<fault> faults;  ///< which may happen
  std::uint8_t at_most = 0;   ///< so many of them in all
  std::uint8_t kind_most = 1; ///< and so many of each

  /// Whether receivers of one kind are interchangeable. Not where limits of two of them may pass at once: the
  /// sender then turns to them in the order in which they came. Of who sleeps the limit may be that of an
  /// update that was given up, and pass while the others are in the next.
  bool symmetric() const {
    bool const over_updates = at_most > 1 && buckets.size() > (ring_exists ? 2u : 1u);
    return !may(fault::time_jumps) && !may(fault::sender_stops) &&
           !(may(fault::stop) && (kind_most > 1 || over_updates));
  }
  bool may(fault what) const {
    for (fault const f : faults)
      if (f == what) return true;
    return false;
  }
};

enum class effort : std::uint8_t {
  brief,   ///< for instrumented code: what takes a second without
  normal,  ///< seconds
  thorough ///< minutes
};
std::vector<bounds> configurations(effort how);

} // namespace ropeway::explorer
