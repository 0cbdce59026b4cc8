#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>

#include "base/unique_fd.hpp"
#include "channel.hpp"
#include "content.hpp"
#include "roles.hpp"
#include "ropeway/error.hpp"
#include "ropeway/report.hpp"
#include "support/scratch.hpp"

extern char** environ;

namespace ropeway::soak {
namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr unsigned slow = instrumented ? 3 : 1;
constexpr milliseconds watchdog = std::chrono::seconds(60) * slow;
constexpr milliseconds long_silence = std::chrono::seconds(20) * slow;
/// In some rings, so that a stall need not last long.
constexpr milliseconds short_silence = std::chrono::seconds(2) * slow;

constexpr std::size_t rows_kept = 200;
/// What may differ between two samples of a process that holds the same: a message that is still on its way,
/// words that are a little longer. A leak of 20 bytes an update shows after 1,000.
constexpr std::uint64_t heap_slack = 16 * 1024;
/// Pages that were touched once stay.
constexpr std::uint64_t anon_slack_kib = 512;
/// Without malloc's caches for each thread, which count as in use and fill for hundreds of updates; and with
/// no mappings of malloc's own for large blocks, so that the mappings are those that somebody asked for.
constexpr char exact_malloc[] = "GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mmap_max=0";

char const* name(way what) {
  static constexpr std::array names{"views", "prepared", "started", "source", "writer"};
  return names[static_cast<std::size_t>(what)];
}
char const* name(style what) {
  static constexpr std::array names{"whole", "boxes", "shard", "subset", "buckets"};
  return names[static_cast<std::size_t>(what)];
}
char const* name(fault what) {
  static constexpr std::array names{"no fault", "refuse", "not now", "loader throws", "drop", "source throws",
                                    "cancel",   "leave",  "kill",    "nap",           "stall"};
  return names[static_cast<std::size_t>(what)];
}
char const* name(moment what) {
  static constexpr std::array names{"announced", "bucket", "timer", "committing"};
  return names[static_cast<std::size_t>(what)];
}

/// Something that must not be: ends the soak.
struct wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// There is no such device here.
struct no_device : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A process of the soak.
struct child {
  std::string name;
  bool leads = false;
  std::size_t slot = 0;
  pid_t pid = -1;
  unique_fd control;
  bool ready = false, gone = false, stopped = false;
  bool may_die = false, may_exit = false; ///< by SIGKILL; with status 0
  // What it has said.
  bool opened = false, closed = false, reported = false, listed = false, sampled = false;
  bool armed = false, came = false, connected = false;
  bool may_lose = false; ///< its session may end
  answer report, list, sample, what_came;
  // Of a receiver.
  order now;
  bool late = false, told_to_connect = false;
  std::uint32_t committed_from = 0; ///< the sender instance that it committed from last
  std::uint64_t committed_version = 0;
  bool grouped() const { return !leads && slot >= 3; }

  ~child() {
    if (pid <= 0 || gone) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
};

struct row {
  std::uint64_t step = 0, update = 0; ///< step: the update, or round, that is counted for `--every`
  double seconds = 0;
  std::string process;
  std::uint32_t life = 0;
  figures of;
};

struct counts {
  std::uint64_t updates = 0, layouts = 0, rings = 0, senders = 0, receivers = 0;
  std::uint64_t bytes_sent = 0, bytes_compared = 0, buckets = 0, checks = 0, settled = 0;
  std::map<std::string, std::uint64_t> outcomes, faults, ways, styles, errors;
};

class conductor {
 public:
  explicit conductor(wishes const& of) : of_(of), began_(clock::now()) {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, nullptr);
    signals_ = unique_fd(::signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
    every_ = of_.sample_every != 0 ? of_.sample_every : 1;
  }

  void run() {
    switch (of_.how) {
    case mode::random: run_random(); break;
    case mode::flat: run_flat(); break;
    case mode::restarts: run_restarts(); break;
    }
    end_all();
  }
  void print(std::FILE* to) const;
  void write_samples() const;
  std::uint64_t update() const { return update_; }
  /// Who was to do what, for the reader of a failure.
  std::string orders_in_words() const;

 private:
  // ---- processes ----
  child& spawn(bool leads, std::size_t slot);
  void until(std::function<bool()> const& done, char const* what, milliseconds limit = watchdog);
  bool wait_for(std::function<bool()> const& done, milliseconds limit);
  void listen(child& from);
  void reap();
  void wake();
  void heard(child& from, answer const& what);
  void tell_child(child& to, order const& what);
  void order_only(child& to, verb what) {
    order said;
    said.what = what;
    tell_child(to, said);
  }
  void kill_now(child& who);
  void bury();

  // ---- steps ----
  void start_sender();
  void open_ring(std::uint64_t bucket_bytes, std::uint32_t slots, milliseconds silence);
  void close_ring();
  void open_some_ring(chance& luck);
  void leave_now(child& who);
  /// Until the sender lists exactly the receivers that should be there, and they agree.
  void settle();
  void check_list(answer const& list);
  /// Carries one update out and judges it. The orders of the receivers stand in `now`.
  void carry_out(order const& to_sender);
  void judge(order const& to_sender);
  void judge_receiver(child& who, peer_line const* line, order const& to_sender);
  bool must_commit(child const& who, order const& to_sender) const;

