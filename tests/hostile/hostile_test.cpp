// Peers that lie, over real sockets: one clear error each, and everybody beside them goes on. Part of
// ropeway; Apache-2.0.
#include <asio/post.hpp>
#include <atomic>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "api/line.hpp"
#include "api/with_backends.hpp"
#include "beside_us.hpp"
#include "liar.hpp"
#include "support/co_test.hpp"
#include "support/leak_check.hpp"
#include "support/peer_process.hpp"
#include "told.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

std::size_t count_fds() {
  std::size_t count = 0;
  DIR* const all = ::opendir("/proc/self/fd");
  while (::readdir(all) != nullptr) ++count;
  ::closedir(all);
  return count;
}

/// Sends two versions; each must be whole at the honest receiver.
class audience {
 public:
  /// `shared`: in memory that the honest receiver maps.
  explicit audience(line& over, bool shared = false)
      : over_(over), whole_(shared ? shared_host_memory() : host_memory(), lied_about(), 1) {
    share();
    for (std::size_t i = 0; i < over.receivers(); ++i)
      held_.push_back(std::make_unique<model>(host_memory(), lied_about(), 0));
    for (auto& one : held_) into_.push_back(one->into());
  }
  void share() {
    for (auto const& block : whole_.memory()->shared()) over_.sender().share(block);
  }
  awaitable<send_report> hears(std::uint64_t version) {
    whole_.fill(version);
    auto const views = whole_.views();
    send_report report = co_await deliver(over_, version, views, into_);
    for (auto& one : held_) CHECK(difference(whole_.images(), *one) == "");
    bool const mapped = !whole_.memory()->shared().empty();
    for (std::size_t i = 0; i < held_.size(); ++i) {
      CHECK(of(report, "server").what == outcome::committed);
      CHECK(of(report, "server").way == (mapped ? route::mapped : route::host));
    }
    co_return report;
  }

 private:
  line& over_;
  model whole_;
  std::vector<std::unique_ptr<model>> held_;
  std::vector<destinations> into_;
};

awaitable<void> lie_to_sender(receiver_lie const& what) {
  using at = receiver_lie::step;
  auto const executor = co_await asio::this_coro::executor;
  line over(executor, host_setting(1, lie_slots), quick_sender(lie_bucket));
  co_await over.connect();
  audience honest(over, what.mapped);
  event const greeted(executor);
  struct signal {
    any_io_executor executor;
    event const* greeted;
  } from_thread{executor, &greeted};
  auto const ready = [](void* with) {
    auto const& s = *static_cast<signal*>(with);
    asio::post(s.executor, [greeted = *s.greeted] { greeted.set(); });
  };
  auto lie = [&] { return tell(what, over.path(), ready, &from_thread); };
  beside_us liar(executor, std::move(lie));
  bool const takes_part = what.at > at::greeted;
  std::string wrong;
  if (takes_part)
    co_await greeted.wait();
  else
    wrong = co_await liar.end();
  send_report const first = co_await honest.hears(1);
  if (takes_part) {
    wrong = co_await liar.end();
    REQUIRE(first.receivers.size() == 2);
    check_told(of(first, "liar"), what);
  } else {
    CHECK(outcomes(first) == "committed");
  }
  CHECK(wrong == "");
  send_report const second = co_await honest.hears(2);
  CHECK(outcomes(second) == "committed");
  co_await over.close();
}

