#include "cast.hpp"

#include <algorithm>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "api/with_backends.hpp"
#include "device_holdings.hpp"
#include "ropeway/source.hpp"
#include "support/allocations.hpp"
#include "support/attempt.hpp"
#include "support/leftovers.hpp"
#include "support/patient.hpp"
#include "support/peer_process.hpp"
#include "support/scratch.hpp"
#include "support/scripted_backend.hpp"
#include "support/thread_sanitizer.hpp"
#include "support/weights.hpp"
#include "training_stream.hpp"

namespace ropeway::matrix {
namespace {

using namespace ropeway::testing;

constexpr std::uint64_t bucket_bytes = 4096; // two tensors each
constexpr std::uint32_t gate = 5;            // a tensor of the third bucket
constexpr std::size_t tensors = 10;          // five buckets, through two slots
constexpr auto memory_back = std::chrono::milliseconds(1000);

std::vector<tensor_info> specs() {
  std::vector<tensor_info> all;
  for (std::size_t i = 0; i < tensors; ++i) all.push_back({"layer." + std::to_string(i), dtype::f32, {500}});
  return all;
}

// ---- words for errors ----

template <errc Code>
constexpr std::string_view enumerator() {
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.find("Code = ") + 7);
  text = text.substr(0, text.find_first_of(";]"));
  auto const colon = text.rfind(':');
  return colon == text.npos ? std::string_view() : text.substr(colon + 1);
}
template <std::size_t... Codes>
std::string_view enumerator(int code, std::index_sequence<Codes...>) {
  std::string_view found;
  ((int(Codes) == code ? void(found = enumerator<errc(Codes)>()) : void()), ...);
  return found;
}
std::string word(std::error_code const& error) {
  if (!error) return "ok";
  if (error.category() == ropeway_category())
    if (auto const known = enumerator(error.value(), std::make_index_sequence<100>()); !known.empty())
      return std::string(known);
  auto text = error.message();
  std::replace(text.begin(), text.end(), ' ', '_');
  return text;
}

// ---- what a process has open ----

/// Of operator new, that a process may have more of after a part than before its first one: what the loop
/// keeps for the next time. A block that every part leaves behind is more than that soon.
constexpr std::size_t blocks_of_caches = 8;

/// Threads count as well: each belongs to a queue or to slow jobs.
struct belongings {
  std::vector<std::string> fds = open_fds(), mappings = shared_mappings();
  std::size_t threads = std::size_t(std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                                                  std::filesystem::directory_iterator()));
  device_holdings devices = device_holdings::now();

  std::string more_than(belongings const& before) const {
    std::string text;
    auto const compare = [&](auto const& was, auto const& is) {
      std::vector<std::string> differences;
      std::set_symmetric_difference(was.begin(), was.end(), is.begin(), is.end(),
                                    std::back_inserter(differences));
      for (auto const& one : differences) text += " {" + one + "}";
    };
    compare(before.fds, fds);
    compare(before.mappings, mappings);
    // ThreadSanitizer has a thread of its own, which it starts with the first one of ours.
    if (!ROPEWAY_THREAD_SANITIZER && threads != before.threads)
      text += " {" + std::to_string(threads) + " threads}";
    if (!devices.as_much_as(before.devices))
      text += " {of devices " + devices.words() + "; before " + before.devices.words() + "}";
    return text;
  }
};

/// The kernel may list a thread for a moment after it was joined.
awaitable<std::string> what_is_left(belongings const& before) {
  auto const until = std::chrono::steady_clock::now() + patient(std::chrono::milliseconds(1000));
  asio::steady_timer pause(co_await asio::this_coro::executor);
  for (;;) {
    auto const left = belongings().more_than(before);
    if (left.empty() || std::chrono::steady_clock::now() > until) co_return left;
    pause.expires_after(std::chrono::milliseconds(1));
    co_await pause.async_wait(use_awaitable);
  }
}

/// Until what a process has been at is over: it has for a while what it has now.
awaitable<void> calm_down() {
  asio::steady_timer pause(co_await asio::this_coro::executor);
  belongings last;
  for (int same = 0; same < 5;) {
    pause.expires_after(std::chrono::milliseconds(2));
    co_await pause.async_wait(use_awaitable);
    belongings now;
    same = now.more_than(last).empty() ? same + 1 : 0;
    last = std::move(now);
  }
}

