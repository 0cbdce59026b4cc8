// Which bytes are text. Part of ropeway; Apache-2.0.
#include "base/utf8.hpp"

#include <doctest/doctest.h>

using namespace ropeway;

TEST_CASE("UTF-8 is told from what only looks like it") {
  for (auto const* text : {"", "plain", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
                           "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    CHECK(is_utf8(text));
  for (auto const* text : {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x7f", "\xe0\x9f\x80", "\xed\xa0\x80",
                           "\xe1\x80", "\xe1\x80\xc0", "\xf0\x8f\x80\x80", "\xf4\x90\x80\x80",
                           "\xf5\x80\x80\x80", "\xf1\x80\x80", "\xff", "a\xc3"})
    CHECK_FALSE(is_utf8(text));
}

TEST_CASE("the length of the first character, or nothing") {
  CHECK(utf8_length("") == 0);
  CHECK(utf8_length("ab") == 1);
  CHECK(utf8_length("\xc3\xa4 b") == 2);
  CHECK(utf8_length("\xe2\x82\xac") == 3);
  CHECK(utf8_length("\xf0\x9f\x9a\xa1.") == 4);
  CHECK(utf8_length("\xe2\x82") == 0);
  CHECK(utf8_length("\xa4 text") == 0);
}
