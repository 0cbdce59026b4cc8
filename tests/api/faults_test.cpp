// Peers that die or hang, each in a process of its own: the survivor is told in bounded time, others are
// unaffected, and descriptors, mappings and socket files are back to where they were. Part of ropeway;
// Apache-2.0.
#include <asio/steady_timer.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <sys/stat.h>
#include <sys/wait.h>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"
#include "support/fork_child.hpp"
#include "support/leak_check.hpp"
#include "support/peer_process.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib; // two layers each
using clock_type = std::chrono::steady_clock;

std::vector<tensor_info> layers(std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

/// Where a receiver stands when it is hit. `committing`: it has everything and has not said commit.
enum class point { idle, announced, holding, committing };

// ---- children
// ---------------------------------------------------------------------------------------------------

/// A receiver that comes to a point, says "there", and goes on when it hears "go": then it says how that
/// ended.
awaitable<void> receive_until(std::shared_ptr<words> parent, std::string path, point at, std::string name) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver(std::move(name));
  options.connect_limit(std::chrono::seconds(20));
  receiver from(executor, options);
  co_await parent->expect("connect");
  co_await from.connect(path);
  std::optional<update> next;
  std::optional<bucket> held;
  if (at != point::idle) {
    next = co_await from.next_update();
    if (at == point::holding) held = co_await next->next_bucket();
    if (at == point::committing)
      while (auto taken = co_await next->next_bucket()) taken->release();
  }
  parent->say("there");
  co_await parent->expect("go");
  auto const end = co_await try_to(next->next_bucket());
  held.reset();
  auto const committed = co_await try_to(next->commit());
  parent->say(committed.ok() || from.version() ? "committed" : "not committed: " + committed.error.message());
  auto const after = co_await try_to(from.next_update());
  parent->say(after.ok() ? "no error" : after.error.category().name());
}

/// A receiver that loads every update until the sender closes, and checks each against its seed, the version.
awaitable<void> follow(std::shared_ptr<words> parent, std::string path, std::string name) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver(std::move(name));
  options.connect_limit(std::chrono::seconds(20));
  receiver from(executor, options);
  co_await parent->expect("connect");
  co_await from.connect(path);
  parent->say("there");
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  while (auto next = co_await from.next_update()) {
    load_report const report = co_await next->load_into(into);
    model const wanted(host_memory(), layers(), report.version);
    auto const wrong = difference(wanted.images(), held);
    parent->say(wrong.empty() ? "exact" : wrong);
  }
  co_await from.close();
  parent->say("closed");
}

enum class sender_point { idle, announced, streaming };

/// A sender that sends to one receiver, up to a point, and stays there.
awaitable<void> send_until(std::shared_ptr<words> parent, std::string path, sender_point at,
                           milliseconds silence = std::chrono::seconds(8)) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(small_bucket);
  options.silence_limit(silence);
  sender to(executor, path, options);
  parent->say("listening");
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  event const never(executor), reached(executor);
  model const whole(host_memory(), layers(), 1);
  gated_source source(whole, 9, never, reached);
  if (at == sender_point::idle) {
    parent->say("there");
    co_await never.wait();
  }
  auto send = beside(executor, to.send_weights(1, source));
  if (at == sender_point::streaming) co_await reached.wait();
  parent->say("there");
  co_await parent->expect("go");
  never.set();
  auto const sent = co_await send.join();
  parent->say(sent.ok() ? outcomes(*sent.value) : sent.report ? outcomes(*sent.report) : sent.said());
}

/// A sender for a second life at the same path: one version, then the end.
awaitable<void> send_once(std::shared_ptr<words> parent, std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  co_await parent->expect("start");
  sender to(executor, path, quick_sender(small_bucket));
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  model const whole(host_memory(), layers(), 2);
  send_report const report = co_await to.send_weights(2, whole.views());
  co_await to.close();
  parent->say(outcomes(report));
}

/// A receiver that maps, and reads so slowly that it never ends.
awaitable<void> read_slowly(std::shared_ptr<words> parent, std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver("victim");
  copy_pace slow;
  slow.bytes_per_second(1);
  options.connect_limit(std::chrono::seconds(20)).pace(slow);
  receiver from(executor, options);
  co_await parent->expect("connect");
  co_await from.connect(path);
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  auto loading = beside(executor, load_next(from, into));
  while (!into.torn()) co_await settle(1);
  parent->say("there");
  co_await loading.join();
}