// ---- memory ----

/// Host memory that says it is a device's, for scripted devices.
class pretended_memory final : public memory_kind {
 public:
  device where() const override { return device::cuda(0); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override { return heap_->allocate(bytes); }
  void write(std::byte* to, std::span<std::byte const> from) override { heap_->write(to, from); }
  void read(std::span<std::byte> to, std::byte const* from) override { heap_->read(to, from); }

 private:
  std::shared_ptr<memory_kind> heap_ = host_memory();
};

/// Host memory that receivers map; for one model.
class mappable_memory final : public memory_kind {
 public:
  device where() const override { return device::host(); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    if (bytes > block_.size()) throw std::runtime_error("the model is larger than its memory");
    return {std::shared_ptr<void>(), block_.data()};
  }
  void write(std::byte* to, std::span<std::byte const> from) override { heap_->write(to, from); }
  void read(std::span<std::byte> to, std::byte const* from) override { heap_->read(to, from); }
  std::vector<shared_memory> shared() const override { return {block_}; }

 private:
  std::shared_ptr<memory_kind> heap_ = host_memory();
  shared_memory block_ = shared_memory::make(std::uint64_t(64) << 10);
};

/// A stream of a scripted device that never is where it should be when it is asked, and is when it is waited
/// for.
class scripted_training final : public training_stream {
 public:
  explicit scripted_training(std::shared_ptr<script> when) : when_(std::move(when)) {}
  ready_after step() override {
    auto* const stream = reinterpret_cast<CUstream_st*>(this);
    when_->signal(stream);
    return after(stream, device::cuda(0));
  }

 private:
  std::shared_ptr<script> when_;
};

/// What a process has at its disposal.
struct means {
  std::shared_ptr<memory::backends> devices;
  std::shared_ptr<memory_kind> memory;
  std::shared_ptr<training_stream> training;
};

/// `home`: what the process keeps. Of a device that is all that a part needs; host memory is made for each.
means means_of(part const& which, means const& home) {
  using trouble = scenario::trouble;
  if (which.at().is_cuda()) return home;
  means result{memory::system_backends(), host_memory(), nullptr};
  auto const scripted = [&](int cuda_count) {
    auto const when = std::make_shared<script>();
    auto all = std::make_shared<scripted_devices>(when, cuda_count);
    result.devices = all;
    if (cuda_count != 0) result.training = std::make_shared<scripted_training>(when);
    return all;
  };
  auto const has = which.first_life() ? which.what->has : trouble::none;
  if (which.is_sender() && which.what->lies != scenario::memory::own)
    result.memory = std::make_shared<mappable_memory>();
  if (which.is_sender() && which.what->sends == scenario::sending::on_a_stream) scripted(1);
  if (which.is_sender() && has == trouble::ring_fails)
    scripted(0)->fail(scripted_devices::call::make_region, errc::out_of_memory);
  if (which.is_sender() && has == trouble::relays) {
    scripted(1);
    result.memory = std::make_shared<pretended_memory>();
  }
  // The ring comes before the manifest, and a placement after it, without a ring.
  if (which.is_odd() && has == trouble::ring_refused)
    scripted(0)->fail(scripted_devices::call::import_region, errc::not_reachable);
  if (which.is_odd() && (has == trouble::manifest_lost || has == trouble::placement_lost))
    scripted(0)->fail(scripted_devices::call::import_region, errc::out_of_memory, 1);
  return result;
}

// ---- the sender ----

/// Stops at a tensor: it fails there, or waits until both sides have had to say that they are alive.
class hesitant_source final : public tensor_source {
 public:
  hesitant_source(model const& whole, part const& which) : whole_(whole), which_(which) {}
  device where() const override { return whole_.kind().where(); }
  std::vector<tensor_info> manifest() override { return whole_.specs(); }
  awaitable<source_tensor> next(std::uint32_t index) override {
    if (index == gate) {
      if (which_.what->sends == scenario::sending::source_fails) throw std::runtime_error("no more tensors");
      auto const until = std::chrono::steady_clock::now() + which_.silence * 3 / 2;
      asio::steady_timer pause(co_await asio::this_coro::executor);
      while (!all_said_alive() && std::chrono::steady_clock::now() < until) {
        pause.expires_after(std::chrono::milliseconds(2));
        co_await pause.async_wait(use_awaitable);
      }
    }
    co_return source_tensor(whole_.view(index));
  }

