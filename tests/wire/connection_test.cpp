#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/steady_timer.hpp>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>

#include "../support/fork_child.hpp"
#include "pair.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;
using namespace ropeway::compat::awaitable_operators;

namespace {

std::vector<unique_fd> pipes(std::size_t count) {
  std::vector<unique_fd> out;
  while (out.size() < count) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    out.emplace_back(ends[0]);
    out.emplace_back(ends[1]);
  }
  return out;
}
std::vector<int> numbers(std::vector<unique_fd> const& fds) {
  std::vector<int> out;
  for (auto const& fd : fds) out.push_back(fd.get());
  return out;
}

awaitable<void> sleep_for(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(use_awaitable);
}

// Fills the queue towards the peer; how many messages went.
std::size_t fill(wire::connection& to) {
  std::string const block(100'000, 'f');
  std::size_t sent = 0;
  while (to.try_send(bytes_of(block))) ++sent;
  return sent;
}

awaitable<std::size_t> receive_or_timer(wire::connection& from) {
  auto either = co_await (receive_text(from) || sleep_for(5ms));
  co_return either.index();
}
awaitable<std::size_t> send_or_timer(wire::connection& to, std::string_view text) {
  auto either = co_await (to.send(bytes_of(text)) || sleep_for(5ms));
  co_return either.index();
}

bool aborted(std::error_code code) { return code == asio::error::operation_aborted; }

// Starts it with a cancellation slot.
template <class T>
void start_cancellable(asio::io_context& io, awaitable<T> work, outcome<T>& into,
                       asio::cancellation_signal& signal) {
  asio::co_spawn(io, settle(std::move(work), into), asio::bind_cancellation_slot(signal.slot(), ignore_end));
}

} // namespace

TEST_CASE("messages of every size arrive in order, whole") {
  asio::io_context io(1);
  connection_pair ends(io);
  std::vector<std::string> sent;
  for (std::size_t size : {std::size_t{1}, std::size_t{2}, std::size_t{64}, std::size_t{4095},
                           std::size_t{65536}, wire::max_message - 1, wire::max_message}) {
    sent.emplace_back(size, static_cast<char>('a' + sent.size()));
  }
  outcome<void> sending;
  struct all {
    static awaitable<void> of(wire::connection& to, std::vector<std::string> const& texts) {
      for (auto const& text : texts) co_await to.send(bytes_of(text));
    }
  };
  start(io, all::of(ends.a, sent), sending);
  for (auto const& text : sent) CHECK(run(io, receive_text(ends.b)) == text);
  CHECK(run_until(io, [&] { return sending.done(); }));
  sending.get();
}

