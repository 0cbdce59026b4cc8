#include "director.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <deque>
#include <fcntl.h>
#include <map>
#include <memory>
#include <poll.h>
#include <sstream>
#include <stdexcept>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cast.hpp"
#include "shared.hpp"
#include "support/fork_child.hpp"
#include "support/patient.hpp"
#include "support/scratch.hpp"

namespace ropeway::matrix {
namespace {

using namespace ropeway::testing;
using clock_type = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A death is seen, so these are only bounds; a sleep is noticed by them.
constexpr milliseconds silence_when_killed{500}, silence_when_stopped{400}, longer_than_silence{100};
/// A death is seen and told within so much, whatever the limits are.
constexpr milliseconds seen_within{250};
constexpr milliseconds first_mapping{500};
/// On top of a limit: who has not answered by then hangs. What has to be sooner is judged by its time.
constexpr milliseconds slack{15000};
/// For processes to start, and to end.
constexpr milliseconds most_to_start{180000}, most_to_leave{60000};
/// The director looks at the clock so often, and sees if the machine stands still.
constexpr milliseconds longest_nap{20};
/// An update reaches everybody so soon after the fallen have come back.
constexpr milliseconds served_within{1000};

std::vector<std::string> words_of(std::string const& text) {
  std::istringstream in(text);
  std::vector<std::string> all;
  for (std::string one; in >> one;) all.push_back(one);
  return all;
}

/// A process of the cells, as its director sees it.
class player {
 public:
  enum class state { plays, stopped, dead };

  player(device at, places const& where, board& shared) : at_(at) {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
      throw std::runtime_error("socketpair");
    unique_fd mine(ends[0]), its(ends[1]);
    process_.emplace([&] { return stay(at, where, shared, alone_with(std::move(its))); });
    line_ = std::move(mine);
  }

  device at() const { return at_; }
  part const& which() const { return which_; }
  /// The next part. It answers "made", once it is ready.
  void cast(part which) {
    which_ = std::move(which);
    answered_question_.clear();
    ask("make", to_word(which_));
  }
  state now() const { return state_; }
  pid_t pid() const { return process_->pid(); }
  bool plays() const { return state_ == state::plays; }
  bool ready() const { return ready_; }
  bool asked() const { return !asked_.empty(); }
  std::string const& question() const { return asked_; }
  std::string const& answered_question() const { return answered_question_; }
  std::string const& answer() const { return answer_; }
  clock_type::time_point asked_at() const { return asked_at_; }
  clock_type::time_point answered() const { return answered_; }
  int line() const { return line_.get(); }
  bool takes() const { return takes_ || !plays() || !asked(); }

