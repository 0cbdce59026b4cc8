#include "protocol/codec.hpp"

#include <doctest/doctest.h>

#include <random>
#include <string>

#include "base/codec.hpp"
#include "protocol/text.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using namespace ropeway::protocol;

namespace {

/// One message of each kind, with every field different from its default.
std::vector<message> one_of_each() {
  bytes16 id{};
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::uint8_t>(i + 1);
  hello hi;
  hi.magic = hello_magic;
  hi.oldest = 1;
  hi.newest = 3;
  hi.schema = schema_hash();
  hi.last_sender = id;
  hi.last_update = 7;
  hi.version_held = 8;
  hi.group_size = 2;
  hi.group = "tp";
  hi.name = "server-0";
  hi.devices = {id, id};
  return {hi,
          welcome{1, id, 1 << 20, 10000},
          turned_away{2, "full"},
          ring{1, 1, id, 1 << 20, 2},
          ring_mapped{1},
          ring_refused{1, 43, "no peer access"},
          begin{3, 4, id, 5, 6, 7, 8},
          need_manifest{3},
          manifest_follows{3, 4096},
          accept{3},
          refuse{3, 8, "asleep"},
          not_now{3, 250, "serving"},
          published{3, 9, 0, 1, 1, 100},
          released{3, 9},
          all_copied{3, id, 700},
          commit{3, "not mapped"},
          committed{3},
          failed{3, 32, "loader"},
          abort_update{3, 6, "source"},
          aborted{3},
          alive{3},
          goodbye{0, "bye"},
          need_placement{3},
          placement_follows{3, 4096},
          need_segment{3, 11, 32},
          segment_part{3, 11, 32, 2, 1 << 20, {7}, 0, {}},
          read_mapped{3},
          unmap{{11, 12}},
          unmapped{{11}},
          watch{hello_magic, 1, 1, 5},
          seen_receiver{"server-0", 3, 1, 4, 100, 200, 300, "asleep", 1, id},
          seen_sender{1, id, 1, 4, 5, 6, 7, 8, 9, 1, 4, id},
          digest_table{2, 1600},
          digests_ready{3}};
}

std::vector<std::byte> bytes_of(message const& m) {
  std::vector<std::byte> out;
  encode(m, out);
  return out;
}

} // namespace

TEST_CASE("every message comes back as it was") {
  auto const all = one_of_each();
  REQUIRE(all.size() == std::variant_size_v<message>);
  for (std::size_t i = 0; i < all.size(); ++i) {
    REQUIRE(all[i].index() == i);
    std::string wrong;
    auto const back = decode(bytes_of(all[i]), wrong);
    REQUIRE_MESSAGE(back, wrong);
    CHECK(codec::described_equal(*back, all[i]));
    CHECK(print(*back).rfind(std::string(name_of(all[i])) + "{", 0) == 0);
  }
}

TEST_CASE("encode writes one datagram and nothing of what was there before") {
  std::vector<std::byte> out(1000);
  encode(accept{3}, out);
  CHECK(out.size() == 1 + 8 + 1 + 2 + 4);
}

TEST_CASE("exactly the messages that carry memory expect a descriptor") {
  for (auto const& m : one_of_each()) {
    bool const carries = std::holds_alternative<ring>(m) || std::holds_alternative<manifest_follows>(m) ||
                         std::holds_alternative<placement_follows>(m) ||
                         std::holds_alternative<segment_part>(m) || std::holds_alternative<digest_table>(m);
    CHECK(expected_fds(m) == (carries ? 1 : 0));
  }
}

TEST_CASE("a part has a descriptor if its kind has one, and if it was exported at all") {
  segment_part part{3, 11, 32, 0, 1 << 20, {7}, 0, {}};
  for (int const kind : {0, 1, 2, 3, 4, 255}) {
    part.kind = static_cast<std::uint8_t>(kind);
    CHECK(expected_fds(part) == (kind == 1 || kind == 2 ? 1 : 0));
  }
  part.kind = 2;
  part.code = 43;
  CHECK(expected_fds(part) == 0);
}

TEST_CASE("a datagram cut short anywhere is refused, and says so in one line") {
  for (auto const& m : one_of_each()) {
    auto const whole = bytes_of(m);
    for (std::size_t n = 0; n < whole.size(); ++n) {
      std::string wrong;
      CHECK_FALSE(decode(std::span(whole).first(n), wrong));
      CHECK_FALSE(wrong.empty());
      CHECK(wrong.find('\n') == wrong.npos);
    }
  }
}

TEST_CASE("bytes behind a message are refused, but first words of a later build may have more fields") {
  for (auto const& m : one_of_each()) {
    auto longer = bytes_of(m);
    longer.push_back(std::byte{1});
    std::string wrong;
    CHECK(decode(longer, wrong).has_value() ==
          (std::holds_alternative<hello>(m) || std::holds_alternative<watch>(m)));
  }
}

