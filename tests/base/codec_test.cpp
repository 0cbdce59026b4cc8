// The codec: round trips, every truncation, lying counts, text. Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include <boost/describe.hpp>
#include <limits>
#include <random>

#include "base/codec.hpp"

namespace {

enum class colour : std::uint8_t { red = 1, green = 2, blue = 7 };
BOOST_DESCRIBE_ENUM(colour, red, green, blue)
enum class level : std::uint16_t { low, high };

struct point {
  std::int32_t x = 0;
  std::uint64_t y = 0;
};
BOOST_DESCRIBE_STRUCT(point, (), (x, y))

struct everything {
  std::uint8_t small = 0;
  std::int64_t negative = 0;
  bool yes = false;
  colour paint = colour::red;
  level height = level::low;
  std::string name;
  std::vector<point> points;
  std::vector<std::string> words;
  std::array<std::uint8_t, 4> id{};
  point where;
};
BOOST_DESCRIBE_STRUCT(everything, (), (small, negative, yes, paint, height, name, points, words, id, where))

struct greeting {
  using appended_to = void;
  std::uint32_t number = 0;
};
BOOST_DESCRIBE_STRUCT(greeting, (), (number))

struct stop {};
BOOST_DESCRIBE_STRUCT(stop, (), ())

using any_message = std::variant<greeting, everything, stop>;

} // namespace

template <>
struct ropeway::codec::enum_range<level> {
  static constexpr level last = level::high;
};

