#include "server.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>
#include <asio/write.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <deque>
#include <fstream>
#include <functional>
#include <iostream>
#include <optional>
#include <ropeway/receiver.hpp>
#include <set>
#include <stdexcept>

#include "answers.hpp"
#include "connection.hpp"
#include "metrics.hpp"

namespace {

namespace json = boost::json;
using asio::ip::tcp;
using clock_type = std::chrono::steady_clock;
using ropeway::awaitable;
using ropeway::use_awaitable;
using ropeway::compat::as_result;
using std::chrono::milliseconds;
using std::chrono::seconds;

// ---- small things ----

http::answer say(json::object body, unsigned status = 200) {
  http::answer made;
  made.status = status;
  made.body = json::serialize(body) + "\n";
  return made;
}
http::answer say_why(unsigned status, std::string const& why) { return say({{"error", why}}, status); }

json::value or_null(std::optional<std::uint64_t> number) {
  return number ? json::value(*number) : json::value();
}

json::value when(std::chrono::system_clock::time_point at) {
  if (at == std::chrono::system_clock::time_point{}) return nullptr;
  auto const whole = std::chrono::floor<seconds>(at);
  std::time_t const time = std::chrono::system_clock::to_time_t(whole);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  std::array<char, 32> text{}, all{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(all.data(), all.size(), "%.20s.%03dZ", text.data(),
                static_cast<int>(std::chrono::duration_cast<milliseconds>(at - whole).count()));
  return json::string(all.data());
}

using job = std::function<std::string(reading const&)>;

// The lease ends with it, whatever becomes of the coroutine.
std::string carry_out(reading from, job const& work) { return work(from); }

// On the pool, so that neither updates nor the loop wait for it.
awaitable<std::string> compute(reading from, job work) {
  std::string body = carry_out(std::move(from), work);
  co_return body;
}

} // namespace

// ---- the server ----

class inference_server::state : public std::enable_shared_from_this<state> {
 public:
  state(asio::any_io_executor loop, asio::thread_pool& pool, server_settings const& settings)
      : settings_(settings)
      , loop_(loop)
      , pool_(pool)
      , answers_(settings.vocabulary, settings.longest, settings.tokens)
      , acceptor_(listen(loop, settings))
      , changed_(loop) {
    if (settings.workers == 0 || settings.longest < 2 || settings.heads == 0 || settings.connections == 0)
      throw std::runtime_error("workers, heads and connections start at 1, tokens of a text at 2");
    if (!settings.socket_directory.empty()) directory_ = private_directory(settings.socket_directory);
    if (!settings.socket.empty() && directory_.empty())
      throw std::runtime_error("--socket needs --socket-dir, the directory in which it lies");
    if (!settings.socket.empty()) first_path_ = path_of(settings.socket);
  }

  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

  void start() {
    asio::co_spawn(loop_, accept(shared_from_this()), report("accepting"));
    if (!first_path_.empty()) start_following(first_path_);
  }

  static awaitable<void> close(std::shared_ptr<state> self) {
    self->closing_ = true;
    self->acceptor_.close();
    for (auto const& weak : self->connections_)
      if (auto const one = weak.lock(); one && one->between_requests) one->stop();
    self->changed_.ring();
    co_await self->stop_following();
    while (!self->connections_.empty() || self->accepting_)
      co_await self->changed_.wait(clock_type::time_point::max());
  }

 private:
  static std::function<void(std::exception_ptr)> report(char const* doing) {
    return [doing](std::exception_ptr error) {
      try {
        if (error) std::rethrow_exception(error);
      } catch (std::exception const& why) {
        std::cerr << "server: " << doing << ": " << why.what() << std::endl;
      }
    };
  }

  static tcp::acceptor listen(asio::any_io_executor loop, server_settings const& settings) try {
    return {loop, tcp::endpoint(asio::ip::make_address(settings.address), settings.port)};
  } catch (std::system_error const& error) {
    throw std::runtime_error("can't listen on " + settings.address + ':' + std::to_string(settings.port) +
                             " (--address, --port): " + error.code().message());
  }

  // -- following a trainer --