TEST_CASE("the encoding of hello is frozen") {
  hello hi;
  hi.magic = hello_magic;
  hi.oldest = 1;
  hi.newest = 2;
  hi.schema = 0x1122334455667788;
  hi.last_sender[0] = 9;
  hi.last_update = 3;
  hi.version_held = 4;
  hi.group_size = 5;
  hi.group = "g";
  hi.name = "nm";
  hi.devices.resize(1);
  auto const bytes = bytes_of(hi);
  std::string hex;
  for (auto b : bytes) {
    constexpr char digits[] = "0123456789abcdef";
    hex += digits[std::to_integer<unsigned>(b) >> 4];
    hex += digits[std::to_integer<unsigned>(b) & 15];
  }
  CHECK(hex == "00"                                         // tag
               "726f706577617931"                           // "ropeway1"
               "01000200"                                   // versions
               "8877665544332211"                           // schema
               "09000000000000000000000000000000"           // last_sender
               "0300000000000000"                           // last_update
               "0400000000000000"                           // version_held
               "05000000"                                   // group_size
               "0100000067"                                 // group
               "020000006e6d"                               // name
               "0100000000000000000000000000000000000000"); // devices
}

TEST_CASE("texts, names and lists beyond their limits are neither sent nor believed") {
  std::vector<std::byte> out;
  std::string wrong;
  auto const refused = [&](message const& m) {
    CHECK_THROWS_AS(encode(m, out), transfer_error);
    out.clear();
    codec::encode(m, out); // what a liar would send
    CHECK_FALSE(decode(out, wrong));
    CHECK_FALSE(wrong.empty());
  };
  refused(refuse{1, 2, std::string(max_text + 1, 'x')});
  refused(goodbye{1, std::string(4 * max_text, 'x')});
  hello hi;
  hi.name = std::string(max_name + 1, 'x');
  refused(hi);
  hi.name.clear();
  hi.group = std::string(max_name + 1, 'x');
  refused(hi);
  hi.group.clear();
  hi.devices.resize(max_devices + 1);
  refused(hi);

  hi.devices.resize(max_devices);
  hi.name = hi.group = std::string(max_name, 'x');
  CHECK(decode(bytes_of(hi), wrong));
  CHECK(decode(bytes_of(refuse{1, 2, std::string(max_text, 'x')}), wrong));
  CHECK(bytes_of(refuse{1, 2, std::string(max_text, 'x')}).size() <= max_datagram);
}

TEST_CASE("a datagram above the limit is refused unread") {
  std::string wrong;
  std::vector<std::byte> huge(max_datagram + 1);
  CHECK_FALSE(decode(huge, wrong));
  CHECK(wrong == "a datagram of 131073 bytes, more than 131072");
}

TEST_CASE("a count that says more than the datagram holds allocates nothing") {
  auto bytes = bytes_of(goodbye{1, "x"});
  for (std::size_t i = 3; i < 7; ++i) bytes[i] = std::byte{0xff};
  std::string wrong;
  CHECK_FALSE(decode(bytes, wrong));
}

TEST_CASE("random and flipped datagrams never crash, and what is read can be written again") {
  std::mt19937 random(11);
  auto const all = one_of_each();
  for (int i = 0; i < 100'000; ++i) {
    auto bytes = bytes_of(all[random() % all.size()]);
    switch (random() % 3) {
    case 0:
      for (unsigned n = 1 + random() % 4; n > 0; --n)
        bytes[random() % bytes.size()] ^= std::byte(1u << (random() % 8));
      break;
    case 1: bytes.resize(random() % (bytes.size() + 8)); break;
    default:
      bytes.resize(random() % 120);
      for (auto& b : bytes) b = std::byte(random() % 256);
    }
    std::string wrong;
    auto const read = decode(bytes, wrong);
    if (!read) {
      REQUIRE_FALSE(wrong.empty());
      continue;
    }
    (void)print(*read);
    auto const again = bytes_of(*read);
    REQUIRE(again.size() <= bytes.size());
    REQUIRE(std::equal(again.begin(), again.end(), bytes.begin()));
  }
}

TEST_CASE("the schema hash is the same for everyone who has these messages") {
  CHECK(schema_hash() == schema_hash());
  CHECK(schema_hash() != 0);
}

TEST_CASE("foreign words become one line, cut between characters") {
  CHECK(one_line("a\nb\tc\x7f") == "a b c ");
  CHECK(one_line("abcdef", 3) == "abc");
  CHECK(one_line("ab\xc3\xa4", 3) == "ab");
  CHECK(one_line("", 3).empty());
  CHECK(words("update ", 3, " of ", std::string("x"), ' ' + std::string()) == "update 3 of x ");
}
