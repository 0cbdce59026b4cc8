#include <doctest/doctest.h>

#include <sys/stat.h>

#include "files.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

struct malformed {
  char const* what;
  std::string content;
  char const* fragment; // of the message
  errc code = errc::bad_checkpoint;
};

std::string entry(std::string_view name, std::string_view dtype, std::string_view dims,
                  std::string_view offsets) {
  return '"' + std::string(name) + R"(":{"dtype":")" + std::string(dtype) + R"(","shape":)" +
         std::string(dims) + R"(,"data_offsets":)" + std::string(offsets) + '}';
}
std::string object(std::initializer_list<std::string> members) {
  std::string text = "{";
  for (auto const& member : members) text += (text.size() > 1 ? "," : "") + member;
  return text + '}';
}
std::string one(std::string_view dtype, std::string_view dims, std::string_view offsets, std::size_t data) {
  return raw_file(object({entry("x", dtype, dims, offsets)}), data);
}
std::string nested(std::size_t depth) {
  return R"({"x":{"foreign":)" + std::string(depth, '[') + std::string(depth, ']') + "}}";
}

std::vector<malformed> malformed_files() {
  using namespace std::string_literals;
  std::string const good = entry("a", "U8", "[4]", "[0,4]");
  return {
      {"an empty file", "", "has 0 bytes, less than the header's size field of 8"},
      {"seven bytes", "1234567", "has 7 bytes"},
      {"a size field of 0", raw_file("", 0), "the header is empty"},
      {"a text file", "#!/bin/sh\necho hello\n", "is this a safetensors file?"},
      {"a header over the limit", "\x01\xe1\xf5\x05\0\0\0\0{}"s,
       "header of 100000001 bytes; at most 100000000"},
      {"a size field of all ones", std::string(8, '\xff') + "{}", "at most 100000000 are allowed"},
      {"a header longer than the file", "\x05\0\0\0\0\0\0\0{}"s, "header of 5 bytes, but only 2 follow"},
      {"an array", raw_file("[]", 0), "does not begin with '{'"},
      {"a leading space", raw_file(" {}", 0), "does not begin with '{'"},
      {"a byte order mark", raw_file("\xEF\xBB\xBF{}", 0), "does not begin with '{'"},
      {"no JSON", raw_file("{nonsense}", 0), "header byte 1: no valid JSON"},
      {"an unfinished object", raw_file("{", 0), "no valid JSON (incomplete JSON)"},
      {"text after the object", raw_file("{}x", 0), "header byte 2: text after the closing brace"},
      {"a second object", raw_file("{} {}", 0), "header byte 3: text after the closing brace"},
      {"a zero byte as padding", raw_file("{}\0\0"s, 0), "text after the closing brace"},
      {"a trailing comma", raw_file('{' + good + ",}", 4), "no valid JSON"},
      {"a comment", raw_file("{/* */}", 0), "no valid JSON"},
      {"a name that is no UTF-8", raw_file(object({entry("\xC3\x28", "U8", "[4]", "[0,4]")}), 4),
       "no valid JSON"},
      {"an overlong code point", raw_file(object({entry("\xC0\xAF", "U8", "[4]", "[0,4]")}), 4),
       "no valid JSON"},
      {"half a surrogate pair", raw_file(object({entry("\\ud800", "U8", "[4]", "[0,4]")}), 4),
       "no valid JSON"},
      {"a line break in a name", raw_file(object({entry("a\nb", "U8", "[4]", "[0,4]")}), 4), "no valid JSON"},
      {"deep nesting", raw_file(nested(1000), 0), "nested more than 32 deep"},
      {"a tensor that is a string", raw_file(R"({"x":"y"})", 0),
       "tensor \"x\" is a string; it must be an object"},
      {"a tensor that is a list", raw_file(R"({"x":["F32",[1],[0,4]]})", 4), "tensor \"x\" is a list"},
      {"a tensor that is null", raw_file(R"({"x":null})", 0), "tensor \"x\" is null"},
      {"no dtype", raw_file(R"({"x":{"shape":[4],"data_offsets":[0,4]}})", 4), "tensor \"x\" has no dtype"},
      {"no shape", raw_file(R"({"x":{"dtype":"U8","data_offsets":[0,4]}})", 4), "tensor \"x\" has no shape"},
      {"no offsets", raw_file(R"({"x":{"dtype":"U8","shape":[4]}})", 4), "tensor \"x\" has no data_offsets"},
      {"an unknown dtype", one("F12", "[4]", "[0,4]", 4),
       "dtype of tensor \"x\" is \"F12\", which is not known"},
      {"a dtype in small letters", one("f32", "[1]", "[0,4]", 4), "is \"f32\", which is not known"},
      {"a dtype that is a number", raw_file(R"({"x":{"dtype":4}})", 0), "dtype of tensor \"x\" is a number"},
      {"a negative extent", one("U8", "[-4]", "[0,4]", 4), "shape of tensor \"x\" holds a negative number"},
      {"minus zero", one("U8", "[-0]", "[0,0]", 0), "shape of tensor \"x\" holds a negative number"},
      {"a fraction", one("U8", "[4.0]", "[0,4]", 4),
       "shape of tensor \"x\" holds a number that is no whole number"},
      {"an exponent", one("U8", "[4e0]", "[0,4]", 4), "holds a number that is no whole number"},
      {"an extent over 64 bits", one("U8", "[18446744073709551616]", "[0,4]", 4),
       "no whole number of 64 bits"},
      {"an extent that is a string", one("U8", "[\"4\"]", "[0,4]", 4),
       "shape of tensor \"x\" holds a string"},
      {"a shape that is a number", one("U8", "4", "[0,4]", 4), "shape of tensor \"x\" is a number"},
      {"a list in a shape", one("U8", "[[4]]", "[0,4]", 4), "shape of tensor \"x\" holds a list"},
      {"nine dimensions", one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]", 1), "more than 8 dimensions",
       errc::unsupported},
      {"a size that overflows", one("U8", "[4294967296,4294967296]", "[0,4]", 4),
       "size that overflows 64 bits"},
      {"bits that overflow", one("F64", "[2305843009213693952]", "[0,0]", 0), "size that overflows 64 bits"},
      {"an overflow times 0", one("U8", "[9223372036854775808,2,0]", "[0,0]", 0),
       "size that overflows 64 bits"},
      {"half a byte", one("F4", "[3]", "[0,2]", 2), "(F4 [3]) takes no whole number of bytes"},
      {"one offset", one("U8", "[4]", "[4]", 4), "data_offsets of tensor \"x\" holds 1 numbers instead of 2"},
      {"three offsets", one("U8", "[4]", "[0,4,8]", 4), "holds 3 numbers instead of 2"},
      {"offsets that run backwards", one("U8", "[4]", "[4,0]", 4),
       "[4, 0] of tensor \"x\" end before they begin"},
      {"a negative offset", one("U8", "[4]", "[-4,0]", 4),
       "data_offsets of tensor \"x\" holds a negative number"},
      {"offsets that give too much", one("F32", "[1]", "[0,8]", 8),
       "takes 4 bytes, but data_offsets [0, 8] give it 8"},
      {"offsets that give too little", one("F32", "[2]", "[0,4]", 4),
       "takes 8 bytes, but data_offsets [0, 4] give it 4"},
      {"a name twice", raw_file(object({good, entry("a", "U8", "[4]", "[4,8]")}), 8),
       "tensor \"a\" appears twice"},
      {"a name twice, once escaped", raw_file(object({good, entry("\\u0061", "U8", "[4]", "[4,8]")}), 8),
       "appears twice"},
      {"a member twice", raw_file(R"({"x":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}})", 0),
       "tensor \"x\" has \"dtype\" twice"},
      {"a hole at the beginning", one("U8", "[4]", "[4,8]", 8), "leaves a hole of 4 bytes before it"},
      {"a hole in the middle", raw_file(object({good, entry("b", "U8", "[4]", "[6,10]")}), 10),
       "leaves a hole of 2 bytes"},
      {"an overlap", raw_file(object({good, entry("b", "U8", "[4]", "[2,6]")}), 6),
       "overlaps tensor \"a\", which ends at 4"},
      {"the same bytes twice", raw_file(object({good, entry("b", "U8", "[4]", "[0,4]")}), 4),
       "overlaps tensor \"a\""},
      {"an empty tensor inside another", raw_file(object({good, entry("b", "U8", "[0]", "[2,2]")}), 4),
       "overlaps tensor \"a\""},
      {"data that is cut off", one("U8", "[4]", "[0,4]", 3), "ends at data byte 4, but the file has only 3"},
      {"data left over", one("U8", "[4]", "[0,4]", 6), "2 bytes follow the last tensor"},
      {"data without a tensor", raw_file("{}", 1), "1 bytes follow the last tensor"},
      {"metadata that is a list", raw_file(R"({"__metadata__":[]})", 0),
       "__metadata__ is a list; it must be an object"},
      {"metadata that is null", raw_file(R"({"__metadata__":null})", 0), "__metadata__ is null"},
      {"metadata with a number", raw_file(R"({"__metadata__":{"a":1}})", 0),
       "member \"a\" is a number; it must be a string"},
      {"metadata with an object", raw_file(R"({"__metadata__":{"a":{}}})", 0), "member \"a\" is an object"},
      {"metadata twice", raw_file(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "__metadata__ appears twice"},
      {"a metadata key twice", raw_file(R"({"__metadata__":{"a":"1","a":"2"}})", 0),
       "member \"a\" appears twice"},
  };
}

} // namespace