// ---- what the survivor does
// -------------------------------------------------------------------------------------

/// Sends version 1 while `victim` is at its point, and `hit` is done to it then; `good` must commit.
awaitable<void> send_and_hit(scratch const& directory, peer_process& victim, peer_process& good, int signal,
                             milliseconds silence, send_report& report) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(small_bucket);
  options.silence_limit(silence);
  sender to(executor, directory.file("s"), options);
  victim.line().say("connect");
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  good.line().say("connect");
  co_await good.line().expect("there");
  co_await to.wait_for_receivers(2, std::chrono::seconds(20));
  model const whole(host_memory(), layers(), 1);
  auto send = beside(executor, to.send_weights(1, whole.views()));
  co_await victim.line().expect("there");
  auto const started = clock_type::now();
  victim.process().signal(signal);
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  // A killed peer is noticed at once, a stopped one after the limit: far less than the default of 10 s.
  CHECK(clock_type::now() - started < patient(std::chrono::seconds(6)));
  if (sent.ok()) report = *sent.value;
  co_await good.line().expect("exact");

  // The survivors go on.
  model const second(host_memory(), layers(), 2);
  auto const again = co_await try_to(to.send_weights(2, second.views()));
  CHECK_MESSAGE(again.ok(), again.said());
  if (again.ok()) {
    CHECK(again.value->receivers.size() == 1);
    CHECK(outcomes(*again.value) == "committed");
  }
  co_await good.line().expect("exact");
  if (signal == SIGSTOP) {
    victim.process().resume();
    victim.line().say("go");
    auto const end = co_await victim.line().hear();
    CHECK_MESSAGE(end.starts_with("not committed"), end);
    auto const after = co_await victim.line().hear();
    CHECK(after == "ropeway");
  }
  co_await to.close();
  co_await good.line().expect("closed");
  CHECK(directory.entries().empty());
}

void hit_a_receiver(point at, int signal) {
  leak_check const nothing_stays;
  scratch const directory;
  auto const path = directory.file("s");
  peer_process victim([&](auto parent) { return receive_until(parent, path, at, "victim"); });
  peer_process good([&](auto parent) { return follow(parent, path, "good"); });
  send_report report;
  auto const silence = signal == SIGSTOP ? patient(milliseconds(1500)) : milliseconds(8000);
  run_to_end([&] { return send_and_hit(directory, victim, good, signal, silence, report); },
             std::chrono::seconds(30));
  CHECK(report.count(outcome::committed) == 1);
  CHECK(report.receivers.size() == 2);
  if (report.receivers.size() == 2) {
    CHECK(of(report, "good").what == outcome::committed);
    auto const& told = of(report, "victim");
    CHECK(told.what == outcome::dropped);
    CHECK(told.error == make_error_code(signal == SIGSTOP ? errc::peer_silent : errc::peer_gone));
    CHECK_FALSE(told.text.empty());
  }
}

awaitable<void> receive_and_kill(scratch const& directory, peer_process& victim, peer_process& successor,
                                 sender_point at) {
  auto const executor = co_await asio::this_coro::executor;
  auto const path = directory.file("s");
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  auto options = quick_receiver();
  options.connect_limit(std::chrono::seconds(20));
  receiver from(executor, options);
  co_await victim.line().expect("listening");
  co_await from.connect(path);
  auto load = beside(executor, load_next(from, into));
  co_await victim.line().expect("there");
  if (at == sender_point::streaming) // some bytes have come
    while (!into.torn()) co_await settle(10);
  auto const started = clock_type::now();
  victim.process().signal(SIGKILL);
  auto const end = co_await load.join();
  CHECK_FALSE(end.ok());
  CHECK(end.error == make_error_code(errc::peer_gone));
  CHECK(clock_type::now() - started < patient(std::chrono::seconds(6)));
  CHECK_FALSE(from.version().has_value());
  if (at != sender_point::announced) CHECK(into.torn() == (at == sender_point::streaming));
  auto const closed = co_await try_to(from.next_update());
  CHECK(closed.error == make_error_code(errc::peer_gone));

  // The killed sender's socket is still there; its successor replaces it.
  CHECK(std::filesystem::exists(path));
  victim.process().kill();
  successor.line().say("start");
  // The stale socket refuses until the successor is there: connect goes on trying.
  co_await from.connect(path);
  load_report const report = co_await load_next(from, into);
  CHECK(report.version == 2);
  CHECK_FALSE(into.torn());
  model const wanted(host_memory(), layers(), 2);
  CHECK(difference(wanted.images(), held) == "");
  co_await successor.line().expect("committed");
  co_await from.close();
}

