// Runs what needs no device everywhere, the rest where there is one, and says loudly when there is none.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>

#include "kit.hpp"
#include "roles.hpp"

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    if (std::strncmp(arguments[i], "--role=", 7) == 0) return ropeway::testing::play(arguments[i] + 7);
  }
  doctest::Context context(count, arguments);
  std::string const reason = ropeway::testing::no_device();
  if (reason.empty()) return context.run();
  context.addFilter("test-suite", "pure");
  int const failed = context.run();
  std::printf("SKIPPED: no CUDA device (%s)\n", reason.c_str());
  return failed != 0 ? failed : 77;
}
