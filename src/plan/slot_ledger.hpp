// Which slots of a ring are free, and who still reads the others. Pure bookkeeping. Part of ropeway; Apache-2.0.
//
//   free -> filling (packing or relaying into it) -> readable by a set of readers -> free when the set is empty
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace ropeway::plan {

using reader_id = std::uint32_t;

class slot_ledger {
 public:
  explicit slot_ledger(std::uint32_t slots);

  std::uint32_t slots() const noexcept;
  /// A free slot, now filling with `seq`; nothing if none is free. Prefers the one that has been free longest.
  std::optional<std::uint32_t> start_filling(std::uint64_t seq);
  /// The slot's content is there; it stays taken until done_filling's holds are all gone.
  void filled(std::uint32_t slot);
  /// Adds one hold of `reader` on a slot that is filling or filled. A reader holds a slot at most once.
  void hold(std::uint32_t slot, reader_id reader);
  /// Ends a hold; false if there was none. A filled slot without holds becomes free.
  bool release(std::uint32_t slot, reader_id reader);
  /// Ends every hold of this reader. Returns how many there were.
  std::uint32_t release_all(reader_id reader);
  /// Gives back a slot that was filling or is filled and has no holds (an abandoned filling).
  void give_back(std::uint32_t slot);

  bool is_free(std::uint32_t slot) const;
  bool holds(std::uint32_t slot, reader_id reader) const;
  std::uint64_t seq(std::uint32_t slot) const;  ///< of its newest filling
  std::optional<std::uint32_t> find(std::uint64_t seq) const;  ///< the taken slot that has this filling
  std::uint32_t taken() const noexcept;

 private:
  struct slot {
    enum class state : std::uint8_t { free, filling, filled } what = state::free;
    std::uint64_t seq = 0, freed_at = 0;
    std::vector<reader_id> readers;
  };
  std::vector<slot> slots_;
  std::uint64_t clock_ = 0;
};

}  // namespace ropeway::plan
