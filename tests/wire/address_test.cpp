#include <doctest/doctest.h>
#include <fcntl.h>
#include <grp.h>
#include <initializer_list>
#include <sys/stat.h>
#include <unistd.h>

#include "../support/fork_child.hpp"
#include "../support/scratch.hpp"
#include "ropeway/error.hpp"
#include "wire/address.hpp"

using namespace ropeway;
using namespace ropeway::testing;

TEST_CASE("a directory that can't be written to is not permitted, in words that name it") {
  scratch const directory;
  std::string const own = directory.file("own");
  fork_child child([&] {
    // Root may write anywhere, so become somebody else; who is not root is somebody else already.
    if (::geteuid() == 0) {
      ::chmod(directory.file("").c_str(), 0777);
      if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) return 90;
    }
    if (::mkdir(own.c_str(), 0500) != 0) return 91;
    for (char const* name : {"/socket", "/below/socket"}) {
      try {
        wire::prepare_directory(own + name, {});
        return 1;
      } catch (transfer_error const& error) {
        if (error.code() != errc::not_permitted) return 2;
        if (std::string(error.what()).find(own) == std::string::npos) return 3;
      }
    }
    // Nor one that can't even be entered.
    ::chmod(own.c_str(), 0000);
    try {
      wire::prepare_directory(own + "/below/socket", {});
      return 4;
    } catch (transfer_error const& error) {
      if (error.code() != errc::not_permitted) return 5;
    }
    ::chmod(own.c_str(), 0700);
    wire::prepare_directory(own + "/socket", {});
    return 0;
  });
  CHECK(child.wait() == 0);
}

TEST_CASE("a socket in the working directory needs no directory in its path") {
  scratch const directory;
  fork_child child([&] {
    if (::chdir(directory.file("").c_str()) != 0) return 90;
    wire::prepare_directory("socket", {});
    ::chmod(".", 0755);
    try {
      wire::prepare_directory("socket", {});
    } catch (transfer_error const& error) { return error.code() == errc::not_permitted ? 0 : 1; }
    return 2;
  });
  CHECK(child.wait() == 0);
}

namespace {

/// The words of the refusal; empty if there is none.
template <class Check>
std::string refusal(Check const& check) {
  try {
    check();
  } catch (transfer_error const& error) {
    CHECK(error.code() == errc::not_permitted);
    return error.what();
  }
  return {};
}
bool has(std::string const& text, char const* part) { return text.find(part) != std::string::npos; }

} // namespace

TEST_CASE("who connects takes no socket from a directory that others can write to") {
  scratch const directory;
  std::string const path = directory.file("socket");
  auto const connects = [&](wire::trust const& whom = {}) {
    return refusal([&] { wire::check_directory_of(path, whom); });
  };
  wire::trust any;
  any.any_directory();
  for (mode_t const mode : std::initializer_list<mode_t>{0700, 0750, 0710, 0755, 0701}) {
    REQUIRE(::chmod(directory.file("").c_str(), mode) == 0);
    CHECK(connects() == "");
  }
  for (mode_t const mode : std::initializer_list<mode_t>{0770, 0720, 0775, 0777, 0702, 01777}) {
    REQUIRE(::chmod(directory.file("").c_str(), mode) == 0);
    CHECK(has(connects(), "and put another socket there; have the sender listen in a private directory"));
    CHECK(connects(any) == "");
  }
  REQUIRE(::chmod(directory.file("").c_str(), 0700) == 0);
}

TEST_CASE("links and sticky parents: what counts is the directory that they lead to, and who owns the link") {
  scratch const directory;
  auto const at = [&](char const* name) { return directory.file(name); };
  REQUIRE(::mkdir(at("sticky").c_str(), 0700) == 0);
  REQUIRE(::chmod(at("sticky").c_str(), 01777) == 0);
  REQUIRE(::mkdir(at("sticky/private").c_str(), 0700) == 0);
  REQUIRE(::symlink("sticky", at("to-shared").c_str()) == 0);
  REQUIRE(::symlink("sticky/private", at("to-private").c_str()) == 0);
  auto const either = [&](char const* name, wire::trust const& whom, char const* words) {
    std::string const path = at(name) + "/socket";
    auto const listens = refusal([&] { wire::prepare_directory(path, whom); });
    auto const connects = refusal([&] { wire::check_directory_of(path, whom); });
    CHECK_MESSAGE((*words == 0 ? listens.empty() : has(listens, words)), listens);
    CHECK_MESSAGE((*words == 0 ? connects.empty() : has(connects, words)), connects);
  };
  either("sticky/private", {}, "");
  either("to-private", {}, "");
  either("to-private/", {}, "");
  either("sticky", {}, "sticky");
  either("to-shared", {}, "to-shared");
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: only root can give things to somebody else");
    return;
  }
  REQUIRE(::lchown(at("to-private").c_str(), 65534, 0) == 0);
  either("to-private", {}, "to-private belongs to user 65534");
  either("to-private/", {}, "to-private belongs to user 65534");
  wire::trust stranger;
  stranger.user(65534);
  CHECK(refusal([&] { wire::check_directory_of(at("to-private/socket"), stranger); }) == "");
  REQUIRE(::chown(at("sticky/private").c_str(), 65534, 0) == 0);
  either("sticky/private", {}, "private belongs to user 65534");
  CHECK(refusal([&] { wire::check_directory_of(at("sticky/private/socket"), stranger); }) == "");
}
