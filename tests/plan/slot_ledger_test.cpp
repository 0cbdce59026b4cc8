// The books on slots, against the plainest books. Part of ropeway; Apache-2.0.
#include "plan/slot_ledger.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>
#include <stdexcept>

#include "support.hpp"

using namespace ropeway;
using plan::slot_ledger;

TEST_CASE("a slot goes from free to filling to read to free") {
  slot_ledger ledger(2);
  CHECK(ledger.slots() == 2);
  REQUIRE(ledger.start_filling(10) == 0u);
  CHECK(ledger.taken() == 1);
  CHECK(ledger.find(10) == 0u);
  ledger.hold(0, 7);
  ledger.filled(0);
  ledger.hold(0, 8);
  CHECK(ledger.holds(0, 7));
  CHECK(ledger.release(0, 7));
  CHECK_FALSE(ledger.is_free(0));
  CHECK_FALSE(ledger.release(0, 7));
  CHECK(ledger.release(0, 8));
  CHECK(ledger.is_free(0));
  CHECK_FALSE(ledger.find(10));
  CHECK(ledger.seq(0) == 10);
  CHECK(ledger.taken() == 0);
}

TEST_CASE("no slot is given out twice, and the one that has been free longest comes first") {
  slot_ledger ledger(3);
  CHECK(ledger.start_filling(1) == 0u);
  CHECK(ledger.start_filling(2) == 1u);
  CHECK(ledger.start_filling(3) == 2u);
  CHECK_FALSE(ledger.start_filling(4));
  for (auto slot : {1u, 2u, 0u}) ledger.give_back(slot);
  CHECK(ledger.start_filling(5) == 1u);
  CHECK(ledger.start_filling(6) == 2u);
  CHECK(ledger.start_filling(7) == 0u);
}

TEST_CASE("a reader that ends while a slot is filling does not free it") {
  slot_ledger ledger(1);
  REQUIRE(ledger.start_filling(1));
  ledger.hold(0, 1);
  CHECK(ledger.release_all(1) == 1);
  CHECK_FALSE(ledger.is_free(0));
  ledger.filled(0);
  CHECK_FALSE(ledger.is_free(0)); // nobody reads it, nobody ever did: its owner gives it back
  ledger.give_back(0);
  CHECK(ledger.is_free(0));
}

TEST_CASE("release_all ends the holds of one reader on all slots") {
  slot_ledger ledger(3);
  for (std::uint32_t i = 0; i < 3; ++i) {
    REQUIRE(ledger.start_filling(i));
    ledger.hold(i, 1);
    if (i == 1) ledger.hold(i, 2);
    ledger.filled(i);
  }
  CHECK(ledger.release_all(1) == 3);
  CHECK(ledger.taken() == 1);
  CHECK(ledger.release_all(1) == 0);
  CHECK(ledger.release_all(2) == 1);
  CHECK(ledger.taken() == 0);
}

TEST_CASE("steps that make no sense are errors of the program") {
  slot_ledger ledger(1);
  CHECK_THROWS_AS(ledger.filled(0), std::logic_error);
  CHECK_THROWS_AS(ledger.hold(0, 1), std::logic_error);
  CHECK_THROWS_AS(ledger.give_back(0), std::logic_error);
  CHECK_THROWS_AS(ledger.filled(1), std::out_of_range);
  REQUIRE(ledger.start_filling(1));
  ledger.hold(0, 1);
  CHECK_THROWS_AS(ledger.hold(0, 1), std::logic_error);
  CHECK_THROWS_AS(ledger.give_back(0), std::logic_error);
  ledger.filled(0);
  CHECK_THROWS_AS(ledger.filled(0), std::logic_error);
  CHECK_FALSE(slot_ledger(0).start_filling(1));
}

TEST_CASE("any order of steps agrees with a plain model") {
  struct model_slot {
    bool filled = false;
    std::uint64_t seq = 0;
    std::set<plan::reader_id> readers;
  };
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    test::dice dice(seed);
    auto const slots = static_cast<std::uint32_t>(dice.roll(1, 4));
    slot_ledger ledger(slots);
    std::map<std::uint32_t, model_slot> taken;
    std::vector<std::uint32_t> free_order; // longest free first
    for (std::uint32_t i = 0; i < slots; ++i) free_order.push_back(i);
    auto const release_in_model = [&](std::uint32_t slot, plan::reader_id reader) {
      auto const found = taken.find(slot);
      if (found == taken.end() || found->second.readers.erase(reader) == 0) return false;
      if (found->second.filled && found->second.readers.empty()) {
        taken.erase(found);
        free_order.push_back(slot);
      }
      return true;
    };
    for (std::uint64_t seq = 1; seq < 600; ++seq) {
      auto const slot = static_cast<std::uint32_t>(dice.roll(0, slots - 1));
      auto const reader = static_cast<plan::reader_id>(dice.roll(1, 3));
      auto const found = taken.find(slot);
      switch (dice.roll(0, 5)) {
      case 0: {
        auto const got = ledger.start_filling(seq);
        REQUIRE(got.has_value() == !free_order.empty());
        if (!got) break;
        REQUIRE(*got == free_order.front());
        free_order.erase(free_order.begin());
        taken[*got].seq = seq;
        break;
      }
      case 1:
        if (found == taken.end() || found->second.filled)
          REQUIRE_THROWS_AS(ledger.filled(slot), std::logic_error);
        else {
          ledger.filled(slot);
          found->second.filled = true;
        }
        break;
      case 2:
        if (found == taken.end() || found->second.readers.contains(reader))
          REQUIRE_THROWS_AS(ledger.hold(slot, reader), std::logic_error);
        else {
          ledger.hold(slot, reader);
          found->second.readers.insert(reader);
        }
        break;
      case 3: REQUIRE(ledger.release(slot, reader) == release_in_model(slot, reader)); break;
      case 4:
        if (dice.one_in(4)) {
          std::uint32_t ended = 0;
          for (std::uint32_t i = 0; i < slots; ++i) ended += release_in_model(i, reader);
          REQUIRE(ledger.release_all(reader) == ended);
        }
        break;
      default:
        if (found == taken.end() || !found->second.readers.empty())
          REQUIRE_THROWS_AS(ledger.give_back(slot), std::logic_error);
        else if (dice.one_in(3)) {
          ledger.give_back(slot);
          taken.erase(found);
          free_order.push_back(slot);
        }
      }
      REQUIRE(ledger.taken() == taken.size());
      for (std::uint32_t i = 0; i < slots; ++i) {
        auto const now = taken.find(i);
        REQUIRE(ledger.is_free(i) == (now == taken.end()));
        for (plan::reader_id r = 1; r <= 3; ++r)
          REQUIRE(ledger.holds(i, r) == (now != taken.end() && now->second.readers.contains(r)));
        if (now == taken.end()) continue;
        REQUIRE(ledger.seq(i) == now->second.seq);
        REQUIRE(ledger.find(now->second.seq) == i);
      }
    }
  }
}
