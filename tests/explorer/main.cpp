// Explores every order of events of sender and receivers, within bounds, and says how far that is.
//   test-explorer            what CI runs, in seconds; less with sanitizers
//   test-explorer --long     more, in minutes
//   test-explorer --verify   checks the explorer too: that it takes no two states for one that differ
//   test-explorer --only N   the configuration whose number is N, from 1; with --long, of the long list
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
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (only != 0 && only != i + 1) continue;
    auto const found = explore(list[i], within);
    std::printf("%zu. %s (%s): %llu states, %llu transitions, depth %u, %llu ends, %.1f s\n", i + 1,
                list[i].name.c_str(), in_words(list[i]).c_str(),
                static_cast<unsigned long long>(found.states),
                static_cast<unsigned long long>(found.transitions), found.depth,
                static_cast<unsigned long long>(found.ends), found.seconds);
    if (!found.broken.empty()) {
      ++failures;
      std::printf("BROKEN after %u steps: %s\n", found.trace_steps, found.broken.c_str());
      for (auto const& line : found.trace) std::printf("  %s\n", line.c_str());
    }
    std::fflush(stdout);
  }
  return failures == 0 ? 0 : 1;
}
