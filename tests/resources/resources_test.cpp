// What runs out or is refused: one clear error, nothing left behind, and work goes on once it is back. Each
// in a process of its own, since limits and filters are the whole process's. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api/line.hpp"
#include "checkpoint/sandbox.hpp"
#include "plan/manifest.hpp"
#include "support/co_test.hpp"
#include "support/leak_check.hpp"
#include "support/peer_process.hpp"
#include "support/thread_sanitizer.hpp"
#include "watches.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib;

std::vector<tensor_info> layers(std::size_t count = 6) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

// ---- a process of one's own

/// For what is wrong in a child, where doctest is heard by nobody.
void must(bool holds, std::string const& what) {
  if (!holds) throw std::runtime_error(what);
}
void must_fail(std::error_code got, std::string const& text, std::error_code wanted, char const* words) {
  must(got == wanted, "the error is " + got.message() + ": " + text);
  must(text.find(words) != std::string::npos, "the words are: " + text);
}

awaitable<void> and_say_so(std::shared_ptr<words> parent, std::function<awaitable<void>()> body) {
  co_await body();
  parent->say("done");
}
awaitable<void> hear_done(words& line) {
  auto const said = co_await line.hear();
  CHECK(said == "done");
}

/// Runs the coroutine in a child, on its own loop.
void alone(std::function<awaitable<void>()> body) {
  peer_process child([&](auto parent) { return and_say_so(parent, body); });
  run_to_end([&] { return hear_done(child.line()); }, std::chrono::seconds(40));
  CHECK(child.process().wait() == 0);
}

// ---- limits that come and go

class lowered {
 public:
  lowered(int which, rlim_t to) : which_(which) {
    must(::getrlimit(limit(), &before_) == 0, "getrlimit");
    rlimit now = before_;
    now.rlim_cur = std::min(to, before_.rlim_max);
    must(::setrlimit(limit(), &now) == 0, "setrlimit");
  }
  lowered(lowered const&) = delete;
  lowered& operator=(lowered const&) = delete;
  ~lowered() { ::setrlimit(limit(), &before_); }

 private:
  __rlimit_resource limit() const { return static_cast<__rlimit_resource>(which_); }
  int which_;
  rlimit before_{};
};

/// No descriptor is left but `spare`.
class few_descriptors {
 public:
  explicit few_descriptors(int spare) : limit_(RLIMIT_NOFILE, 256) {
    for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) taken_.emplace_back(fd);
    must(errno == EMFILE, "descriptors did not run out");
    for (int i = 0; i < spare; ++i) taken_.pop_back();
  }

 private:
  lowered limit_;
  std::vector<unique_fd> taken_;
};

/// No more address space than there is and so much.
rlim_t address_space_and(std::uint64_t more) {
  std::ifstream in("/proc/self/statm");
  std::uint64_t pages = 0;
  in >> pages;
  return pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) + more;
}

/// Refused for this thread and those that it starts, for good.
void refuse(long call, int error, unsigned argument = 0, std::uint32_t mask = 0) {
  test::refuse_call(static_cast<int>(call), error, argument, mask);
}

std::error_code system_error(int code) { return {code, std::system_category()}; }

// ---- the other side

/// A receiver in a process of its own: connects when it hears "connect", loads every update and says "exact",
/// and when the session ends why.
awaitable<void> follow(std::shared_ptr<words> parent, std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver("other");
  options.connect_limit(std::chrono::seconds(20)).handshake_limit(std::chrono::seconds(20));
  receiver from(executor, options);
  model held(host_memory(), layers(), 0);
  for (;;) {
    auto const word = co_await parent->hear();
    if (word == "end") break;
    co_await from.connect(path);
    parent->say("there");
    for (;;) {
      auto next = co_await try_to(from.next_update());
      if (!next.ok() || !*next.value) {
        parent->say(next.ok() ? "closed" : next.text);
        break;
      }
      std::vector<tensor_info> const specs((*next.value)->tensors().begin(), (*next.value)->tensors().end());
      held = model(host_memory(), specs, 0);
      auto into = held.into();
      auto const loaded = co_await try_to((*next.value)->load_into(into));
      if (!loaded.ok()) continue;
      model const wanted(host_memory(), specs, loaded.value->version);
      parent->say(difference(wanted.images(), held).empty() ? "exact" : "not exact");
    }
  }
}

