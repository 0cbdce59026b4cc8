// Which slots of a ring are free, and who still reads the others. Pure bookkeeping.
// Part of ropeway; Apache-2.0.
//
//   free -> filling (packing or relaying into it) -> filled, until its set of readers is empty -> free
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace ropeway::plan {

/// Who holds slots, in numbers that the owner of a ledger chooses (a session's number, a relay's).
using reader_id = std::uint32_t;

/// Slot numbers beyond slots() throw std::out_of_range, and steps that the picture above lacks
/// std::logic_error: both are errors of the program, never of a peer.
class slot_ledger {
 public:
  explicit slot_ledger(std::uint32_t slots);

  std::uint32_t slots() const noexcept;
  /// A free slot, now filling with `seq`; nothing if none is free. Prefers the one that has been free
  /// longest.
  std::optional<std::uint32_t> start_filling(std::uint64_t seq);
  /// The slot's content is there. It becomes free when its last hold ends; if it has none (all readers died
  /// while it was filling) it stays taken until one is added and ended, or give_back().
  void filled(std::uint32_t slot);
  /// Adds one hold of `reader` on a slot that is filling or filled. A reader holds a slot at most once.
  void hold(std::uint32_t slot, reader_id reader);
  /// Ends a hold; false if there was none. A filled slot whose last hold this was becomes free.
  bool release(std::uint32_t slot, reader_id reader);
  /// Ends every hold of this reader. Returns how many there were.
  std::uint32_t release_all(reader_id reader);
  /// Gives back a slot that was filling or is filled and has no holds (an abandoned filling).
  void give_back(std::uint32_t slot);

  bool is_free(std::uint32_t slot) const;
  bool holds(std::uint32_t slot, reader_id reader) const;
  std::uint64_t seq(std::uint32_t slot) const;                ///< of its newest filling
  std::optional<std::uint32_t> find(std::uint64_t seq) const; ///< the taken slot that has this filling
  std::uint32_t taken() const noexcept;

 private:
  struct entry {
    enum class state : std::uint8_t { free, filling, filled } what = state::free;
    std::uint64_t seq = 0, freed_at = 0;
    std::vector<reader_id> readers;
  };
  void free(entry& e);
  std::vector<entry> slots_;
  std::uint64_t clock_ = 0;
};

} // namespace ropeway::plan