  void ask(std::string const& what) { ask(what, what); }
  void ask(std::string const& what, std::string const& words) {
    asked_ = what;
    answer_.clear();
    takes_ = false;
    asked_at_ = clock_type::now();
    (void)::send(line_.get(), words.data(), words.size(), MSG_NOSIGNAL);
  }
  void signal(int number) const { process_->signal(number); }
  /// Whether it lives, and what it has answered. True for an answer.
  bool look() {
    siginfo_t info{};
    auto const id = static_cast<id_t>(process_->pid());
    if (state_ != state::dead && ::waitid(P_PID, id, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid)
      state_ = state::dead; // its last words are still to be heard
    info = {};
    if (state_ == state::plays && ::waitid(P_PID, id, &info, WSTOPPED | WNOHANG) == 0 && info.si_pid)
      state_ = state::stopped;
    for (std::array<char, 8192> buffer{};;) {
      ssize_t const got = ::recv(line_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got <= 0) return false;
      std::string const word(buffer.data(), std::size_t(got));
      if (word == "taking") { // it will not miss what is announced from now on
        takes_ = true;
        continue;
      }
      if (word == "ready") {
        ready_ = true;
        continue;
      }
      answer_ = word;
      answered_ = clock_type::now();
      answered_question_ = std::exchange(asked_, {});
      return true;
    }
  }
  void resume() {
    process_->resume();
    if (state_ == state::stopped) state_ = state::plays;
  }
  /// The exit status, or minus the signal.
  int status() { return process_->wait(); }

 private:
  /// In the new process: nothing but its line is open of what its director has, the lines of others above
  /// all.
  static unique_fd alone_with(unique_fd its) {
    constexpr int place = STDERR_FILENO + 1;
    if (its.get() == place)
      (void)its.release();
    else
      (void)::dup3(its.get(), place, O_CLOEXEC);
    (void)::syscall(SYS_close_range, place + 1, ~0u,
                    0); // where there is none it stays open, and harms nobody
    (void)its.release();
    return unique_fd(place);
  }

  device at_;
  part which_;
  bool ready_ = false;
  unique_fd line_; // closed when the process has been killed, which would say so otherwise
  std::optional<fork_child> process_;
  state state_ = state::plays;
  std::string asked_, answered_question_, answer_;
  bool takes_ = false;
  clock_type::time_point asked_at_{}, answered_{};
};

unique_fd watch_children() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return unique_fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}

} // namespace

struct director::impl {
  explicit impl(casting const& how)
      : with(how), where(how.where), shared(share_with_children<board>()), children(watch_children()) {
    // A child that a victim left behind is ours to bury.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  }

  casting with;
  places where;
  shared_with_children<board> shared;
  unique_fd children;
  std::size_t started = 0;
  std::deque<std::unique_ptr<player>> resting; ///< who has no part, longest first

  std::unique_ptr<player> start(device at) {
    ++started;
    return std::make_unique<player>(at, where, *shared);
  }
  void look_at_the_resting() {
    for (auto& one : resting) (void)one->look();
  }
  void bury_the_dead() {
    look_at_the_resting();
    std::erase_if(resting, [](auto const& one) { return !one->plays(); });
  }
  /// One that has no part; rather one that is ready.
  std::unique_ptr<player> hire(device at) {
    bury_the_dead();
    auto const suits = [&](auto const& one) { return one->at() == at; };
    auto found = std::ranges::find_if(resting, [&](auto const& one) { return suits(one) && one->ready(); });
    if (found == resting.end()) found = std::ranges::find_if(resting, suits);
    if (found == resting.end()) return start(at);
    auto hired = std::move(*found);
    resting.erase(found);
    return hired;
  }
  /// A number of processes for each place; both are of one if there is only one.
  struct headcount {
    std::size_t senders = 0, receivers = 0;
  };
  std::size_t resting_at(device at) const {
    return static_cast<std::size_t>(
        std::ranges::count_if(resting, [&](auto const& one) { return one->at() == at; }));
  }
  bool rest(headcount enough) const {
    if (where.sender == where.receivers) return resting_at(where.sender) >= enough.senders + enough.receivers;
    return resting_at(where.sender) >= enough.senders && resting_at(where.receivers) >= enough.receivers;
  }
  void start_until_there_are(headcount enough) {
    if (where.sender == where.receivers) enough = {0, enough.senders + enough.receivers};
    while (resting_at(where.receivers) < enough.receivers) resting.push_back(start(where.receivers));
    while (resting_at(where.sender) < enough.senders) resting.push_back(start(where.sender));
  }
  /// Besides those that play. A sender is one of those that are killed at most.
  headcount spares() const {
    std::size_t const senders = std::min<std::size_t>(with.spares, 1);
    return {senders, with.spares - senders};
  }
  /// All that the cell takes, if everything that it may kill is replaced.
  headcount cast_of_cell() const {
    headcount all{1, what.receivers()};
    if (what.what->more != scenario::extra::none) ++all.receivers;
    bool const kills = !what.stops();
    bool const kills_sender = what.who == victim::sender || what.who == victim::sender_with_child;
    if (kills && what.trigger.everybody) all.receivers += what.receivers();
    if (kills && (what.who == victim::receiver || what.who == victim::member)) ++all.receivers;
    if ((kills && (what.trigger.everybody || kills_sender)) ||
        what.what->then == scenario::ending::sender_is_lost)
      ++all.senders;
    return all;
  }
  /// Nobody is started before all others have come to the end of their cells.
  void get_ready_apart() {
    auto const least = cast_of_cell();
    headcount most{1 + spares().senders, 4 + spares().receivers};
    most = {std::max(most.senders, least.senders), std::max(most.receivers, least.receivers)};
    bury_the_dead();
    // One that dies before its first part would do so again.
    for (int tries = 0; tries < 3 && (!rest(least) || (with.apart->is_on() && !rest(most))); ++tries) {
      auto const starting = with.apart->start();
      start_until_there_are(most);
      auto const getting_ready = [](auto const& one) { return one->plays() && !one->ready(); };
      wait(most_to_start, [&] {
        look_at_the_resting();
        return std::ranges::none_of(resting, getting_ready);
      });
      bury_the_dead();
    }
  }

  // ---- of one play ----
  cell what;
  play_bill bill;
  std::optional<scratch> directory;
  std::map<std::uint32_t, std::unique_ptr<player>> players;
  milliseconds silence{}, longer{};
  bool first_act_is_over = false;
  std::optional<clock_type::time_point> woken; ///< those that had been stopped
  /// Of the director: since when it looks, as its last look was, and what it wanted to wait after that.
  std::optional<clock_type::time_point> looked;
  milliseconds nap{};

  void wrong(std::string text, bool late = false) { bill.wrong.push_back({std::move(text), late}); }

  player& add(std::uint32_t number) {
    part which;
    which.number = number;
    which.name = number % reborn == filler ? "filler" : "r" + std::to_string(number % reborn - 1);
    if (number % reborn == the_sender) which.name = "sender";
    which.path = directory->file("weights.sock");
    which.what = what.what;
    which.group = what.group();
    which.where = where;
    which.silence = silence;
    which.longer = longer;
    // On a device to decide is to map; and where nobody sleeps, nothing waits for this limit to pass.
    which.decide = longer + (what.stops() ? milliseconds(0) : bill.first_mapping);
    auto made = hire(which.at());
    shared->enlist(number, made->pid());
    made->cast(std::move(which));
    return *players.insert_or_assign(number, std::move(made)).first->second;
  }
  /// The one that plays this role now.
  player& at(std::uint32_t role) {
    auto const later = players.find(role + reborn);
    return later != players.end() ? *later->second : *players.at(role);
  }
  player& sender() { return at(the_sender); }
  std::vector<player*> receivers() {
    std::vector<player*> all;
    for (std::uint32_t i = 0; i < what.receivers(); ++i) all.push_back(&at(first_receiver + i));
    return all;
  }

  bool is_victim(std::uint32_t number) const {
    return shared->fired() && number < reborn && (what.trigger.everybody || number == what.trigger.process);
  }
  void look() {
    look_for_standstill();
    for (auto& [number, one] : players) {
      bool const played = one->plays();
      bool const answered = one->look();
      if (played && !one->plays() && !woken && is_victim(number))
        stood_still(clock_type::now() - shared->fired_at());
      if (answered && number < reborn && !first_act_is_over) heard_answer(number, *one);
    }
  }
  void heard_answer(std::uint32_t number, player const& from) {
    auto& its = bill.fates[number];
    its.said.emplace_back(from.answered_question(), from.answer());
    if (!shared->fired() || is_victim(number)) return;
    auto const took = [&](clock_type::time_point since) {
      return std::chrono::duration<double, std::milli>(from.answered() - std::max(since, from.asked_at()));
    };
    if (!its.milliseconds)
      its.milliseconds = took(shared->fired_at()).count();
    else
      its.later_milliseconds =
          std::max(its.later_milliseconds, took(woken.value_or(shared->fired_at())).count());
  }

  void stood_still(std::chrono::duration<double, std::milli> how_long) {
    bill.stood_still = std::max(bill.stood_still, how_long.count());
  }
  /// When the loop of this process ran last, or could have run again; nothing if it need not run.
  std::optional<clock_type::time_point> ran(std::uint32_t number) const {
    if (is_victim(number) && !woken) return std::nullopt;
    auto const at = shared->ran_at(number);
    if (at == clock_type::time_point()) return std::nullopt;
    return is_victim(number) ? std::max(at, *woken) : at;
  }
  /// The clocks of this process say nothing of the others: each may have been kept from running alone.
  void look_for_standstill() {
    auto const now = clock_type::now();
    if (looked) {
      stood_still(now - *looked - nap);
      for (auto const& [number, one] : players)
        if (auto const at = ran(number); at && one->plays()) stood_still(now - *at - board::pulse);
    }
    looked = now, nap = {};
  }
  /// Waits so long, and until every process that plays has run since: it has met what was on its way to it.
  template <class Done>
  void let_arrive(milliseconds how_long, Done const& done) {
    auto const end = clock_type::now() + how_long;
    wait(how_long + patience(), [&] {
      auto const has_run = [&](auto const& p) {
        auto const at = ran(p.first);
        return !p.second->plays() || !at || *at >= end - board::pulse;
      };
      return done() || (clock_type::now() >= end && std::ranges::all_of(players, has_run));
    });
  }

  /// Waits until `done`, or for so long.
  template <class Done>
  bool wait(milliseconds limit, Done const& done) {
    auto const end = clock_type::now() + limit;
    for (;;) {
      look();
      if (done()) return true;
      auto const left = std::chrono::ceil<milliseconds>(end - clock_type::now());
      if (left.count() <= 0) return false;
      std::vector<pollfd> watched{{children.get(), POLLIN, 0}};
      for (auto& [number, one] : players)
        if (one->now() != player::state::dead) watched.push_back({one->line(), POLLIN, 0});
      nap = std::min(left, longest_nap);
      int const ready = ::poll(watched.data(), watched.size(), int(nap.count()));
      if (ready > 0 && watched.front().revents != 0) {
        signalfd_siginfo info{};
        (void)!::read(children.get(), &info, sizeof info);
      }
    }
  }
  static bool settled(player const& one) { return !one.asked() || !one.plays(); }
  bool all_settled() const {
    return std::all_of(players.begin(), players.end(), [](auto const& p) { return settled(*p.second); });
  }
  /// One question, one answer; nothing if it does not come in time.
  std::string ask(player& whom, std::string const& question, milliseconds limit) {
    whom.ask(question);
    wait(limit, [&] { return settled(whom); });
    if (whom.plays() && !whom.asked()) return whom.answer();
    return {};
  }
  milliseconds patience() const { return longer + patient(slack); }

  /// Whether nothing that was said to this receiver asks for anything more: it may wait as long as it likes.
  bool idle(std::uint32_t number) const {
    // Who was dropped is told so, however long it takes to wake.
    for (auto const& report : bill.fates[the_sender].answers("send 1"))
      for (char const* const end : {"=dropped/", "=unconfirmed/"})
        if (report.find(" r" + std::to_string(number - first_receiver) + end) != report.npos) return false;
    auto const times = [&](char const* name) { return shared->passed(number, name); };
    auto const declined = times("receiver: event refuse_update") + times("receiver: event not_now_update");
    return times("receiver: heard welcome") != 0 &&
           times("receiver: heard begin") ==
               times("receiver: event commit_done") + times("receiver: said aborted") + declined &&
           times("receiver: did offer") == shared->told_by(number);
  }

  /// Until everybody that was asked has answered or fallen; receivers that wait for an update need not, once
  /// the sender has nothing more to say.
  void collect() {
    // A dead sender leaves nobody waiting; who sleeps may.
    auto const needs_no_answer = [&](player const& one) {
      return settled(one) || (sender().now() != player::state::dead && one.question() == "take" &&
                              one.which().first_life() && idle(one.which().number));
    };
    auto const nobody_needs = [&] {
      return settled(sender()) && std::all_of(players.begin(), players.end(),
                                              [&](auto const& p) { return needs_no_answer(*p.second); });
    };
    bool const answered = wait(patience(), nobody_needs);
    // It may be that something is on its way to those who look idle.
    let_arrive(patient(milliseconds(60)), [&] { return all_settled(); });
    if (!answered)
      for (auto& [number, one] : players)
        if (!needs_no_answer(*one))
          wrong(one->which().name + " did not answer '" + one->question() + "' within " +
                std::to_string(patience().count()) + " ms");
    if (shared->fired() && !woken && !wait(patience(), [&] { return victims_have_fallen(); }))
      wrong("the signal did not come to all of its victims");
  }
  void all_take() {
    wait(patience(), [&] {
      return std::ranges::all_of(receivers(),
                                 [](auto* one) { return one->question() != "take" || one->takes(); });
    });
  }
  bool victims_have_fallen() const {
    return std::none_of(players.begin(), players.end(),
                        [&](auto const& p) { return is_victim(p.first) && p.second->plays(); });
  }

  /// Whether those that were added have their memory. A device takes its time for each new process.
  bool all_are_made() {
    auto const waits = [](auto const& p) { return p.second->plays() && p.second->question() == "make"; };
    wait(most_to_start, [&] { return std::ranges::none_of(players, waits); });
    bool all = true;
    for (auto const& each : players) {
      auto const& one = *each.second;
      bool const has_said_why = !one.asked() && one.answered_question() == "make" && one.answer() != "made";
      if (one.question() != "make" && !has_said_why) continue;
      all = false;
      wrong(one.which().name + " had no memory within " + std::to_string(most_to_start.count()) +
            " ms: " + one.answer());
    }
    return all;
  }

  // ---- the acts ----

  void first_update() {
    using extra = scenario::extra;
    auto& from = add(the_sender);
    for (std::uint32_t i = 0; i < what.receivers(); ++i) add(first_receiver + i);
    if (what.what->more != extra::none) add(filler);
    for (auto& [number, one] : players) bill.fates[number].exists = true;
    if (!all_are_made()) return;
    if (!with.apart) start_until_there_are(spares()); // they get ready while others play
    looked = clock_type::now();                       // from here on they have limits

    if (ask(from, "open", patience()) != "listening")
      return wrong("the sender did not open: " + from.answer());
    if (what.what->more != extra::none) ask(at(filler), "connect", patience());
    // The odd one is the last to come, so that it is the one for whom there is no place.
    for (auto* one : receivers())
      if (!one->which().is_odd()) one->ask("connect");
    collect();
    if (at(odd_one).plays()) at(odd_one).ask("connect");
    collect();
    if (what.what->more == extra::is_lost) {
      at(filler).signal(SIGKILL);
      wait(patience(), [&] { return !at(filler).plays(); });
      wait_until_it_is_no_peer("filler");
    } else if (what.what->more == extra::fills_the_last_place) {
      ask(at(filler), "close", patience());
    }
    collect();

    // A sender that has fallen has nothing to send.
    if (from.plays()) {
      for (auto* one : receivers())
        if (one->plays() && one->answer() == "connected") one->ask("take");
      all_take();
      from.ask("send 1");
      collect();
    }
    if (!shared->fired()) what_comes_then();
    // A last word may still be on its way. In a rehearsal it is all that shows that a failpoint is there.
    if (what.trigger.passing != 0) {
      if (!wait(patience(), [&] { return shared->fired(); })) return;
      collect();
    } else {
      let_arrive(patient(milliseconds(50)), [] { return false; });
    }
    // Also who waits for nothing hears that the sender has gone.
    if (is_victim(the_sender) && !what.stops() && !what.trigger.everybody) {
      for (auto* one : receivers())
        if (one->plays() && !one->asked() && !has_lost_its_session(*one)) one->ask("take");
      collect();
    }
  }
  static bool has_lost_its_session(player const& one) {
    auto const& text = one.answer();
    return text == "ended" || text == "closed" || text.starts_with("error peer_gone") ||
           text.starts_with("error peer_silent") || text.starts_with("error connect") ||
           text.starts_with("error handshake") || text.starts_with("error busy") ||
           text.starts_with("error out_of_memory");
  }

  /// The death of one that owes nothing is noticed all the same.
  void wait_until_it_is_no_peer(std::string const& who) {
    for (int i = 0; i < 200 && sender().plays(); ++i) {
      auto const answer = ask(sender(), "peers", patience());
      if (answer.find(who) == answer.npos) return;
      wait(milliseconds(2), [] { return false; });
    }
    if (sender().plays()) wrong("the sender did not notice that " + who + " has gone");
  }

  void what_comes_then() {
    using ending = scenario::ending;
    switch (what.what->then) {
    case ending::none: return;
    case ending::odd_leaves: at(odd_one).ask("close"); break;
    case ending::memory_wanted_back: sender().ask("release"); break;
    case ending::sender_closes:
    case ending::sender_is_lost:
      for (auto* one : receivers())
        if (one->plays() && !one->asked()) one->ask("take");
      if (what.what->then == ending::sender_closes) {
        sender().ask("close");
      } else {
        sender().signal(SIGKILL);
        wait(patience(), [&] { return !sender().plays(); });
      }
      break;
    }
    collect();
  }

  void wake_the_stopped() {
    if (!shared->fired()) return;
    // Long enough that every limit that runs has passed.
    auto const until = shared->fired_at() + silence * 5 / 4;
    wait(std::chrono::ceil<milliseconds>(until - clock_type::now()), [] { return false; });
    keep_counts_at_fall();
    woken = clock_type::now();
    for (auto& [number, one] : players)
      if (one->now() == player::state::stopped) one->resume();
    collect();
  }

  void keep_counts_at_fall() {
    for (std::uint32_t i = 0; i < reborn; ++i) bill.fates[i].at_fall = shared->of(i);
  }

  void close_the_first_act() {
    if (!what.stops()) keep_counts_at_fall();
    bill.fired = shared->fired();
    for (auto& [number, one] : players) {
      auto& its = bill.fates[number];
      its.passed = shared->of(number);
      its.waits = one->plays() && one->asked();
      its.victim = is_victim(number);
    }
    first_act_is_over = true;
  }

  /// Everybody is there again, and one more update comes to all.
  void second_update() {
    bool const sender_was_lost = !sender().plays();
    if (sender_was_lost) {
      for (auto* one : receivers())
        if (one->plays() && !one->asked()) {
          auto const answer = ask(*one, "unmapped", patient(milliseconds(1000)) + patient(slack));
          if (answer != "unmapped") wrong(one->which().name + " keeps the dead sender's memory: " + answer);
        }
      add(the_sender + reborn);
    }
    for (std::uint32_t i = 0; i < what.receivers(); ++i)
      if (!at(first_receiver + i).plays()) add(first_receiver + i + reborn);
    if (!all_are_made()) return;
    if (sender_was_lost || what.what->then == scenario::ending::sender_closes) {
      auto const answer = ask(sender(), "open", patience());
      if (answer != "listening" && answer != "error address_in_use")
        return wrong("the second sender did not open: " + answer);
    }
    // A ring that was refused is refused for the whole session.
    if (auto& odd = at(odd_one); what.what->has == scenario::trouble::ring_refused && !odd.asked())
      ask(odd, "close", patience());
    if (!everybody_connected()) return;
    auto const start = clock_type::now();
    for (auto* one : receivers())
      if (!one->asked()) one->ask("take");
    all_take();
    sender().ask("send 2");
    if (!wait(patience(), [&] { return all_settled(); })) wrong("the second update did not end");
    auto const words = words_of(sender().answer());
    if (words.size() != what.receivers() + 2 || std::count_if(words.begin(), words.end(), [](auto const& w) {
                                                  return w.ends_with("=committed/ok");
                                                }) != what.receivers())
      wrong("the second update: " + sender().answer());
    for (auto* one : receivers())
      if (one->answer() != "committed 2")
        wrong(one->which().name + " in the second update: " + one->answer());
    auto const took = std::chrono::ceil<milliseconds>(clock_type::now() - start);
    auto within = patient(served_within);
    // Processes that are new to each other take their time on a device.
    if (!sender_was_lost || !is_victim(the_sender) || what.trigger.everybody) within *= with.limits;
    if (took > within)
      wrong("the second update took " + std::to_string(took.count()) + " ms, more than " +
                std::to_string(within.count()),
            true);
  }

  bool everybody_connected() {
    std::string last;
    for (auto const end = clock_type::now() + patience(); clock_type::now() < end;) {
      // Who waits for an update already believes that it has a session; the sender must say the same.
      for (auto* one : receivers())
        if (!one->asked()) one->ask("connect");
      wait(patience(), [&] {
        return std::ranges::all_of(receivers(),
                                   [](auto* one) { return one->question() != "connect" || !one->plays(); });
      });
      bool good = true;
      for (auto* one : receivers())
        good = good && (one->asked() || one->answer() == "connected" || one->answer() == "already");
      last = ask(sender(), "peers", patience());
      auto const words = words_of(last);
      good = good && words.size() == what.receivers() + 1;
      for (auto* one : receivers())
        good = good && std::count(words.begin(), words.end(), one->which().name) == 1;
      if (good) return true;
      for (auto* one : receivers()) last += " " + one->which().name + ":" + one->answer();
      wait(milliseconds(2), [] { return false; });
    }
    wrong("not everybody connected again: " + last);
    return false;
  }

  void the_end() {
    std::vector<std::unique_ptr<player>> through;
    for (auto& [number, one] : players)
      if (one->plays() && !one->asked()) one->ask("end");
    wait(patience() + patient(slack), [&] { return all_settled(); });
    for (auto& [number, one] : players) {
      bool const was_killed = (is_victim(number) && !what.stops()) ||
                              (number == filler && what.what->more == scenario::extra::is_lost) ||
                              (number == the_sender && what.what->then == scenario::ending::sender_is_lost);
      if (was_killed) continue;
      if (one->plays() && one->answer() == "clean")
        through.push_back(std::move(one));
      else
        wrong(one->which().name + " at its end: " + one->answer());
    }
    if (shared->fired() && what.trigger.leaves_child && shared->child() == 0)
      wrong("the victim could not fork its child");
    if (auto const child = shared->child(); child > 0) {
      if (::kill(child, 0) != 0) wrong("the victim's child did not live to the end");
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
    players.clear();
    for (auto& one : through) resting.push_back(std::move(one));
    for (auto const& left : directory->entries()) wrong("left in the socket's directory: " + left);
  }

  std::vector<finding> close() {
    bill = {};
    look_at_the_resting();
    // Spares that nobody has waited for are killed.
    std::erase_if(resting, [](auto const& one) { return !one->ready(); });
    for (auto& one : resting) one->ask("leave");
    auto const gone = [](auto const& one) { return one->now() == player::state::dead; };
    wait(most_to_leave, [&] {
      look_at_the_resting();
      return std::ranges::all_of(resting, gone);
    });
    for (auto& one : resting)
      if (!gone(one) || one->status() != 0) wrong("a process did not leave as it should: " + one->answer());
    resting.clear();
    return std::move(bill.wrong);
  }

  play_bill play(cell const& which) {
    what = which;
    bill = {};
    first_act_is_over = false;
    woken.reset(), looked.reset();
    bill.fates.resize(most_processes);
    silence =
        patient(what.stops() || what.what->sends == scenario::sending::source_is_slow ? silence_when_stopped
                                                                                      : silence_when_killed);
    longer = std::min(silence + patient(longer_than_silence), patient(milliseconds(500)));
    silence *= with.limits, longer *= with.limits;
    bill.longest_limit = longer;
    bill.seen_within = with.limits * patient(seen_within);
    if (where.has_devices()) bill.first_mapping = patient(first_mapping);
    directory.emplace();
    shared->reset(what.trigger);
    intermission::turn playing;
    try {
      if (with.apart) {
        get_ready_apart();
        playing = with.apart->play();
        looked.reset(); // how long that took says nothing of the cell
        bill.stood_still = 0;
      }
      first_update();
      if (what.stops()) wake_the_stopped();
      close_the_first_act();
      second_update();
      the_end();
    } catch (std::exception const& e) { wrong(e.what()); }
    players.clear();
    directory.reset();
    return std::move(bill);
  }
};

std::vector<std::string> fate::answers(std::string_view question) const {
  std::vector<std::string> all;
  for (auto const& [asked, answer] : said)
    if (asked == question) all.push_back(answer);
  return all;
}

director::director(casting const& how) : impl_(std::make_unique<impl>(how)) {}
director::~director() = default;
play_bill director::play(cell const& what) { return impl_->play(what); }
void director::start_afresh() { impl_->resting.clear(); }
std::vector<finding> director::close() { return impl_->close(); }
std::size_t director::started() const { return impl_->started; }

} // namespace ropeway::matrix
