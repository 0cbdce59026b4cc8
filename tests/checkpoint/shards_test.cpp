#include <doctest/doctest.h>

#include "files.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

tensor_info u8(std::string name, std::uint64_t size) { return {std::move(name), dtype::u8, {size}}; }

// Two shards of two tensors each, and an index that maps all of them.
void make_shards(scratch const& here) {
  tensor_info const first[] = {u8("a", 10), u8("b", 20)};
  tensor_info const second[] = {u8("c", 30), u8("d", 0)};
  write_pattern(here / "one.safetensors", first);
  write_pattern(here / "two.safetensors", second);
  write_file(here / "model.safetensors.index.json",
             R"({"metadata":{"total_size":60,"nested":[{"x":null}]},"weight_map":{"a":"one.safetensors",)"
             R"("b":"one.safetensors","c":"two.safetensors","d":"two.safetensors"}})");
}

std::string index_of(std::string_view weight_map) {
  return R"({"weight_map":)" + std::string(weight_map) + '}';
}

std::string chosen(scratch const& here) {
  auto const model = checkpoint::open(here.path());
  return model.files()[0].filename().native();
}

} // namespace

TEST_CASE("a sharded checkpoint opens by its index and by its directory") {
  scratch const here;
  make_shards(here);
  for (auto const& path : {here / "model.safetensors.index.json", here.path()}) {
    auto const model = checkpoint::open(path);
    REQUIRE(model.tensors().size() == 4);
    CHECK(model.files().size() == 2);
    CHECK(model.total_bytes() == 60);
    CHECK(model.largest_tensor() == 30);
    CHECK(model.unlisted() == 0);
    checkpoint_reader reader(model);
    std::vector<std::byte> bytes(30);
    reader.read(*model.find("c"), 0, bytes);
    CHECK(holds_pattern(bytes, 0, 0));
    reader.read(*model.find("b"), 0, std::span(bytes).first(20));
    CHECK(holds_pattern(std::span(bytes).first(20), 1, 0));
  }
}

TEST_CASE("a directory needs one candidate") {
  scratch const here;
  CHECK(contains(message_of([&] { checkpoint::open(here.path()); }), "holds no safetensors file"));
  tensor_info const tensors[] = {u8("a", 1)};
  write_pattern(here / "x.safetensors", tensors);
  CHECK(chosen(here) == "x.safetensors");
  write_pattern(here / "y.safetensors", tensors);
  CHECK(contains(message_of([&] { checkpoint::open(here.path()); }), "name the one to open"));
  write_pattern(here / "model.safetensors", tensors);
  CHECK(chosen(here) == "model.safetensors");
}

TEST_CASE("a shard that is missing is named with its index") {
  scratch const here;
  make_shards(here);
  std::filesystem::remove(here / "two.safetensors");
  auto const open = [&] { checkpoint::open(here.path()); };
  CHECK(code_of(open) == std::errc::no_such_file_or_directory);
  CHECK(contains(message_of(open),
                 "model.safetensors.index.json: shard \"two.safetensors\" (2 tensors) is missing"));
}

TEST_CASE("a tensor that its shard does not hold is named") {
  scratch const here;
  make_shards(here);
  write_file(here / "model.safetensors.index.json",
             index_of(R"({"a":"one.safetensors","e":"two.safetensors"})"));
  CHECK(contains(message_of([&] { checkpoint::open(here.path()); }),
                 "two.safetensors: tensor \"e\" is missing, although the index places it here"));
}

TEST_CASE("a tensor in two shards is refused, one that the index does not list is left out") {
  scratch const here;
  make_shards(here);
  tensor_info const again[] = {u8("c", 30), u8("a", 10)};
  write_pattern(here / "two.safetensors", again);
  write_file(here / "model.safetensors.index.json",
             index_of(R"({"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"})"));
  CHECK(contains(message_of([&] { checkpoint::open(here.path()); }),
                 "two.safetensors: holds tensor \"a\", which the index places in \"one.safetensors\""));
  write_file(here / "model.safetensors.index.json",
             index_of(R"({"b":"one.safetensors","c":"two.safetensors"})"));
  auto const model = checkpoint::open(here.path());
  CHECK(model.tensors().size() == 2);
  CHECK(model.unlisted() == 2);
  CHECK_FALSE(model.find("a"));
  CHECK(model.total_bytes() == 50);
}

TEST_CASE("a malformed index is refused with its name and what is wrong") {
  struct row {
    std::string content;
    char const* fragment;
  };
  row const rows[] = {
      {"", "no valid JSON"},
      {"[]", "the index is a list"},
      {"{}", "the index has no weight_map"},
      {R"({"metadata":{}})", "the index has no weight_map"},
      {index_of("[]"), "weight_map is a list"},
      {index_of("null"), "weight_map is null"},
      {index_of(R"({"a":1})"), "tensor \"a\" is mapped to a number"},
      {index_of(R"({"a":{}})"), "tensor \"a\" is mapped to an object"},
      {index_of(R"({"a":["one.safetensors"]})"), "tensor \"a\" is mapped to a list"},
      {index_of(R"({"a":"one.safetensors","a":"one.safetensors"})"), "tensor \"a\" is mapped twice"},
      {R"({"weight_map":{},"weight_map":{}})", "weight_map appears twice"},
      {index_of(R"({"a":"../one.safetensors"})"), "not the plain name of a file beside the index"},
      {index_of(R"({"a":"/etc/passwd"})"), "not the plain name"},
      {index_of(R"({"a":".."})"), "not the plain name"},
      {index_of(R"({"a":""})"), "not the plain name"},
      {index_of(R"({"a":"one\u0000.safetensors"})"), "not the plain name"},
      {index_of("{}") + "x", "text after the closing brace"},
      {R"({"weight_map":{"a":"one.safetensors"})", "incomplete JSON"},
  };
  scratch const here;
  make_shards(here);
  auto const path = here / "model.safetensors.index.json";
  for (auto const& each : rows) {
    CAPTURE(each.content);
    write_file(path, each.content);
    std::string const message = message_of([&] { checkpoint::open(path); });
    CAPTURE(message);
    CHECK(contains(message, each.fragment));
    CHECK(message.starts_with(path.native()));
    CHECK(code_of([&] { checkpoint::open(path); }) == errc::bad_checkpoint);
  }
}
