// Peers that lie while a version is held, which goes out without anybody's call: they get no more of it than
// is good for others, and who comes honestly is served. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <chrono>

#include "api/line.hpp"
#include "beside_us.hpp"
#include "liar.hpp"
#include "support/co_test.hpp"
#include "support/fork_child.hpp"
#include "support/leak_check.hpp"
#include "told.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// What the sender's observer hears.
class deliveries final : public observer {
 public:
  void update_began(std::uint64_t, std::uint64_t, std::uint32_t) override { ++begun; }
  void update_sent(send_report const& report) override { reports.push_back(report); }
  std::size_t begun = 0;
  std::vector<send_report> reports;
};

sender_options heard_by(deliveries& who) {
  auto options = quick_sender(lie_bucket);
  options.watched_by(&who);
  return options;
}

bool is_of_server(send_report const& report) {
  return std::any_of(report.receivers.begin(), report.receivers.end(),
                     [](auto const& one) { return one.name.starts_with("server"); });
}

/// A sender that holds version 1, and one honest receiver that has not come yet.
struct holder {
  explicit holder(any_io_executor executor, bool shared = false)
      : over(executor, host_setting(1, lie_slots), heard_by(heard))
      , whole(shared ? shared_host_memory() : host_memory(), lied_about(), 1)
      , held(host_memory(), lied_about(), 0)
      , into(held.into()) {
    for (auto const& block : whole.memory()->shared()) over.sender().share(block);
    promise = over.sender().hold(1, whole.views());
  }
  /// The honest one comes, and is in the delivery that begins then, or the next.
  awaitable<void> serves_who_comes() {
    co_await over.receiver().connect(over.path());
    std::size_t const next = heard.begun;
    auto load = beside(over.executor(), load_next(over.receiver(), into));
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    CHECK(difference(whole.images(), held) == "");
    std::size_t served = 0;
    while (served == heard.reports.size() || !is_of_server(heard.reports[served]))
      if (served < heard.reports.size())
        ++served;
      else
        co_await settle(1);
    CHECK(served <= next);
    CHECK(of(heard.reports[served], "server").what == outcome::committed);
  }

  deliveries heard;
  line over;
  model whole, held;
  destinations into;
  held_version promise;
};

awaitable<void> lie_to_holder(receiver_lie const& what) {
  auto const executor = co_await asio::this_coro::executor;
  holder with(executor, what.mapped);
  auto lie = [&] {
    return tell(
        what, with.over.path(), [](void*) {}, nullptr);
  };
  {
    beside_us liar(executor, std::move(lie));
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  while (with.heard.reports.empty()) co_await settle(1);
  auto const& first = with.heard.reports.front();
  REQUIRE(outcomes(first).find(' ') == std::string::npos); // to it alone
  check_told(of(first, "liar"), what);
  co_await with.serves_who_comes();
  CHECK(with.heard.reports.size() == 2);
  co_await with.over.close();
}

} // namespace

TEST_CASE("who lies while it is given what is held is dropped, and who comes next is given it") {
  for (auto const& lie : receiver_lies()) {
    if (lie.at <= receiver_lie::step::greeted) continue; // not yet given anything
    INFO(std::string(lie.title));
    leak_check const nothing_stays;
    run_to_end([&] { return lie_to_holder(lie); });
  }
}

