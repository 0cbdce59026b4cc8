// Ends and beginnings that overlap: what is destroyed, closed or cancelled while something else still runs,
// and what comes after it. Part of ropeway; Apache-2.0.
#include <asio/bind_cancellation_slot.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <poll.h>
#include <set>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>

#include "api/with_backends.hpp"
#include "base/unique_fd.hpp"
#include "line.hpp"
#include "session/offload.hpp"
#include "support/co_test.hpp"
#include "support/leak_check.hpp"
#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t bucket_size = 4 * kib;

std::vector<tensor_info> layers(std::size_t count = 4) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({"layer." + std::to_string(i), dtype::f32, {1024}});
  return specs;
}

/// A sender and a receiver on scripted devices, each with a script of its own.
struct pair_on_script {
  explicit pair_on_script(any_io_executor executor, bool cuda = false)
      : executor_(executor)
      , sending(std::make_shared<scripted_devices>(sends, cuda ? 1 : 0))
      , receiving(cuda ? sending : std::make_shared<scripted_devices>(receives))
      , where(cuda ? device::cuda(0) : device::host()) {
    make_sender();
    auto options = quick_receiver();
    options.where(where);
    from.emplace(detail::make_receiver(executor, options, receiving));
  }
  void make_sender() {
    auto options = quick_sender(bucket_size);
    options.close_limit(patient(200ms));
    to.emplace(detail::make_sender(executor_, path, options, sending));
  }
  awaitable<void> connect() {
    co_await from->connect(path);
    co_await to->wait_for_receivers(1, 10s);
  }
  awaitable<void> close() {
    co_await from->close();
    co_await to->close();
  }

  any_io_executor executor_;
  scratch directory;
  std::string path = directory.file("s");
  std::shared_ptr<script> sends = std::make_shared<script>(), receives = std::make_shared<script>();
  std::shared_ptr<scripted_devices> sending, receiving;
  device where;
  std::optional<sender> to;
  std::optional<receiver> from;
};

/// Tensors of a model as if they lay on the scripted device.
std::vector<tensor_view> views_on(model const& whole, device where) {
  std::vector<tensor_view> views;
  for (auto const& view : whole.views())
    views.emplace_back(view.name(), view.type(), view.dims(), view.data(), where);
  return views;
}
int stream_memory = 0;
CUstream_st* const stream = reinterpret_cast<CUstream_st*>(&stream_memory);

/// Listens and says nothing, ever.
unique_fd mute_listener(std::string const& path) {
  unique_fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0);
  REQUIRE(::listen(socket.get(), 16) == 0);
  return socket;
}

awaitable<load_report> load_into(update from, destinations& into, ready_after when) {
  load_report report = co_await from.load_into(into, when);
  co_return report;
}

} // namespace

CO_TEST(
    "close past its limit leaves the ring to a pack that still waits for its stream; the send then ends") {
  auto const executor = co_await asio::this_coro::executor;
  pair_on_script over(executor, true);
  co_await over.connect();
  model whole(host_memory(), layers(1), 1);
  auto const views = views_on(whole, over.where);
  auto send = beside(executor, over.to->send_weights(1, views, after(stream, over.where)));
  while (over.sends->in_flight() == 0) co_await settle(1);
  co_await over.to->close(); // past its limit
  CHECK_FALSE(send.done());
  CHECK(over.sends->touches(whole.view(0).data(), 16));
  over.sends->signal(stream);
  over.sends->finish_all(); // writes into the ring
  auto const sent = co_await send.join();
  CHECK(sent.error == asio::error::operation_aborted);
  CHECK(over.sends->in_flight() == 0);
  co_await over.from->close();
}

CO_TEST("tensors that another sender has prepared are refused: its buckets are not ours") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  sender large(executor, directory.file("large"), quick_sender(mib));
  sender small(executor, directory.file("small"), quick_sender(4 * kib));
  receiver from(executor, quick_receiver());
  co_await from.connect(directory.file("small"));
  co_await small.wait_for_receivers(1, 10s);
  std::vector<tensor_info> const specs{{"a", dtype::u8, {mib}}};
  model whole(host_memory(), specs, 1);
  auto const views = whole.views();
  auto const prepared = large.prepare(views);
  auto const sent = co_await try_to(small.send_weights(1, prepared));
  CHECK(sent.error == make_error_code(errc::invalid_argument));
  CHECK_MESSAGE(sent.text.find("prepare") != std::string::npos, sent.text);
  co_await from.close();
  co_await small.close();
  co_await large.close();
}

