#include <doctest/doctest.h>

#include "ropeway/error.hpp"

using namespace ropeway;

TEST_CASE("an errc is an error_code of our category with a sentence") {
  std::error_code const code = errc::peer_gone;
  CHECK(code.category() == ropeway_category());
  CHECK(code == errc::peer_gone);
  CHECK(code.message().find("peer") != std::string::npos);
}

TEST_CASE("an errc has its enumerator's name") {
  CHECK(name(errc::ok) == "ok");
  CHECK(name(errc::peer_gone) == "peer_gone");
  CHECK(name(errc::overflow) == "overflow");
  CHECK(name(static_cast<errc>(9999)) == "unknown");
}

TEST_CASE("a transfer_error names what it was about, in one line") {
  auto const error =
      transfer_error(errc::source_failed, "disk on fire").tensor("layers.0").peer("server 12").bucket(3);
  CHECK(error.tensor() == "layers.0");
  CHECK(error.bucket() == 3);
  CHECK(std::string(error.what()).find('\n') == std::string::npos);
}