TEST_CASE("descriptors arrive with their message, close-on-exec, and stay the sender's too") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto const pipe = pipes(2);
  int const write_end = pipe[1].get();
  run(io, ends.a.send(bytes_of("one"), {&write_end, 1}));
  run(io, ends.a.send(bytes_of("none")));
  std::vector<unique_fd> fds;
  CHECK(run(io, receive_text(ends.b, 1, &fds)) == "one");
  REQUIRE(fds.size() == 1);
  CHECK((::fcntl(fds[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(::write(fds[0].get(), "!", 1) == 1);
  char seen = 0;
  CHECK(::read(pipe[0].get(), &seen, 1) == 1);
  CHECK(seen == '!');
  CHECK(::fcntl(write_end, F_GETFD) >= 0);
  CHECK(run(io, receive_text(ends.b, 1, &fds)) == "none");
  CHECK(fds.empty());
}

TEST_CASE("as many descriptors as the system allows fit in one message, and no more are tried") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto all = numbers(pipes(2));
  std::vector<int> const most(wire::max_fds, 0), too_many(wire::max_fds + 1, 0);
  run(io, ends.a.send(bytes_of("x"), most));
  std::vector<unique_fd> fds;
  run(io, receive_text(ends.b, wire::max_fds, &fds));
  CHECK(fds.size() == wire::max_fds);
  CHECK(code_of([&] { run(io, ends.a.send(bytes_of("x"), too_many)); }) == errc::overflow);
  CHECK(code_of([&] { (void)ends.a.try_send(bytes_of("x"), too_many); }) == errc::overflow);
}

TEST_CASE("surplus descriptors are closed and reported, and the next message is untouched") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto const surplus = pipes(4);
  for (std::size_t allowed : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
    auto const before = open_fds();
    run(io, ends.a.send(bytes_of("x"), numbers(surplus)));
    CHECK(code_of([&] { run(io, receive_text(ends.b, allowed)); }) == errc::protocol_error);
    CHECK(open_fds() == before);
  }
  run(io, ends.a.send(bytes_of("next")));
  CHECK(run(io, receive_text(ends.b)) == "next");
}

TEST_CASE("a message longer than the buffer is a protocol error with both sizes") {
  asio::io_context io(1);
  connection_pair ends(io);
  run(io, ends.a.send(bytes_of("twelve bytes")));
  std::vector<std::byte> small(11);
  auto const words = words_of([&] { run(io, receive(ends.b, small)); });
  CHECK(words.find("12 bytes where 11") != std::string::npos);
  run(io, ends.a.send(bytes_of("eleven byte")));
  CHECK(run(io, receive(ends.b, small)).bytes == 11);
}

TEST_CASE("messages that can't be sent are refused before they are") {
  asio::io_context io(1);
  connection_pair ends(io);
  std::string const oversize(wire::max_message + 1, 'x');
  auto const words = words_of([&] { run(io, ends.a.send(bytes_of(oversize))); });
  CHECK(words.find(std::to_string(wire::max_message)) != std::string::npos);
  CHECK(code_of([&] { run(io, ends.a.send(bytes_of(oversize))); }) == errc::overflow);
  CHECK(code_of([&] { run(io, ends.a.send({})); }) == errc::invalid_argument);
  int const closed = 9999;
  CHECK(code_of([&] {
          run(io, ends.a.send(bytes_of("x"), {&closed, 1}));
        }) == std::errc::bad_file_descriptor);
  run(io, ends.a.send(bytes_of("fine")));
  CHECK(run(io, receive_text(ends.b)) == "fine");
}

TEST_CASE("after the end everything that was sent before arrives, then peer_gone, for both directions") {
  asio::io_context io(1);
  connection_pair ends(io);
  int const zero = 0;
  run(io, ends.a.send(bytes_of("last"), {&zero, 1}));
  run(io, ends.a.send(bytes_of("words")));
  ends.a.close();
  std::vector<unique_fd> fds;
  CHECK(run(io, receive_text(ends.b, 1, &fds)) == "last");
  CHECK(fds.size() == 1);
  CHECK(run(io, receive_text(ends.b)) == "words");
  CHECK(code_of([&] { run(io, receive_text(ends.b)); }) == errc::peer_gone);
  CHECK(code_of([&] { run(io, receive_text(ends.b)); }) == errc::peer_gone);
  CHECK(code_of([&] { run(io, ends.b.send(bytes_of("x"))); }) == errc::peer_gone);
}

TEST_CASE("a peer that went without reading is gone, not a reset, and its last words arrive") {
  asio::io_context io(1);
  connection_pair ends(io);
  run(io, ends.b.send(bytes_of("never read")));
  run(io, ends.a.send(bytes_of("last words")));
  ends.a.close();
  CHECK(run(io, receive_text(ends.b)) == "last words");
  CHECK(code_of([&] { run(io, receive_text(ends.b)); }) == errc::peer_gone);
}

TEST_CASE("a receive that waits learns of the end") {
  asio::io_context io(1);
  connection_pair ends(io);
  outcome<std::string> waiting;
  start(io, receive_text(ends.b), waiting);
  io.poll();
  CHECK_FALSE(waiting.done());
  ends.a.close();
  REQUIRE(run_until(io, [&] { return waiting.done(); }));
  CHECK(code_of([&] { (void)waiting.get(); }) == errc::peer_gone);
}

TEST_CASE("an end that closes is ended although a forked child keeps the socket") {
  auto [one, two] = socket_pair();
  baton die;
  fork_child child([&] { return die.wait() ? 0 : 1; });
  asio::io_context io(1);
  wire::connection a(strand_of(io), std::move(one), wire::trust());
  wire::connection b(strand_of(io), std::move(two), wire::trust());
  a.close();
  CHECK(code_of([&] { run(io, receive_text(b)); }) == errc::peer_gone);
  die.pass();
  CHECK(child.wait() == 0);
}

TEST_CASE("closing a copy in a forked child does not end the parent's connection") {
  asio::io_context io(1);
  connection_pair ends(io);
  fork_child child([&] {
    // What the child's exit would do to its copy.
    wire::connection copy = std::move(ends.a);
    return 0;
  });
  CHECK(child.wait() == 0);
  run(io, ends.a.send(bytes_of("still here")));
  CHECK(run(io, receive_text(ends.b)) == "still here");
}

TEST_CASE("a connection that is cut from another thread has ended for both, behind what was sent before") {
  asio::io_context io(1);
  connection_pair ends(io);
  run(io, ends.a.send(bytes_of("from a")));
  run(io, ends.b.send(bytes_of("from b")));
  std::thread([&] { ends.a.cut(); }).join();
  CHECK(code_of([&] { run(io, ends.b.send(bytes_of("x"))); }) == errc::peer_gone);
  CHECK(run(io, receive_text(ends.a)) == "from b");
  CHECK(code_of([&] { run(io, receive_text(ends.a)); }) == errc::peer_gone);
  CHECK(run(io, receive_text(ends.b)) == "from a");
  CHECK(code_of([&] { run(io, receive_text(ends.b)); }) == errc::peer_gone);
  ends.a.close();
  ends.a.cut(); // means nothing
  wire::connection().cut();
}

TEST_CASE("who waits learns of a cut, at either end; and a forked child can't cut its parent's connection") {
  asio::io_context io(1);
  connection_pair ends(io);
  fork_child child([&] {
    ends.a.cut();
    return 0;
  });
  CHECK(child.wait() == 0);
  outcome<std::string> at_a, at_b;
  start(io, receive_text(ends.a), at_a);
  start(io, receive_text(ends.b), at_b);
  io.poll();
  CHECK_FALSE((at_a.done() || at_b.done()));
  ends.a.cut();
  REQUIRE(run_until(io, [&] { return at_a.done() && at_b.done(); }));
  CHECK(code_of([&] { (void)at_a.get(); }) == errc::peer_gone);
  CHECK(code_of([&] { (void)at_b.get(); }) == errc::peer_gone);
}

TEST_CASE("one send at a time") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto const queued = fill(ends.a);
  outcome<void> send;
  start(io, ends.a.send(bytes_of("waits")), send);
  io.restart();
  io.poll();
  CHECK_FALSE(send.done());
  CHECK(code_of([&] { run(io, ends.a.send(bytes_of("too"))); }) == errc::busy);
  CHECK_FALSE(ends.a.try_send(bytes_of("overtakes")));
  for (std::size_t i = 0; i < queued; ++i) CHECK(run(io, receive_text(ends.b)).size() == 100'000);
  REQUIRE(run_until(io, [&] { return send.done(); }));
  send.get();
  CHECK(run(io, receive_text(ends.b)) == "waits");
}

TEST_CASE("a full queue makes try_send say no and send wait") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto const queued = fill(ends.a);
  CHECK(queued > 0);
  outcome<void> send;
  start(io, ends.a.send(bytes_of("after all")), send);
  io.poll();
  CHECK_FALSE(send.done());
  for (std::size_t i = 0; i < queued; ++i) run(io, receive_text(ends.b));
  CHECK(run(io, receive_text(ends.b)) == "after all");
  REQUIRE(run_until(io, [&] { return send.done(); }));
  CHECK(ends.a.try_send(bytes_of("room again")));
}