/// The same, which stays for one update: hears "drop" then, and closes.
awaitable<void> come_and_go(std::shared_ptr<words> parent, std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  model held(host_memory(), layers(), 0);
  for (std::string word = co_await parent->hear(); word != "end"; word = co_await parent->hear()) {
    auto options = quick_receiver("other");
    options.connect_limit(std::chrono::seconds(10));
    receiver from(executor, options);
    // Who was in the door when there was nothing left is sent away.
    auto connected = co_await try_to(from.connect(path));
    if (!connected.ok()) connected = co_await try_to(from.connect(path));
    parent->say(connected.ok() ? "there" : connected.said());
    auto into = held.into();
    load_report const report = co_await load_next(from, into);
    model const wanted(host_memory(), layers(), report.version);
    parent->say(difference(wanted.images(), held).empty() ? "exact" : "not exact");
    co_await parent->expect("drop");
    co_await from.close();
    parent->say("dropped");
  }
}

/// A sender in a process of its own: "send" sends the next version to one receiver and says how that ended.
awaitable<void> send_on_demand(std::shared_ptr<words> parent, std::string path) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, path, quick_sender(small_bucket));
  parent->say("listening");
  for (std::uint64_t version = 1;; ++version) {
    auto const word = co_await parent->hear();
    if (word == "end") break;
    co_await to.wait_for_receivers(1, std::chrono::seconds(20));
    model const whole(host_memory(), layers(), version);
    auto const views = whole.views();
    auto const sent = co_await try_to(to.send_weights(version, views));
    parent->say(sent.ok() ? outcomes(*sent.value) : sent.said());
  }
  co_await to.close();
}

awaitable<attempt<send_report>> send(sender& to, std::uint64_t version, std::vector<tensor_info> specs) {
  model const whole(host_memory(), std::move(specs), version);
  auto const views = whole.views();
  auto sent = co_await try_to(to.send_weights(version, views));
  co_return sent;
}

// ---- descriptors ----

/// With ever more descriptors to spare: fails at one thing after the other, each time with an error that says
/// for what, until it works. Gives what was said.
awaitable<std::vector<std::string>> fails_until_enough(sender& to, std::uint64_t version) {
  std::vector<std::string> said;
  for (int spare = 0; spare < 10; ++spare) {
    attempt<send_report> sent;
    {
      few_descriptors const now(spare);
      sent = co_await send(to, version, layers());
    }
    if (sent.ok()) co_return said;
    must_fail(sent.error, sent.text, system_error(EMFILE), "");
    said.push_back(sent.text);
  }
  throw std::runtime_error("it never works");
}
std::size_t count_with(std::vector<std::string> const& all, char const* part) {
  return static_cast<std::size_t>(std::count_if(
      all.begin(), all.end(), [&](auto const& one) { return one.find(part) != std::string::npos; }));
}

awaitable<void> no_descriptor_for_ring_or_manifest(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  other.say("connect");
  co_await other.expect("there");
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  auto const said = co_await fails_until_enough(to, 1);
  std::string const bytes = std::to_string(plan::manifest::cut(layers(), small_bucket).encode().size());
  CHECK(count_with(said, "memfd_create for 8192 bytes of shared host memory; raise RLIMIT_NOFILE") == 1);
  CHECK(count_with(said, "a copy queue; raise RLIMIT_NOFILE") == 1);
  CHECK(count_with(said, "to watch copies; raise RLIMIT_NOFILE") == 1);
  CHECK(count_with(said, ("memfd_create for " + bytes + " bytes of shared host memory").c_str()) == 1);
  CHECK(said.size() == 4);
  co_await other.expect("exact");
  co_await to.close();
  co_await other.expect("closed");
  other.say("end");
}

} // namespace

TEST_CASE("no descriptor for the ring or the manifest: the send says so, and works once there are some") {
  scratch const directory;
  peer_process other([&](auto parent) { return follow(parent, directory.file("s")); });
  run_to_end([&] { return no_descriptor_for_ring_or_manifest(directory, other.line()); });
  CHECK(other.process().wait() == 0);
}

static awaitable<void> no_descriptor_at_accept(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  receiver own(executor, quick_receiver("own"));
  co_await own.connect(directory.file("s"));
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  for (std::uint64_t version = 1; version <= 3; ++version) {
    auto load = beside(executor, load_next(own, into));
    if (version == 2) { // somebody knocks while an update runs, and there is nothing left to let it in with
      few_descriptors const now(0);
      other.say("connect");
      auto const sent = co_await send(to, version, layers());
      CHECK_MESSAGE(sent.ok(), sent.said());
      auto const here = co_await to.receivers();
      CHECK(here.size() == 1);
    } else {
      auto const sent = co_await send(to, version, layers());
      CHECK_MESSAGE(sent.ok(), sent.said());
      if (sent.ok()) CHECK(sent.value->receivers.size() == (version == 3 ? 2 : 1));
    }
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    model const wanted(host_memory(), layers(), version);
    CHECK(difference(wanted.images(), held) == "");
    if (version == 2) {
      co_await other.expect("there");
      co_await to.wait_for_receivers(2, std::chrono::seconds(20));
    }
  }
  co_await other.expect("exact");
  co_await own.close();
  co_await to.close();
  co_await other.expect("closed");
  other.say("end");
}