  // ---- modes ----
  void run_random();
  void random_update(chance& luck);
  void plan_sender(order& to_sender, chance& luck);
  void plan_receiver(child& who, order const& to_sender, chance& luck);
  void run_flat();
  void run_restarts();
  order plain_order(std::uint64_t layout, way how);
  static void take_plainly(child& who);
  void send_plainly(std::uint64_t layout, way how);
  void end_all();

  // ---- samples ----
  figures sample_of(child& who);
  void take_samples(std::uint64_t step);
  void add_row(child& who, std::uint64_t step, std::string const& as, figures const& of);
  void compare_samples(child& who, std::uint64_t warm);

  child* receiver_in(std::size_t slot) {
    for (auto& one : receivers_)
      if (one->slot == slot) return one.get();
    return nullptr;
  }
  double seconds() const { return std::chrono::duration<double>(clock::now() - began_).count(); }

  wishes of_;
  clock::time_point began_;
  testing::scratch directory_;
  unique_fd signals_;
  std::unique_ptr<child> sender_;
  std::vector<std::unique_ptr<child>> receivers_;
  std::map<std::size_t, std::uint32_t> lives_;
  std::uint64_t update_ = 0;
  std::uint32_t instance_ = 0; ///< of the sender; counts
  milliseconds silence_{};
  std::deque<std::uint64_t> recent_layouts_;
  bool report_is_in_ = false;
  order to_sender_;
  counts counted_;
  std::vector<row> rows_;
  std::uint64_t every_ = 1;
  struct baseline {
    std::uint64_t seen = 0;
    std::optional<figures> at;
    figures most;
  };
  std::map<pid_t, baseline> baselines_;
  std::map<std::string, std::pair<figures, figures>> flat_; ///< by process: after the warm-up, and the last
};

// ---- processes
// -----------------------------------------------------------------------------------------------------

child& conductor::spawn(bool leads, std::size_t slot) {
  auto made = std::make_unique<child>();
  made->leads = leads;
  made->slot = slot;
  auto const life = ++lives_[leads ? 1000 : slot];
  made->name =
      leads ? "sender." + std::to_string(life) : "r" + std::to_string(slot) + "." + std::to_string(life);
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    throw std::system_error(errno, std::generic_category(), "socketpair");
  made->control = unique_fd(ends[0]);
  unique_fd const other(ends[1]);
  device where = of_.where;
  if (!leads && !of_.receiver_devices.empty())
    where = of_.receiver_devices[slot % of_.receiver_devices.size()];
  std::vector<std::string> said{"ropeway-soak",
                                "--as",
                                leads ? "sender" : "receiver",
                                "--seed",
                                std::to_string(of_.seed),
                                "--path",
                                directory_.file("s"),
                                "--name",
                                made->name,
                                "--device",
                                to_string(where)};
  if (of_.how != mode::random) said.emplace_back("--even");
  if (made->grouped())
    for (auto const* word : {"--group", "pair", "--group-size", "2"}) said.emplace_back(word);
  std::vector<char*> arguments;
  for (auto& one : said) arguments.push_back(one.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (other.get() == control_fd) throw wrong("the control channel's number is taken");
  posix_spawn_file_actions_adddup2(&actions, other.get(), control_fd);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::string tunables = exact_malloc;
  std::vector<char*> variables;
  if (of_.how != mode::random) variables.push_back(tunables.data());
  for (char** one = environ; *one; ++one)
    if (of_.how == mode::random || !std::string_view(*one).starts_with("GLIBC_TUNABLES="))
      variables.push_back(*one);
  variables.push_back(nullptr);
  int const error =
      ::posix_spawn(&made->pid, "/proc/self/exe", &actions, &attributes, arguments.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) throw std::system_error(error, std::generic_category(), "a process can't be started");
  ++(leads ? counted_.senders : counted_.receivers);
  auto& kept = leads ? sender_ : receivers_.emplace_back();
  kept = std::move(made);
  return *kept;
}

void conductor::listen(child& from) {
  if (from.pid <= 0 || !from.control) return;
  answer what;
  for (;;) {
    int const got = hear(from.control.get(), what);
    if (got != 1) return;
    heard(from, what);
  }
}

void conductor::heard(child& from, answer const& what) {
  auto const text = std::string(what.text.view());
  if (of_.verbose)
    std::fprintf(stderr, "%.3f %s says %d (%s %d) %s\n", seconds(), from.name.c_str(), int(what.what),
                 std::string(what.category.view()).c_str(), what.code, text.c_str());
  switch (what.what) {
  case tell::ready: from.ready = true; break;
  case tell::opened: from.opened = true; break;
  case tell::closed: from.closed = true; break;
  case tell::who: from.list = what, from.listed = true; break;
  case tell::report: from.report = what, from.reported = true; break;
  case tell::armed: from.armed = true; break;
  case tell::connected: from.connected = true; break;
  case tell::lost:
    from.connected = false;
    if (!from.may_lose)
      throw wrong(from.name + " lost its session without a reason: " + std::string(what.category.view()) +
                  " " + std::to_string(what.code) + " " + text);
    break;
  case tell::came: from.what_came = what, from.came = true; break;
  case tell::sample: from.sample = what, from.sampled = true; break;
  case tell::broken: throw wrong(from.name + " says: " + text);
  case tell::no_device: throw no_device(text);
  }
}

void conductor::reap() {
  for (;;) {
    int status = 0;
    pid_t const pid = ::waitpid(-1, &status, WNOHANG | WUNTRACED);
    if (pid <= 0) return;
    child* who = sender_ && sender_->pid == pid ? sender_.get() : nullptr;
    for (auto& one : receivers_)
      if (one->pid == pid) who = one.get();
    if (!who) continue;
    if (WIFSTOPPED(status)) {
      who->stopped = true;
      continue;
    }
    listen(*who);
    who->gone = true;
    who->connected = false;
    bool const killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool const left = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if ((killed && who->may_die) || (left && who->may_exit)) continue;
    throw wrong(who->name + " ended " +
                (WIFSIGNALED(status) ? "by signal " + std::to_string(WTERMSIG(status))
                                     : "with status " + std::to_string(WEXITSTATUS(status))));
  }
}

/// Lets those go on who were stopped for a moment only, or for long enough.
void conductor::wake() {
  for (auto& one : receivers_) {
    if (!one->stopped || one->gone) continue;
    if (one->now.goes_wrong == fault::stall && !report_is_in_) continue;
    one->stopped = false;
    ::kill(one->pid, SIGCONT);
  }
}

bool conductor::wait_for(std::function<bool()> const& done, milliseconds limit) {
  auto const deadline = clock::now() + limit;
  for (;;) {
    reap();
    wake();
    if (sender_) listen(*sender_);
    for (auto& one : receivers_) listen(*one);
    if (done()) return true;
    auto const left = std::chrono::duration_cast<milliseconds>(deadline - clock::now());
    if (left.count() <= 0) return false;
    std::vector<pollfd> waiting{{signals_.get(), POLLIN, 0}};
    if (sender_ && !sender_->gone) waiting.push_back({sender_->control.get(), POLLIN, 0});
    for (auto& one : receivers_)
      if (!one->gone) waiting.push_back({one->control.get(), POLLIN, 0});
    ::poll(waiting.data(), waiting.size(), static_cast<int>(std::min<std::int64_t>(left.count() + 1, 200)));
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) > 0) {}
    // Who has closed its end has died, or is about to be seen to.
    for (auto& one : receivers_)
      if (one->pid > 0 && !one->gone && (waiting.back().revents & POLLHUP) != 0) reap();
  }
}

void conductor::until(std::function<bool()> const& done, char const* what, milliseconds limit) {
  if (wait_for(done, limit)) return;
  std::ostringstream text;
  text << "hang: waited " << limit.count() << " ms for " << what << ";";
  auto const add = [&](child const& one) {
    text << " " << one.name
         << (one.gone        ? " gone"
             : one.stopped   ? " stopped"
             : one.connected ? " connected"
                             : "")
         << (one.came ? " told" : "");
  };
  if (sender_) add(*sender_);
  for (auto const& one : receivers_) add(*one);
  throw wrong(text.str());
}

void conductor::tell_child(child& to, order const& what) {
  if (to.gone) return;
  try {
    say(to.control.get(), what);
  } catch (std::system_error const&) {
    if (!to.may_die && !to.may_exit) throw wrong(to.name + " does not hear any more");
  }
}

void conductor::kill_now(child& who) {
  who.may_die = true;
  ::kill(who.pid, SIGKILL);
  until([&] { return who.gone; }, "a killed process to be gone");
}

void conductor::bury() {
  std::erase_if(receivers_, [](auto const& one) { return one->gone; });
}

// ---- steps
// ---------------------------------------------------------------------------------------------------------

void conductor::start_sender() {
  spawn(true, 0);
  until([&] { return sender_->ready; }, "the sender's process");
}

void conductor::open_ring(std::uint64_t bucket_bytes, std::uint32_t slots, milliseconds silence) {
  order how;
  how.what = verb::open;
  how.bucket_bytes = bucket_bytes;
  how.slots = slots;
  how.silence_ms = static_cast<std::uint32_t>(silence.count());
  silence_ = silence;
  ++instance_;
  ++counted_.rings;
  sender_->opened = false;
  tell_child(*sender_, how);
  until([&] { return sender_->opened; }, "the sender to listen");
}

void conductor::close_ring() {
  for (auto& one : receivers_) one->may_lose = true;
  sender_->closed = false;
  order_only(*sender_, verb::close);
  until([&] { return sender_->closed; }, "the sender to close");
}

void conductor::open_some_ring(chance& luck) {
  static constexpr std::array<std::uint64_t, 8> sizes{1024,  4096,   5000,   16384,
                                                      65536, 100000, 262144, 1048576};
  bool const quick = luck.one_in(3);
  auto const bytes = sizes[luck.below(sizes.size())];
  auto const slots = static_cast<std::uint32_t>(luck.between(1, 4));
  open_ring(bytes, slots, quick ? short_silence : long_silence);
}

void conductor::leave_now(child& who) {
  who.may_lose = who.may_exit = true;
  order_only(who, verb::quit);
  until([&] { return who.gone; }, "a receiver to leave");
  ++counted_.faults["leave, idle"];
}

void conductor::settle() {
  std::set<std::string, std::less<>> wanted;
  for (auto& one : receivers_) {
    if (one->late) continue;
    wanted.insert(one->name);
    if (std::exchange(one->told_to_connect, true)) continue;
    until([&] { return one->ready; }, "a receiver's process");
    order_only(*one, verb::connect);
  }
  order who;
  who.what = verb::who;
  who.count = static_cast<std::uint32_t>(wanted.size());
  auto const deadline = clock::now() + watchdog;
  for (;;) {
    sender_->listed = false;
    tell_child(*sender_, who);
    until([&] { return sender_->listed; }, "the sender's list");
    std::set<std::string, std::less<>> there;
    for (std::uint32_t i = 0; i < sender_->list.peers; ++i) there.emplace(sender_->list.lines[i].name.view());
    bool const all =
        std::ranges::all_of(receivers_, [](auto const& one) { return one->late || one->connected; });
    if (all && there == wanted && sender_->list.peers == wanted.size()) break;
    if (clock::now() > deadline) {
      std::string text = "hang: the sender lists";
      for (auto const& one : there) text += " " + one;
      text += " and should list";
      for (auto const& one : wanted) text += " " + one;
      throw wrong(text);
    }
    // Nothing tells when: a peer that is gone, or comes, changes the list.
    wait_for([] { return false; }, milliseconds(2));
  }
  check_list(sender_->list);
  for (auto& one : receivers_) one->may_lose = false;
}

/// What a receiver says in its hello is what it has committed; so a commit whose answer never came is
/// settled.
void conductor::check_list(answer const& list) {
  for (std::uint32_t i = 0; i < list.peers; ++i) {
    auto const& line = list.lines[i];
    auto const who =
        std::ranges::find_if(receivers_, [&](auto const& one) { return one->name == line.name.view(); });
    bool const holds = (*who)->committed_from == instance_;
    if (holds != line.holds || (holds && line.version != (*who)->committed_version))
      throw wrong(
          (*who)->name + " holds " +
          (holds ? "version " + std::to_string((*who)->committed_version) : "no version of this sender") +
          ", and the sender says " + (line.holds ? "version " + std::to_string(line.version) : "none"));
    ++counted_.settled;
  }
}

void conductor::carry_out(order const& to_sender) {
  to_sender_ = to_sender;
  report_is_in_ = false;
  for (auto& one : receivers_) {
    if (!one->ready) until([&] { return one->ready; }, "a receiver's process");
    one->now.what = verb::arm;
    one->now.update = to_sender.update;
    one->now.version = to_sender.version;
    one->now.layout = to_sender.layout;
    one->now.partial = to_sender.partial;
    one->armed = one->came = false;
    one->may_die = one->now.goes_wrong == fault::kill;
    one->may_exit = one->now.goes_wrong == fault::leave;
    one->may_lose = one->now.goes_wrong == fault::stall || one->may_exit || one->may_die;
    if (to_sender.goes_wrong == fault::kill || to_sender.goes_wrong == fault::stall) one->may_lose = true;
    tell_child(*one, one->now);
  }
  until([&] { return std::ranges::all_of(receivers_, [](auto const& one) { return one->armed; }); },
        "the receivers to be armed");
  for (auto& one : receivers_)
    if (!std::exchange(one->told_to_connect, true)) order_only(*one, verb::connect);
  sender_->reported = false;
  sender_->may_die = to_sender.goes_wrong == fault::kill;
  tell_child(*sender_, to_sender);
  if (to_sender.goes_wrong == fault::stall) {
    until([&] { return sender_->stopped || sender_->reported; }, "the sender to stop");
    if (!sender_->reported) {
      // Not to order anything: this is how long it is to be silent.
      wait_for([] { return false; }, 2 * silence_);
      sender_->stopped = false;
      ::kill(sender_->pid, SIGCONT);
    }
  }
  until([&] { return sender_->reported || sender_->gone; }, "the sender's report");
  report_is_in_ = true;
  for (auto& one : receivers_) {
    if (one->gone) continue;
    wake();
    order_only(*one, verb::over);
  }
  until(
      [&] {
        return std::ranges::all_of(receivers_, [](auto const& one) {
          bool const ends = one->may_die || one->may_exit;
          return one->gone || (!ends && one->came);
        });
      },
      "what came of the update at the receivers");
  judge(to_sender);
  ++counted_.updates;
  for (auto& one : receivers_) one->late = false;
  bury();
}

/// No fault, of its own or of anybody whom it depends on, keeps this receiver from committing.
bool conductor::must_commit(child const& who, order const& to_sender) const {
  if (to_sender.goes_wrong != fault::none || who.late) return false;
  if (who.now.goes_wrong != fault::none && who.now.goes_wrong != fault::nap) return false;
  if (who.now.into == style::whole && to_sender.partial) return false; // refused: something is missing
  if (!who.grouped()) return true;
  auto const mate = std::ranges::find_if(
      receivers_, [&](auto const& one) { return one->grouped() && one->slot != who.slot; });
  return mate != receivers_.end() && !(*mate)->late &&
         ((*mate)->now.goes_wrong == fault::none || (*mate)->now.goes_wrong == fault::nap) &&
         !((*mate)->now.into == style::whole && to_sender.partial);
}

void conductor::judge_receiver(child& who, peer_line const* line, order const& to_sender) {
  auto const& came = who.what_came;
  bool const told = who.came;
  auto const complain = [&](std::string const& what) { throw wrong(who.name + " " + what); };
  if (told && !came.exact) complain("holds something else than it should: " + std::string(came.text.view()));
  bool const committed = told && came.committed;
  if (told) {
    counted_.bytes_compared += came.bytes;
    if (came.seen) ++counted_.checks;
  }
  if (committed) {
    who.committed_from = instance_;
    who.committed_version = to_sender.version;
  }
  auto const why = std::string(came.category.view()) + " " + std::to_string(came.code) + ", " +
                   std::string(came.text.view());
  if (sender_->gone) return; // there is no report
  if (!line) {
    if (committed) complain("has committed and is not in the report");
    if (!who.late) complain("was connected and is not in the report");
    return;
  }
  auto const what = static_cast<outcome>(line->what);
  auto const said = std::string(ropeway::name(what)) + " (" + std::string(line->text.view()) + ")";
  ++counted_.outcomes[std::string(ropeway::name(what))];
  if (what == outcome::unconfirmed) return; // settle() compares it with the next hello
  if (what == outcome::committed && told && !committed)
    complain("is reported as committed and has not: " + why);
  if (what == outcome::committed && !told && who.now.goes_wrong != fault::kill)
    complain("is reported as committed and has said nothing");
  if (what != outcome::committed && committed) complain("has committed and is reported as " + said);
  if (must_commit(who, to_sender) && what != outcome::committed)
    complain("had no reason not to commit and is reported as " + said + "; it says: " + why);
  bool const alone = to_sender.goes_wrong == fault::none && !who.late && !who.grouped();
  if (!alone) return;
  auto const only = [&](std::initializer_list<outcome> these) {
    if (std::ranges::find(these, what) == these.end())
      complain(std::string("was to ") + name(who.now.goes_wrong) + " and is reported as " + said);
  };
  switch (who.now.goes_wrong) {
  case fault::none:
  case fault::nap:
    if (who.now.into == style::whole && to_sender.partial) only({outcome::refused});
    break;
  case fault::refuse: only({outcome::refused}); break;
  case fault::not_now: only({outcome::skipped}); break;
  case fault::loader: only({outcome::failed}); break;
  case fault::drop: only({outcome::refused, outcome::failed}); break;
  case fault::cancel: only({outcome::committed, outcome::failed, outcome::refused}); break;
  case fault::leave: only({outcome::committed, outcome::failed, outcome::dropped, outcome::refused}); break;
  case fault::kill:
    only({outcome::committed, outcome::dropped, outcome::unconfirmed, outcome::refused});
    break;
  case fault::stall:
    only({outcome::committed, outcome::dropped, outcome::unconfirmed, outcome::skipped, outcome::refused});
    break;
  default: break;
  }
}

void conductor::judge(order const& to_sender) {
  auto const& report = sender_->report;
  std::map<std::string, peer_line const*, std::less<>> lines;
  std::size_t committed = 0;
  if (!sender_->gone)
    for (std::uint32_t i = 0; i < report.peers; ++i) {
      auto const& line = report.lines[i];
      lines[std::string(line.name.view())] = &line;
      committed += static_cast<outcome>(line.what) == outcome::committed;
    }
  if (!sender_->gone && lines.size() != report.peers) throw wrong("a receiver stands in the report twice");
  for (auto& one : receivers_) {
    ++counted_.styles[name(one->now.into)];
    if (one->now.goes_wrong != fault::none)
      ++counted_.faults[std::string("receiver: ") + name(one->now.goes_wrong)];
    auto const found = lines.find(one->name);
    judge_receiver(*one, found == lines.end() ? nullptr : found->second, to_sender);
    if (found != lines.end()) lines.erase(found);
  }
  if (!lines.empty()) throw wrong(lines.begin()->first + " stands in the report and is no receiver of ours");
  ++counted_.ways[name(to_sender.how)];
  if (to_sender.goes_wrong != fault::none)
    ++counted_.faults[std::string("sender: ") + name(to_sender.goes_wrong)];
  if (sender_->gone) return;
  counted_.buckets += report.buckets;
  counted_.bytes_sent += report.bytes;
  auto const code = std::error_code(report.code, report.category.view() == ropeway_category().name()
                                                     ? ropeway_category()
                                                     : std::system_category());
  auto const said = std::string(report.category.view()) + " " + std::to_string(report.code) + ", " +
                    std::string(report.text.view());
  if (code)
    ++counted_.errors[report.category.view() == ropeway_category().name() ? code.message() : "cancelled"];
  bool const too_few = code == make_error_code(errc::too_few_receivers);
  if (report.threw) {
    if (code != make_error_code(errc::source_failed))
      throw wrong("the source threw and the send said: " + said);
    if (committed != 0) throw wrong("the source threw and a receiver is reported as committed");
  } else if (to_sender.goes_wrong == fault::cancel && code.value() == ECANCELED) {
    // as it was to be
  } else if (code && !too_few) {
    throw wrong("the send failed: " + said);
  } else if (too_few != (committed == 0)) {
    throw wrong(std::to_string(committed) + " receivers have committed and the send said: " + said);
  }
}

std::string conductor::orders_in_words() const {
  std::ostringstream text;
  auto const add = [&](order const& one) {
    text << name(one.goes_wrong);
    if (one.goes_wrong == fault::none) return;
    text << " (" << name(one.when) << ", bucket " << one.bucket << ", " << one.micros << " us)";
  };
  text << "update " << to_sender_.update << ", version " << to_sender_.version << ", layout "
       << to_sender_.layout << (to_sender_.partial ? " in part" : "") << ", as " << name(to_sender_.how)
       << "; sender: ";
  add(to_sender_);
  for (auto const& one : receivers_) {
    text << "; " << one->name << (one->late ? " (late)" : "") << " into " << name(one->now.into) << ": ";
    add(one->now);
  }
  return text.str();
}

// ---- random
// --------------------------------------------------------------------------------------------------------

/// Later senders give lower numbers: a version is a label inside a sender instance.
std::uint64_t version_of(std::uint32_t instance, std::uint64_t update) {
  return (std::uint64_t(0x7fffffff - instance) << 32) | update;
}

order conductor::plain_order(std::uint64_t layout, way how) {
  order now;
  now.what = verb::send;
  now.update = static_cast<std::uint32_t>(update_);
  now.version = version_of(instance_, update_);
  now.layout = layout;
  now.how = how;
  return now;
}

void conductor::plan_sender(order& now, chance& luck) {
  now.partial = luck.one_in(8) && make_layout(of_.seed, now.layout, false).tensors.size() >= 2;
  if (!luck.one_in(12)) return;
  auto const dice = luck.below(10);
  now.micros = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 500 : 8000));
  now.bucket = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 3 : 20));
  static constexpr std::array moments{moment::announced, moment::bucket, moment::timer};
  now.when = moments[luck.below(moments.size())];
  if (dice < 4) {
    now.goes_wrong = fault::cancel;
  } else if (dice < 7) {
    now.goes_wrong = fault::source;
    now.how = luck.one_in(2) ? way::source : way::writer;
  } else if (dice < 9 || silence_ != short_silence) {
    now.goes_wrong = fault::kill;
  } else {
    now.goes_wrong = fault::stall;
  }
}