TEST_CASE("a malformed file is refused with its name, what is wrong and where, in one line") {
  scratch const here;
  auto const path = here / "bad.safetensors";
  auto const cases = malformed_files();
  CHECK(cases.size() >= 40);
  for (auto const& each : cases) {
    CAPTURE(each.what);
    write_file(path, each.content);
    auto const open = [&] { checkpoint::open(path); };
    std::string const message = message_of(open);
    CAPTURE(message);
    CHECK(contains(message, each.fragment));
    CHECK(message.starts_with(path.native() + ": "));
    CHECK_FALSE(contains(message, "\n"));
    CHECK(code_of(open) == each.code);
  }
}

TEST_CASE("a file that is cut off at any byte is refused") {
  scratch const here;
  auto const path = here / "cut.safetensors";
  std::string const whole = raw_file(object({R"("__metadata__":{"k":"v"})", entry("a", "F32", "[2]", "[0,8]"),
                                             entry("b", "U8", "[]", "[8,9]")}),
                                     9);
  write_file(path, whole);
  CHECK(checkpoint::open(path).find("b") == 1);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    write_file(path, whole.substr(0, size));
    CHECK(code_of([&] { checkpoint::open(path); }) == errc::bad_checkpoint);
  }
}

TEST_CASE("odd but valid headers are accepted") {
  scratch const here;
  auto const path = here / "odd.safetensors";
  auto const accepted = [&](std::string const& content) {
    write_file(path, content);
    return checkpoint::open(path);
  };
  auto const bytes_of_first = [&](std::string const& content) {
    auto const model = accepted(content);
    REQUIRE(model.tensors().size() == 1);
    return model.tensors()[0].bytes;
  };
  CHECK(accepted(raw_file("{}", 0)).total_bytes() == 0);
  CHECK(accepted(raw_file("{}      ", 0)).total_bytes() == 0);
  auto const with_metadata = accepted(raw_file(R"({"__metadata__":{"format":"pt"}})", 0));
  CHECK(with_metadata.metadata().at("format") == "pt");
  CHECK(with_metadata.tensors().empty());
  CHECK(bytes_of_first(one("F32", "[]", "[0,4]", 4)) == 4);
  CHECK(bytes_of_first(one("F32", "[0,5]", "[0,0]", 0)) == 0);
  CHECK(bytes_of_first(one("F6_E3M2", "[4]", "[0,3]", 3)) == 3);
  CHECK(accepted(raw_file(object({entry("", "U8", "[1]", "[0,1]")}), 1)).find("") == 0);
  // Members that the format does not know are skipped, however they are built.
  CHECK(bytes_of_first(
            raw_file(R"({"x":{"note":{"a":[1,{"b":-2.5}],"dtype":null},"dtype":"U8","more":"s","shape":[1],)"
                     R"("data_offsets":[0,1]}})",
                     1)) == 1);
  // In the order of the data, whatever the order of the header; an empty tensor comes before what begins
  // there.
  auto const turned =
      accepted(raw_file(object({entry("z", "U8", "[4]", "[4,8]"), entry("m", "U8", "[0]", "[4,4]"),
                                entry("y", "U8", "[4]", "[0,4]")}),
                        8));
  CHECK(turned.tensors()[0].info.name == "y");
  CHECK(turned.tensors()[1].info.name == "m");
  CHECK(turned.tensors()[2].info.name == "z");
  auto const escaped =
      accepted(raw_file(object({entry("\\u00e9\\n\\ud83d\\ude00", "U8", "[1]", "[0,1]")}), 1));
  CHECK(escaped.find("\xC3\xA9\n\xF0\x9F\x98\x80") == 0);
}

TEST_CASE("what is no regular file, or can't be opened, is told apart") {
  scratch const here;
  CHECK(code_of([&] { checkpoint::open(here / "none.safetensors"); }) ==
        std::errc::no_such_file_or_directory);
  CHECK(contains(message_of([&] { checkpoint::open(here / "none.safetensors"); }), "none.safetensors"));
  CHECK(contains(message_of([&] { checkpoint::open("/dev/null"); }), "is not a regular file"));
  REQUIRE(::mkfifo((here / "pipe.safetensors").c_str(), 0600) == 0);
  CHECK(contains(message_of([&] { checkpoint::open(here / "pipe.safetensors"); }), "is not a regular file"));
}

TEST_CASE("a hostile name does not break the line of a message") {
  scratch const here;
  auto const path = here / "hostile.safetensors";
  std::string const name = "\\n\\u001b[2J" + std::string(2000, 'n');
  write_file(path, raw_file(object({entry(name, "XX", "[]", "[0,1]")}), 1));
  std::string const message = message_of([&] { checkpoint::open(path); });
  CHECK(contains(message, "\"\\x0a\\x1b[2J"));
  CHECK_FALSE(contains(message, "\n"));
  CHECK(message.size() < path.native().size() + 400);
}