TEST_CASE("no descriptor to accept with: the running update is exact, and who knocked is let in when there "
          "is one") {
  scratch const directory;
  peer_process other([&](auto parent) { return follow(parent, directory.file("s")); });
  run_to_end([&] { return no_descriptor_at_accept(directory, other.line()); });
  CHECK(other.process().wait() == 0);
}

/// Of what is watched from the next accepted connection on, the one with this number is refused, once.
static awaitable<void> no_watch_at_accept(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  std::uint64_t version = 0;
  for (int number = 1; number <= 3; ++number) { // as many as a connection needs
    refuse_watch(number);
    other.say("connect");
    co_await other.expect("there");
    co_await to.wait_for_receivers(1, std::chrono::seconds(20));
    auto const sent = co_await send(to, ++version, layers());
    CHECK_MESSAGE(sent.ok(), sent.said());
    co_await other.expect("exact");
    other.say("drop");
    co_await other.expect("dropped");
  }
  CHECK(watches_refused() == 3);
  other.say("end");
  co_await to.close();
}

TEST_CASE("nothing more can be watched for a moment: who comes afterwards is let in") {
  if (!can_refuse_watches) {
    MESSAGE("SKIPPED: ThreadSanitizer has an epoll_ctl of its own");
    return;
  }
  leak_check const nothing_stays;
  scratch const directory;
  peer_process other([&](auto parent) { return come_and_go(parent, directory.file("s")); });
  run_to_end([&] { return no_watch_at_accept(directory, other.line()); });
  CHECK(other.process().wait() == 0);
}

static awaitable<void> no_descriptor_to_receive(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  receiver from(executor, quick_receiver());
  co_await other.expect("listening");
  for (int spare = 0;; ++spare) {
    CHECK(spare < 6);
    attempt<std::monostate> connected;
    {
      few_descriptors const now(spare);
      connected = co_await try_to(from.connect(directory.file("s")));
    }
    if (connected.ok()) break;
    CHECK(connected.error == system_error(EMFILE));
    CHECK_MESSAGE(connected.text.find("raise RLIMIT_NOFILE") != std::string::npos, connected.text);
  }
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  {
    few_descriptors const now(0);
    other.say("send");
    auto const end = co_await try_to(load_next(from, into));
    CHECK(end.error == make_error_code(errc::no_resources));
    CHECK_MESSAGE(end.text.find("could not be taken; raise RLIMIT_NOFILE") != std::string::npos, end.text);
    auto const told = co_await other.hear();
    CHECK_MESSAGE(told.find("has closed the connection") != std::string::npos, told);
  }
  co_await from.connect(directory.file("s"));
  other.say("send");
  load_report const report = co_await load_next(from, into);
  model const wanted(host_memory(), layers(), report.version);
  CHECK(difference(wanted.images(), held) == "");
  co_await other.expect("committed");
  other.say("end");
  co_await from.close();
}

TEST_CASE(
    "no descriptor to connect with, or for one that is sent: the receiver says so, and connects again") {
  scratch const directory;
  peer_process other([&](auto parent) { return send_on_demand(parent, directory.file("s")); });
  run_to_end([&] { return no_descriptor_to_receive(directory, other.line()); });
  CHECK(other.process().wait() == 0);
}

// ---- memory ----