 private:
  bool all_said_alive() const {
    for (auto r = first_receiver; r < first_receiver + which_.receivers(); ++r)
      if (board::mine->passed(r, "receiver: heard alive") == 0 ||
          board::mine->passed(r, "receiver: said alive") == 0)
        return false;
    return board::mine->passed(which_.number, "sender: heard alive") >= which_.receivers();
  }
  model const& whole_;
  part const& which_;
};

std::string told(std::error_code const& error, send_report const* report) {
  std::string text = "sent " + word(error);
  if (report == nullptr) return text;
  for (auto const& each : report->receivers) {
    text += " " + each.name.substr(0, each.name.find(' ')) + "=";
    text.append(name(each.what)).append("/").append(word(each.error));
  }
  return text;
}

/// Every second tensor of one model, the others of the other.
std::vector<tensor_view> every_second(model const& even, model const& odd) {
  std::vector<tensor_view> views;
  for (std::size_t i = 0; i < even.size(); ++i) views.push_back(i % 2 == 0 ? even.view(i) : odd.view(i));
  return views;
}

awaitable<std::string> send(sender& to, part const& which, means const& has, model const& whole,
                            std::uint64_t version) {
  using sending = scenario::sending;
  auto const how = version == 1 ? which.what->sends : sending::plain;
  attempt<send_report> sent;
  if (how == sending::plain || how == sending::on_a_stream) {
    model const elsewhere(host_memory(), specs(), version);
    auto views = whole.views();
    if (which.what->lies == scenario::memory::partly) views = every_second(whole, elsewhere);
    // Whoever lacks it is about to be given it, and the send goes first.
    held_version held;
    if (which.what->holds && version == 1) held = to.hold(version, views);
    auto const when = how == sending::on_a_stream ? has.training->step() : ready_after();
    sent = co_await try_to(to.send_weights(version, views, when));
  } else {
    hesitant_source source(whole, which);
    sent = co_await try_to(to.send_weights(version, source));
  }
  send_report const* report = nullptr;
  if (sent.report) report = &*sent.report;
  if (sent.value) report = &*sent.value;
  co_return told(sent.error, report);
}

sender_options options_of_sender(part const& which) {
  sender_options options;
  options.bucket_bytes(bucket_bytes).slots(2).min_receivers(0);
  if (which.what->digests) options.digests(digest_choice::tensors);
  options.handshake_limit(which.silence).silence_limit(which.silence);
  options.decide_limit(which.decide).commit_limit(which.longer).close_limit(which.longer);
  // On a device every receiver could map them.
  if (which.what->lies == scenario::memory::own) options.use_route(route_choice::staged);
  if (which.what->more == scenario::extra::fills_the_last_place) options.max_receivers(which.receivers());
  return options;
}

/// What is left of it in the end.
awaitable<std::string> play_sender(std::shared_ptr<words> line, part which, means home) {
  auto const executor = co_await asio::this_coro::executor;
  means const has = means_of(which, home);
  model whole(has.memory, specs(), 1);
  belongings const before;
  line->say("made");
  std::optional<sender> to;
  bool shared = false;
  for (std::string heard = co_await line->hear(); heard != "end"; heard = co_await line->hear()) {
    std::string answer;
    if (heard == "open") {
      shared = false;
      auto const opened = [&] {
        to.emplace(detail::make_sender(executor, which.path, options_of_sender(which), has.devices));
      };
      try {
        opened();
        answer = "listening";
      } catch (transfer_error const& e) { answer = "error " + word(e.code()); }
    } else if (heard == "peers") {
      auto const all = co_await to->receivers();
      answer = "peers";
      for (auto const& one : all) answer += " " + one.name.substr(0, one.name.find(' '));
    } else if (heard.starts_with("send ")) {
      auto const version = std::stoull(heard.substr(5));
      whole.fill(version);
      if (!std::exchange(shared, true))
        for (auto const& block : has.memory->shared()) to->share(block);
      answer = co_await send(*to, which, has, whole, version);
    } else if (heard == "release") {
      auto const released = co_await try_to(to->release_memory());
      shared = false;
      answer = "released " + word(released.error);
    } else if (heard == "close") {
      co_await to->close();
      answer = "closed";
    } else {
      throw std::runtime_error("what is '" + heard + "'?");
    }
    line->say(answer);
  }
  if (to) co_await to->close();
  to.reset();
  co_await settle(20);
  std::string left = co_await what_is_left(before);
  co_return left;
}

// ---- a receiver ----

std::string after_failure(std::error_code const& error, destinations const& into) {
  return "error " + word(error) + (into.torn() ? " torn" : " whole");
}

std::string after_success(load_report const& report, model const& held, destinations const& into) {
  model const wanted(host_memory(), specs(), report.version);
  auto const wrong = difference(wanted.images(), held);
  if (!wrong.empty()) return "wrong " + wrong;
  if (into.torn()) return "wrong torn after a commit";
  return "committed " + std::to_string(report.version);
}

/// What a bucket holds, put where the tensors lie.
awaitable<attempt<load_report>> take_by_hand(update& next, model& held, std::size_t most_buckets) {
  std::vector<std::vector<std::byte>> bytes;
  for (std::size_t i = 0; i < held.size(); ++i) bytes.push_back(held.bytes(i));
  attempt<load_report> end;
  for (std::size_t count = 0; count < most_buckets; ++count) {
    auto const taken = co_await try_to(next.next_bucket());
    if (!taken.ok()) {
      end.error = taken.error;
      co_return end;
    }
    if (!*taken.value) break;
    for (auto const& piece : (*taken.value)->pieces()) {
      std::span<std::byte> const to(bytes[piece.tensor].data() + piece.tensor_offset, piece.bytes);
      held.kind().read(to, piece.data);
    }
  }
  if (most_buckets < tensors) co_return end;
  for (std::size_t i = 0; i < held.size(); ++i) held.put(i, bytes[i]);
  end = co_await try_to(next.commit());
  co_return end;
}

using announcement = attempt<std::optional<update>>;

/// Who can't map the ring may never hear of the update: it stops waiting once its part in it is over.
awaitable<announcement> wait_until_refused(receiver& from, part const& which) {
  auto const executor = co_await asio::this_coro::executor;
  auto waiting = beside(executor, from.next_update());
  asio::steady_timer pause(executor);
  auto const aborted = [&] { return board::mine->passed(which.number, "receiver: said aborted"); };
  auto const before = aborted();
  while (!waiting.done() && aborted() == before) {
    pause.expires_after(std::chrono::milliseconds(1));
    co_await pause.async_wait(use_awaitable);
  }
  if (!waiting.done()) waiting.cancel();
  announcement end = co_await waiting.join();
  co_return end;
}

awaitable<std::string> take(receiver& from, part const& which, model& held, destinations& into,
                            bool& offered) {
  using taking = scenario::taking;
  announcement announced;
  if (which.is_odd() && which.what->has == scenario::trouble::ring_refused)
    announced = co_await wait_until_refused(from, which);
  else
    announced = co_await try_to(from.next_update());
  if (announced.error == asio::error::operation_aborted) co_return "stopped waiting";
  if (!announced.ok()) co_return after_failure(announced.error, into);
  if (!*announced.value) co_return "ended";
  offered = true;
  update& next = **announced.value;
  bool const as_told = next.version() == 1 && which.first_life() &&
                       (which.is_odd() || which.what->odd_takes == taking::by_hand);
  auto const how = as_told ? which.what->odd_takes : taking::load;
  if (how == taking::refuse) {
    next.refuse("it does not want it");
    co_return "refused";
  }
  if (how == taking::not_now) {
    next.not_now(std::chrono::milliseconds(10), "it is busy");
    co_return "put off";
  }
  attempt<load_report> end;
  if (how == taking::give_up) {
    end = co_await take_by_hand(next, held, 1);
    if (end.error) co_return after_failure(end.error, into);
    next.refuse("the loader failed");
    auto const over = co_await try_to(next.commit());
    co_return after_failure(over.error, into);
  }
  if (how == taking::by_hand)
    end = co_await take_by_hand(next, held, tensors);
  else
    end = co_await try_to(next.load_into(into));
  if (!end.ok()) co_return after_failure(end.error, into);
  co_return after_success(*end.value, held, into);
}

/// The memory of a sender that has gone must come back while this process runs on.
awaitable<std::string> wait_until_unmapped(belongings const& before) {
  auto const until = std::chrono::steady_clock::now() + patient(memory_back);
  asio::steady_timer pause(co_await asio::this_coro::executor);
  for (;;) {
    auto const now = shared_mappings();
    auto const mapped = device_holdings::now().mapped();
    if (now == before.mappings && mapped == before.devices.mapped()) co_return "unmapped";
    if (std::chrono::steady_clock::now() > until) {
      std::string text = "mapped";
      for (auto const& one : now) text += " {" + one + "}";
      if (mapped != 0) text += " {" + std::to_string(mapped) + " mappings of devices}";
      co_return text;
    }
    pause.expires_after(std::chrono::milliseconds(1));
    co_await pause.async_wait(use_awaitable);
  }
}

receiver_options options_of_receiver(part const& which) {
  receiver_options options;
  options.name(which.name).where(which.where.receivers);
  options.handshake_limit(which.silence).silence_limit(which.silence);
  options.connect_limit(which.longer).close_limit(which.longer);
  if (which.group && which.number % reborn != filler) options.group("ranks").group_size(4);
  return options;
}

/// The same.
awaitable<std::string> play_receiver(std::shared_ptr<words> line, part which, means home) {
  auto const executor = co_await asio::this_coro::executor;
  means const has = means_of(which, home);
  model held(has.memory, specs(), 0);
  belongings const before; // what a load has prepared for the destinations goes with them
  std::optional<destinations> into(held.into());
  line->say("made");
  std::optional<receiver> from(detail::make_receiver(executor, options_of_receiver(which), has.devices));
  for (std::string heard = co_await line->hear(); heard != "end"; heard = co_await line->hear()) {
    std::string answer;
    bool offered = false;
    if (heard == "connect") {
      auto const end = co_await try_to(from->connect(which.path));
      answer = end.ok() ? "connected" : "error " + word(end.error);
      if (end.error == make_error_code(errc::busy) && end.text.find("a session already") != std::string::npos)
        answer = "already";
    } else if (heard == "take") {
      line->say("taking");
      answer = co_await take(*from, which, held, *into, offered);
    } else if (heard == "unmapped") {
      answer = co_await wait_until_unmapped(before);
    } else if (heard == "close") {
      co_await from->close();
      answer = "closed";
    } else {
      throw std::runtime_error("what is '" + heard + "'?");
    }
    line->say(answer);
    if (offered) board::mine->told();
  }
  co_await from->close();
  from.reset();
  into.reset();
  co_await settle(20);
  std::string left = co_await what_is_left(before);
  co_return left;
}

// ---- a process ----

awaitable<void> take_one(receiver& from, destinations& into) {
  auto next = co_await from.next_update();
  if (!next) throw std::runtime_error("no update came");
  co_await next->load_into(into);
}

/// Two updates within the process, by both routes if it has a device: what is made once, or loaded when it is
/// used first, is there before limits run, and before anybody looks at what the process has.
awaitable<void> rehearse_alone(means home, places where) {
  auto const executor = co_await asio::this_coro::executor;
  scratch const directory;
  part both;
  both.name = "r0";
  both.path = directory.file("alone.sock");
  both.where = where;
  both.silence = both.longer = both.decide = std::chrono::seconds(20);
  for (auto const& how : scenarios()) {
    if (how.name != "digests" && how.name != "mapped") continue;
    both.what = &how;
    both.number = the_sender;
    means const has = means_of(both, home);
    model const whole(has.memory, specs(), 1);
    sender to = detail::make_sender(executor, both.path, options_of_sender(both), has.devices);
    for (auto const& block : has.memory->shared()) to.share(block);
    both.number = first_receiver;
    model held(has.memory, specs(), 0);
    auto into = held.into();
    receiver from = detail::make_receiver(executor, options_of_receiver(both), has.devices);
    co_await from.connect(both.path);
    auto taking = beside(executor, take_one(from, into));
    auto const views = whole.views();
    auto const sent = co_await try_to(to.send_weights(1, views));
    auto const taken = co_await taking.join();
    if (!sent.ok() || !taken.ok())
      throw std::runtime_error("an update within the process: " + sent.said() + "; " + taken.said());
    co_await from.close();
    co_await to.close();
  }
}

/// What a machine without a device has instead of the time that a context takes, to see what that costs.
void take_as_long_as_a_device() {
  char const* const text = std::getenv("ROPEWAY_MATRIX_START_MS");
  if (text != nullptr) std::this_thread::sleep_for(std::chrono::milliseconds(std::stoi(text)));
}

part part_from(std::string const& word, places const& where) {
  std::istringstream in(word);
  std::string play;
  part which;
  std::size_t what = 0;
  long long silence = 0, longer = 0, decide = 0;
  in >> play >> which.number >> what >> which.group >> silence >> longer >> decide >> which.name >>
      which.path;
  if (!in || play != "play" || what >= scenarios().size())
    throw std::runtime_error("what is '" + word + "'?");
  which.what = &scenarios()[what];
  which.silence = std::chrono::milliseconds(silence);
  which.longer = std::chrono::milliseconds(longer);
  which.decide = std::chrono::milliseconds(decide);
  which.where = where;
  return which;
}

awaitable<void> play_parts(std::shared_ptr<words> line, device at, places where, board& shared) {
  means home;
  take_as_long_as_a_device();
  if (at.is_cuda()) {
    home.devices = counted_devices();
    home.memory = device_memory(home.devices->get(at));
    home.training = training_on(at);
  }
  // A loop has locks that its strands share, each made for the first strand that draws it.
  auto const executor = co_await asio::this_coro::executor;
  for (int i = 0; i < 4000; ++i) (void)asio::make_strand(executor);
  places const both{at, at};
  co_await rehearse_alone(home, both);
  co_await settle(20);
  co_await calm_down();
  line->say("ready");
  std::string heard = co_await line->hear();
  auto const blocks = blocks_in_use(); // before its first part
  for (; heard != "leave"; heard = co_await line->hear()) {
    std::string left;
    {
      part const which = part_from(heard, where);
      shared.enter(which.number);
      if (which.is_sender())
        left = co_await play_sender(line, which, home);
      else
        left = co_await play_receiver(line, which, home);
      board::leave();
    }
    auto const now = blocks_in_use();
    if (now > blocks + blocks_of_caches) left += " {" + std::to_string(now - blocks) + " blocks of the heap}";
    line->say(left.empty() ? "clean" : "left" + left);
  }
}

} // namespace

