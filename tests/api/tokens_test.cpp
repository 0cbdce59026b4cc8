// Any completion token: the handler runs exactly once, on its own executor, never inside the call; arguments
// may be temporaries; cancellation comes through the handler's slot. Part of ropeway; Apache-2.0.
#include <asio/bind_executor.hpp>
#include <asio/io_context.hpp>
#include <asio/strand.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_future.hpp>
#include <atomic>
#include <future>
#include <thread>

#include "line.hpp"
#include "sources.hpp"
#include "support/co_test.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

constexpr std::uint64_t small_bucket = 4 * kib;

std::vector<tensor_info> layers(std::size_t count = 20) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return specs;
}

/// Views whose names are gone when the call returns: the names lie in a string that is scribbled over.
struct short_lived {
  explicit short_lived(model const& source) {
    for (std::size_t i = 0; i < source.size(); ++i) names.push_back(source.specs()[i].name);
    for (std::size_t i = 0; i < source.size(); ++i) {
      auto const view = source.view(i);
      views.emplace_back(names[i], view.type(), view.dims(), view.data());
    }
  }
  short_lived(short_lived const&) = delete;
  ~short_lived() {
    for (auto& name : names) name.assign(name.size(), '#');
  }
  std::vector<tensor_view> const& get() const { return views; }
  std::deque<std::string> names;
  std::vector<tensor_view> views;
};

/// A server that loads every update until the sender closes, on threads of its own.
class background_server {
 public:
  background_server(std::string path, std::vector<tensor_info> specs)
      : held_(host_memory(), std::move(specs), 0)
      , into_(held_.into())
      , thread_([this, path = std::move(path)] {
        asio::co_spawn(io_, follow(*this, path), [this](std::exception_ptr e) { thrown_ = e; });
        io_.run();
      }) {}
  ~background_server() { finish(); }
  /// After the sender has closed.
  void finish() {
    if (thread_.joinable()) thread_.join();
  }
  model const& held() const { return held_; }
  std::uint64_t updates() const { return updates_; }
  bool failed() const { return thrown_ != nullptr; }

 private:
  static awaitable<void> follow(background_server& self, std::string path) {
    receiver from(co_await asio::this_coro::executor, quick_receiver("background"));
    co_await from.connect(path);
    while (auto next = co_await from.next_update()) {
      co_await next->load_into(self.into_);
      ++self.updates_;
    }
    co_await from.close();
  }

  asio::io_context io_{1};
  model held_;
  destinations into_;
  std::atomic<std::uint64_t> updates_ = 0;
  std::exception_ptr thrown_;
  std::thread thread_;
};

/// Counts what a completion handler does.
struct calls {
  int count = 0;
  bool inside_the_call = false;
  std::error_code error;
  send_report report;
};

struct move_only_handler {
  explicit move_only_handler(calls& to) : into(&to) {}
  move_only_handler(move_only_handler&&) = default;
  move_only_handler& operator=(move_only_handler&&) = default;
  void operator()(std::error_code error, send_report report) && {
    ++into->count;
    into->error = error;
    into->report = std::move(report);
  }
  std::unique_ptr<int> proof = std::make_unique<int>(1);
  calls* into;
};