void conductor::plan_receiver(child& who, order const& to_sender, chance& luck) {
  auto& now = who.now;
  now = {};
  now.into = static_cast<style>(luck.below(static_cast<std::uint64_t>(style::count)));
  now.keep = static_cast<std::uint32_t>(luck.below(5));
  now.micros = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 500 : 8000));
  now.bucket = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 3 : 20));
  if (to_sender.partial && now.into == style::whole && luck.one_in(2)) now.into = style::boxes;
  if (!luck.one_in(5)) return;
  bool const lives = who.slot == 0;
  // A stall takes seconds, so there are few.
  static constexpr std::array all{fault::refuse, fault::refuse, fault::not_now, fault::not_now, fault::loader,
                                  fault::loader, fault::drop,   fault::drop,    fault::cancel,  fault::cancel,
                                  fault::cancel, fault::kill,   fault::kill,    fault::kill,    fault::leave,
                                  fault::nap,    fault::nap,    fault::stall};
  now.goes_wrong = all[luck.below(all.size())];
  now.when = static_cast<moment>(luck.below(static_cast<std::uint64_t>(moment::count)));
  if (now.goes_wrong == fault::stall && silence_ != short_silence) now.goes_wrong = fault::nap;
  if (lives && (now.goes_wrong == fault::kill || now.goes_wrong == fault::leave))
    now.goes_wrong = fault::cancel;
  if (now.goes_wrong == fault::loader || (now.goes_wrong == fault::drop && now.bucket != 0))
    now.into = style::buckets;
  if (now.when == moment::committing) now.into = style::buckets;
}

