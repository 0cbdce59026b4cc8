#include "conductor.hpp"

#include <poll.h>
#include <spawn.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <set>
#include <sstream>

extern char** environ;

namespace ropeway::soak {
namespace {

/// Without malloc's caches for each thread, which count as in use and fill for hundreds of updates; and with
/// no mappings of malloc's own for large blocks, so that the mappings are those that somebody asked for.
constexpr char exact_malloc[] =
    "GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1";

} // namespace

char const* name(way what) {
  static constexpr std::array names{"views", "prepared", "started", "source", "writer"};
  return names[static_cast<std::size_t>(what)];
}
char const* name(sharing what) {
  static constexpr std::array names{"none", "some", "all"};
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
child::~child() {
  if (pid <= 0 || gone) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

conductor::conductor(wishes const& of) : of_(of), began_(clock::now()) {
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_BLOCK, &children, nullptr);
  signals_ = unique_fd(::signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  every_ = of_.sample_every != 0 ? of_.sample_every : 1;
}

conductor::~conductor() = default;

void conductor::run() {
  switch (of_.how) {
  case mode::random: run_random(); break;
  case mode::flat: run_flat(); break;
  case mode::restarts: run_restarts(); break;
  }
  end_all();
}

// ---- processes ----

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
    if (to.may_die || to.may_exit) return;
    wait_for([&] { return to.gone; }, std::chrono::seconds(5)); // which says how it has ended
    throw wrong(to.name + " does not hear any more");
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
// ---- steps ----

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
  for (auto& one : receivers_) one->unconfirmed = false; // of a sender that is no more
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