CO_TEST("a bucket released after a stream is released: the next one and the commit wait for the stream") {
  auto const executor = co_await asio::this_coro::executor;
  pair_on_script over(executor, true);
  co_await over.connect();
  model whole(host_memory(), layers(5), 1);
  auto const views = views_on(whole, over.where);
  auto send = beside(executor, over.to->send_weights(1, views));
  auto update = co_await announced(*over.from);
  for (int taken = 0; taken < 2; ++taken) { // as many as there are slots
    auto held = co_await update.next_bucket();
    CHECK(held.has_value());
    held->release(after(stream, over.where));
  }
  auto third = beside(executor, update.next_bucket());
  co_await settle();
  CHECK_FALSE(third.done()); // and not slots_held: nobody holds one
  over.sends->signal(stream);
  over.sends->finish_all();
  auto next = co_await third.join();
  CHECK_MESSAGE(next.ok(), next.said());
  int other_memory = 0;
  auto* const other = reinterpret_cast<CUstream_st*>(&other_memory);
  if (next.ok() && *next.value) (*next.value)->release();
  while (auto held = co_await update.next_bucket()) held->release(after(other, over.where));
  auto commit = beside(executor, update.commit());
  co_await settle();
  CHECK_FALSE(commit.done());
  over.sends->signal(other);
  over.sends->finish_all();
  auto const committed = co_await commit.join();
  CHECK_MESSAGE(committed.ok(), committed.said());
  auto const sent = co_await send.join();
  CHECK(sent.ok());
  co_await over.close();
}

CO_TEST("a connect that was cancelled in the handshake leaves the next session its deadlines") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  auto const path = directory.file("mute");
  unique_fd const silent = mute_listener(path);
  auto options = quick_receiver();
  options.handshake_limit(patient(1500ms));
  receiver from(executor, options);
  auto first = beside(executor, from.connect(path));
  for (pollfd connected{silent.get(), POLLIN, 0}; ::poll(&connected, 1, 0) != 1;) co_await settle(1);
  co_await settle(); // it stands in the handshake now
  first.cancel();
  auto const cancelled = co_await first.join();
  CHECK(cancelled.error == asio::error::operation_aborted);
  asio::steady_timer pause(executor, patient(2000ms)); // the first session's limit passes
  co_await pause.async_wait(use_awaitable);
  auto const second = co_await try_to(from.connect(path));
  CHECK(second.error == make_error_code(errc::handshake_timeout));
  co_await from.close();
}

namespace {

/// Finding devices takes until the test says so.
class slow_devices final : public memory::backends {
 public:
  std::shared_ptr<memory::backend> get(device where) override {
    std::unique_lock lock(mutex_);
    came_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    return real_->get(where);
  }
  std::vector<memory::device_uuid> cuda_devices() override { return {}; }
  void open() {
    std::scoped_lock const lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool came() {
    std::scoped_lock const lock(mutex_);
    return came_;
  }

 private:
  std::shared_ptr<memory::backends> real_ = memory::system_backends();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false, came_ = false;
};

} // namespace

CO_TEST("a connect that was cancelled while devices were looked up does not answer for the next one") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  sender listening(executor, directory.file("a"), quick_sender());
  auto const devices = std::make_shared<slow_devices>();
  auto options = quick_receiver();
  options.connect_limit(100ms);
  auto from = detail::make_receiver(executor, options, devices);
  auto first = beside(executor, from.connect(directory.file("a")));
  while (!devices->came()) co_await settle(1);
  first.cancel();
  auto const cancelled = co_await first.join();
  CHECK(cancelled.error == asio::error::operation_aborted);
  auto second = beside(executor, from.connect(directory.file("nobody")));
  co_await settle();
  devices->open();
  auto const end = co_await second.join();
  CHECK(end.error == make_error_code(errc::connect_timeout));
  auto const third = co_await try_to(from.connect(directory.file("a")));
  CHECK_MESSAGE(third.ok(), third.said());
  co_await from.close();
  co_await listening.close();
}

