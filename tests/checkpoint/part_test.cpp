#include <doctest/doctest.h>

#include "checkpoint/part.hpp"

using namespace ropeway;

namespace {

// Walks a whole read; returns the number of parts, or 0 if a rule is broken.
std::size_t walk(std::uint64_t begin, std::uint64_t end, std::uintptr_t to, alignment_rule rule) {
  std::size_t count = 0;
  while (begin < end) {
    part const next = next_part(begin, end, to, rule);
    bool const covers = next.begin + next.skip == begin && next.wanted > 0 && next.wanted <= end - begin &&
                        next.skip + next.wanted <= next.bytes;
    bool const fits = next.bytes <= (next.bounce ? bounce_size : largest_part);
    bool const straight = next.bounce || (next.skip == 0 && next.wanted == next.bytes);
    bool const aligned = !next.direct || (next.begin % rule.offset == 0 && next.bytes % rule.offset == 0 &&
                                          (next.bounce || to % rule.memory == 0));
    if (!covers || !fits || !straight || !aligned || next.direct != (rule.offset != 0)) return 0;
    begin += next.wanted;
    to += next.wanted;
    ++count;
  }
  return count;
}

} // namespace

TEST_CASE("parts cover a read once, within the rules of the file") {
  alignment_rule const rules[] = {{}, {512, 4}, {512, 512}, {4096, 4096}, {4096, 512}, {65536, 1}};
  std::uint64_t const sizes[] = {1,     511,   512,    513,    4096,    65535,
                                 65536, 65537, 262144, 300000, 1048576, 5000001};
  std::uint64_t const begins[] = {0, 1, 8, 511, 512, 4095, 4096, 1048575, (1ull << 40) + 24};
  std::uintptr_t const addresses[] = {0, 1, 4, 8, 24, 256, 488, 504, 512, 4072, 4096, 65528};
  for (auto rule : rules)
    for (auto size : sizes)
      for (auto begin : begins)
        for (auto address : addresses) {
          CAPTURE(rule.offset);
          CAPTURE(size);
          CAPTURE(begin);
          CAPTURE(address);
          REQUIRE(walk(begin, begin + size, 65536 + address, rule) > 0);
        }
}

TEST_CASE("an aligned middle goes straight to memory that suits it") {
  // 8 bytes into a block on both sides: head, middle in large parts, tail.
  alignment_rule const rule{512, 512};
  std::uint64_t const begin = 8, end = 8 + 3 * 1024 * 1024;
  CHECK(next_part(begin, end, 4096 + 8, rule).bounce);
  CHECK(next_part(begin, end, 4096 + 8, rule).wanted == 504);
  CHECK_FALSE(next_part(512, end, 4096 + 512, rule).bounce);
  CHECK(next_part(512, end, 4096 + 512, rule).bytes == largest_part);
  CHECK(walk(begin, end, 4096 + 8, rule) == 5);
  // Memory that never meets the file's blocks: all of it is bounced.
  CHECK(walk(begin, end, 4096, rule) == 13);
  CHECK(next_part(512, end, 4096 + 8, rule).bytes == bounce_size);
}

TEST_CASE("a small read is one request") {
  CHECK(walk(8, 8 + 20000, 4096 + 8, {512, 512}) == 1);
  CHECK(walk(8, 8 + 20000, 4096, {512, 512}) == 1);
  CHECK(walk(512, 512 + 1024, 4096, {512, 512}) == 1);
  CHECK(walk(0, 3 * largest_part, 4096, {}) == 3);
}