/// Runs a function with a sender on its own io_context and a server in the background.
template <class Body>
void with_sender(Body body) {
  deadline_guard const guard(patient(std::chrono::seconds(20)));
  scratch const directory;
  model source(host_memory(), layers(), 1);
  asio::io_context io(1);
  sender from(io.get_executor(), directory.file("s"), quick_sender(small_bucket));
  background_server server(directory.file("s"), source.specs());
  std::size_t connected = 0;
  from.wait_for_receivers(1, milliseconds(10'000), [&](std::error_code, std::size_t n) { connected = n; });
  while (connected == 0) io.run_one();
  body(io, from, source);
  std::uint64_t closed = 0;
  from.close([&](std::error_code) { ++closed; });
  io.restart();
  io.run();
  CHECK(closed == 1);
  server.finish();
  CHECK_FALSE(server.failed());
  CHECK(difference(source.images(), server.held()) == "");
}

} // namespace

TEST_CASE("a callback is called once, and not inside the call") {
  with_sender([](asio::io_context& io, sender& from, model& source) {
    calls seen;
    bool in_call = true;
    auto handler = [&](std::error_code error, send_report report) {
      ++seen.count;
      seen.inside_the_call = in_call;
      seen.error = error;
      seen.report = std::move(report);
    };
    from.send_weights(1, short_lived(source).get(), handler);
    in_call = false;
    while (seen.count == 0) io.run_one();
    io.poll();
    CHECK(seen.count == 1);
    CHECK_FALSE(seen.inside_the_call);
    CHECK_FALSE(seen.error);
    CHECK(outcomes(seen.report) == "committed");
  });
}

TEST_CASE("a callback that can only be moved, with a prepared set and with ready_after") {
  with_sender([](asio::io_context& io, sender& from, model& source) {
    calls one, two, three;
    from.send_weights(1, source.views(), move_only_handler(one));
    while (one.count == 0) io.run_one();
    auto const set = from.prepare(short_lived(source).get());
    from.send_weights(2, set, move_only_handler(two));
    while (two.count == 0) io.run_one();
    from.send_weights(3, set, ready_after(), move_only_handler(three));
    while (three.count == 0) io.run_one();
    io.poll();
    for (auto const* each : {&one, &two, &three}) {
      CHECK(each->count == 1);
      CHECK_FALSE(each->error);
      CHECK(outcomes(each->report) == "committed");
    }
  });
}

TEST_CASE("deferred: nothing happens before the launch, and the arguments may be gone by then") {
  with_sender([](asio::io_context& io, sender& from, model& source) {
    calls seen;
    io.poll(); // what the sender itself has begun
    auto later = from.send_weights(1, short_lived(source).get(), compat::deferred);
    auto move_later = std::move(later);
    CHECK(io.poll() == 0);
    std::move(move_later)(move_only_handler(seen));
    while (seen.count == 0) io.run_one();
    CHECK_FALSE(seen.error);
    CHECK(outcomes(seen.report) == "committed");
  });
}

TEST_CASE("use_future, waited for on another thread") {
  with_sender([](asio::io_context& io, sender& from, model& source) {
    std::future<send_report> good = from.send_weights(1, short_lived(source).get(), asio::use_future);
    std::future<send_report> bad = from.send_weights(2, source.views(), asio::use_future); // one is running
    std::thread runner([&] { io.run(); });
    auto const report = good.get();
    std::error_code error;
    try {
      bad.get();
    } catch (std::system_error const& e) { error = e.code(); }
    io.stop(); // the sender listens on
    runner.join();
    io.restart();
    CHECK(outcomes(report) == "committed");
    CHECK(error == make_error_code(errc::busy));
  });
}

namespace {

awaitable<void> send_with_tuples(sender& from, model& source) {
  co_await from.wait_for_receivers(1, milliseconds(5000));
  auto const [error, report] = co_await from.send_weights(1, short_lived(source).get(), compat::as_result);
  CHECK_FALSE(error);
  CHECK(outcomes(report) == "committed");
  auto const plain = co_await from.send_weights(2, source.views(), use_awaitable);
  CHECK(outcomes(plain) == "committed");
  auto const [none, count] = co_await from.wait_for_receivers(2, milliseconds(10), compat::as_result);
  CHECK(none == make_error_code(errc::too_few_receivers));
  CHECK(count == 1);
  failing_source broken(source, 2, "no third layer");
  auto const [failed, filled] = co_await from.send_weights(3, broken, compat::as_result);
  CHECK(failed == make_error_code(errc::source_failed));
  CHECK(filled.version == 3);
  CHECK(filled.receivers.size() == 1);
  CHECK(filled.count(outcome::committed) == 0);
  co_await from.close();
}

awaitable<void> receive_with_tuples(receiver& to, std::string path, model const& source) {
  auto const [failed] =
      co_await to.connect(path + " is too long a path" + std::string(200, '.'), compat::as_result);
  CHECK(failed == make_error_code(errc::bad_path));
  auto const [connected] = co_await to.connect(path, compat::as_result);
  CHECK_FALSE(connected);
  model held(host_memory(), source.specs(), 0);
  auto into = held.into();
  std::vector<std::error_code> ends;
  for (;;) {
    auto [error, next] = co_await to.next_update(compat::as_result);
    CHECK_FALSE(error);
    if (error || !next) break;
    auto const [end, report] = co_await next->load_into(into, compat::as_result);
    ends.push_back(end);
    if (!end) CHECK(difference(source.images(), held) == "");
  }
  CHECK(ends.size() == 3);
  if (ends.size() == 3) {
    CHECK_FALSE(ends[0]);
    CHECK_FALSE(ends[1]);
    CHECK(ends[2] == make_error_code(errc::peer_aborted));
  }
  co_await to.close();
}

} // namespace

CO_TEST("use_awaitable and as_tuple; the report comes with the error") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  model source(host_memory(), layers(), 1);
  sender from(executor, directory.file("s"), quick_sender(kib));
  receiver to(executor, quick_receiver());
  auto sends = beside(executor, send_with_tuples(from, source));
  auto receives = beside(executor, receive_with_tuples(to, directory.file("s"), source));
  auto const sent = co_await sends.join();
  CHECK_MESSAGE(sent.ok(), sent.said());
  auto const received = co_await receives.join();
  CHECK_MESSAGE(received.ok(), received.said());
}