static awaitable<void> no_address_space() {
  auto const executor = co_await asio::this_coro::executor;
  constexpr std::uint64_t ring = 128 * mib, margin = 72 * mib;
  line over(executor, host_setting(2), quick_sender(ring / 2));
  co_await over.receiver(0).connect(over.path());
  co_await over.sender().wait_for_receivers(1, std::chrono::seconds(20));
  model held(host_memory(), layers(), 0);
  auto into = held.into();
  {
    lowered const now(RLIMIT_AS, address_space_and(margin));
    auto const sent = co_await send(over.sender(), 1, layers());
    must_fail(sent.error, sent.text, make_error_code(errc::out_of_memory),
              "can't make 134217728 bytes of shared");
  }
  auto load = beside(executor, load_next(over.receiver(0), into));
  auto sent = co_await send(over.sender(), 2, layers());
  must(sent.ok(), "with memory: " + sent.said());
  auto loaded = co_await load.join();
  must(loaded.ok(), loaded.said());

  // A receiver that can't map the ring says so, and the other is served.
  co_await over.receiver(1).connect(over.path());
  co_await over.sender().wait_for_receivers(2, std::chrono::seconds(20));
  {
    lowered const now(RLIMIT_AS, address_space_and(margin));
    load = beside(executor, load_next(over.receiver(0), into));
    sent = co_await send(over.sender(), 3, layers());
    must(sent.ok(), "beside one without memory: " + sent.said());
    loaded = co_await load.join();
    must(loaded.ok(), loaded.said());
  }
  auto const& poor = of(*sent.value, "server-1");
  must(poor.what == outcome::refused, "it was " + std::string(name(poor.what)));
  must_fail(poor.error, poor.text, make_error_code(errc::out_of_memory),
            "can't map 134217728 bytes of the peer's memory");
  co_await over.receiver(1).close();
  co_await over.receiver(1).connect(over.path());
  co_await over.sender().wait_for_receivers(2, std::chrono::seconds(20));
  load = beside(executor, load_next(over.receiver(0), into));
  model second(host_memory(), layers(), 0);
  auto into_second = second.into();
  auto load_second = beside(executor, load_next(over.receiver(1), into_second));
  sent = co_await send(over.sender(), 4, layers());
  must(sent.ok() && outcomes(*sent.value) == "committed committed", sent.said());
  loaded = co_await load.join();
  must(loaded.ok(), loaded.said());
  loaded = co_await load_second.join();
  must(loaded.ok(), loaded.said());
  co_await over.close();
}

TEST_CASE(
    "no address space for the ring: sender and receiver say how much it was, and go on once there is some") {
  if (ROPEWAY_THREAD_SANITIZER) {
    MESSAGE(
        "SKIPPED: ThreadSanitizer takes address space of its own, and ends the process when there is none");
    return;
  }
  leak_check const nothing_stays;
  alone([] { return no_address_space(); });
}

/// A ring of this size fails with these words; a small one can be made.
static awaitable<void> large_ring_fails(std::uint64_t bucket, std::error_code code, std::string words) {
  auto const executor = co_await asio::this_coro::executor;
  for (bool const large : {true, false}) {
    line over(executor, host_setting(1), quick_sender(large ? bucket : small_bucket));
    co_await over.connect();
    model held(host_memory(), layers(), 0);
    auto into = held.into();
    auto load = beside(executor, load_next(over.receiver(), into));
    auto const sent = co_await send(over.sender(), 1, layers());
    if (large) {
      must_fail(sent.error, sent.text, code, words.c_str());
      load.cancel();
      co_await load.join();
    } else {
      must(sent.ok(), sent.said());
      auto const loaded = co_await load.join();
      must(loaded.ok(), loaded.said());
    }
    co_await over.close();
  }
}

static awaitable<void> no_room_in_memory_files() {
  // As a tmpfs that is full: what is reserved comes in steps of 64 MiB.
  refuse(SYS_fallocate, ENOSPC, 3, 64 * mib);
  co_await large_ring_fails(
      64 * mib, make_error_code(errc::out_of_memory),
      "can't make 134217728 bytes of shared host memory: No space left on device; use fewer "
      "or smaller buckets");
}
static awaitable<void> more_than_there_is() {
  co_await large_ring_fails(std::uint64_t(1) << 40, make_error_code(errc::out_of_memory),
                            "can't make 2199023255552 bytes of shared host memory: ");
}
static awaitable<void> files_of_limited_size() {
  lowered const now(RLIMIT_FSIZE, 1 * mib);
  co_await large_ring_fails(1 * mib, make_error_code(errc::out_of_memory),
                            "can't make 2097152 bytes of shared host memory: RLIMIT_FSIZE allows 1048576");
}

TEST_CASE(
    "no room for the ring's memory file: the send says how much was asked for, and a smaller ring works") {
  alone([] { return no_room_in_memory_files(); });
  alone([] { return more_than_there_is(); });
  alone([] { return files_of_limited_size(); });
}

// ---- calls that are refused ----

