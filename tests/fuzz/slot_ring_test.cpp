// Two receivers that release, die and join in any order: the slots of a ring keep their rules. Every
// interleaving is walked, state by state. Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include "plan/slot_ledger.hpp"

using ropeway::plan::slot_ledger;

namespace {

constexpr std::uint32_t owner = 100;

/// What the ledger must say, kept in the plainest way.
struct slot_model {
  enum class state { free, filling, filled } what = state::free;
  std::uint64_t bucket = 0; ///< its seq
  bool owned = false;       ///< its packer has a hold of its own
  std::set<std::uint32_t> readers;
};
struct ring {
  slot_ledger ledger;
  std::vector<slot_model> slots;
  std::vector<std::uint32_t> free_order; ///< free longest first
  std::array<bool, 2> there{true, true};
  std::array<unsigned, 2> lives{0, 0};
  std::uint64_t next = 1;

  explicit ring(std::uint32_t n) : ledger(n), slots(n) {
    for (std::uint32_t i = 0; i < n; ++i) free_order.push_back(i);
  }
  std::string key() const {
    std::string text = std::to_string(next);
    for (unsigned r = 0; r < 2; ++r) text += (there[r] ? "+" : "-") + std::to_string(lives[r]);
    for (auto const& s : slots) {
      text += " " + std::to_string(static_cast<int>(s.what)) + ":" + std::to_string(s.bucket);
      if (s.owned) text += "o";
      for (auto const r : s.readers) text += "," + std::to_string(r);
    }
    for (auto const f : free_order) text += "f" + std::to_string(f);
    return text;
  }
};

class walk {
 public:
  walk(std::uint32_t slots, std::uint64_t buckets, unsigned deaths) : buckets_(buckets), deaths_(deaths) {
    visit(ring(slots));
  }
  std::size_t states() const noexcept { return seen_.size(); }
  std::size_t ends = 0; ///< states in which all buckets went through and every slot is free

 private:
  void visit(ring const& r) {
    if (!seen_.insert(r.key()).second) return;
    check(r);
    bool const all_free = r.ledger.taken() == 0;
    if (r.next > buckets_ && all_free) ++ends;
    bool moved = false;
    auto const step = [&](auto act) {
      ring after = r;
      act(after);
      moved = true;
      visit(after);
    };
    if (r.next <= buckets_ && !r.free_order.empty()) step(start);
    for (std::uint32_t i = 0; i < r.slots.size(); ++i) {
      auto const& s = r.slots[i];
      if (s.what == slot_model::state::filling) step([i](ring& a) { fill(a, i); });
      if (s.owned) step([i](ring& a) { publish(a, i); });
      if (s.what == slot_model::state::filled && s.readers.empty() && !s.owned)
        step([i](ring& a) {
          a.ledger.give_back(i);
          free(a, i);
        });
      for (std::uint32_t reader = 0; reader < 2; ++reader)
        if (r.slots[i].readers.count(reader)) step([=](ring& a) { release(a, i, reader); });
    }
    for (std::uint32_t reader = 0; reader < 2; ++reader) {
      if (r.there[reader] && r.lives[reader] < deaths_) step([=](ring& a) { die(a, reader); });
      if (!r.there[reader]) step([=](ring& a) { a.there[reader] = true; });
    }
    REQUIRE((moved || (r.next > buckets_ && all_free))); // nothing is stuck
  }

  static void start(ring& r) {
    auto const slot = r.ledger.start_filling(r.next);
    REQUIRE(slot.has_value());
    REQUIRE(*slot == r.free_order.front()); // the one that has been free longest
    r.free_order.erase(r.free_order.begin());
    r.ledger.hold(*slot, owner);
    r.slots[*slot] = {slot_model::state::filling, r.next++, true, {}};
  }
  static void fill(ring& r, std::uint32_t slot) {
    r.ledger.filled(slot);
    r.slots[slot].what = slot_model::state::filled;
  }
  /// As the sender does, but before or after it was filled: held for everybody who is there, and no longer
  /// its own.
  static void publish(ring& r, std::uint32_t slot) {
    r.slots[slot].owned = false;
    for (std::uint32_t reader = 0; reader < 2; ++reader)
      if (r.there[reader]) {
        r.ledger.hold(slot, reader);
        r.slots[slot].readers.insert(reader);
      }
    REQUIRE(r.ledger.release(slot, owner));
    last_hold_ended(r, slot);
  }
  static void release(ring& r, std::uint32_t slot, std::uint32_t reader) {
    REQUIRE(r.ledger.release(slot, reader));
    REQUIRE_FALSE(r.ledger.release(slot, reader)); // a second one is nothing
    r.slots[slot].readers.erase(reader);
    last_hold_ended(r, slot);
  }
  static void die(ring& r, std::uint32_t reader) {
    r.there[reader] = false;
    ++r.lives[reader];
    std::uint32_t held = 0;
    for (std::uint32_t i = 0; i < r.slots.size(); ++i)
      if (r.slots[i].readers.erase(reader) != 0) {
        ++held;
        last_hold_ended(r, i);
      }
    REQUIRE(r.ledger.release_all(reader) == held);
  }
  /// A filled slot becomes free with its last hold; one that is filling waits for its packer.
  static void last_hold_ended(ring& r, std::uint32_t slot) {
    auto const& s = r.slots[slot];
    if (s.what == slot_model::state::filled && s.readers.empty() && !s.owned) free(r, slot);
  }
  static void free(ring& r, std::uint32_t slot) {
    r.slots[slot].what = slot_model::state::free;
    r.free_order.push_back(slot);
  }

  static void check(ring const& r) {
    std::uint32_t taken = 0;
    std::set<std::uint64_t> buckets;
    for (std::uint32_t i = 0; i < r.slots.size(); ++i) {
      auto const& s = r.slots[i];
      bool const free = s.what == slot_model::state::free;
      REQUIRE(r.ledger.is_free(i) == free);
      taken += !free;
      for (std::uint32_t reader = 0; reader < 2; ++reader)
        REQUIRE(r.ledger.holds(i, reader) == (s.readers.count(reader) != 0));
      if (free) continue;
      REQUIRE(r.ledger.seq(i) == s.bucket);
      REQUIRE(r.ledger.find(s.bucket) == i);
      REQUIRE(buckets.insert(s.bucket).second); // no bucket in two slots
      REQUIRE(r.ledger.holds(i, owner) == s.owned);
    }
    REQUIRE(r.ledger.taken() == taken);
  }

  std::uint64_t buckets_;
  unsigned deaths_;
  std::set<std::string> seen_;
};

} // namespace

TEST_CASE("any interleaving of two receivers' releases, deaths and joins keeps the rules of the slots") {
  for (std::uint32_t slots = 1; slots <= 3; ++slots) {
    walk const all(slots, 5, slots == 3 ? 1 : 2);
    CHECK(all.states() > 300);
    CHECK(all.ends > 0);
    MESSAGE("slots " << slots << ": " << all.states() << " states");
  }
}
