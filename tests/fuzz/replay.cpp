// Every input that was ever worth keeping, once more through its target: with any compiler.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "../support/leftovers.hpp"
#include "targets.hpp"

namespace {

namespace fs = std::filesystem;

void replay(char const* name, void (*target)(ropeway::fuzz::input)) {
  char const* const corpus = std::getenv("ROPEWAY_FUZZ_CORPUS");
  // A target keeps what it reads through, a memory file or a pair of sockets, for the life of its process.
  ropeway::testing::leaves_things_behind();
  REQUIRE_MESSAGE(corpus != nullptr, "ROPEWAY_FUZZ_CORPUS names tests/fuzz/corpus; `meson test` sets it");
  std::vector<fs::path> files;
  for (auto const& entry : fs::directory_iterator(fs::path(corpus) / name)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  CHECK(files.size() > 20);
  for (auto const& file : files) {
    std::ifstream in(file, std::ios::binary);
    std::vector<std::uint8_t> const bytes(std::istreambuf_iterator<char>(in), {});
    INFO(file.string());
    CHECK_NOTHROW(target(bytes));
  }
  CHECK_NOTHROW(target({}));
}

} // namespace

TEST_CASE("the corpus of messages holds") { replay("message", ropeway::fuzz::message); }
TEST_CASE("the corpus of manifests holds") { replay("manifest", ropeway::fuzz::manifest); }
TEST_CASE("the corpus of placements holds") { replay("placement", ropeway::fuzz::placement); }
TEST_CASE("the corpus of safetensors files holds") { replay("header", ropeway::fuzz::header); }
TEST_CASE("the corpus of checkpoint indices holds") { replay("index", ropeway::fuzz::index); }
TEST_CASE("the corpus of datagrams with descriptors holds") { replay("datagram", ropeway::fuzz::datagram); }
TEST_CASE("the corpus of lives of a sender holds") { replay("sender", ropeway::fuzz::sender); }
TEST_CASE("the corpus of lives of a receiver holds") { replay("receiver", ropeway::fuzz::receiver); }