  /// Made if it is missing. Nobody else may put anything into it: what lies there is connected to.
  static std::filesystem::path private_directory(std::filesystem::path const& named) {
    ::mkdir(named.c_str(), 0700);
    std::error_code missing;
    auto const path = std::filesystem::canonical(named, missing);
    if (missing)
      throw std::runtime_error("the socket directory " + named.string() +
                               " is not there, and can't be made: " + missing.message());
    struct stat about {};
    if (::stat(path.c_str(), &about) != 0 || !S_ISDIR(about.st_mode))
      throw std::runtime_error("the socket directory " + named.string() + " is no directory");
    if (about.st_uid != ::geteuid() || (about.st_mode & 0077U) != 0)
      throw std::runtime_error("the socket directory " + named.string() +
                               " must belong to this user alone; chmod 0700 it, or name another");
    return path;
  }

  /// Where a name leads; throws `problem` if that is anywhere but in the directory.
  std::string path_of(std::string const& name) const {
    if (directory_.empty()) throw problem(403, "the server was started without a socket directory");
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos)
      throw problem(
          400, "a socket is a plain name, without slashes: the file below the server's socket directory");
    auto const path = directory_ / name;
    if (path.native().size() > 107) throw problem(400, "the socket's name is too long");
    check_no_link(path);
    return path;
  }
  static void check_no_link(std::filesystem::path const& path) {
    std::error_code error;
    if (std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)))
      throw problem(403, "the socket is a symbolic link");
  }

  void start_following(std::string const& path) {
    path_ = path;
    said_.clear();
    connected_ = false;
    ropeway::receiver_options options;
    options.name(settings_.name).connect_limit(settings_.connect_limit).lease_limit(settings_.lease_limit);
    receiver_ = std::make_shared<ropeway::receiver>(loop_, options);
    following_ = true;
    stop_ = std::make_unique<asio::cancellation_signal>();
    auto ended = [self = shared_from_this()](std::exception_ptr) {
      self->following_ = false;
      self->changed_.ring();
    };
    asio::co_spawn(loop_, follow(shared_from_this(), receiver_, path),
                   asio::bind_cancellation_slot(stop_->slot(), ended));
  }

  awaitable<void> stop_following() {
    if (following_) stop_->emit(asio::cancellation_type::terminal);
    while (following_) co_await changed_.wait(clock_type::time_point::max());
    auto const last = receiver_;
    if (!last) co_return;
    co_await last->close();
    if (receiver_ == last) receiver_.reset();
    path_.clear();
    connected_ = false;
  }

  static awaitable<void> follow(std::shared_ptr<state> self, std::shared_ptr<ropeway::receiver> from,
                                std::string path) {
    for (;;) {
      std::string why;
      bool waited = false; // by itself, so that trying again at once is no spinning
      try {
        check_no_link(path);
        co_await from->connect(path);
        self->connected_ = true;
        self->said_.clear();
        self->changed_.ring();
        std::cerr << "server: follows the trainer at " << path << std::endl;
        co_await self->take_updates(*from);
        why = "the trainer has said goodbye";
        waited = true;
      } catch (std::system_error const& error) {
        if (error.code() == asio::error::operation_aborted) throw;
        waited = error.code() == ropeway::errc::connect_timeout;
        why = error.what();
      } catch (problem const& error) { why = error.what(); }
      if (self->connected_) std::cerr << "server: " << why << std::endl;
      self->connected_ = false;
      self->said_ = why;
      self->changed_.ring();
      auto const again = clock_type::now() + seconds(1);
      while (!waited && clock_type::now() < again) co_await self->changed_.wait(again);
    }
  }

  awaitable<void> take_updates(ropeway::receiver& from) {
    for (;;) {
      auto offered = co_await from.next_update();
      if (!offered) co_return;
      auto const version = offered->version();
      bool const admitted = co_await admit(*offered);
      if (!admitted) continue;
      while_true const loading(loading_);
      auto const outcome = co_await load(*offered);
      if (wanted_ == version) came_ = outcome;
      changed_.ring();
    }
  }

  void turn_down(ropeway::update& offered, std::string const& why) {
    metrics_.update("refused");
    if (wanted_ == offered.version()) came_ = why;
    changed_.ring();
    offered.refuse(why);
  }

  /// Whether an update may be loaded now; if not it has been told so.
  awaitable<bool> admit(ropeway::update& offered) {
    auto const until = clock_type::now() + settings_.name_limit;
    for (;;) {
      if (asleep_) {
        turn_down(offered, "asleep: the weights are unmapped until wake_up");
        co_return false;
      }
      if (!window_ || wanted_ == offered.version()) co_return true;
      if (wanted_) {
        turn_down(offered, "only version " + std::to_string(*wanted_) +
                               " is taken between start_weight_update and finish_weight_update");
        co_return false;
      }
      if (clock_type::now() >= until) {
        metrics_.update("not_now");
        offered.not_now(seconds(1), "no update_weights has named a version since start_weight_update");
        co_return false;
      }
      co_await changed_.wait(until);
    }
  }

  /// Where an update goes: into the model that is served, unless its tensors are others.
  std::shared_ptr<weights> place_for(ropeway::update const& offered) const {
    if (offered.total_bytes() > settings_.model_bytes)
      throw std::invalid_argument("the model has " + std::to_string(offered.total_bytes()) +
                                  " bytes; this server takes " + std::to_string(settings_.model_bytes));
    auto const layout = bert_layout::of(offered.tensors(), settings_.heads);
    if (layout.words < answers_.words())
      throw std::invalid_argument("the model has " + std::to_string(layout.words) +
                                  " words, the vocabulary " + std::to_string(answers_.words()));
    if (live_ && live_->sets[0].layout() == layout) return live_;
    return std::make_shared<weights>(layout);
  }

  /// What came of it, in words; empty when it is live.
  awaitable<std::string> load(ropeway::update& offered) {
    std::shared_ptr<weights> target;
    std::string why;
    try {
      target = place_for(offered);
    } catch (std::exception const& error) { why = error.what(); }
    if (!why.empty()) {
      turn_down(offered, why);
      co_return why;
    }
    target->load[target->not_live()] = ++loads_;
    std::error_code failed;
    ropeway::load_report done;
    try {
      done = co_await offered.load_into(target->into);
    } catch (std::system_error const& error) {
      failed = error.code();
      why = error.what();
    }
    if (failed) {
      bool const refused = failed == ropeway::errc::destination_mismatch;
      metrics_.update(failed == ropeway::errc::leased ? "not_now" : refused ? "refused" : "failed");
      std::cerr << "server: version " << offered.version() << " did not come: " << why << std::endl;
      co_return why;
    }
    live_ = target;
    metrics_.update("committed");
    metrics_.swap(done);
    std::cerr << "server: serves version " << done.version << " after "
              << std::chrono::duration<double, std::milli>(done.total).count() << " ms" << std::endl;
    co_return why;
  }

  // -- inference --

  /// Whether requests may be computed; `problem` if this one may not even wait.
  void check_serving() const {
    if (closing_) throw problem(503, "the server is closing");
    if (asleep_) throw problem(503, "asleep");
    if (!live_ && !paused_) throw problem(503, "no version has come yet");
  }

  /// A worker's time; gives it back at its end.
  class turn {
   public:
    explicit turn(state& of) : of_(of) { ++of_.running_; }
    ~turn() {
      --of_.running_;
      of_.changed_.ring();
    }
    turn(turn const&) = delete;
    turn& operator=(turn const&) = delete;

   private:
    state& of_;
  };
  /// A place in the line of those that wait for one.
  class place_in_line {
   public:
    explicit place_in_line(state& of) : of_(of), number_(++of.numbers_) { of_.line_.push_back(number_); }
    ~place_in_line() { std::erase(of_.line_, number_); }
    place_in_line(place_in_line const&) = delete;
    place_in_line& operator=(place_in_line const&) = delete;
    bool first() const { return of_.line_.front() == number_; }

   private:
    state& of_;
    std::uint64_t number_;
  };

  awaitable<void> wait_for_turn() {
    auto const free = [&] { return !paused_ && running_ < settings_.workers; };
    check_serving();
    if (line_.empty() && free()) co_return;
    if (line_.size() >= settings_.waiting) throw problem(503, "too many requests wait");
    place_in_line const here(*this);
    auto const until = clock_type::now() + settings_.wait_limit;
    while (!(here.first() && free())) {
      if (clock_type::now() >= until) throw problem(503, paused_ ? "paused" : "no worker was free in time");
      co_await changed_.wait(until);
      check_serving();
    }
  }

  /// Computes an answer, wholly from one version.
  awaitable<http::answer> infer(job work) {
    co_await wait_for_turn();
    turn const mine(*this); // no suspension in between
    changed_.ring();        // the next in line may have a worker as well
    check_serving();
    reading from{live_, live_->into.lease(), 0};
    if (!from.lease) throw problem(503, "no version has come yet");
    from.load = live_->load[from.lease.set()];
    auto computing = compute(std::move(from), std::move(work));
    http::answer made;
    made.body = co_await asio::co_spawn(pool_, std::move(computing), use_awaitable);
    co_return made;
  }

  texts texts_in(json::object const& body, std::size_t most) const {
    auto const* const given = body.if_contains("texts");
    if (!given || !given->is_array()) throw problem(400, "\"texts\" must be a list of strings");
    auto const& list = given->get_array();
    if (list.size() > most) throw problem(413, "more than " + std::to_string(most) + " texts");
    texts found;
    for (auto const& one : list) found.push_back(text_of(one, "\"texts\" must be a list of strings"));
    return found;
  }
  std::shared_ptr<std::string const> text_of(json::value const& given, char const* wrong) const {
    if (!given.is_string()) throw problem(400, wrong);
    auto const& text = given.get_string();
    if (text.size() > settings_.text_bytes)
      throw problem(413, "a text of more than " + std::to_string(settings_.text_bytes) + " bytes");
    return std::make_shared<std::string const>(text.data(), text.size());
  }

  awaitable<http::answer> on_embed(json::object const& body) {
    job work = [this, of = texts_in(body, settings_.texts)](reading const& from) {
      return answers_.embed(from, of);
    };
    return infer(std::move(work));
  }
  awaitable<http::answer> on_classify(json::object const& body) {
    job work = [this, of = texts_in(body, settings_.texts)](reading const& from) {
      return answers_.classify(from, of);
    };
    return infer(std::move(work));
  }
  awaitable<http::answer> on_search(json::object const& body) {
    auto const* const given = body.if_contains("query");
    if (!given) throw problem(400, "\"query\" must be a string");
    auto const query = text_of(*given, "\"query\" must be a string");
    std::size_t top = 5;
    if (auto const* const wanted = body.if_contains("top")) {
      auto const number = wanted->is_int64() ? wanted->get_int64() : 0;
      if (number < 1) throw problem(400, "\"top\" must be a number of at least 1");
      top = static_cast<std::size_t>(number);
    }
    return search_in_steps(query, top);
  }
  /// After a swap the index is embedded anew, a part at a time under a lease for each, so that no lease is
  /// held for long. The answer comes from the lease under which the last part, and the query, were embedded.
  awaitable<http::answer> search_in_steps(std::shared_ptr<std::string const> query, std::size_t top) {
    texts const among = indexed_;
    auto const epoch = epoch_;
    auto const end = clock_type::now() + settings_.wait_limit;
    for (;;) {
      job work = [this, &query, top, &among, epoch](reading const& from) {
        return answers_.search(from, *query, top, among, epoch);
      };
      http::answer made = co_await infer(std::move(work));
      if (!made.body.empty()) co_return made;
      if (clock_type::now() >= end) throw problem(503, "versions come faster than the index can be embedded");
    }
  }
  awaitable<http::answer> on_index(json::object const& body) {
    auto const more = texts_in(body, settings_.indexed);
    if (indexed_.size() + more.size() > settings_.indexed)
      throw problem(413, "the index holds " + std::to_string(indexed_.size()) + " texts, and at most " +
                             std::to_string(settings_.indexed));
    indexed_.insert(indexed_.end(), more.begin(), more.end());
    co_return say({{"indexed", indexed_.size()}});
  }
  awaitable<http::answer> on_clear_index(json::object const&) {
    indexed_.clear();
    ++epoch_;
    co_return say({{"indexed", 0}});
  }

  // -- what it tells of itself --

  bool serving() const { return live_ && !asleep_ && !paused_; }

  awaitable<http::answer> on_health(json::object const&) {
    co_return say({{"status", "ok"}, {"serving", serving()}});
  }
  awaitable<http::answer> on_ready(json::object const&) {
    http::answer made = say({{"serving", serving()}});
    if (!serving()) made.status = 503;
    co_return made;
  }
  awaitable<http::answer> on_version(json::object const&) {
    ropeway::weights_status held;
    if (live_) held = live_->into.status();
    ropeway::receiver_status session;
    if (receiver_) session = receiver_->status();
    json::object const talk{{"socket", path_},
                            {"phase", std::string(name(session.phase))},
                            {"since", when(session.since)},
                            {"sender", session.sender},
                            {"error", connected_ ? "" : said_}};
    co_return say({{"version", or_null(live_ ? held.version : std::nullopt)},
                   {"state", std::string(name(held.what))},
                   {"arriving", or_null(session.arriving)},
                   {"since", when(held.since)},
                   {"from", held.from},
                   {"serving", serving()},
                   {"paused", paused_},
                   {"asleep", asleep_},
                   {"updating", window_},
                   {"session", talk}});
  }
  awaitable<http::answer> on_metrics(json::object const&) {
    metrics::moment now;
    if (live_) now.version = live_->into.version();
    now.phase = name(receiver_ ? receiver_->status().phase : ropeway::session_phase::closed);
    now.connections = connections_.size();
    now.running = running_, now.waiting = line_.size();
    now.paused = paused_, now.asleep = asleep_;
    http::answer made;
    made.type = "text/plain; version=0.0.4";
    made.body = metrics_.text(now);
    co_return made;
  }

  // -- control --

  void check_free() const {
    if (changing_) throw problem(409, "another control request is being carried out");
  }
  static std::uint64_t version_in(json::object const& body) {
    auto const* const given = body.if_contains("version");
    if (given && given->is_uint64()) return given->get_uint64();
    if (given && given->is_int64() && given->get_int64() >= 0)
      return static_cast<std::uint64_t>(given->get_int64());
    throw problem(400, "\"version\" must be a number");
  }
  /// Until it holds; false when the time is over or the server closes.
  awaitable<bool> until(std::function<bool()> holds) {
    auto const end = clock_type::now() + settings_.update_limit;
    while (!holds()) {
      if (closing_ || clock_type::now() >= end) co_return false;
      co_await changed_.wait(end);
    }
    co_return true;
  }

  awaitable<http::answer> on_init(json::object const& body) {
    auto const* const given = body.if_contains("socket");
    if (!given || !given->is_string()) throw problem(400, "\"socket\" must be a string");
    auto const path = path_of(std::string(given->get_string()));
    check_free();
    if (window_) throw problem(409, "an update is under way: finish_weight_update first");
    while_true const changing(changing_);
    bool const another = path != path_;
    if (another) {
      co_await stop_following();
      if (closing_) throw problem(503, "the server is closing");
      start_following(path);
    }
    said_.clear(); // what comes now counts
    std::function<bool()> known = [this] { return connected_ || !said_.empty(); };
    bool const in_time = co_await until(known);
    if (connected_) co_return say({{"socket", path}, {"connected", true}});
    std::string const why = in_time ? said_ : "no answer from the trainer";
    if (another) co_await stop_following(); // what was asked for has failed
    throw problem(502, why);
  }

  awaitable<http::answer> on_start(json::object const&) {
    check_free();
    if (asleep_) throw problem(409, "asleep");
    if (window_) throw problem(409, "an update is under way already");
    while_true const changing(changing_);
    window_ = true;
    wanted_.reset();
    std::function<bool()> quiet = [this] { return !loading_; };
    bool const in_time = co_await until(quiet);
    if (!in_time) {
      window_ = false;
      changed_.ring();
      throw problem(504, "the update that runs does not end");
    }
    co_return say({{"updating", true}});
  }

  awaitable<http::answer> on_update(json::object const& body) {
    auto const version = version_in(body);
    if (asleep_) throw problem(409, "asleep");
    if (!window_) throw problem(409, "start_weight_update comes first");
    if (wanted_) throw problem(409, "version " + std::to_string(*wanted_) + " is waited for already");
    if (!receiver_) throw problem(409, "init_weight_transfer_engine comes first");
    wanted_ = version;
    came_.reset();
    changed_.ring();
    std::function<bool()> over = [this] { return came_ || asleep_; };
    bool const in_time = co_await until(over);
    // What is being loaded when the time is over may still come; it is said to the next one who asks
    // /version.
    auto const came = came_;
    wanted_.reset();
    if (came && came->empty()) co_return say({{"version", version}});
    if (came) throw problem(502, *came);
    if (in_time) throw problem(409, "asleep");
    throw problem(504, "version " + std::to_string(version) + " did not come in time");
  }

  awaitable<http::answer> on_finish(json::object const&) {
    if (!window_) throw problem(409, "no update is under way");
    if (wanted_) throw problem(409, "version " + std::to_string(*wanted_) + " is still waited for");
    check_free();
    window_ = false;
    changed_.ring();
    co_return say({{"updating", false}, {"version", or_null(live_ ? live_->into.version() : std::nullopt)}});
  }

  awaitable<http::answer> on_pause(json::object const&) {
    paused_ = true;
    std::function<bool()> done = [this] { return running_ == 0; };
    bool const in_time = co_await until(done);
    if (!in_time) throw problem(504, "requests are still being computed; new ones wait");
    co_return say({{"paused", paused_}});
  }
  awaitable<http::answer> on_resume(json::object const&) {
    paused_ = false;
    changed_.ring();
    co_return say({{"paused", false}});
  }
  awaitable<http::answer> on_is_paused(json::object const&) { co_return say({{"is_paused", paused_}}); }

  awaitable<http::answer> on_sleep(json::object const&) {
    check_free();
    while_true const changing(changing_);
    asleep_ = true;
    changed_.ring(); // those in line, and an update that waits for its name, are sent away
    std::function<bool()> quiet = [this] { return !loading_ && running_ == 0; };
    bool const in_time = co_await until(quiet);
    if (!in_time) {
      asleep_ = false;
      throw problem(504, "what runs does not end; still awake");
    }
    live_.reset(); // both sets
    co_return say({{"asleep", true}});
  }
  awaitable<http::answer> on_wake(json::object const&) {
    check_free();
    asleep_ = false;
    co_return say({{"asleep", false}, {"serving", serving()}});
  }
  awaitable<http::answer> on_is_sleeping(json::object const&) { co_return say({{"is_sleeping", asleep_}}); }

  // -- requests --

  struct endpoint {
    std::string_view method, path;
    bool control;
    awaitable<http::answer> (state::*handle)(json::object const&);
  };
  static std::span<endpoint const> endpoints() {
    static constexpr endpoint all[] = {
        {"POST", "/embed", false, &state::on_embed},
        {"POST", "/classify", false, &state::on_classify},
        {"POST", "/search", false, &state::on_search},
        {"POST", "/index", false, &state::on_index},
        {"DELETE", "/index", false, &state::on_clear_index},
        {"GET", "/healthz", false, &state::on_health},
        {"GET", "/readyz", false, &state::on_ready},
        {"GET", "/version", false, &state::on_version},
        {"GET", "/metrics", false, &state::on_metrics},
        {"POST", "/init_weight_transfer_engine", true, &state::on_init},
        {"POST", "/start_weight_update", true, &state::on_start},
        {"POST", "/update_weights", true, &state::on_update},
        {"POST", "/finish_weight_update", true, &state::on_finish},
        {"POST", "/pause", true, &state::on_pause},
        {"POST", "/resume", true, &state::on_resume},
        {"GET", "/is_paused", true, &state::on_is_paused},
        {"POST", "/sleep", true, &state::on_sleep},
        {"POST", "/wake_up", true, &state::on_wake},
        {"GET", "/is_sleeping", true, &state::on_is_sleeping},
    };
    return all;
  }

  void check_control(http::request const& asked, bool from_here) const {
    // A page in a browser on this host is a loopback peer as well.
    if (asked.from_page) throw problem(403, "control is not for web pages");
    if (settings_.token.empty()) {
      if (!from_here) throw problem(403, "control is for this host only, as there is no token");
      return;
    }
    std::string const right = "Bearer " + settings_.token;
    unsigned different = asked.authorization.size() == right.size() ? 0 : 1;
    for (std::size_t i = 0; i < right.size(); ++i) // all of it, however early it differs
      different |=
          static_cast<unsigned>(right[i] ^ (i < asked.authorization.size() ? asked.authorization[i] : '\0'));
    if (different != 0) throw problem(401, "control needs the server's token");
  }

  static json::object object_in(std::string const& body) {
    if (body.empty()) return {};
    boost::system::error_code error;
    auto parsed = json::parse(body, error);
    if (error) throw problem(400, "no JSON: " + error.message());
    if (!parsed.is_object()) throw problem(400, "the body must be a JSON object");
    return std::move(parsed.get_object());
  }

  awaitable<http::answer> handle(http::request const& asked, bool from_here) {
    auto const began = clock_type::now();
    std::string_view counted_as = "other";
    http::answer made;
    try {
      std::string allowed;
      endpoint const* found = nullptr;
      for (auto const& each : endpoints()) {
        if (each.path != asked.path) continue;
        counted_as = each.path;
        allowed += (allowed.empty() ? "" : ", ") + std::string(each.method);
        if (each.method == asked.method) found = &each;
      }
      if (found) {
        if (found->control) check_control(asked, from_here);
        auto const body = object_in(asked.body);
        made = co_await (this->*found->handle)(body);
      } else if (allowed.empty()) {
        made = say_why(404, "there is no such thing here");
      } else {
        made = say_why(405, "it takes " + allowed);
        made.allow = allowed;
      }
    } catch (problem const& error) {
      made = say_why(error.status(), error.what());
    } catch (std::exception const& error) { made = say_why(500, error.what()); }
    metrics_.request(counted_as, made.status, clock_type::now() - began);
    co_return made;
  }

  // -- connections --

  static awaitable<void> accept(std::shared_ptr<state> self) {
    while_true const accepting(self->accepting_);
    while (!self->closing_) {
      tcp::endpoint peer;
      auto [error, socket] = co_await self->acceptor_.async_accept(peer, as_result);
      if (self->closing_) break;
      if (error) { // out of descriptors, say: those that are open will end
        auto const later = clock_type::now() + milliseconds(50);
        while (clock_type::now() < later && !self->closing_) co_await self->changed_.wait(later);
        continue;
      }
      if (self->connections_.size() >= self->settings_.connections) {
        turn_away(std::move(socket));
        continue;
      }
      auto const one = std::make_shared<connection>(std::move(socket), peer);
      self->connections_.insert(one);
      auto ended = [self, weak = std::weak_ptr(one)](std::exception_ptr) {
        self->connections_.erase(weak);
        self->changed_.ring();
      };
      asio::co_spawn(self->loop_, converse(self, one), ended);
    }
    self->changed_.ring();
  }

  static void turn_away(tcp::socket socket) {
    std::error_code ignored;
    socket.non_blocking(true, ignored);
    socket.send(asio::buffer(http::to_bytes(say_why(503, "too many connections"), false)), 0, ignored);
  }

  /// The next request; nothing when the connection is over.
  awaitable<std::optional<http::request>> read(connection& with, http::request_reader& from) {
    bool there = from.again();
    with.between_requests = from.idle();
    with.allow(with.between_requests ? settings_.idle_limit : settings_.request_limit);
    while (!there && !from.refused()) {
      if (from.wants_continue()) {
        std::string const go_on = "HTTP/1.1 100 Continue\r\n\r\n";
        auto [failed, sent] = co_await asio::async_write(with.socket, asio::buffer(go_on), as_result);
        if (failed) co_return std::nullopt;
      }
      if (closing_ && with.between_requests) co_return std::nullopt;
      auto const room = from.room();
      auto [error, count] =
          co_await with.socket.async_read_some(asio::buffer(room.data, room.size), as_result);
      if (error && with.over() && !with.between_requests) {
        http::answer const late = say_why(408, "the request did not arrive in time");
        co_await answer(with, late, false);
      }
      if (error) co_return std::nullopt;
      there = from.arrived(count);
      if (with.between_requests && !from.idle()) {
        with.between_requests = false;
        with.allow(settings_.request_limit); // for the whole of it, however slowly its bytes come
      }
    }
    if (from.refused()) {
      http::answer const no = say_why(from.refused()->status, from.refused()->why);
      metrics_.request("other", no.status, {});
      co_await answer(with, no, false);
      co_await drain(with);
      co_return std::nullopt;
    }
    with.allow_all();
    co_return from.take();
  }

  /// Reads what is still coming, for a moment: closing with unread bytes would take our answer back.
  awaitable<void> drain(connection& with) {
    std::error_code ignored;
    with.socket.shutdown(tcp::socket::shutdown_send, ignored);
    if (closing_) co_return;
    with.between_requests = true; // nothing is lost if it is stopped
    with.allow(seconds(5));
    std::array<char, 16384> unread{};
    for (std::size_t total = 0; total < (std::size_t(8) << 20);) {
      auto [error, count] = co_await with.socket.async_read_some(asio::buffer(unread), as_result);
      if (error) co_return;
      total += count;
    }
  }

  /// Whether it was taken.
  awaitable<bool> answer(connection& with, http::answer const& what, bool keep_alive) {
    std::string const bytes = http::to_bytes(what, keep_alive);
    with.allow(settings_.request_limit);
    auto [error, sent] = co_await asio::async_write(with.socket, asio::buffer(bytes), as_result);
    co_return !error;
  }

  static awaitable<void> converse(std::shared_ptr<state> self, std::shared_ptr<connection> with) {
    std::error_code ignored;
    with->socket.set_option(tcp::no_delay(true), ignored);
    http::request_reader from(self->settings_.message);
    for (;;) {
      auto const asked = co_await self->read(*with, from);
      if (!asked) break;
      http::answer const made = co_await self->handle(*asked, with->from_here);
      bool const keep = asked->keep_alive && !self->closing_;
      bool const taken = co_await self->answer(*with, made, keep);
      if (!taken || !keep) break;
    }
    with->allow_all();
    with->socket.shutdown(tcp::socket::shutdown_send, ignored);
  }

  server_settings const settings_;
  asio::any_io_executor loop_;
  asio::thread_pool& pool_;
  answers answers_;
  tcp::acceptor acceptor_;
  bell changed_;
  metrics metrics_;

  std::filesystem::path directory_;
  std::string first_path_, path_; // of the trainer's socket
  std::shared_ptr<ropeway::receiver> receiver_;
  std::unique_ptr<asio::cancellation_signal> stop_;
  bool following_ = false, connected_ = false;
  std::string said_; // why there is no session

  std::shared_ptr<weights> live_;
  std::uint64_t loads_ = 0;
  bool loading_ = false, window_ = false, paused_ = false, asleep_ = false, closing_ = false,
       changing_ = false;
  std::optional<std::uint64_t> wanted_;
  std::optional<std::string> came_; // of what is wanted: empty when it is live, else why not

  std::size_t running_ = 0;
  std::uint64_t numbers_ = 0;
  std::deque<std::uint64_t> line_;

  texts indexed_;
  std::uint64_t epoch_ = 0;

  bool accepting_ = false;
  std::set<std::weak_ptr<connection>, std::owner_less<>> connections_;
};