CO_TEST(
    "a session that ends with copies in flight: its load completes, though another session came meanwhile") {
  auto const executor = co_await asio::this_coro::executor;
  pair_on_script over(executor);
  co_await over.connect();
  model whole(host_memory(), layers(), 1), held(host_memory(), layers(), 0),
      other(host_memory(), layers(), 0);
  auto into = held.into(), into_other = other.into();
  over.receives->set(script::pace::held);
  auto const views = whole.views();
  auto send = beside(executor, over.to->send_weights(1, views));
  auto update = co_await announced(*over.from);
  auto load = beside(executor, load_into(std::move(update), into, {}));
  while (over.receives->in_flight() == 0) co_await settle(1);
  over.to.reset(); // the sender is gone
  auto const sent = co_await send.join();
  CHECK_FALSE(sent.ok());
  auto const gone = co_await try_to(over.from->next_update());
  CHECK_FALSE(gone.ok());
  CHECK_FALSE(load.done()); // its copies still run
  over.make_sender();
  co_await over.connect();
  auto again = beside(executor, over.to->send_weights(2, views));
  auto next = co_await announced(*over.from);
  over.receives->set(script::pace::immediate);
  over.receives->finish_all();
  auto const loaded = co_await load.join();
  CHECK_FALSE(loaded.ok());
  auto const second = co_await try_to(next.load_into(into));
  CHECK_MESSAGE(second.ok(), second.said());
  CHECK(difference(whole.images(), held) == "");
  auto const resent = co_await again.join();
  CHECK(resent.ok());
  co_await over.close();
}

CO_TEST("a sender that is destroyed frees its path at once, without a turn of the loop") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  std::optional<sender> to(std::in_place, executor, directory.file("s"), quick_sender());
  co_await settle();
  to.reset();
  CHECK(directory.entries().empty());
  to.emplace(executor, directory.file("s"), quick_sender());
  receiver from(executor, quick_receiver());
  auto const connected = co_await try_to(from.connect(directory.file("s")));
  CHECK_MESSAGE(connected.ok(), connected.said());
  co_await from.close();
  co_await to->close();
}

CO_TEST("a load that can't wait for what it is told to wait for leaves the destinations whole") {
  auto const executor = co_await asio::this_coro::executor;
  line over(executor, host_setting(1));
  co_await over.connect();
  model whole(host_memory(), layers(), 1), held(host_memory(), layers(), 0);
  auto into = held.into();
  auto const views = whole.views();
  auto send = beside(executor, over.sender().send_weights(1, views));
  auto update = co_await announced(over.receiver());
  auto const loaded =
      co_await try_to(update.load_into(into, after(stream))); // host copies wait for no stream
  CHECK(loaded.error == make_error_code(errc::invalid_argument));
  CHECK_FALSE(into.torn());
  CHECK(held.untouched());
  auto const sent = co_await send.join();
  CHECK_FALSE(sent.ok());
  co_await over.close();
}

CO_TEST("limits as large as a number can be mean for ever, not at once") {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  auto sends = quick_sender();
  sends.silence_limit(milliseconds::max()).handshake_limit(milliseconds::max());
  auto receives = quick_receiver();
  receives.silence_limit(milliseconds::max()).connect_limit(milliseconds::max());
  sender to(executor, directory.file("s"), sends);
  receiver from(executor, receives);
  auto wait = beside(executor, to.wait_for_receivers(1, milliseconds::max()));
  co_await settle();
  CHECK_FALSE(wait.done());
  co_await from.connect(directory.file("s"));
  auto const waited = co_await wait.join();
  CHECK_MESSAGE(waited.ok(), waited.said());
  model whole(host_memory(), layers(), 1), held(host_memory(), layers(), 0);
  auto into = held.into();
  auto load = beside(executor, load_next(from, into));
  auto const views = whole.views();
  auto const sent = co_await try_to(to.send_weights(1, views));
  CHECK_MESSAGE(sent.ok(), sent.said());
  auto const loaded = co_await load.join();
  CHECK(loaded.ok());
  co_await from.close();
  co_await to.close();
}