awaitable<void> lie_to_receiver(sender_lie const& what) {
  using way = sender_lie::way;
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  false_door door(directory.file("s"));
  model held(host_memory(), lied_about(), 0);
  auto into = held.into();
  receiver from(executor, quick_receiver());
  {
    auto lie = [&] { return tell(what, door); };
    beside_us liar(executor, std::move(lie));
    auto const ended = co_await try_to(from.connect(directory.file("s")));
    std::error_code code = ended.error;
    std::string text = ended.text;
    if (ended.ok()) {
      auto const loaded = co_await try_to(load_next(from, into));
      code = loaded.error;
      text = loaded.text;
      CHECK_FALSE((loaded.ok() && what.is_not_committed));
      if (loaded.ok()) {
        if (what.at > sender_lie::step::committed) {
          auto const after = co_await try_to(load_next(from, into));
          code = after.error;
          text = after.text;
        } else {
          auto const after = co_await try_to(from.next_update());
          code = after.error;
          text = after.text;
        }
      }
    }
    if (what.how == way::ends) {
      CHECK(code == make_error_code(what.code));
      CHECK_MESSAGE(text.find(what.words) != std::string::npos, text);
    }
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
    // It alone was refused: the session ends with the liar's goodbye.
    bool const goes_on = what.how == way::refused || what.how == way::given_up;
    if (goes_on) (void)co_await try_to(from.next_update());
  }
  CHECK(held.guards_intact());
  using at = sender_lie::step;
  bool const writes_nothing = what.at <= at::asked || what.at == at::placing || what.at == at::mapping;
  if (writes_nothing && !what.streams) CHECK(held.untouched());

  // The receiver goes on with an honest sender.
  sender to(executor, directory.file("honest"), quick_sender(lie_bucket));
  co_await from.connect(directory.file("honest"));
  co_await to.wait_for_receivers(1, patient(milliseconds(5000)));
  auto load = beside(executor, load_next(from, into));
  model const whole(host_memory(), lied_about(), 3);
  auto const views = whole.views();
  send_report const report = co_await to.send_weights(3, views);
  CHECK(outcomes(report) == "committed");
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(whole.images(), held) == "");
  co_await from.close();
  co_await to.close();
}

} // namespace

TEST_CASE(
    "a false receiver is told what is wrong and dropped, and the honest one beside it gets both versions") {
  for (auto const& lie : receiver_lies()) {
    INFO(std::string(lie.title));
    leak_check const nothing_stays;
    run_to_end([&] { return lie_to_sender(lie); });
  }
}

TEST_CASE("a false sender is refused with one error, writes nowhere, and the next sender is served") {
  for (auto const& lie : sender_lies()) {
    INFO(std::string(lie.title));
    leak_check const nothing_stays;
    run_to_end([&] { return lie_to_receiver(lie); });
  }
}

// ---- memory that is wanted back ----

/// Maps what it is shown, reads it, and keeps it; says no to the next version.
static std::string keep_mapping(std::string const& path) {
  try {
    auto me = liar::at(path);
    me.say(honest_hello());
    me.expect<protocol::welcome>();
    auto const b = me.expect<protocol::begin>();
    // The tensors are ready already, and no commit follows.
    if (me.expect<protocol::read_mapped>().commits_itself != 1) return "it is not left to commit by itself";
    me.say(protocol::need_segment{b.update, 1, 0});
    me.expect<protocol::segment_part>();
    protocol::accept yes(b.update);
    yes.mapped = 1;
    me.say(yes);
    me.say(protocol::all_copied{b.update});
    me.say(protocol::committed{b.update});
    if (me.expect<protocol::unmap>().segments != std::vector<std::uint64_t>{1})
      return "another segment is wanted back";
    me.say(protocol::refuse{me.expect<protocol::begin>().update, 8, "no"});
    me.hear_out();
    return {};
  } catch (std::exception const& error) { return error.what(); }
}

