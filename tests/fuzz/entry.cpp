// Makes a libFuzzer program of one target; the build says which. An exception that leaves it is a finding.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);

int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  try {
    ropeway::fuzz::ROPEWAY_FUZZ_TARGET({data, size});
  } catch (std::exception const& e) {
    std::fprintf(stderr, "a promise is broken: %s\n", e.what());
    std::abort();
  }
  return 0;
}