CO_TEST("a device that fails ends what runs with its error; once it works again, so do sender and receiver") {
  auto const executor = co_await asio::this_coro::executor;
  for (bool sending : {true, false}) {
    INFO("the sender's: " << sending);
    pair_on_script over(executor);
    co_await over.connect();
    model whole(host_memory(), layers(8), 1), held(host_memory(), layers(8), 0);
    auto into = held.into();
    auto const views = whole.views();
    auto& devices = sending ? *over.sending : *over.receiving;
    auto& when = sending ? *over.sends : *over.receives;
    // A good version first: with the layout known, the next is announced at once.
    auto first = beside(executor, load_next(*over.from, into));
    auto const good = co_await try_to(over.to->send_weights(1, views));
    CHECK(good.ok());
    auto const taken = co_await first.join();
    CHECK(taken.ok());
    when.set(script::pace::held);
    auto load = beside(executor, load_next(*over.from, into));
    auto send = beside(executor, over.to->send_weights(2, views));
    while (when.in_flight() == 0) co_await settle(1);
    devices.fail_queues(device::host(), errc::device_failed);
    auto const sent = co_await send.join();
    auto const loaded = co_await load.join();
    CHECK_FALSE(sent.ok());
    CHECK_FALSE(loaded.ok());
    CHECK((sending ? sent.error : loaded.error) == make_error_code(errc::device_failed));
    when.set(script::pace::immediate);
    auto again = beside(executor, load_next(*over.from, into));
    auto const resent = co_await try_to(over.to->send_weights(3, views));
    CHECK_MESSAGE(resent.ok(), resent.said());
    auto const reloaded = co_await again.join();
    CHECK_MESSAGE(reloaded.ok(), reloaded.said());
    CHECK(difference(whole.images(), held) == "");
    co_await over.close();
  }
}

#if !defined(__SANITIZE_ADDRESS__) // what must be kept for ever is a leak to it
CO_TEST("copies that can't be waited for: the destructor says so, and nothing is freed under them") {
  leaves_things_behind();
  auto const executor = co_await asio::this_coro::executor;
  for (bool sending : {true, false}) {
    INFO("the sender's: " << sending);
    pair_on_script over(executor);
    co_await over.connect();
    auto whole = std::make_unique<model>(host_memory(), layers(), 1);
    auto held = std::make_unique<model>(host_memory(), layers(), 0);
    auto into = held->into();
    auto const views = whole->views();
    auto& devices = sending ? *over.sending : *over.receiving;
    auto& when = sending ? *over.sends : *over.receives;
    // A good version first: with the layout known, the next is announced at once.
    auto first = beside(executor, load_next(*over.from, into));
    auto const good = co_await try_to(over.to->send_weights(1, views));
    CHECK(good.ok());
    auto const taken = co_await first.join();
    CHECK(taken.ok());
    when.set(script::pace::held);
    devices.hang_on_drain();
    auto load = beside(executor, load_next(*over.from, into));
    auto send = beside(executor, over.to->send_weights(2, views));
    while (when.in_flight() == 0) co_await settle(1);
    auto const alive = devices.count();
    if (sending)
      over.to.reset();
    else
      over.from.reset();
    auto const sent = co_await send.join();
    auto const loaded = co_await load.join();
    CHECK((sending ? sent.error : loaded.error) == make_error_code(errc::device_failed));
    CHECK_FALSE(sent.ok());
    CHECK_FALSE(loaded.ok());
    auto const now = devices.count();
    CHECK(when.in_flight() > 0);
    CHECK(now.queues_alive == alive.queues_alive);
    // The ring that they read or write is still there. (A manifest's memory may go.)
    CHECK((sending ? now.regions_alive : now.imports_alive) >= 1);
    when.finish_all();
    if (sending)
      co_await over.from->close();
    else
      co_await over.to->close();
  }
}
#endif

CO_TEST("a receiver that is destroyed while it waits for an update says so: nobody has said goodbye") {
  auto const executor = co_await asio::this_coro::executor;
  pair_on_script over(executor);
  co_await over.connect();
  auto waits = beside(executor, over.from->next_update());
  co_await settle();
  over.from.reset();
  auto const end = co_await waits.join();
  CHECK(end.error == asio::error::operation_aborted);
  over.to.reset();
}

// ---- a loop that is destroyed under everything ----