/// The sender is stopped while it sends: the receiver gives up after its limit. It wakes, and learns of it.
awaitable<void> receive_and_stop(scratch const& directory, peer_process& victim) {
  auto const executor = co_await asio::this_coro::executor;
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  auto options = quick_receiver();
  options.silence_limit(patient(milliseconds(1500)));
  receiver from(executor, options);
  co_await victim.line().expect("listening");
  co_await from.connect(directory.file("s"));
  auto load = beside(executor, load_next(from, into));
  co_await victim.line().expect("there");
  while (!into.torn()) co_await settle(10);
  auto const started = clock_type::now();
  victim.process().signal(SIGSTOP);
  auto const end = co_await load.join();
  CHECK(end.error == make_error_code(errc::peer_silent));
  CHECK(clock_type::now() - started < patient(std::chrono::seconds(6)));
  CHECK(into.torn());
  victim.process().resume();
  victim.line().say("go");
  auto const told = co_await victim.line().hear();
  CHECK(told == "dropped");
  co_await from.close();
}

} // namespace

TEST_CASE("a receiver that is killed: the report says dropped, the other commits, nothing stays behind") {
  for (auto at : {point::announced, point::holding, point::committing}) {
    INFO("at point " << int(at));
    hit_a_receiver(at, SIGKILL);
  }
}

TEST_CASE("a receiver that is stopped is dropped after the silence limit; when it wakes it never commits") {
  for (auto at : {point::holding, point::committing}) {
    INFO("at point " << int(at));
    hit_a_receiver(at, SIGSTOP);
  }
}

TEST_CASE("a sender that is killed: the receiver hears it in bounded time, and joins its successor at the "
          "same path") {
  for (auto at : {sender_point::idle, sender_point::announced, sender_point::streaming}) {
    INFO("at point " << int(at));
    leak_check const nothing_stays;
    scratch const directory;
    auto const path = directory.file("s");
    peer_process victim([&](auto parent) { return send_until(parent, path, at); });
    peer_process successor([&](auto parent) { return send_once(parent, path); });
    run_to_end([&] { return receive_and_kill(directory, victim, successor, at); }, std::chrono::seconds(30));
    CHECK(successor.process().wait() == 0);
    CHECK(directory.entries().empty());
  }
}

/// Gives up after a second of the loop's running on.
static awaitable<bool> unmapped_within_a_second() {
  asio::steady_timer pause(co_await asio::this_coro::executor);
  for (auto const until = clock_type::now() + patient(milliseconds(1000)); clock_type::now() < until;) {
    if (shared_mappings().empty()) co_return true;
    pause.expires_after(milliseconds(1));
    co_await pause.async_wait(use_awaitable);
  }
  co_return shared_mappings().empty(); // the loop may have stood still
}

static awaitable<void> kill_and_restart_at_once(scratch const& directory, peer_process& victim,
                                                peer_process& successor) {
  auto const executor = co_await asio::this_coro::executor;
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  receiver from(executor, quick_receiver());
  co_await victim.line().expect("listening");
  co_await from.connect(directory.file("s"));
  auto load = beside(executor, load_next(from, into));
  co_await victim.line().expect("there");
  while (!into.torn()) co_await settle(10);
  CHECK_FALSE(shared_mappings().empty()); // its ring
  victim.process().kill();
  successor.line().say("start");
  auto const end = co_await load.join();
  CHECK(end.error == make_error_code(errc::peer_gone));
  bool const unmapped = co_await unmapped_within_a_second();
  CHECK_MESSAGE(unmapped, "the dead sender's ring is still mapped");
  co_await from.connect(directory.file("s"));
  load_report const report = co_await load_next(from, into);
  CHECK(report.version == 2);
  CHECK(shared_mappings().size() <= 1); // the successor's ring, and that only until it ends
  co_await successor.line().expect("committed");
  co_await from.close();
}