TEST_CASE("a handler runs on the executor that is bound to it, also on a pool of two threads") {
  deadline_guard const guard(patient(std::chrono::seconds(20)));
  scratch const directory;
  model source(host_memory(), layers(), 1);
  asio::thread_pool pool(2);
  asio::io_context mine;
  sender from(pool.get_executor(), directory.file("s"), quick_sender(small_bucket));
  background_server server(directory.file("s"), source.specs());
  auto const strand = asio::make_strand(pool);
  std::atomic<int> done = 0, in_strand = 0, on_mine = 0;
  from.wait_for_receivers(1, milliseconds(5000), asio::use_future).get();
  for (std::uint64_t version = 1; version <= 20; ++version) {
    std::promise<void> ended;
    auto handler = [&](std::error_code error, send_report) {
      if (!error) ++done;
      if (strand.running_in_this_thread()) ++in_strand;
      ended.set_value();
    };
    from.send_weights(version, source.views(), asio::bind_executor(strand, handler));
    ended.get_future().get();
  }
  CHECK(done == 20);
  CHECK(in_strand == 20);
  auto const me = std::this_thread::get_id();
  auto handler = [&](std::error_code error, send_report) {
    if (!error && std::this_thread::get_id() == me) ++on_mine;
  };
  from.send_weights(21, source.views(), asio::bind_executor(mine.get_executor(), handler));
  CHECK(mine.run() == 1); // the operation keeps its executor alive
  CHECK(on_mine == 1);
  from.close(asio::use_future).get();
  server.finish();
  pool.join();
  CHECK(server.updates() == 21);
  CHECK_FALSE(server.failed());
  CHECK(difference(source.images(), server.held()) == "");
}