namespace {

enum class waiting { for_receivers, in_connect, for_update, in_send, in_load, with_update_in_hand };

/// Owns sender and receiver, and waits: only the loop can end it.
awaitable<void> wait_for_ever(std::string path, waiting where, bool& there) {
  auto const executor = co_await asio::this_coro::executor;
  if (where == waiting::in_connect) {
    receiver lonely(executor, quick_receiver());
    there = true;
    co_await lonely.connect(path);
    co_return;
  }
  sender to(executor, path, quick_sender(bucket_size));
  there = where == waiting::for_receivers;
  if (there) co_await to.wait_for_receivers(1, 60s);
  receiver from(executor, quick_receiver());
  co_await from.connect(path);
  co_await to.wait_for_receivers(1, 10s);
  if (where == waiting::for_update) {
    there = true;
    co_await from.next_update();
  }
  model whole(host_memory(), layers(), 1), held(host_memory(), layers(), 0);
  auto into = held.into();
  auto const views = whole.views();
  auto send = beside(executor, to.send_weights(1, views));
  if (where == waiting::in_send) {
    there = true;
    co_await send.join();
  }
  auto next = co_await announced(from);
  auto bucket = co_await next.next_bucket();
  there = true;
  if (where == waiting::in_load) {
    event const never(executor);
    co_await never.wait();
  }
  co_await next.next_bucket();
  auto third = co_await next.next_bucket();
  event const never(executor);
  co_await never.wait();
}

} // namespace

TEST_CASE("a loop that is destroyed while operations wait takes their owners along: socket, memory and "
          "descriptors") {
  deadline_guard const guard(patient(30s));
  for (auto where : {waiting::for_receivers, waiting::in_connect, waiting::for_update, waiting::in_send,
                     waiting::in_load, waiting::with_update_in_hand}) {
    INFO("waiting " << int(where));
    leak_check const nothing_stays;
    scratch const directory;
    {
      asio::io_context io(1);
      bool there = false;
      asio::co_spawn(io, wait_for_ever(directory.file("s"), where, there), [](std::exception_ptr) {});
      while (!there) io.run_one();
      for (int i = 0; i < 50; ++i) io.run_one_for(1ms);
    }
    CHECK(directory.entries().empty());
  }
}

TEST_CASE("sender, receiver and an update in hand on the stack, and a loop that never turns again") {
  deadline_guard const guard(patient(30s));
  leak_check const nothing_stays;
  scratch const directory;
  asio::io_context io(1);
  model whole(host_memory(), layers(), 1);
  auto const views = whole.views();
  sender to(io.get_executor(), directory.file("s"), quick_sender(bucket_size));
  receiver from(io.get_executor(), quick_receiver());
  std::optional<update> next;
  bool connected = false;
  from.connect(directory.file("s"), [&](std::error_code error) { connected = !error; });
  while (!connected) io.run_one();
  to.send_weights(1, views, [](std::error_code, send_report const&) {});
  from.next_update([&](std::error_code, std::optional<update> offered) { next = std::move(offered); });
  while (!next) io.run_one();
  std::optional<bucket> held;
  next->next_bucket([&](std::error_code, std::optional<bucket> taken) { held = std::move(taken); });
  while (!held) io.run_one();
}

namespace {

/// The threads on which copies of a witness were destroyed.
struct threads_seen {
  std::mutex mutex;
  std::set<std::thread::id> all;
};
class witness {
 public:
  explicit witness(threads_seen& seen) : seen_(&seen) {}
  witness(witness const&) = default;
  witness& operator=(witness const&) = delete;
  ~witness() {
    std::scoped_lock const lock(seen_->mutex);
    seen_->all.insert(std::this_thread::get_id());
  }

 private:
  threads_seen* seen_;
};

} // namespace

// Held by a copy on the thread of slow jobs, a receiver was destroyed there, beside the loop that it waits
// on.
TEST_CASE("what a slow job's answer owns is destroyed on the loop, also if its closure can't be moved") {
  threads_seen seen;
  asio::io_context io;
  auto const strand = wire::make_strand(io.get_executor());
  bool answered = false;
  {
    session::offload slow;
    witness const owned(seen);
    auto job = [] { return 1; };
    // A const variable makes the closure's member const, and its move a copy.
    auto then = [owned, &answered](std::exception_ptr, int) { answered = true; };
    slow.run(strand, job, std::move(then));
    auto const end = std::chrono::steady_clock::now() + patient(milliseconds(5000));
    while (!answered && std::chrono::steady_clock::now() < end) {
      io.restart();
      io.run_for(milliseconds(10));
    }
  } // and the thread has ended
  CHECK(answered);
  CHECK(seen.all == std::set{std::this_thread::get_id()});
}