void conductor::random_update(chance& luck) {
  if (!sender_ || sender_->gone) {
    sender_.reset();
    start_sender();
    open_some_ring(luck);
  } else if (luck.one_in(25)) {
    close_ring();
    if (luck.one_in(2)) {
      sender_->may_exit = true;
      order_only(*sender_, verb::quit);
      until([&] { return sender_->gone; }, "the sender to end");
      start_sender();
    }
    open_some_ring(luck);
  }
  for (std::size_t slot = 0; slot < 5; ++slot) {
    auto* const there = receiver_in(slot);
    bool const comes = luck.one_in(2), late = luck.one_in(3), goes = luck.one_in(60), dies = luck.one_in(2);
    if (!there) {
      if (!comes && slot != 0) continue;
      spawn(false, slot).late = late && slot != 0;
    } else if (goes && slot != 0) {
      if (dies) {
        kill_now(*there);
        ++counted_.faults["kill, idle"];
      } else {
        leave_now(*there);
      }
    }
  }
  bury();
  settle();
  if (recent_layouts_.empty() || luck.one_in(4)) {
    if (recent_layouts_.empty() || luck.one_in(2)) {
      recent_layouts_.push_back(++counted_.layouts);
      if (recent_layouts_.size() > 7) recent_layouts_.pop_front();
    } else {
      auto const at = recent_layouts_.begin() + std::ptrdiff_t(luck.below(recent_layouts_.size()));
      std::rotate(at, at + 1, recent_layouts_.end());
    }
  }
  auto to_sender = plain_order(recent_layouts_.back(),
                               static_cast<way>(luck.below(static_cast<std::uint64_t>(way::count))));
  plan_sender(to_sender, luck);
  for (auto& one : receivers_) plan_receiver(*one, to_sender, luck);
  carry_out(to_sender);
}

