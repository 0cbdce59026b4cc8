// Cancellation at every await, of every type, and by `op || timer`: the operation ends with
// operation_aborted, the other side is told, memory may be freed at once, the session lives, and the next
// update works. Part of ropeway; Apache-2.0.
#include <memory>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace ropeway::compat::awaitable_operators;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib;
constexpr auto aborted = asio::error::operation_aborted;

std::vector<tensor_info> layers(std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

/// How an operation is cancelled.
enum class way { terminal, partial, total, timer };
constexpr way ways[] = {way::terminal, way::partial, way::total, way::timer};
asio::cancellation_type type_of(way how) {
  if (how == way::partial) return asio::cancellation_type::partial;
  if (how == way::total) return asio::cancellation_type::total;
  return asio::cancellation_type::terminal;
}

awaitable<void> soon_after(event ready) {
  auto const executor = co_await asio::this_coro::executor;
  co_await ready.wait();
  co_await settle();
  asio::steady_timer timer(executor, milliseconds(1));
  co_await timer.async_wait(use_awaitable);
}

/// Ends as if cancelled when the timer wins, which it must.
template <class T>
awaitable<T> or_timer(awaitable<T> work, event ready) {
  auto winner = co_await (std::move(work) || soon_after(ready));
  if (winner.index() == 1) throw std::system_error(aborted);
  if constexpr (!std::is_void_v<T>) co_return std::get<0>(std::move(winner));
}

/// Starts `work`, cancels it once `ready` is set, and gives its end.
template <class T>
awaitable<attempt<or_unit<T>>> cancelled(awaitable<T> work, event ready, way how) {
  auto const executor = co_await asio::this_coro::executor;
  if (how == way::timer) {
    auto end = co_await try_to(or_timer(std::move(work), ready));
    co_return end;
  }
  auto running = beside(executor, std::move(work));
  co_await ready.wait();
  co_await settle();
  CHECK_FALSE(running.done());
  running.cancel(type_of(how));
  auto end = co_await running.join();
  co_return end;
}

awaitable<void> next_update_works(line& over, std::uint64_t version) {
  model const source(host_memory(), layers(6), version + 100);
  std::deque<model> held;
  std::vector<destinations> into;
  for (std::size_t i = 0; i < over.receivers(); ++i) held.emplace_back(host_memory(), source.specs(), 0);
  for (auto& each : held) into.push_back(each.into());
  send_report const report = co_await deliver(over, version, source.views(), into);
  CHECK(report.count(outcome::committed) == over.receivers());
  for (auto& each : held) CHECK(difference(source.images(), each) == "");
}

/// Where an update stands when somebody cancels.
enum class stage { undecided, slots_full, source_waits, uncommitted };
constexpr stage stages[] = {stage::undecided, stage::slots_full, stage::source_waits, stage::uncommitted};

/// A receiver that comes to the stage and stays there until `go_on`; then it tries to finish.
awaitable<void> stay_at(receiver& from, stage at, std::uint32_t slots, destinations& into, event reached,
                        event go_on) {
  auto update = co_await announced(from);
  std::deque<bucket> held;
  if (at == stage::slots_full) {
    for (std::uint32_t i = 0; i < slots; ++i) {
      auto taken = co_await update.next_bucket();
      held.push_back(std::move(*taken));
    }
  }
  if (at == stage::uncommitted) {
    while (auto taken = co_await update.next_bucket()) taken->release();
  }
  if (at != stage::source_waits) {
    reached.set();
    co_await go_on.wait();
  }
  held.clear();
  if (at == stage::undecided || at == stage::source_waits) {
    co_await update.load_into(into);
  } else {
    while (auto taken = co_await update.next_bucket()) taken->release();
    co_await update.commit();
  }
}

awaitable<void> cancel_send(stage at, way how) {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  auto whole = std::make_unique<model>(host_memory(), layers(), 1);
  auto held = std::make_unique<model>(host_memory(), whole->specs(), 0);
  line over(executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  event const reached(executor), go_on(executor), open(executor);
  auto into = held->into();
  auto other = beside(executor, stay_at(over.receiver(), at, setting.slots, into, reached, go_on));
  gated_source source(*whole, at == stage::source_waits ? 9u : 1000u, open, reached);
  auto const sent = co_await cancelled(over.sender().send_weights(1, source), reached, how);
  whole.reset(); // the address sanitizer sees who reads on
  CHECK(sent.error == aborted);
  go_on.set();
  auto const told = co_await other.join();
  CHECK(told.error == make_error_code(errc::peer_aborted));
  held.reset();
  CHECK_FALSE(over.receiver().version().has_value());
  CHECK(into.torn() == (at == stage::source_waits));
  if (at == stage::source_waits) CHECK(source.cancelled());
  co_await next_update_works(over, 2);
  co_await over.close();
}

/// The receiver's operations that are cancelled.
enum class wait { load, bucket, commit };

awaitable<void> until(receiver& from, wait what, destinations& into, event reached) {
  auto update = co_await announced(from);
  if (what == wait::load) {
    co_await update.load_into(into);
    co_return;
  }
  while (auto taken = co_await update.next_bucket()) taken->release();
  reached.set();
  co_await update.commit();
}

/// One of two receivers is cancelled while it waits for a bucket (the source is slow) or, as the member of a
/// group, for the order to commit (the other member is slow).
awaitable<void> cancel_receive(wait what, way how) {
  auto const executor = co_await asio::this_coro::executor;
  bool const grouped = what == wait::commit;
  auto const setting = host_setting(2);
  auto options = quick_receiver();
  if (grouped) options.group("pair").group_size(2);
  auto sends = quick_sender(small_bucket);
  sends.min_receivers(0);
  model whole(host_memory(), layers(), 1), other_held(host_memory(), whole.specs(), 0);
  auto held = std::make_unique<model>(host_memory(), whole.specs(), 0);
  line over(executor, setting, sends, options);
  co_await over.connect();
  event const reached(executor), other_reached(executor), go_on(executor), open(executor);
  auto into = held->into(), other_into = other_held.into();
  auto const other_stage = grouped ? stage::uncommitted : stage::source_waits;
  auto other = beside(
      executor, stay_at(over.receiver(1), other_stage, setting.slots, other_into, other_reached, go_on));
  gated_source source(whole, grouped ? 1000u : 9u, open, reached);
  auto send = beside(executor, over.sender().send_weights(1, source));
  auto const end = co_await cancelled(until(over.receiver(0), what, into, reached), reached, how);
  held.reset();
  CHECK(end.error == aborted);
  if (what == wait::load) CHECK(into.torn());
  open.set();
  go_on.set();
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  if (sent.ok()) {
    CHECK(of(*sent.value, "server-0").what == outcome::failed);
    CHECK(bool(of(*sent.value, "server-0").error));
    CHECK((of(*sent.value, "server-1").what == outcome::committed) == !grouped);
  }
  auto const other_end = co_await other.join();
  CHECK(other_end.ok() == !grouped);
  co_await next_update_works(over, 2);
  co_await over.close();
}

awaitable<void> cancel_idle(way how) {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  line over(executor, setting, quick_sender(small_bucket));
  event const now(executor);
  now.set();
  // Nobody listens there.
  receiver lonely(executor, quick_receiver("lonely"));
  auto const connected = co_await cancelled(lonely.connect(over.directory().file("nobody.sock")), now, how);
  CHECK(connected.error == aborted);
  auto const unconnected = co_await try_to(lonely.next_update());
  CHECK(unconnected.error == make_error_code(errc::not_open));
  auto const counted =
      co_await cancelled(over.sender().wait_for_receivers(7, milliseconds(20'000)), now, how);
  CHECK(counted.error == aborted);
  co_await over.connect();
  auto const waited = co_await cancelled(over.receiver().next_update(), now, how);
  CHECK(waited.error == aborted);
  co_await next_update_works(over, 1);
  co_await over.close();
}

awaitable<void> cancel_parts_of_a_send(way how) {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  model whole(host_memory(), layers(), 1), held(host_memory(), whole.specs(), 0);
  line over(executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  event const reached(executor), open(executor);
  gated_source source(whole, 9, open, reached);
  auto into = held.into();
  auto load = beside(executor, load_next(over.receiver(), into));
  sending started = co_await over.sender().start(1, source);
  // Stops this wait only.
  auto const freed = co_await cancelled(started.source_free(), reached, how);
  CHECK(freed.error == aborted);
  CHECK_FALSE(load.done());
  // Gives the version up.
  auto const done = co_await cancelled(started.done(), reached, how);
  CHECK(done.error == aborted);
  auto const loaded = co_await load.join();
  CHECK(loaded.error == make_error_code(errc::peer_aborted));
  co_await next_update_works(over, 2);
  co_await over.close();
}

} // namespace

TEST_CASE("a send is cancelled at every stage, in every way") {
  for (auto at : stages)
    for (auto how : ways) {
      INFO("stage " << int(at) << ", way " << int(how));
      run_to_end([=] { return cancel_send(at, how); });
    }
}

TEST_CASE("a load, a wait for a bucket and a commit are cancelled in every way") {
  for (auto what : {wait::load, wait::bucket, wait::commit})
    for (auto how : ways) {
      INFO("operation " << int(what) << ", way " << int(how));
      run_to_end([=] { return cancel_receive(what, how); });
    }
}

TEST_CASE("connecting, counting receivers and waiting for an update are cancelled in every way") {
  for (auto how : ways) {
    INFO("way " << int(how));
    run_to_end([=] { return cancel_idle(how); });
  }
}

TEST_CASE("waiting for the source and waiting for the end of a started version are cancelled in every way") {
  for (auto how : ways) {
    INFO("way " << int(how));
    run_to_end([=] { return cancel_parts_of_a_send(how); });
  }
}

CO_TEST("a sender that is destroyed in the middle of a send: the send ends, the receiver hears it") {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  scratch const directory;
  auto whole = std::make_unique<model>(host_memory(), layers(), 1);
  auto const specs = whole->specs();
  model held(host_memory(), specs, 0);
  auto into = held.into();
  event const reached(executor), open(executor);
  gated_source source(*whole, 9, open, reached);
  auto from = std::make_unique<sender>(executor, directory.file("s"), quick_sender(small_bucket));
  receiver to(executor, quick_receiver());
  co_await to.connect(directory.file("s"));
  co_await from->wait_for_receivers(1, milliseconds(5000));
  auto load = beside(executor, load_next(to, into));
  auto send = beside(executor, from->send_weights(1, source));
  co_await reached.wait();
  from.reset();
  auto const sent = co_await send.join();
  whole.reset();
  CHECK(sent.error == aborted);
  auto const loaded = co_await load.join();
  CHECK_FALSE(loaded.ok());
  CHECK(into.torn());
  CHECK(directory.entries().empty());
  co_await to.close();
}

CO_TEST("a receiver that is destroyed in the middle of a load: the load ends, the sender hears it, the other "
        "commits") {
  auto const executor = co_await asio::this_coro::executor;
  auto const setting = host_setting(1);
  model whole(host_memory(), layers(), 1), other_held(host_memory(), whole.specs(), 0);
  auto held = std::make_unique<model>(host_memory(), whole.specs(), 0);
  auto into = held->into(), other_into = other_held.into();
  event const reached(executor), open(executor);
  gated_source source(whole, 9, open, reached);
  line over(executor, setting, quick_sender(small_bucket));
  co_await over.connect();
  auto leaving = std::make_unique<receiver>(executor, quick_receiver("leaving"));
  co_await leaving->connect(over.path());
  co_await over.sender().wait_for_receivers(2, milliseconds(5000));
  auto load = beside(executor, load_next(*leaving, into));
  auto other = beside(executor, load_next(over.receiver(), other_into));
  auto send = beside(executor, over.sender().send_weights(1, source));
  co_await reached.wait();
  co_await settle();
  leaving.reset();
  held.reset(); // after the destructor no copy writes there
  open.set();
  auto const sent = co_await send.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  if (sent.ok()) {
    CHECK(of(*sent.value, "server").what == outcome::committed);
    CHECK(of(*sent.value, "leaving").what != outcome::committed);
  }
  auto const loaded = co_await load.join();
  CHECK(loaded.error == aborted);
  co_await other.join();
  CHECK(difference(whole.images(), other_held) == "");
  co_await over.close();
}
