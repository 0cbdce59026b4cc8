#include <doctest/doctest.h>
#include <fcntl.h>
#include <grp.h>
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