void conductor::run_random() {
  auto const end =
      began_ + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(of_.minutes * 60));
  for (update_ = 1; of_.updates == 0 || update_ <= of_.updates; ++update_) {
    if (of_.minutes > 0 && clock::now() >= end) break;
    chance luck(mix({of_.seed, 5, update_}));
    random_update(luck);
    if (update_ % every_ == 0 && sender_ && !sender_->gone) take_samples(update_);
    if (update_ % 500 == 0)
      std::fprintf(stderr, "update %llu after %.0f s\n", static_cast<unsigned long long>(update_), seconds());
  }
}

// ---- flatness
// ------------------------------------------------------------------------------------------------------

constexpr std::uint64_t even_layouts = 6; // more than either side keeps the plans of
constexpr std::uint64_t warm_updates = 50;

void conductor::take_plainly(child& who) {
  static constexpr std::array styles{style::whole, style::boxes, style::buckets};
  who.now = {};
  who.now.into = styles[who.slot % styles.size()];
  who.now.keep = 1;
}

void conductor::send_plainly(std::uint64_t layout, way how) {
  ++update_;
  settle();
  for (auto& one : receivers_) take_plainly(*one);
  carry_out(plain_order(layout, how));
}

void conductor::run_flat() {
  start_sender();
  open_ring(65536, 2, long_silence);
  for (std::size_t slot = 0; slot < 3; ++slot) spawn(false, slot);
  while (of_.updates == 0 || counted_.updates < of_.updates) {
    // Each layout five times, each time given in another way.
    auto const n = counted_.updates;
    send_plainly(1 + n / 5 % even_layouts, static_cast<way>(n % 5));
    if (update_ % every_ == 0) take_samples(update_);
    if (update_ < warm_updates) continue;
    if (update_ == warm_updates || update_ % 10 == 0 || update_ == of_.updates) {
      compare_samples(*sender_, 0);
      for (auto& one : receivers_) compare_samples(*one, 0);
    }
  }
  counted_.layouts = even_layouts;
}