TEST_CASE("close ends what runs, and nothing starts after it") {
  asio::io_context io(1);
  connection_pair ends(io);
  fill(ends.a);
  outcome<std::string> receive;
  outcome<void> send;
  start(io, receive_text(ends.a), receive);
  start(io, ends.a.send(bytes_of("x")), send);
  io.poll();
  ends.a.close();
  CHECK_FALSE(ends.a.is_open());
  REQUIRE(run_until(io, [&] { return receive.done() && send.done(); }));
  CHECK(aborted(code_of([&] { (void)receive.get(); })));
  CHECK(aborted(code_of([&] { send.get(); })));
  CHECK(code_of([&] { run(io, receive_text(ends.a)); }) == errc::not_open);
  CHECK(code_of([&] { run(io, ends.a.send(bytes_of("x"))); }) == errc::not_open);
  CHECK(code_of([&] { (void)ends.a.try_send(bytes_of("x")); }) == errc::not_open);
  wire::connection never;
  CHECK_FALSE(never.is_open());
  CHECK(code_of([&] { run(io, receive_text(never)); }) == errc::not_open);
  CHECK(code_of([&] { run(io, never.send(bytes_of("x"))); }) == errc::not_open);
}

TEST_CASE("a connection may move, or go, while a wait runs") {
  asio::io_context io(1);
  connection_pair ends(io);
  std::vector<std::byte> buffer(16);
  std::optional<std::error_code> first, second;
  ends.b.wait([&](std::error_code error) { first = error; });
  wire::connection moved = std::move(ends.b);
  run(io, ends.a.send(bytes_of("x")));
  REQUIRE(run_until(io, [&] { return first.has_value(); }));
  CHECK_FALSE(*first);
  auto const got = moved.try_receive(buffer);
  REQUIRE(got);
  CHECK(got->bytes == 1);
  CHECK_FALSE(moved.try_receive(buffer));
  moved.wait([&](std::error_code error) { second = error; });
  moved = wire::connection();
  REQUIRE(run_until(io, [&] { return second.has_value(); }));
  CHECK(aborted(*second));
}

