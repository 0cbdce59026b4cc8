#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.hpp"
#include "ropeway/checkpoint_writer.hpp"
#include "sandbox.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

// Reads the whole checkpoint and compares each tensor with the pattern of its place in `written`.
void check_patterns(checkpoint const& model, std::span<tensor_info const> written) {
  REQUIRE(model.tensors().size() == written.size());
  checkpoint_reader reader(model);
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < written.size(); ++i) {
    auto const at = model.find(written[i].name);
    REQUIRE(at);
    stored_tensor const& tensor = model.tensors()[*at];
    REQUIRE(tensor.info == written[i]);
    bytes.assign(static_cast<std::size_t>(tensor.bytes), std::byte{0});
    reader.read(*at, 0, bytes);
    REQUIRE(holds_pattern(bytes, i, 0));
  }
}

void write_all(checkpoint_writer& writer, std::span<tensor_info const> tensors) {
  for (std::size_t i = tensors.size(); i-- > 0;)
    writer.write(i, 0, pattern_bytes(i, *byte_size(tensors[i].type, tensors[i].dims)));
}

tensor_info const small[] = {{"a", dtype::u8, {1000}}, {"b", dtype::f32, {10}}};

} // namespace

TEST_CASE("every dtype, scalars and empty tensors come back as written") {
  scratch const here;
  std::vector<tensor_info> tensors;
  for (int i = 0; i <= static_cast<int>(dtype::f4); ++i) {
    auto const type = static_cast<dtype>(i);
    std::string const name(ropeway::name(type));
    tensors.push_back({name + ".matrix", type, {3, 8}});
    tensors.push_back({name + ".empty", type, {4, 0, 7}});
    if (bits(type) >= 8) tensors.push_back({name + ".scalar", type, {}});
  }
  checkpoint_metadata const metadata = {{"format", "pt"}, {"quo\"te\n", "\xE2\x82\xAC"}};
  for (auto order : {checkpoint_writer::layout::sorted, checkpoint_writer::layout::as_given}) {
    checkpoint_writer writer(here / "all.safetensors", tensors, metadata, order);
    write_all(writer, tensors);
    writer.commit();
    auto const model = checkpoint::open(here / "all.safetensors");
    CHECK(model.metadata() == metadata);
    check_patterns(model, tensors);
    // The data begins aligned, and in sorted order every tensor is.
    CHECK(model.tensors()[0].offset % 8 == 0);
    if (order == checkpoint_writer::layout::sorted)
      for (auto const& tensor : model.tensors())
        if (bits(tensor.info.type) >= 8) CHECK(tensor.offset % (bits(tensor.info.type) / 8) == 0);
  }
}

TEST_CASE("the sorted order is that of the reference implementation") {
  scratch const here;
  tensor_info const tensors[] = {{"b", dtype::u8, {1}},  {"a", dtype::u8, {1}},   {"c", dtype::f64, {1}},
                                 {"d", dtype::i64, {1}}, {"e", dtype::bf16, {1}}, {"f", dtype::boolean, {1}}};
  checkpoint_writer writer(here / "x.safetensors", tensors);
  write_all(writer, tensors);
  writer.commit();
  std::string names;
  auto const model = checkpoint::open(here / "x.safetensors");
  for (auto const& tensor : model.tensors()) names += tensor.info.name;
  CHECK(names == "dceabf");
}

TEST_CASE("20,000 tensors with names of 1 KiB come back") {
  scratch const here;
  std::vector<tensor_info> tensors;
  for (int i = 0; i < 20'000; ++i) {
    std::string name = std::to_string(i) + " \"\\\x01\x7F/\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
    name.resize(1024, 'n');
    tensors.push_back({std::move(name), dtype::bf16, {static_cast<std::uint64_t>(i % 5), 7}});
  }
  write_pattern(here / "many.safetensors", tensors);
  check_patterns(checkpoint::open(here / "many.safetensors"), tensors);
}