void conductor::run_restarts() {
  constexpr std::uint64_t warm_rounds = 10;
  start_sender();
  open_ring(16384, 2, long_silence);
  for (std::size_t slot = 0; slot < 3; ++slot) spawn(false, slot);
  // Two layouts, so that a sender knows both after the two clean updates of the round that it comes in.
  auto const layout = [&] { return 1 + update_ % 2; };
  for (std::uint64_t round = 1; round <= of_.updates; ++round) {
    chance luck(mix({of_.seed, 6, round}));
    bool const hits_sender = of_.killed == victim::sender || (of_.killed == victim::both && round % 2 == 0);
    ++update_;
    settle();
    // Not prepared ones: they keep a manifest of their own as long as they live, which a new sender has not
    // yet.
    static constexpr std::array ways{way::views, way::started, way::source, way::writer};
    auto to_sender = plain_order(layout(), ways[luck.below(ways.size())]);
    for (auto& one : receivers_) take_plainly(*one);
    auto& struck = hits_sender ? to_sender : receiver_in(2)->now;
    struck.goes_wrong = fault::kill;
    struck.when = static_cast<moment>(luck.below(hits_sender ? 3 : 4));
    if (struck.when == moment::committing) struck.into = style::buckets;
    struck.bucket = static_cast<std::uint32_t>(luck.below(20));
    struck.micros = static_cast<std::uint32_t>(luck.below(4000));
    carry_out(to_sender);
    if (hits_sender) {
      start_sender();
      open_ring(16384, 2, long_silence);
      // A receiver that knows no layout makes the new sender keep the manifests that it will be asked for
      // later.
      kill_now(*receiver_in(2));
      bury();
    }
    spawn(false, 2);
    for (int clean = 0; clean < 2; ++clean) send_plainly(layout(), way::views);
    if (round % every_ == 0) take_samples(round);
    for (auto& one : receivers_)
      if (one->slot != 2) compare_samples(*one, warm_rounds);
    // A sender that is killed every other round has one round of a receiver's death to survive.
    if (!hits_sender || of_.killed == victim::both)
      compare_samples(*sender_, of_.killed == victim::receiver ? warm_rounds : 0);
  }
  counted_.layouts = 2;
}