namespace {

namespace codec = ropeway::codec;

everything sample() {
  everything e;
  e.small = 200;
  e.negative = -5;
  e.yes = true;
  e.paint = colour::blue;
  e.height = level::high;
  e.name = "layers.0";
  e.points = {{-1, 2}, {3, std::numeric_limits<std::uint64_t>::max()}};
  e.words = {"", "a", "quote\"\n\xff"};
  e.id = {1, 2, 3, 255};
  e.where = {7, 8};
  return e;
}

template <class T>
std::vector<std::byte> bytes_of(T const& v) {
  std::vector<std::byte> out;
  codec::encode(v, out);
  return out;
}

std::vector<std::byte> raw(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

struct texts {
  std::vector<std::string> all;
};
BOOST_DESCRIBE_STRUCT(texts, (), (all))

struct other_order {
  std::uint64_t y = 0;
  std::int32_t x = 0;
};
BOOST_DESCRIBE_STRUCT(other_order, (), (y, x))

} // namespace

TEST_CASE("a described struct comes back as it went") {
  auto const bytes = bytes_of(sample());
  everything back;
  auto const r = codec::decode(bytes, back);
  CHECK_MESSAGE(static_cast<bool>(r), r.text());
  CHECK(codec::described_equal(back, sample()));
  back.points[1].x = 4;
  CHECK_FALSE(codec::described_equal(back, sample()));
}

TEST_CASE("integers are little-endian and of fixed width, and encode appends") {
  auto bytes = raw({0xaa});
  codec::encode(point{-2, 0x0102}, bytes);
  CHECK(bytes == raw({0xaa, 0xfe, 0xff, 0xff, 0xff, 2, 1, 0, 0, 0, 0, 0, 0}));
  CHECK(bytes_of(std::string("hi")) == raw({2, 0, 0, 0, 'h', 'i'}));
}

TEST_CASE("a variant is its index and the alternative") {
  CHECK(bytes_of(any_message(greeting{5})) == raw({0, 5, 0, 0, 0}));
  CHECK(bytes_of(any_message(stop{})) == raw({2}));
  for (any_message const& m : {any_message(greeting{5}), any_message(sample()), any_message(stop{})}) {
    any_message back;
    REQUIRE(codec::decode(bytes_of(m), back));
    CHECK(codec::described_equal(m, back));
  }
  any_message back;
  CHECK_FALSE(codec::decode(raw({3}), back));
  CHECK_FALSE(codec::decode(raw({}), back));
}

TEST_CASE("every truncation and every extension is refused") {
  auto const bytes = bytes_of(sample());
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    everything back;
    CHECK_FALSE(codec::decode(std::span(bytes).first(n), back));
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  everything back;
  auto const r = codec::decode(longer, back);
  CHECK_FALSE(r);
  CHECK(r.at() == bytes.size());
}

TEST_CASE("an extensible struct skips what later versions appended, alone and in a variant") {
  greeting g;
  CHECK(codec::decode(raw({5, 0, 0, 0, 99, 98}), g));
  CHECK(g.number == 5);
  CHECK_FALSE(codec::decode(raw({5, 0, 0}), g));
  any_message m;
  CHECK(codec::decode(raw({0, 5, 0, 0, 0, 99}), m));
  CHECK_FALSE(codec::decode(raw({2, 99}), m));
}

TEST_CASE("unknown enumerators and odd truth values are refused, naming the member") {
  auto bytes = bytes_of(sample());
  everything back;
  bytes[9] = std::byte{2};
  CHECK(codec::decode(bytes, back).member() == "yes");
  bytes[9] = std::byte{0};
  bytes[10] = std::byte{3};
  auto const r = codec::decode(bytes, back);
  CHECK(r.member() == "paint");
  CHECK(r.text() == "an unknown value of an enumeration (paint) at byte 11");
  bytes[10] = std::byte{2};
  bytes[11] = std::byte{2};
  CHECK(codec::decode(bytes, back).member() == "height");
}

TEST_CASE("counts are held to their limits and to what follows") {
  texts back;
  CHECK_FALSE(codec::decode(raw({0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}), back));
  CHECK(back.all.capacity() == 0);
  // Two strings need eight bytes at the least; seven follow.
  CHECK(codec::decode(raw({2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}), back).what() ==
        "a count is larger than what follows");
  CHECK(back.all.capacity() == 0);
  texts const three{{"abc", "d", "e"}};
  auto const bytes = bytes_of(three);
  CHECK(codec::decode(bytes, back, {3, 3}));
  CHECK(codec::decode(bytes, back, {2, 3}).what() == "a count is above its limit");
  CHECK(codec::decode(bytes, back, {3, 2}).what() == "a count is above its limit");
}

TEST_CASE("any damage either is refused or decodes to what encodes to the same bytes") {
  auto const good = bytes_of(any_message(sample()));
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    auto bytes = good;
    for (int hits = 1 + static_cast<int>(random() % 3); hits > 0; --hits)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() & 0xff);
    any_message back;
    if (!codec::decode(bytes, back) || back.index() == 0) continue;
    ++accepted;
    REQUIRE(bytes_of(back) == bytes);
  }
  CHECK(accepted > 100);
}

TEST_CASE("print is one line that names, quotes, escapes and cuts") {
  CHECK(codec::print(point{-1, 2}) == "point{x=-1, y=2}");
  CHECK(codec::print(any_message(stop{})) == "stop{}");
  CHECK(codec::print(sample()) ==
        "everything{small=200, negative=-5, yes=true, paint=blue, height=1, name=\"layers.0\", "
        "points=[point{x=-1, y=2}, point{x=3, y=18446744073709551615}], "
        "words=[\"\", \"a\", \"quote\\\"\\x0a\\xff\"], id=010203ff, where=point{x=7, y=8}}");
  CHECK(codec::print(std::string(1000, 'x')).size() < 200);
  CHECK(codec::print(std::vector<std::uint8_t>(10)) == "[0, 0, 0, 0, 0, 0, 0, 0, ... 2 more]");
}

TEST_CASE("the schema hash notices names, types and order") {
  static_assert(codec::schema_hash<point>() == codec::schema_hash<point>());
  static_assert(codec::schema_hash<point>() != codec::schema_hash<other_order>());
  static_assert(codec::schema_hash<any_message>() !=
                codec::schema_hash<std::variant<everything, greeting, stop>>());
  static_assert(codec::schema_hash<std::vector<std::uint8_t>>() !=
                codec::schema_hash<std::vector<std::int8_t>>());
  CHECK(codec::schema_hash<point>() != 0);
}
