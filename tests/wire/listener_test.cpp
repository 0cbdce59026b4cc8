#include <algorithm>
#include <asio/steady_timer.hpp>
#include <ctime>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <grp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../support/fork_child.hpp"
#include "../support/scratch.hpp"
#include "pair.hpp"
#include "wire/listener.hpp"
#include "wire/path_lock.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;
using namespace ropeway::compat::awaitable_operators;

namespace {

std::chrono::steady_clock::time_point in(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

std::string names_in(scratch const& directory) {
  auto names = directory.entries();
  std::sort(names.begin(), names.end());
  std::string text;
  for (auto const& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

awaitable<void> sleep_for(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(use_awaitable);
}

// Accepts one peer and says so to it.
awaitable<void> greet(wire::listener& at) {
  wire::connection peer = co_await at.accept();
  co_await peer.send(bytes_of("hello"));
}
awaitable<std::string> be_greeted(std::string path, std::chrono::milliseconds limit, wire::trust whom = {}) {
  wire::connection peer = co_await connect_to(path, in(limit), whom);
  std::string text = co_await receive_text(peer);
  co_return text;
}

// A child that listens until it is killed; children of its own keep the socket if `orphans`.
fork_child listening_child(std::string const& path, baton const& listens, bool orphans = false,
                           baton const* end = nullptr) {
  return fork_child([&path, &listens, orphans, end] {
    asio::io_context io(1);
    wire::listener const at(strand_of(io), path);
    if (orphans && ::fork() == 0) {
      (void)end->wait();
      ::_exit(0);
    }
    listens.pass();
    return baton().wait(60s) ? 1 : 2;
  });
}

bool can_listen(std::string const& path) {
  asio::io_context io(1);
  try {
    wire::listener const at(strand_of(io), path);
    return true;
  } catch (transfer_error const& error) {
    CHECK(error.code() == errc::address_in_use);
    return false;
  }
}

std::error_code listen_code(std::string const& path, wire::trust const& whom = {}) {
  return code_of([&] {
    asio::io_context io(1);
    wire::listener const at(strand_of(io), path, whom);
  });
}

} // namespace

TEST_CASE("two processes meet at a path, the file is private while it is there, and nothing stays") {
  scratch const directory;
  std::string const path = directory.file("socket");
  baton ready;
  fork_child child([&] {
    asio::io_context io(1);
    if (!ready.wait()) return 1;
    return run(io, be_greeted(path, 10s)) == "hello" ? 0 : 2;
  });
  {
    asio::io_context io(1);
    wire::listener at(strand_of(io), path);
    CHECK(at.path() == path);
    CHECK(names_in(directory) == "socket");
    struct stat about {};
    REQUIRE(::stat(path.c_str(), &about) == 0);
    CHECK((about.st_mode & 0777) == 0600);
    ready.pass();
    run(io, greet(at));
    CHECK(child.wait() == 0);
  }
  CHECK(names_in(directory) == "");
}

TEST_CASE("who connects first waits for the listener") {
  scratch const directory;
  std::string const path = directory.file("later/socket");
  asio::io_context io(1);
  outcome<std::string> greeted;
  start(io, be_greeted(path, 10s), greeted);
  io.run_for(20ms);
  CHECK_FALSE(greeted.done());
  wire::listener at(strand_of(io), path);
  run(io, greet(at));
  REQUIRE(run_until(io, [&] { return greeted.done(); }));
  CHECK(greeted.get() == "hello");
}

TEST_CASE("nobody at the path until the deadline is a connect_timeout that says why") {
  scratch const directory;
  asio::io_context io(1);
  auto const before = std::chrono::steady_clock::now();
  auto const words = words_of([&] { run(io, connect_to(directory.file("socket"), in(30ms))); });
  auto const took = std::chrono::steady_clock::now() - before;
  CHECK(words.find("no socket yet") != std::string::npos);
  CHECK(took >= 30ms);
  CHECK(took < 5s);
  CHECK(code_of([&] { run(io, connect_to(directory.file("socket"), in(0ms))); }) == errc::connect_timeout);
}

TEST_CASE("connecting to what can't work fails at once") {
  scratch const directory;
  asio::io_context io(1);
  std::ofstream(directory.file("file")) << "not a socket";
  std::filesystem::create_directory(directory.file("directory"));
  auto code = [&](std::string const& path) { return code_of([&] { run(io, connect_to(path, in(60s))); }); };
  CHECK(code(directory.file("file")) == errc::bad_path);
  CHECK(code(directory.file("directory")) == errc::bad_path);
  CHECK(code(directory.file("file/socket")) == errc::bad_path);
  CHECK(code("") == errc::bad_path);
  CHECK(code(directory.file(std::string(200, 'x'))) == errc::bad_path);
  // Another program's stream socket.
  unique_fd const stream(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string const other = directory.file("other");
  other.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(stream.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(stream.get(), 1) == 0);
  CHECK(code(other) == errc::bad_path);
  CHECK(listen_code(other) == errc::bad_path);
  CHECK(std::filesystem::exists(other));
}

TEST_CASE("a connect that waits can be cancelled") {
  scratch const directory;
  asio::io_context io(1);
  struct race {
    static awaitable<std::size_t> of(std::string path) {
      auto either = co_await (connect_to(path, in(60s)) || sleep_for(5ms));
      co_return either.index();
    }
  };
  CHECK(run(io, race::of(directory.file("socket"))) == 1);
}

TEST_CASE("an accept that waits can be cancelled, ends with close, and is one at a time") {
  scratch const directory;
  asio::io_context io(1);
  wire::listener at(strand_of(io), directory.file("socket"));
  struct race {
    static awaitable<std::size_t> of(wire::listener& from) {
      auto either = co_await (from.accept() || sleep_for(5ms));
      co_return either.index();
    }
  };
  CHECK(run(io, race::of(at)) == 1);
  outcome<wire::connection> waiting;
  start(io, at.accept(), waiting);
  io.restart();
  io.poll();
  CHECK(code_of([&] { (void)run(io, at.accept()); }) == errc::busy);
  at.close();
  REQUIRE(run_until(io, [&] { return waiting.done(); }));
  CHECK(code_of([&] { (void)waiting.get(); }) == asio::error::operation_aborted);
  CHECK(code_of([&] { (void)run(io, at.accept()); }) == errc::not_open);
  CHECK(names_in(directory) == "");
}

TEST_CASE("a living listener's path is refused and left alone, in this process and in another") {
  scratch const directory;
  std::string const path = directory.file("socket");
  {
    asio::io_context io(1);
    wire::listener at(strand_of(io), path);
    CHECK_FALSE(can_listen(path));
    // The probe was a connection that is gone again; the next peer is served.
    outcome<std::string> greeted;
    start(io, be_greeted(path, 10s), greeted);
    struct twice {
      static awaitable<void> of(wire::listener& from) {
        wire::connection probe = co_await from.accept();
        co_await greet(from);
      }
    };
    run(io, twice::of(at));
    REQUIRE(run_until(io, [&] { return greeted.done(); }));
    CHECK(greeted.get() == "hello");
  }
  baton listens;
  fork_child child = listening_child(path, listens);
  REQUIRE(listens.wait());
  CHECK_FALSE(can_listen(path));
  // Stopped is not dead.
  child.stop();
  CHECK_FALSE(can_listen(path));
  child.kill();
  CHECK(names_in(directory) == "socket");
  CHECK(can_listen(path));
  CHECK(names_in(directory) == "");
}

TEST_CASE("a killed listener's path is taken over although its children keep the socket") {
  scratch const directory;
  std::string const path = directory.file("socket");
  baton listens, end;
  fork_child child = listening_child(path, listens, true, &end);
  REQUIRE(listens.wait());
  CHECK_FALSE(can_listen(path));
  child.kill();
  asio::io_context io(1);
  // Whoever connects now finds the orphans' queue, and waits for the successor.
  outcome<std::string> greeted;
  start(io, be_greeted(path, 10s), greeted);
  io.run_for(20ms);
  CHECK_FALSE(greeted.done());
  wire::listener at(strand_of(io), path);
  run(io, greet(at));
  REQUIRE(run_until(io, [&] { return greeted.done(); }));
  CHECK(greeted.get() == "hello");
  end.pass();
}

TEST_CASE("of many that start at once at one stale path, one wins") {
  scratch const directory;
  std::string const path = directory.file("socket");
  {
    baton listens;
    fork_child child = listening_child(path, listens);
    REQUIRE(listens.wait());
  }
  REQUIRE(names_in(directory) == "socket");
  baton go, tried, end;
  std::vector<fork_child> children;
  for (int i = 0; i < 8; ++i) {
    children.emplace_back([&] {
      if (!go.wait()) return 3;
      asio::io_context io(1);
      try {
        wire::listener const at(strand_of(io), path);
        tried.pass();
        return end.wait() ? 0 : 2;
      } catch (transfer_error const& error) {
        tried.pass();
        return error.code() == errc::address_in_use ? 1 : 4;
      }
    });
  }
  for (int i = 0; i < 8; ++i) go.pass();
  for (int i = 0; i < 8; ++i) REQUIRE(tried.wait());
  end.pass();
  int winners = 0, losers = 0;
  for (auto& child : children) {
    int const status = child.wait();
    winners += status == 0;
    losers += status == 1;
  }
  CHECK(winners == 1);
  CHECK(losers == 7);
  CHECK(names_in(directory) == "");
}

TEST_CASE("closing removes only its own file") {
  scratch const directory;
  std::string const path = directory.file("socket");
  asio::io_context io(1);
  wire::listener first(strand_of(io), path);
  std::filesystem::remove(path);
  wire::listener second(strand_of(io), path);
  first.close();
  CHECK(names_in(directory) == "socket");
  CHECK_FALSE(can_listen(path));
  second.close();
  CHECK(names_in(directory) == "");
}

TEST_CASE("a forked child that drops its copy of the listener does not end the parent's") {
  scratch const directory;
  std::string const path = directory.file("socket");
  asio::io_context io(1);
  wire::listener at(strand_of(io), path);
  fork_child child([&] {
    wire::listener const copy = std::move(at);
    return 0;
  });
  CHECK(child.wait() == 0);
  CHECK(names_in(directory) == "socket");
  outcome<std::string> greeted;
  start(io, be_greeted(path, 10s), greeted);
  run(io, greet(at));
  REQUIRE(run_until(io, [&] { return greeted.done(); }));
}

TEST_CASE("what lies at the path and is no socket stays untouched, and nothing is left behind") {
  scratch const directory;
  std::ofstream(directory.file("file")) << "precious";
  std::filesystem::create_directory(directory.file("directory"));
  std::filesystem::create_symlink("file", directory.file("link"));
  for (char const* name : {"file", "directory", "link"})
    CHECK(listen_code(directory.file(name)) == errc::bad_path);
  CHECK(names_in(directory) == "directory file link");
  std::string content;
  std::ifstream(directory.file("file")) >> content;
  CHECK(content == "precious");
}

TEST_CASE("paths that no socket can have are refused with the limit") {
  scratch const directory;
  auto words = [&](std::string const& path) {
    return words_of([&] {
      asio::io_context io(1);
      wire::listener const at(strand_of(io), path);
    });
  };
  CHECK(words(directory.file(std::string(100, 'x'))).find("allows 107") != std::string::npos);
  CHECK(listen_code(directory.file(std::string(100, 'x'))) == errc::bad_path);
  CHECK(listen_code("") == errc::bad_path);
  CHECK(listen_code(directory.file("")) == errc::bad_path);
  CHECK(listen_code(std::string("\0abstract", 9)) == errc::bad_path);
  CHECK(listen_code(directory.file("missing/too/socket")) == errc::bad_path);
  CHECK(names_in(directory) == "");
  // The longest that works, really does.
  std::string longest = directory.file("");
  longest.append(107 - longest.size(), 'y');
  CHECK(can_listen(longest));
}

TEST_CASE("directories must be private, unless the caller says otherwise") {
  scratch const directory;
  wire::trust group, any;
  group.group_access();
  any.any_directory();
  auto const mode = [&](mode_t bits) { REQUIRE(::chmod(directory.file("").c_str(), bits) == 0); };
  std::string const path = directory.file("socket");
  struct row {
    mode_t bits;
    bool plain, with_group;
  };
  for (row const& r : {row{0700, true, true}, row{0750, false, true}, row{0710, false, true},
                       row{0770, false, false}, row{0755, false, false}, row{0701, false, false},
                       row{0707, false, false}, row{01777, false, false}}) {
    mode(r.bits);
    CAPTURE(r.bits);
    CHECK(listen_code(path) == (r.plain ? std::error_code() : make_error_code(errc::not_permitted)));
    CHECK(listen_code(path, group) ==
          (r.with_group ? std::error_code() : make_error_code(errc::not_permitted)));
    CHECK(listen_code(path, any) == std::error_code());
  }
  mode(01777);
  auto const words = words_of([&] { wire::prepare_directory(path, {}); });
  CHECK(words.find("/ropeway-" + std::to_string(::geteuid()) + "/socket") != std::string::npos);
  mode(0700);
  CHECK(names_in(directory) == "");
}

TEST_CASE("a missing directory is made, private, or for the group if that may enter") {
  scratch const directory;
  wire::trust group;
  group.group_access();
  wire::prepare_directory(directory.file("mine/socket"), {});
  wire::prepare_directory(directory.file("ours/socket"), group);
  struct stat about {};
  REQUIRE(::stat(directory.file("mine").c_str(), &about) == 0);
  CHECK((about.st_mode & 07777) == 0700);
  REQUIRE(::stat(directory.file("ours").c_str(), &about) == 0);
  CHECK((about.st_mode & 07757) == 0750);
  asio::io_context io(1);
  wire::listener const at(strand_of(io), directory.file("ours/socket"), group);
  REQUIRE(::stat(directory.file("ours/socket").c_str(), &about) == 0);
  CHECK((about.st_mode & 0777) == 0660);
}

TEST_CASE("a peer of a user that is not trusted is closed and counted, and the next is served") {
  scratch const directory;
  std::string const path = directory.file("socket");
  asio::io_context io(1);
  auto const somebody_else = wire::trust::only({::geteuid() + 1});
  wire::listener at(strand_of(io), path, somebody_else);
  outcome<wire::connection> accept;
  start(io, at.accept(), accept);
  CHECK(code_of([&] { run(io, be_greeted(path, 10s)); }) == errc::peer_gone);
  CHECK(at.refused() == 1);
  CHECK_FALSE(accept.done());
  CHECK(code_of([&] { run(io, be_greeted(path, 10s, somebody_else)); }) == errc::not_permitted);
  at.close();
  REQUIRE(run_until(io, [&] { return accept.done(); }));
}

TEST_CASE("another user is kept out by directory, by socket mode and by name") {
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: only root can become somebody else");
    return;
  }
  scratch const directory;
  std::string const path = directory.file("socket");
  constexpr uid_t nobody = 65534;
  auto as_nobody = [&](wire::trust whom) {
    fork_child child([&] {
      if (::setgroups(0, nullptr) != 0 || ::setgid(nobody) != 0 || ::setuid(nobody) != 0) return 90;
      asio::io_context io(1);
      auto const code = code_of([&] { run(io, be_greeted(path, 10s, whom)); });
      return code.category() == ropeway_category() ? code.value() : 91;
    });
    return child;
  };
  auto const root_too = wire::trust().user(0);
  wire::trust any;
  any.any_directory();
  asio::io_context io(1);
  wire::listener at(strand_of(io), path, any);
  CHECK(as_nobody(root_too).wait() == static_cast<int>(errc::not_permitted));
  REQUIRE(::chmod(directory.file("").c_str(), 0755) == 0);
  CHECK(as_nobody(root_too).wait() == static_cast<int>(errc::not_permitted));
  REQUIRE(::chmod(path.c_str(), 0666) == 0);
  // The receiver does not trust this sender.
  CHECK(as_nobody({}).wait() == static_cast<int>(errc::not_permitted));
  // The sender does not trust this receiver.
  outcome<wire::connection> accept;
  start(io, at.accept(), accept);
  auto child = as_nobody(root_too);
  REQUIRE(run_until(io, [&] { return at.refused() == 2; }));
  CHECK(child.wait() == static_cast<int>(errc::peer_gone));
  CHECK_FALSE(accept.done());
  at.close();
  REQUIRE(run_until(io, [&] { return accept.done(); }));
  // And neither may listen in the other's directory.
  fork_child intruder([&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(nobody) != 0 || ::setuid(nobody) != 0) return 90;
    return listen_code(path) == errc::not_permitted && listen_code(path, any) == errc::not_permitted ? 0 : 1;
  });
  CHECK(intruder.wait() == 0);
}

TEST_CASE("a process without descriptors left waits for one instead of spinning, then accepts") {
  scratch const directory;
  fork_child child([&] {
    asio::io_context io(1);
    std::string const path = directory.file("socket");
    wire::listener at(strand_of(io), path);
    outcome<wire::connection> accept;
    start(io, at.accept(), accept);
    io.poll();
    unique_fd const peer(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    if (::connect(peer.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 1;
    // With no descriptor left, and with too few for all that a connection needs.
    for (int spare : {0, 1}) {
      std::vector<unique_fd> taken;
      rlimit limit{};
      ::getrlimit(RLIMIT_NOFILE, &limit);
      rlim_t const before = limit.rlim_cur;
      limit.rlim_cur = 64;
      ::setrlimit(RLIMIT_NOFILE, &limit);
      for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) taken.emplace_back(fd);
      for (int i = 0; i < spare; ++i) taken.pop_back();
      int handlers = 0;
      auto const end = in(200ms);
      io.restart();
      while (io.run_one_until(end) > 0) ++handlers;
      if (handlers > 20) return 2;
      if (accept.done()) return 3;
      limit.rlim_cur = before;
      ::setrlimit(RLIMIT_NOFILE, &limit);
      if (spare == 1) break;
    }
    // The first peer was dropped when there was too little for it; the next is served.
    unique_fd const next(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (::connect(next.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 4;
    return run_until(io, [&] { return accept.done(); }) && accept.get().is_open() ? 0 : 5;
  });
  CHECK(child.wait() == 0);
}

TEST_CASE("hundreds of connections come and go") {
  scratch const directory;
  std::string const path = directory.file("socket");
  asio::io_context io(1);
  wire::listener at(strand_of(io), path);
  struct many {
    static awaitable<void> serve(wire::listener& from, int count) {
      std::vector<wire::connection> peers;
      for (int i = 0; i < count; ++i) {
        wire::connection peer = co_await from.accept();
        co_await peer.send(bytes_of("hello"));
        peers.push_back(std::move(peer));
      }
    }
    static awaitable<int> visit(std::string to, int count) {
      std::vector<wire::connection> peers;
      int greeted = 0;
      for (int i = 0; i < count; ++i) peers.push_back(co_await connect_to(to, in(10s)));
      for (auto& peer : peers) {
        std::string text = co_await receive_text(peer);
        greeted += text == "hello";
      }
      co_return greeted;
    }
  };
  outcome<void> serving;
  start(io, many::serve(at, 300), serving);
  CHECK(run(io, many::visit(path, 300)) == 300);
  REQUIRE(run_until(io, [&] { return serving.done(); }));
}

TEST_CASE("the lock is one at a time and its file is gone afterwards") {
  scratch const directory;
  std::string const path = directory.file("socket");
  {
    wire::path_lock const held(path);
    CHECK(names_in(directory) == "socket.lock");
    baton tries;
    fork_child child([&] {
      tries.pass();
      wire::path_lock const second(path);
      return 0;
    });
    REQUIRE(tries.wait());
    CHECK(code_of([&] { wire::path_lock const third(path); }) == errc::address_in_use);
    CHECK(child.wait() == fork_child::threw);
  }
  CHECK(names_in(directory) == "");
  std::filesystem::create_directory(path + ".lock");
  CHECK(code_of([&] { wire::path_lock const held(path); }) == errc::bad_path);
}