static awaitable<void> wanted_back() {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(lie_bucket);
  options.commit_limit(patient(milliseconds(500)));
  line over(executor, host_setting(1, lie_slots), options);
  co_await over.connect();
  audience honest(over, true);
  auto keep = [&] { return keep_mapping(over.path()); };
  {
    beside_us liar(executor, std::move(keep));
    co_await over.sender().wait_for_receivers(2, patient(milliseconds(5000)));
    send_report const first = co_await honest.hears(1);
    CHECK(outcomes(first) == "committed committed");
    auto const released = co_await try_to(over.sender().release_memory());
    CHECK(released.error == make_error_code(errc::peer_silent));
    CHECK_MESSAGE(released.text.find("has not unmapped the sender's memory in time") != std::string::npos,
                  released.text);
    honest.share();
    send_report const second = co_await honest.hears(2);
    CHECK(of(second, "liar").what == outcome::refused);
    co_await over.close();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
}

TEST_CASE(
    "a receiver that keeps what is wanted back holds up the release, within its limit, and nothing else") {
  run_to_end([] { return wanted_back(); });
}

// ---- two jobs ----

/// Takes part in one job, and repeats in the other what it says there.
static std::string speak_in_both(std::string const& here, std::string const& there) {
  auto me = liar::at(here), spy = liar::at(there);
  auto const say = [&](protocol::message const& what) {
    me.say(what);
    spy.say(what);
  };
  say(honest_hello());
  spy.expect<protocol::welcome>();
  me.expect<protocol::ring>();
  say(protocol::ring_mapped{0});
  auto const b = me.expect<protocol::begin>();
  say(protocol::accept{b.update});
  for (std::uint32_t i = 0; i < b.buckets; ++i)
    say(protocol::released{b.update, me.expect<protocol::published>().seq});
  say(protocol::all_copied{b.update});
  me.expect<protocol::commit>();
  say(protocol::committed{b.update});
  spy.hear_out();
  me.say(protocol::goodbye{});
  return judged(spy.last(), errc::protocol_error, "ring_mapped for ring 0, which it was not asked to map");
}

static awaitable<void> two_jobs() {
  auto const executor = co_await asio::this_coro::executor;
  line here(executor, host_setting(1, lie_slots), quick_sender(lie_bucket));
  line there(executor, host_setting(1, lie_slots), quick_sender(lie_bucket));
  co_await here.connect();
  co_await there.connect();
  audience first(here), second(there);
  auto speak = [&] { return speak_in_both(here.path(), there.path()); };
  {
    beside_us liar(executor, std::move(speak));
    co_await here.sender().wait_for_receivers(2, patient(milliseconds(5000)));
    send_report const one = co_await first.hears(1);
    CHECK(outcomes(one) == "committed committed");
    send_report const two = co_await second.hears(1);
    CHECK(of(two, "server").what == outcome::committed);
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  co_await second.hears(2);
  co_await here.close();
  co_await there.close();
}

TEST_CASE("what is said in one job counts for nothing in another") {
  run_to_end([] { return two_jobs(); });
}

// ---- crowds, floods, and those who take nothing ----

static awaitable<void> crowded(scratch const& directory, baton& come, baton& there) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(lie_bucket);
  constexpr std::uint32_t unfinished = 8;
  options.max_receivers(2).max_handshakes(unfinished).handshake_limit(std::chrono::seconds(60));
  line over(executor, host_setting(1, lie_slots), options);
  REQUIRE(::symlink(over.path().c_str(), directory.file("way").c_str()) == 0);
  co_await over.connect();
  audience alone(over);
  co_await alone.hears(1);
  std::size_t const before = count_fds();
  std::size_t most = before;
  come.pass();
  while (!there.wait(milliseconds(0))) { // an update runs all the time that they come
    co_await alone.hears(2);
    most = std::max(most, count_fds());
  }
  // Three descriptors each, one more for a connection that is about to be turned away, and what an update
  // needs.
  CHECK(most <= before + 3 * (unfinished + 1) + 4);
  // There is still room for another receiver, and for no third.
  over.add_receiver(quick_receiver("server-late"));
  co_await over.connect();
  audience both(over);
  send_report const report = co_await both.hears(3);
  CHECK(outcomes(report) == "committed committed");
  receiver third(executor, quick_receiver("third"));
  auto const end = co_await try_to(third.connect(over.path()));
  CHECK(end.error == make_error_code(errc::busy));
  CHECK_MESSAGE(end.text.find("limit of 2 receivers; try again later") != std::string::npos, end.text);
  co_await over.close();
}

TEST_CASE("a thousand connections that say nothing hold few descriptors and keep nobody out") {
  scratch const directory;
  baton come, there;
  fork_child crowd([&] {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    if (!come.wait(std::chrono::seconds(60))) return 1;
    std::vector<liar> all;
    for (int i = 0; i < 1000; ++i) all.push_back(liar::at(directory.file("way")));
    there.pass();
    return baton().wait(std::chrono::seconds(60)) ? 2 : 3;
  });
  run_to_end([&] { return crowded(directory, come, there); }, std::chrono::seconds(60));
}

static awaitable<void> queue_of_connections(scratch const& directory, baton& come, baton& there) {
  auto const executor = co_await asio::this_coro::executor;
  sender to(executor, directory.file("s"), quick_sender(lie_bucket));
  come.pass();
  REQUIRE(there.wait(std::chrono::seconds(60))); // blocks the loop: all of them queue up
  auto last = beside(executor, to.wait_for_receivers(1, std::chrono::seconds(20)));
  int turns = 0;
  for (; !last.done(); ++turns) co_await settle(1);
  CHECK(turns >= 100);
  auto const end = co_await last.join();
  CHECK_MESSAGE(end.ok(), end.said());
  co_await to.close();
}

TEST_CASE(
    "a hundred connections that wait are accepted one each turn of the loop, which serves others meanwhile") {
  scratch const directory;
  baton come, there;
  fork_child crowd([&] {
    if (!come.wait(std::chrono::seconds(60))) return 1;
    std::vector<liar> all;
    for (int i = 0; i < 101; ++i) all.push_back(liar::at(directory.file("s")));
    all.back().say(honest_hello());
    there.pass();
    return baton().wait(std::chrono::seconds(60)) ? 2 : 3;
  });
  run_to_end([&] { return queue_of_connections(directory, come, there); }, std::chrono::seconds(60));
}

CO_TEST("who says nothing is turned away after the handshake limit, who is slow within it is served") {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(lie_bucket);
  options.handshake_limit(patient(milliseconds(2000)));
  line over(executor, host_setting(1, lie_slots), options);
  co_await over.connect();
  audience honest(over);
  {
    auto nothing = [path = over.path()]() -> std::string {
      auto me = liar::at(path);
      me.hear_out();
      return judged(me.last(), errc::handshake_timeout, "no hello within");
    };
    auto late = [path = over.path()]() -> std::string {
      auto me = liar::at(path);
      ::usleep(50'000); // slow, but not too slow
      me.say(honest_hello());
      me.expect<protocol::welcome>();
      me.say(protocol::goodbye{});
      return {};
    };
    beside_us silent(executor, std::move(nothing)), slow(executor, std::move(late));
    co_await honest.hears(1);
    auto const first = co_await silent.end(), second = co_await slow.end();
    CHECK(first == "");
    CHECK(second == "");
  }
  co_await honest.hears(2);
  co_await over.close();

  // The same from the other side.
  scratch const directory;
  false_door door(directory.file("s"));
  auto patience = quick_receiver();
  patience.handshake_limit(patient(milliseconds(200)));
  receiver from(executor, patience);
  auto const end = co_await try_to(from.connect(directory.file("s")));
  CHECK(end.error == make_error_code(errc::handshake_timeout));
  CHECK_MESSAGE(end.text.find("the sender did not answer hello within") != std::string::npos, end.text);
}

namespace {

/// Announces tensors, and fails at the first with a long story.
class failing_source final : public tensor_source {
 public:
  std::vector<tensor_info> manifest() override { return lied_about(); }
  awaitable<source_tensor> next(std::uint32_t) override {
    throw std::runtime_error(std::string(30'000, 'x'));
    co_return source_tensor();
  }
};

class departures final : public observer {
 public:
  void receiver_left(std::string_view name, std::string_view why) override {
    last = std::string(name) + ": " + std::string(why);
  }
  std::string last;
};

} // namespace

static awaitable<void> talk_to_the_deaf() {
  auto const executor = co_await asio::this_coro::executor;
  departures seen;
  auto options = quick_sender(lie_bucket);
  options.watched_by(&seen);
  line over(executor, host_setting(1, lie_slots), options);
  co_await over.connect();
  audience honest(over);
  baton next, said, over_now;
  auto deaf = [&]() -> std::string {
    auto me = liar::at(over.path());
    me.say(honest_hello("deaf"));
    me.expect<protocol::ring>();
    me.say(protocol::ring_mapped{0});
    auto const first = me.expect<protocol::begin>();
    me.say(protocol::refuse{first.update, 22, "no"});
    for (auto update = first.update + 1; next.wait() && !over_now.wait(milliseconds(0)); ++update) {
      me.say(protocol::aborted{update}); // and reads nothing
      said.pass();
    }
    return {};
  };
  std::string wrong;
  {
    beside_us liar(executor, std::move(deaf));
    co_await over.sender().wait_for_receivers(2, patient(milliseconds(5000)));
    co_await honest.hears(1);
    std::uint64_t version = 2;
    failing_source source;
    while (seen.last.empty() && version < 200) {
      auto const sent = co_await try_to(over.sender().send_weights(version++, source));
      CHECK(sent.error == make_error_code(errc::source_failed));
      next.pass();
      REQUIRE(said.wait());
      co_await settle();
    }
    CHECK_MESSAGE(seen.last.starts_with("deaf ("), seen.last);
    CHECK_MESSAGE(seen.last.find("reads nothing, and more than 1048576 bytes wait for it") !=
                      std::string::npos,
                  seen.last);
    send_report const report = co_await honest.hears(version);
    CHECK(outcomes(report) == "committed");
    over_now.pass();
    next.pass();
    wrong = co_await liar.end();
  }
  CHECK(wrong == "");
  co_await over.close();
}

TEST_CASE("a receiver that reads nothing is given up when a bounded number of bytes waits for it") {
  run_to_end([] { return talk_to_the_deaf(); }, std::chrono::seconds(40));
}

static awaitable<void> answer_the_deaf() {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  false_door door(directory.file("s"));
  receiver from(executor, quick_receiver());
  baton refused;
  auto deaf = [&]() -> std::string {
    auto me = door.accept();
    me.say(honest_welcome());
    me.say(honest_begin(1));
    me.expect<protocol::need_manifest>();
    auto const text = honest_manifest().encode();
    auto const carrier = memory_file(text);
    me.say(protocol::manifest_follows{1, text.size()}, {carrier.get()});
    for (std::uint64_t update = 2; refused.wait() && update < 200; ++update) me.say(honest_begin(update));
    return {};
  };
  attempt<std::optional<update>> end;
  {
    beside_us liar(executor, std::move(deaf));
    co_await from.connect(directory.file("s"));
    for (;;) {
      end = co_await try_to(from.next_update());
      if (!end.ok() || !*end.value) break;
      (*end.value)->refuse(std::string(30'000, 'x'));
      refused.pass();
    }
    for (int i = 0; i < 200; ++i) refused.pass();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  CHECK(end.error == make_error_code(errc::peer_silent));
  CHECK_MESSAGE(end.text.find("reads nothing, and more than 1048576 bytes wait for it") != std::string::npos,
                end.text);
  co_await from.close();
}

TEST_CASE("a sender that reads nothing is given up when a bounded number of bytes waits for it") {
  run_to_end([] { return answer_the_deaf(); });
}

namespace {

/// The system's memory, where whoever reads a manifest beside the loop waits for the test, and is counted.
class slow_to_read final : public memory::backends {
 public:
  std::shared_ptr<memory::backend> get(device where) override {
    if (announced && std::this_thread::get_id() != loop_) {
      ++reads;
      if (go_on.wait()) go_on.pass();
    }
    return system_->get(where);
  }
  std::vector<memory::device_uuid> cuda_devices() override { return {}; }
  std::atomic<bool> announced = false; ///< before that, nobody reads a manifest there
  std::atomic<int> reads = 0;
  baton go_on; ///< passed once: nobody waits any more

 private:
  std::thread::id const loop_ = std::this_thread::get_id();
  std::shared_ptr<memory::backends> const system_ = memory::system_backends();
};

} // namespace

static awaitable<void> withdrawn_manifests() {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  false_door door(directory.file("s"));
  auto const memory = std::make_shared<slow_to_read>();
  receiver from = detail::make_receiver(executor, quick_receiver(), memory);
  std::size_t most = 0, before = 0;
  auto flood = [&]() -> std::string {
    auto me = door.accept();
    me.say(honest_welcome());
    auto const text = honest_manifest().encode();
    auto const carrier = memory_file(text);
    auto const announce = [&](std::uint64_t i) {
      me.say(honest_begin(i));
      me.expect<protocol::need_manifest>();
      me.say(protocol::manifest_follows{i, text.size()}, {carrier.get()});
    };
    before = count_fds();
    memory->announced = true;
    for (std::uint64_t i = 1; i <= 500; ++i) {
      announce(i);
      me.say(protocol::abort_update{i, 6, "no"});
      me.expect<protocol::aborted>(); // so it has taken the manifest
      most = std::max(most, count_fds());
    }
    announce(501);
    memory->go_on.pass();
    me.expect<protocol::refuse>();
    me.say(protocol::goodbye{});
    me.hear_out();
    return {};
  };
  {
    beside_us liar(executor, std::move(flood));
    co_await from.connect(directory.file("s"));
    auto offered = co_await try_to(from.next_update());
    CHECK(offered.ok());
    if (offered.ok() && *offered.value) (*offered.value)->refuse("it has seen enough");
    memory->go_on.pass();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  // Of those that came while the first was read, only the newest is left.
  CHECK(memory->reads == 2);
  CHECK(most <= before + 4); // what is read, what waits, and what the thread that reads needs
  co_await from.close();
}

TEST_CASE("manifests that are taken back pile up no descriptors and no work at the receiver") {
  run_to_end([] { return withdrawn_manifests(); });
}

// ---- other users ----

CO_TEST("a list of tensors larger than the receiver allows is not read") {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver();
  options.max_manifest_bytes(100);
  line over(executor, host_setting(1), quick_sender(lie_bucket), options);
  co_await over.connect();
  auto next = beside(executor, over.receiver().next_update());
  model const whole(host_memory(), lied_about(), 1);
  auto const views = whole.views();
  auto const sent = co_await try_to(over.sender().send_weights(1, views));
  CHECK(sent.error == make_error_code(errc::too_few_receivers));
  auto const end = co_await next.join();
  CHECK(end.error == make_error_code(errc::protocol_error));
  CHECK_MESSAGE(end.text.find("bytes, allowed are 1 to 100") != std::string::npos, end.text);
  co_await over.close();
}

CO_TEST("a receiver takes no sender in a directory that others can write to, unless it is told to") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  REQUIRE(::chmod(directory.file("").c_str(), 0777) == 0);
  auto shared = quick_sender();
  shared.allow_shared_directory(true);
  sender to(executor, directory.file("s"), shared);
  receiver careful(executor, quick_receiver());
  auto const end = co_await try_to(careful.connect(directory.file("s")));
  CHECK(end.error == make_error_code(errc::not_permitted));
  CHECK_MESSAGE(end.text.find("have the sender listen in a private directory") != std::string::npos,
                end.text);
  auto trusting = quick_receiver();
  trusting.allow_shared_directory(true);
  receiver from(executor, trusting);
  co_await from.connect(directory.file("s"));
  co_await from.close();
  co_await to.close();
}

namespace {

constexpr uid_t nobody = 65534;

awaitable<void> follow_as_nobody(std::shared_ptr<words> parent, std::string path,
                                 std::vector<uid_t> trusted) {
  // Its group stays root's, so that the directory lets it in.
  if (::setgroups(0, nullptr) != 0 || ::setuid(nobody) != 0) throw std::runtime_error("setuid");
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_receiver("stranger");
  options.connect_limit(std::chrono::seconds(20)).allowed_users(std::move(trusted));
  receiver from(executor, options);
  co_await parent->expect("go");
  auto const connected = co_await try_to(from.connect(path));
  if (!connected.ok()) {
    parent->say(std::to_string(connected.error.value()) + " " + connected.text);
    co_return;
  }
  model held(host_memory(), lied_about(), 0);
  auto into = held.into();
  co_await load_next(from, into);
  model const wanted(host_memory(), lied_about(), 1);
  auto const wrong = difference(wanted.images(), held);
  parent->say(wrong.empty() ? "exact" : wrong);
  co_await from.close();
}

struct stranger {
  char const* title;
  mode_t directory;
  std::vector<uid_t> sender_allows, receiver_trusts;
  errc code; ///< ok: it is served
  char const* words;
};

awaitable<void> meet(stranger const& who, scratch const& directory, peer_process& child) {
  auto const executor = co_await asio::this_coro::executor;
  auto options = quick_sender(lie_bucket);
  options.allowed_users(who.sender_allows).allow_shared_directory(true);
  sender to(executor, directory.file("s"), options);
  receiver own(executor, quick_receiver("own"));
  co_await own.connect(directory.file("s"));
  child.line().say("go");
  if (who.code == errc::ok) co_await to.wait_for_receivers(2, std::chrono::seconds(20));
  model const whole(host_memory(), lied_about(), 1);
  auto const views = whole.views();
  std::string end;
  if (who.code != errc::ok) end = co_await child.line().hear();
  model held(host_memory(), lied_about(), 0);
  auto into = held.into();
  auto load = beside(executor, load_next(own, into));
  send_report const report = co_await to.send_weights(1, views);
  CHECK(report.receivers.size() == (who.code == errc::ok ? 2 : 1));
  CHECK(report.count(outcome::committed) == report.receivers.size());
  auto const loaded = co_await load.join();
  CHECK_MESSAGE(loaded.ok(), loaded.said());
  CHECK(difference(whole.images(), held) == "");
  if (who.code == errc::ok) {
    end = co_await child.line().hear();
    CHECK(end == "exact");
  } else {
    CHECK_MESSAGE(end.starts_with(std::to_string(int(who.code)) + " "), end);
    CHECK_MESSAGE(end.find(who.words) != std::string::npos, end);
  }
  co_await own.close();
  co_await to.close();
}

} // namespace

TEST_CASE("a process of another user is served only if both sides allow it") {
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: only root can become somebody else");
    return;
  }
  stranger const all[] = {
      {"the directory keeps it out", 0700, {nobody}, {0}, errc::not_permitted, "may not connect"},
      {"the sender allows another user only",
       0750,
       {nobody - 1},
       {0},
       errc::peer_gone,
       "closed the connection"},
      {"the receiver does not trust the sender",
       0750,
       {nobody},
       {nobody},
       errc::not_permitted,
       "user 0 is not trusted"},
      {"both allow it", 0750, {nobody}, {0}, errc::ok, ""},
  };
  for (auto const& who : all) {
    INFO(std::string(who.title));
    leak_check const nothing_stays;
    scratch const directory;
    REQUIRE(::chmod(directory.file("").c_str(), who.directory) == 0);
    peer_process child(
        [&](auto parent) { return follow_as_nobody(parent, directory.file("s"), who.receiver_trusts); });
    run_to_end([&] { return meet(who, directory, child); }, std::chrono::seconds(30));
    CHECK(child.process().wait() == 0);
  }
}