static awaitable<void> no_memory_files() {
  auto const executor = co_await asio::this_coro::executor;
  line over(executor, host_setting(1), quick_sender(small_bucket));
  co_await over.connect();
  refuse(SYS_memfd_create, EPERM);
  for (std::uint64_t version = 1; version <= 2; ++version) {
    auto const sent = co_await send(over.sender(), version, layers());
    must_fail(sent.error, sent.text, system_error(EPERM),
              "memfd_create for 8192 bytes of shared host memory");
  }
  co_await over.close();
}

TEST_CASE("where memfd_create is refused the send says so, and everything can be closed") {
  alone([] { return no_memory_files(); });
}

static awaitable<void> cannot_speak(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(small_bucket));
  other.say("connect");
  co_await other.expect("there");
  co_await to.wait_for_receivers(1, std::chrono::seconds(20));
  refuse(SYS_sendmsg, EPERM);
  auto const sent = co_await send(to, 1, layers());
  must_fail(sent.error, sent.text, make_error_code(errc::too_few_receivers),
            "failed: Operation not permitted");
  auto const told = co_await other.hear();
  must(told.find("has closed the connection") != std::string::npos, told);
  co_await to.close();
}
static awaitable<void> cannot_hear(scratch const& directory, words& other) {
  auto const executor = co_await asio::this_coro::executor;
  receiver from(executor, quick_receiver());
  co_await other.expect("listening");
  co_await from.connect(directory.file("s"));
  refuse(SYS_recvmsg, EPERM);
  other.say("send");
  auto const end = co_await try_to(from.next_update());
  must(!end.ok() && end.text.find("failed: Operation not permitted") != std::string::npos, end.said());
  auto const told = co_await other.hear();
  must(told.find("has closed the connection") != std::string::npos, told);
  other.say("end");
  co_await from.close();
}

/// The body in a child, with another child beside it.
static void beside_another(std::function<awaitable<void>(words&)> body, peer_process::body const& its) {
  peer_process other(its);
  alone([&] { return body(other.line()); });
}

TEST_CASE(
    "where messages can't be sent or received the session ends with the system's reason on either side") {
  scratch const directory;
  auto const path = directory.file("s");
  beside_another([&](words& other) { return cannot_speak(directory, other); },
                 [&](auto parent) { return follow(parent, path); });
  beside_another([&](words& other) { return cannot_hear(directory, other); },
                 [&](auto parent) { return send_on_demand(parent, path); });
}

// ---- threads ----

static awaitable<void> no_threads(std::string path, bool come_back) {
  auto const executor = co_await asio::this_coro::executor;
  std::optional<lowered> now;
  if (come_back) { // root is not limited
    now.emplace(RLIMIT_NPROC, 1);
  } else {
    for (long const call : {SYS_clone, SYS_clone3}) refuse(call, EAGAIN);
    look_for_lost_memory_no_more();
  }
  sender to(executor, path, quick_sender(small_bucket));
  receiver from(executor, quick_receiver());
  auto const connected = co_await try_to(from.connect(path));
  must(!connected.ok() && connected.error.value() == EAGAIN, connected.said());
  must(connected.text.find("can be started; raise RLIMIT_NPROC") != std::string::npos, connected.text);
  if (come_back) {
    now.reset();
    co_await from.connect(path);
    co_await to.wait_for_receivers(1, std::chrono::seconds(20));
    now.emplace(RLIMIT_NPROC, 1);
  }
  // Without receivers no ring is needed, and so no thread.
  if (come_back) {
    auto const sent = co_await send(to, 1, layers());
    must(!sent.ok() && sent.error.value() == EAGAIN, sent.said());
    must(sent.text.find("can be started; raise RLIMIT_NPROC") != std::string::npos, sent.text);
    now.reset();
    model held(host_memory(), layers(), 0);
    auto into = held.into();
    auto load = beside(executor, load_next(from, into));
    auto const again = co_await send(to, 2, layers());
    must(again.ok(), again.said());
    auto const loaded = co_await load.join();
    must(loaded.ok(), loaded.said());
  }
  co_await from.close();
  co_await to.close();
}
static awaitable<void> no_threads_as_nobody(std::string path) {
  if (::geteuid() == 0 && (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0))
    throw std::runtime_error("setuid");
  co_await no_threads(std::move(path), true);
}

TEST_CASE("no thread to be had: connect and send say which limit to raise, and work once there are some") {
  scratch const directory;
  REQUIRE(::chown(directory.file("").c_str(), 65534, 65534) == (::geteuid() == 0 ? 0 : -1));
  auto const path = directory.file("s");
  alone([&] { return no_threads_as_nobody(path); });
  scratch const another;
  auto const path_there = another.file("s");
  alone([&] { return no_threads(path_there, false); });
}