TEST_CASE("100,000 tensors are carried") {
  scratch const here;
  std::vector<tensor_info> tensors;
  for (int i = 0; i < 100'000; ++i) tensors.push_back({"layers." + std::to_string(i), dtype::u8, {}});
  write_pattern(here / "more.safetensors", tensors);
  auto const model = checkpoint::open(here / "more.safetensors");
  CHECK(model.tensors().size() == 100'000);
  CHECK(model.find("layers.99999") == 99'999);
}

TEST_CASE("bytes may come in any order and in pieces, also twice") {
  scratch const here;
  checkpoint_writer writer(here / "x.safetensors", small);
  auto const a = pattern_bytes(0, 1000), b = pattern_bytes(1, 40);
  writer.write(0, 990, std::span(a).subspan(990));
  writer.write(1, 0, b);
  for (std::size_t at = 0; at < 990; at += 66)
    writer.write(0, 990 - 66 - at, std::span(a).subspan(990 - 66 - at, 66));
  writer.write(0, 500, std::span(a).subspan(500, 100));
  writer.write(0, 1000, {});
  writer.commit();
  check_patterns(checkpoint::open(here / "x.safetensors"), small);
}

TEST_CASE("a checkpoint with missing bytes can't be committed, and is when they have come") {
  scratch const here;
  checkpoint_writer writer(here / "x.safetensors", small);
  auto const a = pattern_bytes(0, 1000);
  writer.write(0, 0, std::span(a).first(499));
  writer.write(0, 500, std::span(a).subspan(500));
  auto const commit = [&] { writer.commit(); };
  CHECK(code_of(commit) == errc::invalid_argument);
  CHECK(contains(message_of(commit), "bytes of 2 tensors were not written, of \"a\""));
  writer.write(1, 0, pattern_bytes(1, 40));
  CHECK(contains(message_of(commit), "bytes of 1 tensors"));
  writer.write(0, 499, std::span(a).subspan(499, 1));
  writer.commit();
  check_patterns(checkpoint::open(here / "x.safetensors"), small);
  CHECK(code_of(commit) == errc::not_open);
  CHECK(code_of([&] { writer.write(0, 0, a); }) == errc::not_open);
}

TEST_CASE("bytes that a tensor does not have are refused") {
  scratch const here;
  checkpoint_writer writer(here / "x.safetensors", small);
  std::byte const two[2] = {};
  CHECK(code_of([&] { writer.write(2, 0, two); }) == errc::invalid_argument);
  CHECK(code_of([&] { writer.write(0, 999, two); }) == errc::invalid_argument);
  CHECK(code_of([&] { writer.write(0, ~std::uint64_t{0}, two); }) == errc::invalid_argument);
}

TEST_CASE("tensors that the format can't carry are refused before a file is made") {
  scratch const here;
  auto const code = [&](std::vector<tensor_info> tensors, checkpoint_metadata metadata = {}) {
    return code_of([&] { checkpoint_writer(here / "x.safetensors", tensors, metadata); });
  };
  CHECK(code({{"a", dtype::u8, {1}}, {"a", dtype::i8, {1}}}) == errc::duplicate_name);
  CHECK(code({{"__metadata__", dtype::u8, {1}}}) == errc::invalid_argument);
  for (char const* name : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\x80"})
    CHECK(code({{name, dtype::u8, {1}}}) == errc::invalid_argument);
  CHECK(code({{"a", dtype::f4, {3}}}) == errc::invalid_argument);
  CHECK(code({{"a", dtype::f64, {1ull << 62}}}) == errc::invalid_argument);
  CHECK(code({{"a", dtype::u8, {3ull << 59}},
              {"b", dtype::u8, {3ull << 59}},
              {"c", dtype::u8, {3ull << 59}}}) == errc::overflow);
  CHECK(code({{std::string(100'000'000, 'a'), dtype::u8, {1}}}) == errc::overflow);
  CHECK(code({{"a", dtype::u8, {1}}}, {{"k", "\xFF"}}) == errc::invalid_argument);
  CHECK(here.names().empty());
}

TEST_CASE("nothing is seen before the commit, which replaces what was there") {
  scratch const here;
  write_file(here / "x.safetensors", "old");
  {
    checkpoint_writer writer(here / "x.safetensors", small);
    write_all(writer, small);
    CHECK(read_file(here / "x.safetensors") == "old");
  }
  CHECK(here.names() == std::vector<std::string>{"x.safetensors"});
  CHECK(read_file(here / "x.safetensors") == "old");
  checkpoint_writer writer(here / "x.safetensors", small);
  write_all(writer, small);
  writer.commit();
  CHECK(here.names() == std::vector<std::string>{"x.safetensors"});
  check_patterns(checkpoint::open(here / "x.safetensors"), small);
}

TEST_CASE("a writer that is killed leaves nothing") {
  scratch const here;
  int const result = in_child([&] {
    checkpoint_writer writer(here / "x.safetensors", small);
    writer.write(0, 0, pattern_bytes(0, 500));
    ::raise(SIGKILL);
    return 0;
  });
  CHECK(result == 1000 + SIGKILL);
  CHECK(here.names().empty());
}

TEST_CASE("where files can't be nameless the writer cleans up its temporary name") {
  scratch const here;
  int const result = in_child([&] {
    refuse_call(SYS_openat, EOPNOTSUPP, 2, O_TMPFILE);
    {
      checkpoint_writer writer(here / "x.safetensors", small);
      if (here.names().size() != 1 || here.names()[0].front() != '.') return 1;
    }
    if (!here.names().empty()) return 2;
    checkpoint_writer writer(here / "x.safetensors", small);
    write_all(writer, small);
    writer.commit();
    return here.names() == std::vector<std::string>{"x.safetensors"} ? 0 : 3;
  });
  CHECK(result == 0);
  check_patterns(checkpoint::open(here / "x.safetensors"), small);
}

TEST_CASE("places where no file can be are refused by the system's error") {
  scratch const here;
  auto const code = [](std::filesystem::path const& path) {
    return code_of([&] { checkpoint_writer(path, small); });
  };
  CHECK(code(here / "none/x.safetensors") == std::errc::no_such_file_or_directory);
  CHECK(code(here.path()) == std::errc::is_a_directory);
  write_file(here / "file", "");
  CHECK(code(here / "file/x.safetensors") == std::errc::not_a_directory);
  REQUIRE(::mkfifo((here / "pipe").c_str(), 0600) == 0);
  CHECK(code(here / "pipe") == errc::invalid_argument);
}

TEST_CASE("a file size limit is a clear error at once and leaves nothing") {
  scratch const here;
  int const result = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit const limit{1000, 1000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    auto const write = [&] { checkpoint_writer(here / "x.safetensors", small); };
    if (code_of(write) != std::errc::file_too_large) return 2;
    return contains(message_of(write), "x.safetensors: can't take ") ? 0 : 3;
  });
  CHECK(result == 0);
  CHECK(here.names().empty());
}

TEST_CASE("a full disk is a clear error, when it is opened or when it is written") {
  scratch const here;
  int const result = in_child([&] {
    if (!mount_small(here.path().c_str(), 65536)) return 77;
    tensor_info const large[] = {{"a", dtype::u8, {1 << 20}}};
    auto const open = [&] { checkpoint_writer(here / "x.safetensors", large); };
    if (code_of(open) != std::errc::no_space_on_device || !here.names().empty()) return 1;
    refuse_call(SYS_fallocate, EOPNOTSUPP); // a file system that can't reserve
    auto const write = [&] {
      checkpoint_writer writer(here / "x.safetensors", large);
      write_all(writer, large);
    };
    if (code_of(write) != std::errc::no_space_on_device || !here.names().empty()) return 2;
    return contains(message_of(write), "x.safetensors: can't write byte ") ? 0 : 3;
  });
  if (result == 77)
    MESSAGE("SKIPPED: mounting is not permitted here");
  else
    CHECK(result == 0);
}