figures conductor::sample_of(child& who) {
  who.sampled = false;
  order_only(who, verb::sample);
  until([&] { return who.sampled; }, "a sample");
  return who.sample.sample;
}

void conductor::add_row(child& who, std::uint64_t step, std::string const& as, figures const& of) {
  rows_.push_back({step, update_, seconds(), as, lives_[who.leads ? 1000 : who.slot], of});
}

void conductor::take_samples(std::uint64_t step) {
  if (of_.sample_file.empty()) return;
  add_row(*sender_, step, "sender", sample_of(*sender_));
  for (auto& one : receivers_) {
    bool const lasts =
        of_.how == mode::flat || one->slot == 0 || (of_.how == mode::restarts && one->slot == 1);
    if (lasts) add_row(*one, step, "receiver " + std::to_string(one->slot), sample_of(*one));
  }
  if (of_.sample_every == 0 && rows_.size() > rows_kept) { // half of them, half as often
    every_ *= 2;
    std::erase_if(rows_, [this](row const& one) { return one.step % every_ != 0; });
  }
}

/// Compares a process with what it was when it had been warm: it must not have grown.
void conductor::compare_samples(child& who, std::uint64_t warm) {
  auto& base = baselines_[who.pid];
  if (base.seen++ < warm) return;
  auto now = sample_of(who);
  if (!base.at) base.at = now;
  auto const first = *base.at;
  auto const grown = [&]() -> std::string {
    auto const differs = [&](char const* what, std::uint64_t before, std::uint64_t after) {
      return who.name + " has " + std::to_string(after) + " " + what + " and had " + std::to_string(before);
    };
    if (now.fds != first.fds) return differs("descriptors", first.fds, now.fds);
    if (now.threads != first.threads) return differs("threads", first.threads, now.threads);
    if (instrumented) return {}; // their own memory comes and goes
    if (now.mappings != first.mappings) return differs("mappings", first.mappings, now.mappings);
    if (now.shared_kib > first.shared_kib)
      return differs("KiB of shared memory", first.shared_kib, now.shared_kib);
    if (now.heap_bytes > first.heap_bytes + heap_slack)
      return differs("bytes of heap in use", first.heap_bytes, now.heap_bytes);
    if (now.anon_kib > first.anon_kib + anon_slack_kib)
      return differs("KiB of memory of its own", first.anon_kib, now.anon_kib);
    return {};
  };
  // A thread that was told to end, or a peer whose end was just seen, may take a moment.
  auto text = grown();
  for (int i = 0; i < 40 && !text.empty(); ++i) {
    wait_for([] { return false; }, milliseconds(25));
    now = sample_of(who);
    text = grown();
  }
  if (!text.empty()) throw wrong(text);
  auto const as = who.leads ? std::string("sender") : "receiver " + std::to_string(who.slot);
  auto const [at, fresh] = flat_.try_emplace(as, first, now);
  at->second.second = now;
  if (who.leads && of_.how == mode::restarts && of_.killed == victim::both) at->second.first = first;
}