TEST_CASE(
    "a trainer that is killed and restarts at once gets its socket, and its dead ring is unmapped within a "
    "second while the receiver runs on") {
  scratch const directory;
  auto const path = directory.file("s");
  peer_process victim([&](auto parent) { return send_until(parent, path, sender_point::streaming); });
  peer_process successor([&](auto parent) { return send_once(parent, path); });
  run_to_end([&] { return kill_and_restart_at_once(directory, victim, successor); },
             std::chrono::seconds(30));
  CHECK(successor.process().wait() == 0);
  CHECK(directory.entries().empty());
}

static awaitable<void> kill_while_idle(scratch const& directory, peer_process& victim, peer_process& good) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  victim.line().say("connect");
  co_await victim.line().expect("there");
  good.line().say("connect");
  co_await good.line().expect("there");
  co_await to.wait_for_receivers(2, std::chrono::seconds(20));
  victim.process().signal(SIGKILL);
  for (std::size_t here = 2; here == 2;) { // until the sender has noticed: nobody sends anything meanwhile
    co_await settle(1);
    auto const all = co_await to.receivers();
    here = all.size();
  }
  model const whole(host_memory(), layers(), 1);
  send_report const report = co_await to.send_weights(1, whole.views());
  CHECK(outcomes(report) == "committed");
  co_await good.line().expect("exact");
  co_await to.close();
  co_await good.line().expect("closed");
}

TEST_CASE("a receiver that is killed while nothing happens is noticed, and not in the next report") {
  scratch const directory;
  auto const path = directory.file("s");
  peer_process victim([&](auto parent) { return receive_until(parent, path, point::idle, "victim"); });
  peer_process good([&](auto parent) { return follow(parent, path, "good"); });
  run_to_end([&] { return kill_while_idle(directory, victim, good); }, std::chrono::seconds(30));
  CHECK(directory.entries().empty());
}

static awaitable<void> fork_beside(scratch const& directory) {
  auto const executor = co_await asio::this_coro::executor;
  std::optional<sender> to(std::in_place, executor, directory.file("s"), quick_sender(small_bucket));
  std::optional<receiver> from(std::in_place, executor, quick_receiver());
  co_await from->connect(directory.file("s"));
  co_await to->wait_for_receivers(1, std::chrono::seconds(20));
  model const whole(host_memory(), layers(), 1);
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  auto const views = whole.views();
  for (std::uint64_t version = 1;; ++version) {
    auto load = beside(executor, load_next(*from, into));
    send_report const report = co_await to->send_weights(version, views);
    CHECK(outcomes(report) == "committed");
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    if (version == 2) break;
    fork_child child([&] {
      to.reset();
      from.reset();
      return 0;
    });
    auto const until = clock_type::now() + patient(std::chrono::seconds(5));
    siginfo_t ended{};
    while (ended.si_pid == 0 && clock_type::now() < until)
      ::waitid(P_PID, static_cast<id_t>(child.pid()), &ended, WEXITED | WNOHANG | WNOWAIT);
    CHECK(ended.si_pid != 0); // else it hangs
    if (ended.si_pid != 0) CHECK(child.wait() == 0);
  }
  co_await from->close();
  co_await to->close();
}

TEST_CASE("a child that was forked may destroy its copies of sender and receiver: it ends, and the parent's "
          "go on") {
  scratch const directory;
  run_to_end([&] { return fork_beside(directory); }, std::chrono::seconds(30));
  CHECK(directory.entries().empty());
}

static awaitable<void> serve_two(scratch const& directory, peer_process& one, peer_process& two) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  for (auto* each : {&one, &two}) each->line().say("connect");
  for (auto* each : {&one, &two}) co_await each->line().expect("there");
  co_await to.wait_for_receivers(2, std::chrono::seconds(20));
  for (std::uint64_t version = 1; version <= 5; ++version) {
    model const whole(host_memory(), layers(), version);
    send_report const report = co_await to.send_weights(version, whole.views());
    CHECK(outcomes(report) == "committed committed");
    for (auto* each : {&one, &two}) co_await each->line().expect("exact");
  }
  co_await to.close();
  for (auto* each : {&one, &two}) { co_await each->line().expect("closed"); }
}

