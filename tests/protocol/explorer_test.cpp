// Thousands of short lives of a job, each decided by its seed. A failure prints the seed; run it alone to see
// why.
#include <doctest/doctest.h>

#include "support/sanitized.hpp"
#include "world.hpp"

using namespace ropeway::test;

namespace {

constexpr std::uint32_t lives = ropeway::testing::rounds(7'000u);

struct tally {
  unsigned committed = 0, not_committed = 0, updates = 0;
};

tally explore(std::uint32_t first_seed, std::uint32_t count, faults const& odds) {
  tally sum;
  for (std::uint32_t seed = first_seed; seed < first_seed + count; ++seed) {
    try {
      world w(seed, odds, 1 + seed % 3);
      for (unsigned i = 0; i < 1 + seed % 3; ++i) {
        bool const grouped = seed % 3 > 0 && seed % 5 == 0 && i < 2;
        w.join({grouped ? "tp" : "", grouped ? 2u : 0u, (seed >> i) % 2 == 0});
      }
      w.run(150, 2);
      if (seed % 4 == 0) w.join({"", 0, seed % 8 == 0});
      w.run(150, 2);
      w.wind_down();
      sum.committed += w.committed;
      sum.not_committed += w.not_committed;
      sum.updates += w.updates_finished;
    } catch (std::exception const& e) {
      FAIL_CHECK("seed " << seed << ": " << std::string(e.what()));
      return sum;
    }
  }
  return sum;
}

} // namespace

TEST_CASE("when nothing goes wrong, everyone who is there commits, in every order of events") {
  auto const sum = explore(1, lives, {});
  CHECK(sum.updates > 2 * lives);
  CHECK(sum.committed > 2 * lives);
  CHECK(sum.not_committed == 0); // but for groups that were not complete yet
}

TEST_CASE("every update ends and keeps its promises when receivers say no, fail or cancel") {
  faults odds;
  odds.refuse = 100;
  odds.not_now = 100;
  odds.never_decides = 30;
  odds.refuse_device_ring = 300;
  odds.refuse_host_ring = 30;
  odds.ring_fails = 30;
  odds.load_fails = 30;
  odds.commit_fails = 60;
  odds.never_commits = 20;
  odds.receiver_cancels = 3;
  odds.sender_cancels = 3;
  odds.receiver_closes = 1;
  auto const sum = explore(100'000, lives, odds);
  CHECK(sum.committed > lives / 4);
  CHECK(sum.not_committed > lives / 4);
}

TEST_CASE("every update ends and keeps its promises when receivers die, hang and wake again") {
  faults odds;
  odds.kill = 3;
  odds.stop = 10;
  odds.refuse_device_ring = 200;
  odds.receiver_cancels = 2;
  odds.sender_cancels = 2;
  auto const sum = explore(200'000, lives, odds);
  CHECK(sum.committed > lives / 4);
  CHECK(sum.not_committed > lives / 4);
}