TEST_CASE("every operation of a receiver with use_future and deferred, on a pool of two threads") {
  deadline_guard const guard(patient(std::chrono::seconds(20)));
  scratch const directory;
  model source(host_memory(), layers(), 1), held(host_memory(), source.specs(), 0);
  asio::thread_pool pool(2);
  sender from(pool.get_executor(), directory.file("s"), quick_sender(small_bucket));
  receiver to(pool.get_executor(), quick_receiver());
  auto connecting =
      to.connect(std::string(directory.file("s")), compat::deferred); // the path was a temporary
  std::move(connecting)(asio::use_future).get();
  from.wait_for_receivers(1, milliseconds(5000), asio::use_future).get();
  auto into = held.into();

  auto sent = from.send_weights(1, short_lived(source).get(), asio::use_future);
  auto next = to.next_update(asio::use_future).get();
  CHECK(next.has_value());
  auto loading = next->load_into(into, compat::deferred);
  load_report const loaded = std::move(loading)(asio::use_future).get();
  CHECK(loaded.version == 1);
  CHECK(outcomes(sent.get()) == "committed");
  CHECK(difference(source.images(), held) == "");

  source.fill(2);
  sent = from.send_weights(2, source.views(), asio::use_future);
  next = to.next_update(asio::use_future).get();
  assembly parts(*next);
  while (auto taken = next->next_bucket(asio::use_future).get()) {
    parts.add(*taken, source.kind());
    std::thread([&] { taken->release(); }).join(); // from any thread
  }
  CHECK(next->commit(asio::use_future).get().version == 2);
  CHECK(outcomes(sent.get()) == "committed");
  CHECK(difference(source.images(), parts.finish()) == "");

  auto last = to.next_update(asio::use_future);
  from.close(asio::use_future).get();
  CHECK_FALSE(last.get().has_value());
  to.close(asio::use_future).get();
  pool.join();
}

TEST_CASE("a cancellation slot that is bound to a handler; one that comes too late does nothing") {
  deadline_guard const guard(patient(std::chrono::seconds(20)));
  for (auto type : {asio::cancellation_type::terminal, asio::cancellation_type::partial,
                    asio::cancellation_type::total}) {
    scratch const directory;
    asio::io_context io(1);
    sender from(io.get_executor(), directory.file("s"), quick_sender(small_bucket));
    receiver to(io.get_executor(), quick_receiver());
    int connected = 0, sent = 0, offered = 0, aborted = 0;
    to.connect(directory.file("s"), [&](std::error_code error) { connected += !error; });
    while (connected == 0) io.run_one();
    bool there = false;
    from.wait_for_receivers(1, milliseconds(5000), [&](std::error_code, std::size_t) { there = true; });
    while (!there) io.run_one();
    model source(host_memory(), layers(), 1);
    std::optional<update> announced;
    to.next_update([&](std::error_code, std::optional<update> next) {
      ++offered;
      announced = std::move(next);
    });
    asio::cancellation_signal stop;
    send_report report;
    auto handler = [&](std::error_code error, send_report filled) {
      ++sent;
      aborted += error == asio::error::operation_aborted;
      report = std::move(filled);
    };
    from.send_weights(1, source.views(), asio::bind_cancellation_slot(stop.slot(), handler));
    while (offered == 0) io.run_one();
    stop.emit(type);
    CHECK(sent == 0); // never inside emit
    while (sent == 0) io.run_one();
    CHECK(aborted == 1);
    CHECK(report.receivers.size() == 1);
    stop.emit(type); // too late: nothing
    io.poll();
    CHECK(sent == 1);
    announced.reset();
    from.close([](std::error_code) {});
    to.close([](std::error_code) {});
    io.restart();
    io.run();
    CHECK(sent == 1);
  }
}

TEST_CASE("sender and receiver on io_contexts of two threads: five versions, all exact") {
  with_sender([](asio::io_context& io, sender& from, model& source) {
    for (std::uint64_t version = 1; version <= 5; ++version) {
      source.fill(version);
      calls seen;
      from.send_weights(version, source.views(), move_only_handler(seen));
      while (seen.count == 0) io.run_one();
      CHECK(outcomes(seen.report) == "committed");
    }
  });
}