TEST_CASE("two receivers in processes of their own hold every version exactly") {
  scratch const directory;
  auto const path = directory.file("s");
  peer_process one([&](auto parent) { return follow(parent, path, "one"); });
  peer_process two([&](auto parent) { return follow(parent, path, "two"); });
  run_to_end([&] { return serve_two(directory, one, two); }, std::chrono::seconds(30));
  CHECK(one.process().wait() == 0);
  CHECK(two.process().wait() == 0);
}

TEST_CASE("a living sender's socket is not taken over; a path that can't be used is refused with a reason") {
  scratch const directory;
  asio::io_context io(1);
  auto const refusal = [&](std::string const& path) {
    try {
      sender const refused(io.get_executor(), path, quick_sender());
    } catch (transfer_error const& e) { return e.code(); }
    return std::error_code();
  };
  {
    sender const first(io.get_executor(), directory.file("s"), quick_sender());
    CHECK(refusal(directory.file("s")) == make_error_code(errc::address_in_use));
    CHECK(std::filesystem::exists(directory.file("s")));
  }
  io.run();
  CHECK(refusal(directory.file("s") + std::string(200, 'x')) == make_error_code(errc::bad_path));
  std::filesystem::create_directory(directory.file("folder"));
  CHECK(refusal(directory.file("folder")) == make_error_code(errc::bad_path));
  ::chmod(directory.file("folder").c_str(), 0777);
  CHECK(refusal(directory.file("folder") + "/s") == make_error_code(errc::not_permitted));
  CHECK(refusal(directory.file("missing/missing/s")) == make_error_code(errc::bad_path));
}

CO_TEST("nobody listens within the connect limit: connect_timeout, in about that time") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  auto options = quick_receiver();
  options.connect_limit(milliseconds(100));
  receiver lonely(executor, options);
  auto const started = clock_type::now();
  auto const end = co_await try_to(lonely.connect(directory.file("nobody")));
  CHECK(end.error == make_error_code(errc::connect_timeout));
  CHECK(clock_type::now() - started >= milliseconds(100));
  CHECK_MESSAGE(end.text.find(directory.file("nobody")) != std::string::npos, end.text);
}

TEST_CASE(
    "a sender that is stopped: the receiver gives up after its silence limit, the sender learns of it") {
  scratch const directory;
  auto const path = directory.file("s");
  // A receiver waits at least as long as the sender promises to speak up.
  auto const silence = patient(milliseconds(1500));
  peer_process victim(
      [&](auto parent) { return send_until(parent, path, sender_point::streaming, silence); });
  run_to_end([&] { return receive_and_stop(directory, victim); }, std::chrono::seconds(30));
  CHECK(victim.process().wait() == 0);
}

namespace {

awaitable<void> send_mapped_and_kill(scratch const& directory, peer_process& victim, peer_process& good) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  model whole(shared_host_memory(), layers(), 1);
  for (auto const& memory : whole.kind().shared()) to.share(memory);
  victim.line().say("connect");
  good.line().say("connect");
  co_await good.line().expect("there");
  co_await to.wait_for_receivers(2, std::chrono::seconds(20));
  auto begun = co_await to.start(1, whole.views());
  co_await victim.line().expect("there");
  co_await good.line().expect("exact");
  bool free = false;
  auto freed = [&](std::error_code) { free = true; };
  begun.source_free(freed);
  co_await settle();
  CHECK_FALSE(free); // the victim reads
  victim.process().kill();
  auto const report = co_await begun.done();
  CHECK(free);
  CHECK(of(report, "victim").what == outcome::dropped);
  CHECK(of(report, "good").what == outcome::committed);
  CHECK(of(report, "good").way == route::mapped);
  whole.fill(2);
  auto const next = co_await to.send_weights(2, whole.views());
  CHECK(outcomes(next) == "committed");
  co_await good.line().expect("exact");
  co_await to.close();
  co_await good.line().expect("closed");
}

} // namespace

TEST_CASE(
    "a receiver that is killed while it reads the sender's memory: the others commit, the source is free") {
  scratch const directory;
  std::string const path = directory.file("s");
  peer_process victim([&](auto parent) { return read_slowly(parent, path); });
  peer_process good([&](auto parent) { return follow(parent, path, "good"); });
  run_to_end([&] { return send_mapped_and_kill(directory, victim, good); });
  victim.process().wait();
}