void conductor::end_all() {
  if (sender_ && !sender_->gone) {
    for (auto& one : receivers_) one->may_lose = true;
    sender_->may_exit = true;
    order_only(*sender_, verb::quit);
    until([&] { return sender_->gone; }, "the sender to end");
  }
  for (auto& one : receivers_) {
    one->may_lose = one->may_exit = true;
    order_only(*one, verb::quit);
  }
  until([&] { return std::ranges::all_of(receivers_, [](auto const& one) { return one->gone; }); },
        "the receivers to end");
  bury();
  if (auto const left = directory_.entries(); !left.empty() && of_.how == mode::flat)
    throw wrong("the sender has left " + left.front() + " behind");
}

void conductor::print(std::FILE* to) const {
  auto const number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  auto const list = [&](char const* what, std::map<std::string, std::uint64_t> const& all) {
    std::fprintf(to, "%s:", what);
    char const* between = " ";
    for (auto const& [key, value] : all) {
      std::fprintf(to, "%s%s %llu", between, key.c_str(), number(value));
      between = ", ";
    }
    std::fprintf(to, "%s\n", all.empty() ? " none" : "");
  };
  std::fprintf(to,
               "%llu updates of %llu layouts in %.1f s, through %llu rings of %llu sender processes, to %llu "
               "receiver processes\n",
               number(counted_.updates), number(counted_.layouts), seconds(), number(counted_.rings),
               number(counted_.senders), number(counted_.receivers));
  std::fprintf(
      to,
      "%.1f MB sent in %llu buckets; %.1f MB compared byte by byte in %llu looks at a receiver's memory; "
      "%llu versions held compared with the sender's list\n",
      static_cast<double>(counted_.bytes_sent) / 1e6, number(counted_.buckets),
      static_cast<double>(counted_.bytes_compared) / 1e6, number(counted_.checks), number(counted_.settled));
  list("outcomes", counted_.outcomes);
  list("given as", counted_.ways);
  list("taken into", counted_.styles);
  list("faults", counted_.faults);
  list("sends that failed", counted_.errors);
  for (auto const& [who, pair] : flat_) {
    auto const& [first, last] = pair;
    std::fprintf(
        to,
        "%s, after the warm-up and at the end: fds %llu %llu, mappings %llu %llu, threads %llu %llu, heap "
        "in use %llu %llu bytes, RssAnon %llu %llu KiB, RssShmem %llu %llu KiB, device %llu %llu MiB\n",
        who.c_str(), number(first.fds), number(last.fds), number(first.mappings), number(last.mappings),
        number(first.threads), number(last.threads), number(first.heap_bytes), number(last.heap_bytes),
        number(first.anon_kib), number(last.anon_kib), number(first.shared_kib), number(last.shared_kib),
        number(first.device_mib), number(last.device_mib));
  }
}

void conductor::write_samples() const {
  if (of_.sample_file.empty()) return;
  std::ofstream file(of_.sample_file);
  file << "update,seconds,process,life,anon_kib,shared_kib,heap_bytes,fds,mappings,threads,device_mib\n";
  for (auto const& one : rows_)
    file << one.update << ',' << std::round(one.seconds * 10) / 10 << ',' << one.process
         << ',' << one.life << ',' << one.of.anon_kib << ',' << one.of.shared_kib << ',' << one.of.heap_bytes
         << ',' << one.of.fds << ',' << one.of.mappings << ',' << one.of.threads << ',' << one.of.device_mib
         << '\n';
  if (!file.flush()) throw wrong("the samples can't be written to " + of_.sample_file);
}

} // namespace

int conduct(wishes const& of) {
  std::printf("ropeway-soak: %s\nseed %llu\n", of.command.c_str(), static_cast<unsigned long long>(of.seed));
  std::fflush(stdout);
  conductor one(of);
  try {
    one.run();
    one.write_samples();
  } catch (no_device const& error) {
    std::printf("SKIPPED: no such device here: %s\n", error.what());
    return skipped;
  } catch (std::exception const& error) {
    std::printf("FAILED at update %llu of seed %llu: %s\n", static_cast<unsigned long long>(one.update()),
                static_cast<unsigned long long>(of.seed), error.what());
    std::printf("  %s\n", one.orders_in_words().c_str());
    std::printf("  to repeat it: the same command with --seed %llu\n",
                static_cast<unsigned long long>(of.seed));
    one.print(stdout);
    try {
      one.write_samples();
    } catch (std::exception const&) {} // the first failure is what matters
    return 1;
  }
  one.print(stdout);
  std::printf("soak passed\n");
  return 0;
}

} // namespace ropeway::soak