std::string to_word(part const& which) {
  std::ostringstream out;
  out << "play " << which.number << ' ' << which.what - scenarios().data() << ' ' << which.group << ' '
      << which.silence.count() << ' ' << which.longer.count() << ' ' << which.decide.count() << ' '
      << which.name << ' ' << which.path;
  return out.str();
}

namespace {

/// Tells the board that the loop runs.
class heartbeat {
 public:
  explicit heartbeat(asio::io_context& io) : pause_(io) { beat(); }
  void stop() {
    stopped_ = true;
    pause_.cancel();
  }

 private:
  void beat() {
    if (stopped_) return;
    board::runs();
    pause_.expires_after(board::pulse);
    pause_.async_wait([this](std::error_code) { beat(); });
  }
  asio::steady_timer pause_;
  bool stopped_ = false;
};

} // namespace

int stay(device at, places const& where, board& shared, unique_fd socket) {
  auto const line = std::make_shared<words>(std::move(socket));
  if (where.has_devices()) testing::leaves_things_behind(); // the driver's; each part compares what it had
  asio::io_context io(1);
  std::exception_ptr thrown;
  heartbeat beats(io);
  auto ended = [&](std::exception_ptr e) {
    thrown = e;
    beats.stop();
  };
  asio::co_spawn(io, play_parts(line, at, where, shared), ended);
  io.run();
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (std::exception const& e) {
    line->say(std::string("failed: ") + e.what());
    return 1;
  }
  return 0;
}

bool exists(device where) {
  if (!where.is_cuda()) return true;
  testing::leaves_things_behind(); // the driver's
  try {
    return std::size_t(where.ordinal()) < memory::system_backends()->cuda_devices().size();
  } catch (std::exception const&) { return false; }
}

} // namespace ropeway::matrix