TEST_CASE("a loop that ends with operations waiting leaves nothing behind") {
  outcome<std::string> receive;
  outcome<void> send;
  {
    asio::io_context io(1);
    connection_pair ends(io);
    fill(ends.a);
    start(io, receive_text(ends.a), receive);
    start(io, ends.a.send(bytes_of("x")), send);
    io.poll();
  }
  CHECK_FALSE(receive.done());
  CHECK_FALSE(send.done());
}

TEST_CASE("a receive can be cancelled by || and every cancellation type, and loses no message") {
  asio::io_context io(1);
  connection_pair ends(io);
  CHECK(run(io, receive_or_timer(ends.b)) == 1);
  for (auto type : {asio::cancellation_type::terminal, asio::cancellation_type::partial,
                    asio::cancellation_type::total}) {
    asio::cancellation_signal signal;
    struct with_all {
      static awaitable<std::string> of(wire::connection& from) {
        co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        std::string text = co_await receive_text(from);
        co_return text;
      }
      static awaitable<void> settled(wire::connection& from, outcome<std::string>& into) {
        co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        co_await settle(of(from), into);
      }
    };
    outcome<std::string> waiting;
    asio::co_spawn(io, with_all::settled(ends.b, waiting),
                   asio::bind_cancellation_slot(signal.slot(), ignore_end));
    io.restart();
    io.poll();
    signal.emit(type);
    REQUIRE(run_until(io, [&] { return waiting.done(); }));
    CHECK(aborted(code_of([&] { (void)waiting.get(); })));
  }
  // The message comes and the cancellation right after it, before the coroutine goes on: it stays in the
  // queue.
  asio::cancellation_signal signal;
  outcome<std::string> waiting;
  start_cancellable(io, receive_text(ends.b), waiting, signal);
  io.restart();
  io.poll();
  REQUIRE(ends.a.try_send(bytes_of("kept")));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(io, [&] { return waiting.done(); }));
  CHECK(aborted(code_of([&] { (void)waiting.get(); })));
  CHECK(run(io, receive_text(ends.b)) == "kept");
}

TEST_CASE("no message is lost when receives are cancelled at any moment") {
  asio::io_context io(1);
  connection_pair ends(io);
  struct both {
    static awaitable<void> send(wire::connection& to, int count) {
      for (int i = 0; i < count; ++i) {
        std::string const text = std::to_string(i);
        co_await to.send(bytes_of(text));
        if (i % 3 == 0) co_await sleep_for(0ms);
      }
    }
    static awaitable<int> receive(wire::connection& from, int count) {
      int next = 0;
      while (next < count) {
        auto either = co_await (receive_text(from) || sleep_for(0ms));
        if (either.index() == 0 && std::get<0>(either) == std::to_string(next)) {
          ++next;
        } else if (either.index() == 0) {
          break;
        }
      }
      co_return next;
    }
  };
  outcome<void> sending;
  start(io, both::send(ends.a, 2000), sending);
  CHECK(run(io, both::receive(ends.b, 2000)) == 2000);
}

TEST_CASE("an operation that is cancelled before it starts does nothing") {
  asio::io_context io(1);
  connection_pair ends(io);
  run(io, ends.a.send(bytes_of("queued")));
  fill(ends.a);
  struct late {
    static awaitable<void> of(wire::connection& a, wire::connection& b, asio::cancellation_signal& signal,
                              int& aborts) {
      co_await asio::this_coro::throw_if_cancelled(false);
      signal.emit(asio::cancellation_type::terminal);
      std::vector<std::byte> buffer(16);
      try {
        co_await receive(b, buffer);
      } catch (asio::system_error const& error) { aborts += error.code() == asio::error::operation_aborted; }
      try {
        co_await a.send(bytes_of("never"));
      } catch (asio::system_error const& error) { aborts += error.code() == asio::error::operation_aborted; }
    }
  };
  asio::cancellation_signal signal;
  int aborts = 0;
  asio::co_spawn(io, late::of(ends.a, ends.b, signal, aborts),
                 asio::bind_cancellation_slot(signal.slot(), ignore_end));
  io.restart();
  io.run_for(5s);
  CHECK(aborts == 2);
  CHECK(run(io, receive_text(ends.b)) == "queued");
}

