// Explores every order of events of sender and receivers, within bounds, and says how far that is.
//   test-explorer            what CI runs, in seconds; less with sanitizers
//   test-explorer --long     more, in minutes
//   test-explorer --verify   checks the explorer too: that it takes no two states for one that differ
//   test-explorer --only N   the configuration whose number is N, from 1; with --long, of the long list
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "search.hpp"
#include "support/sanitized.hpp"

namespace {

using namespace ropeway::explorer;

std::string in_words(bounds const& b) {
  std::string words =
      std::to_string(b.receivers.size()) + " receivers, " + std::to_string(b.slots) + " slots, updates of";
  for (auto const n : b.buckets) words += " " + std::to_string(n);
  words += " buckets, at most " + std::to_string(b.at_most) + " of " + std::to_string(b.faults.size()) +
           " kinds of fault";
  return words;
}

/// What all of it comes to, as docs/reliability.md has it.
class summary {
 public:
  void add(bounds const& b, outcome_of_search const& found) {
    ++configurations_;
    states_ += found.states;
    transitions_ += found.transitions;
    broken_ += !found.broken.empty();
    receivers_.add(b.receivers.size());
    slots_.add(b.slots);
    updates_.add(b.buckets.size());
    for (auto const n : b.buckets) buckets_.add(n);
    faults_.add(b.at_most);
    for (fault const f : b.faults) kinds_.at(static_cast<std::size_t>(f)) = true;
  }
  void print() const {
    if (configurations_ == 0) return;
    std::printf("explored: %zu configurations, %llu states, %llu transitions, %zu broken\n", configurations_,
                static_cast<unsigned long long>(states_), static_cast<unsigned long long>(transitions_),
                broken_);
    std::printf(
        "bounds: one sender, %s receivers, %s slots, %s updates of %s buckets (and those of what is held), "
        "%s faults in one run, of %zu kinds\n",
        receivers_.words().c_str(), slots_.words().c_str(), updates_.words().c_str(),
        buckets_.words().c_str(), faults_.words().c_str(),
        static_cast<std::size_t>(std::count(kinds_.begin(), kinds_.end(), true)));
    std::printf(
        "assumed: each socket delivers in order and loses nothing while both ends live, and nothing orders "
        "two sockets; a driver does what it is asked to, at any time, or says that it could not; receivers "
        "of one kind are interchangeable where no two limits can pass at once; states with the same "
        "description have the same future (--verify tries it)\n");
  }

 private:
  struct range {
    std::size_t least = SIZE_MAX, most = 0;
    void add(std::size_t n) {
      least = std::min(least, n);
      most = std::max(most, n);
    }
    std::string words() const {
      return least == most ? std::to_string(most) : std::to_string(least) + " to " + std::to_string(most);
    }
  };
  std::size_t configurations_ = 0, broken_ = 0;
  std::uint64_t states_ = 0, transitions_ = 0;
  range receivers_, slots_, updates_, buckets_, faults_;
  std::array<bool, fault_kinds> kinds_{};
};

} // namespace

int main(int argc, char** argv) {
  effort how = ropeway::testing::sanitized ? effort::brief : effort::normal;
  std::size_t only = 0;
  limits within;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--long") == 0) {
      how = effort::thorough;
    } else if (std::strcmp(argv[i], "--verify") == 0) {
      within.verify = true;
    } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      only = std::stoul(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: test-explorer [--long] [--verify] [--only NUMBER]\n");
      return 2;
    }
  }
  auto const list = configurations(how);
  int failures = 0;
  summary all;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (only != 0 && only != i + 1) continue;
    auto const found = explore(list[i], within);
    std::printf("%zu. %s (%s): %llu states, %llu transitions, depth %u, %llu ends, %.1f s\n", i + 1,
                list[i].name.c_str(), in_words(list[i]).c_str(),
                static_cast<unsigned long long>(found.states),
                static_cast<unsigned long long>(found.transitions), found.depth,
                static_cast<unsigned long long>(found.ends), found.seconds);
    all.add(list[i], found);
    if (!found.broken.empty()) {
      ++failures;
      std::printf("BROKEN after %u steps: %s\n", found.trace_steps, found.broken.c_str());
      for (auto const& line : found.trace) std::printf("  %s\n", line.c_str());
    }
    std::fflush(stdout);
  }
  all.print();
  return failures == 0 ? 0 : 1;
}