inference_server::inference_server(asio::any_io_executor loop, asio::thread_pool& pool,
                                   server_settings const& settings)
    : state_(std::make_shared<state>(std::move(loop), pool, settings)) {
  state_->start();
}
inference_server::~inference_server() = default;
std::uint16_t inference_server::port() const { return state_->port(); }
awaitable<void> inference_server::close() { return state::close(state_); }

std::string read_token(std::filesystem::path const& file) {
  struct stat about {};
  if (::stat(file.c_str(), &about) != 0)
    throw std::runtime_error("the token file " + file.string() + " can't be read");
  if ((about.st_mode & 0077U) != 0)
    throw std::runtime_error("the token file " + file.string() + " is open to other users; chmod 0600 it");
  std::ifstream from(file);
  std::string token;
  if (!(from >> token)) throw std::runtime_error("the token file " + file.string() + " holds no token");
  return token;
}

namespace {

awaitable<void> serve_until_signal(inference_server& server) {
  asio::signal_set signals(co_await asio::this_coro::executor, SIGINT, SIGTERM);
  auto [error, number] = co_await signals.async_wait(as_result);
  (void)error, (void)number;
  co_await server.close();
}

} // namespace

void serve(server_settings const& settings) {
  asio::io_context loop(1);
  asio::thread_pool pool(
      settings.workers); // after the loop, so that it ends before: its work completes there
  inference_server server(loop.get_executor(), pool, settings);
  std::cout << "listening on http://" << settings.address << ':' << server.port() << std::endl;
  asio::co_spawn(loop, serve_until_signal(server), [](std::exception_ptr error) {
    if (error) std::rethrow_exception(error);
  });
  loop.run();
}