TEST_CASE("a send that waits can be cancelled, and was not sent") {
  asio::io_context io(1);
  connection_pair ends(io);
  auto const queued = fill(ends.a);
  CHECK(run(io, send_or_timer(ends.a, "cancelled")) == 1);
  for (std::size_t i = 0; i < queued; ++i) run(io, receive_text(ends.b));
  run(io, ends.a.send(bytes_of("next")));
  CHECK(run(io, receive_text(ends.b)) == "next");
}

TEST_CASE("a peer that is killed is gone although a child of it keeps the socket, after its last words") {
  baton said, grandchild_runs, end;
  // A socketpair's credentials are those of its maker, so the peer connects by itself, to a name of the
  // system's choice.
  unique_fd listening(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr address{};
  address.sa_family = AF_UNIX;
  REQUIRE(::bind(listening.get(), &address, sizeof(sa_family_t)) == 0);
  REQUIRE(::listen(listening.get(), 1) == 0);
  std::array<char, 128> name{};
  socklen_t size = sizeof name;
  REQUIRE(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(name.data()), &size) == 0);
  fork_child peer([&] {
    unique_fd const socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(name.data()), size) != 0) return 1;
    if (::fork() == 0) {
      grandchild_runs.pass();
      (void)end.wait();
      ::_exit(0);
    }
    if (!grandchild_runs.wait() || ::send(socket.get(), "last words", 10, 0) != 10) return 2;
    said.pass();
    return baton().wait() ? 3 : 4;
  });
  unique_fd accepted(::accept4(listening.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  asio::io_context io(1);
  wire::connection end_of_it(strand_of(io), std::move(accepted), wire::trust());
  CHECK(end_of_it.peer().pid == peer.pid());
  if (!end_of_it.watches_process()) {
    MESSAGE("SKIPPED: this kernel has no process descriptors, or a container refuses them");
    return;
  }
  REQUIRE(said.wait());

  SUBCASE("while a receive waits") {
    CHECK(run(io, receive_text(end_of_it)) == "last words");
    outcome<std::string> waiting;
    start(io, receive_text(end_of_it), waiting);
    io.restart();
    io.poll();
    CHECK_FALSE(waiting.done());
    peer.kill();
    REQUIRE(run_until(
        io, [&] { return waiting.done(); }, 2s));
    CHECK(code_of([&] { (void)waiting.get(); }) == errc::peer_gone);
  }
  SUBCASE("before a receive starts") {
    peer.kill();
    CHECK(run(io, receive_text(end_of_it)) == "last words");
    CHECK(code_of([&] { run(io, receive_text(end_of_it)); }) == errc::peer_gone);
  }
  SUBCASE("while a send waits") {
    fill(end_of_it);
    outcome<void> waiting;
    start(io, end_of_it.send(bytes_of("x")), waiting);
    io.restart();
    io.poll();
    CHECK_FALSE(waiting.done());
    peer.kill();
    REQUIRE(run_until(
        io, [&] { return waiting.done(); }, 2s));
    CHECK(code_of([&] { waiting.get(); }) == errc::peer_gone);
  }
  end.pass();
}

TEST_CASE("descriptors that can't be taken are an error of this process, and none leaks") {
  auto [one, two] = socket_pair();
  auto const fds = pipes(20);
  fork_child child([&, &its = two] {
    asio::io_context io(1);
    wire::connection end(strand_of(io), std::move(its), wire::trust());
    auto const before = open_fds();
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 3;
    while (::fcntl(static_cast<int>(limit.rlim_cur), F_GETFD) >= 0) ++limit.rlim_cur;
    limit.rlim_cur += 5;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    auto const code = code_of([&] { run(io, receive_text(end, 20)); });
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    if (code != std::errc::too_many_files_open) return 1;
    if (open_fds() != before) return 2;
    return run(io, receive_text(end)) == "next" ? 0 : 3;
  });
  two.reset();
  asio::io_context io(1);
  wire::connection end(strand_of(io), std::move(one), wire::trust());
  run(io, end.send(bytes_of("many"), numbers(fds)));
  run(io, end.send(bytes_of("next")));
  CHECK(child.wait() == 0);
}

TEST_CASE("a peer of a user that is not trusted is refused by name") {
  asio::io_context io(1);
  auto [one, two] = socket_pair();
  auto const nobody = wire::trust::only({::geteuid() + 1});
  auto const words = words_of([&, &mine = one] { wire::connection(strand_of(io), std::move(mine), nobody); });
  CHECK(words.find("user " + std::to_string(::geteuid())) != std::string::npos);
  CHECK(wire::trust().user(::geteuid() + 1).allows(::geteuid()));
  CHECK(wire::trust().user(::geteuid() + 1).allows(::geteuid() + 1));
  CHECK_FALSE(wire::trust().allows(::geteuid() + 1));
}