namespace {

liar arrives(std::string const& path) {
  auto me = liar::at(path);
  me.say(honest_hello());
  me.expect<protocol::welcome>();
  return me;
}

/// As an honest receiver does, but that it looks at nothing.
void takes(liar& me, protocol::begin const& b) {
  me.say(protocol::accept{b.update});
  for (std::uint32_t i = 0; i < b.buckets; ++i)
    me.say(protocol::released{b.update, me.expect<protocol::published>().seq});
  me.say(protocol::all_copied{b.update});
  me.expect<protocol::commit>();
  me.say(protocol::committed{b.update});
}

/// So often that the sender should have had enough long before.
constexpr auto long_enough = milliseconds(2500);

/// Steps that a peer repeats for a while, and how long it took.
struct repeated {
  std::size_t often = 0;
  clock::duration took{};
};

/// Takes what is held, leaves without a word and comes back, as fast as it can.
std::string turn_without_end(std::string const& path, bool stays_to_the_end, baton& has_turned,
                             repeated& done) {
  try {
    auto const began = clock::now();
    for (; done.took < long_enough; done.took = clock::now() - began) {
      auto me = arrives(path);
      me.expect<protocol::ring>();
      me.say(protocol::ring_mapped{0});
      auto const b = me.expect<protocol::begin>();
      if (stays_to_the_end) takes(me, b);
      me.hang_up();
      if (++done.often == 80) has_turned.pass();
    }
    has_turned.pass();
    return {};
  } catch (std::exception const& error) { return error.what(); }
}

awaitable<void> revolving_door(bool stays_to_the_end) {
  auto const executor = co_await asio::this_coro::executor;
  holder with(executor);
  baton has_turned;
  repeated turns;
  auto turn = [&] { return turn_without_end(with.over.path(), stays_to_the_end, has_turned, turns); };
  {
    beside_us liar(executor, std::move(turn));
    // Comes in the middle of it: once it has turned often enough, or is over.
    while (!has_turned.wait(milliseconds(0)) && with.heard.begun < 66) co_await settle(1);
    co_await with.serves_who_comes();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  // 64 may leave at once, one more is forgotten every ten seconds, and for others there is a second between
  // the end of a delivery and the next. What runs when it stops counts, too.
  auto const seconds = static_cast<std::size_t>(turns.took / std::chrono::seconds(1));
  CHECK(turns.often <= 66 + seconds + seconds / 10);
  co_await with.over.close();
}

} // namespace

TEST_CASE(
    "who takes what is held, leaves and comes back without end has it seldom, and keeps nobody waiting") {
  for (bool const stays_to_the_end : {true, false}) {
    CAPTURE(stays_to_the_end);
    leak_check const nothing_stays;
    run_to_end([&] { return revolving_door(stays_to_the_end); }, std::chrono::seconds(40));
  }
}

namespace {

/// Says not now to what is held as often as it is asked, and wants to be asked again at once.
std::string put_off_without_end(std::string const& path, baton& has_begun, repeated& done) {
  try {
    auto me = arrives(path);
    auto const began = clock::now();
    for (; done.took < milliseconds(1000); done.took = clock::now() - began) {
      me.say(protocol::not_now{me.expect<protocol::begin>().update, 0, "later"});
      if (++done.often == 2) has_begun.pass();
    }
    me.hang_up();
    return {};
  } catch (std::exception const& error) { return error.what(); }
}

} // namespace

static awaitable<void> undecided() {
  auto const executor = co_await asio::this_coro::executor;
  holder with(executor);
  baton has_begun;
  repeated times;
  auto put_off = [&] { return put_off_without_end(with.over.path(), has_begun, times); };
  {
    beside_us liar(executor, std::move(put_off));
    while (!has_begun.wait(milliseconds(0))) co_await settle(1);
    co_await with.serves_who_comes();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  CHECK(times.often <= 2 + static_cast<std::size_t>(times.took / milliseconds(100)));
  co_await with.over.close();
}

TEST_CASE("who always says not now to what is held is asked ten times a second at most") {
  leak_check const nothing_stays;
  run_to_end([] { return undecided(); });
}

namespace {

/// Takes part, and holds what it gets for as long as it may.
std::string hold_it_up(std::string const& path, baton& holds, baton& may_end) {
  try {
    auto me = arrives(path);
    me.expect<protocol::ring>();
    me.say(protocol::ring_mapped{0});
    auto const b = me.expect<protocol::begin>();
    me.say(protocol::accept{b.update});
    me.expect<protocol::published>();
    holds.pass();
    // The sender says alive all the time, and so does this.
    for (;;) {
      auto const heard = me.hear();
      if (!heard) return "dropped, though it said that it is alive";
      if (std::holds_alternative<protocol::alive>(*heard)) me.say(protocol::alive{b.update});
      if (std::holds_alternative<protocol::abort_update>(*heard)) break;
    }
    me.say(protocol::aborted{b.update});
    me.say(protocol::refuse{me.expect<protocol::begin>().update, 8, "no"});
    return may_end.wait() ? std::string() : "nobody else was served";
  } catch (std::exception const& error) { return error.what(); }
}

} // namespace

static awaitable<void> held_up() {
  auto const executor = co_await asio::this_coro::executor;
  holder with(executor);
  auto& over = with.over;
  baton holds, may_end;
  auto hold = [&] { return hold_it_up(over.path(), holds, may_end); };
  {
    beside_us liar(executor, std::move(hold));
    while (!holds.wait(milliseconds(0))) co_await settle(1);
    co_await over.connect();
    auto load = beside(executor, load_next(over.receiver(), with.into));
    co_await settle();
    CHECK_FALSE(load.done()); // it waits for the delivery that runs
    model const newer(host_memory(), lied_about(), 2);
    auto const report = co_await over.sender().send_weights(2, newer.views());
    CHECK(of(report, "server").what == outcome::committed);
    CHECK(of(report, "liar").what == outcome::refused);
    auto const loaded = co_await load.join();
    CHECK_MESSAGE(loaded.ok(), loaded.said());
    CHECK(difference(newer.images(), with.held) == "");
    may_end.pass();
    auto const wrong = co_await liar.end();
    CHECK(wrong == "");
  }
  co_await over.close();
}

TEST_CASE("who holds up the delivery of what is held gives way to a send, which serves those who waited") {
  leak_check const nothing_stays;
  run_to_end([] { return held_up(); });
}
