// What is right in a cell. Every rule asks what a process had heard and said when the signal came, and names
// the one end that follows from it (or, where two limits run at once, either).
#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>
#include <utility>

#include "director.hpp"

namespace ropeway::matrix {
namespace {

using words = std::set<std::string>;

std::string to_text(words const& all) {
  std::string text;
  for (auto const& one : all) text += (text.empty() ? "" : " or ") + (one.empty() ? "(nothing)" : one);
  return text;
}

class judgement {
 public:
  judgement(cell const& what, play_bill const& how) : cell_(what), how_(how), what_(*what.what) {}

  std::vector<finding> pass() {
    wrong_ = how_.wrong;
    if (cell_.trigger.passing != 0 && !how_.fired)
      wrong("nobody came to " + cell_.transition() + " for the " + std::to_string(cell_.trigger.passing) +
            ". time");
    all_or_nobody_of_a_group();
    ending_in_time();
    for (std::uint32_t i = 0; i < cell_.receivers(); ++i) {
      if (killed(first_receiver + i)) continue;
      connecting(first_receiver + i);
      taking(first_receiver + i);
    }
    if (!killed(the_sender) && what_.then != scenario::ending::sender_is_lost) sending();
    if (what_.then == scenario::ending::sender_is_lost && !fate_of(the_sender).victim) sending();
    return std::move(wrong_);
  }

 private:
  fate const& fate_of(std::uint32_t process) const { return how_.fates.at(process); }
  bool victim_is(std::uint32_t process) const { return fate_of(process).victim; }
  bool killed(std::uint32_t process) const { return victim_is(process) && !cell_.stops(); }
  bool slept(std::uint32_t process) const { return victim_is(process) && cell_.stops(); }
  static std::string name_of(std::uint32_t process) { return "r" + std::to_string(process - 1); }

  void wrong(std::string text, bool late = false) { wrong_.push_back({std::move(text), late}); }
  void expect(std::string const& who, std::string const& got, words const& right) {
    if (right.count(got) == 0)
      wrong(who + ": " + (got.empty() ? "(nothing)" : got) + " instead of " + to_text(right));
  }

  // ---- what the scenario does by itself ----

  bool sender_gives_up() const {
    return what_.sends == scenario::sending::source_fails || what_.has == scenario::trouble::ring_fails;
  }
  std::string senders_reason() const {
    if (what_.sends == scenario::sending::source_fails) return "source_failed";
    if (what_.has == scenario::trouble::ring_fails) return "out_of_memory";
    return "ok";
  }
  /// What the report says of the odd one if nothing befalls it.
  std::string odd_by_itself() const {
    using taking = scenario::taking;
    if (what_.more == scenario::extra::fills_the_last_place) return "";
    if (sender_gives_up()) return "skipped/" + senders_reason();
    if (what_.has == scenario::trouble::ring_refused) return "refused/not_reachable";
    if (what_.has == scenario::trouble::manifest_lost || what_.has == scenario::trouble::placement_lost)
      return "dropped/peer_gone";
    switch (what_.odd_takes) {
    case taking::refuse: return "refused/peer_refused";
    case taking::not_now: return "skipped/peer_refused";
    case taking::give_up: return "failed/loader_failed";
    default: return "committed/ok";
    }
  }

  // ---- rules ----

  void all_or_nobody_of_a_group() {
    if (!cell_.group()) return;
    std::uint32_t committed = 0, ready = 0;
    for (std::uint32_t i = first_receiver; i < first_receiver + cell_.receivers(); ++i) {
      committed += fate_of(i).times("receiver: event commit_done") != 0;
      ready += fate_of(i).times("receiver: said all_copied") != 0;
    }
    if (committed != 0 && ready != cell_.receivers())
      wrong("a member of the group committed when only " + std::to_string(ready) + " members had all copied");
  }

  /// Death is seen; a limit must pass for who is only silent, or may yet come. (A machine that stood still is
  /// no excuse here: what is late is played again, and must be in time once.)
  void ending_in_time() {
    for (std::uint32_t i = 0; i < how_.fates.size(); ++i) {
      auto const& its = fate_of(i);
      if (its.victim || !its.milliseconds) continue;
      auto within = how_.seen_within;
      bool const awaits_a_sender = killed(the_sender) && its.answers("take").empty();
      if (cell_.stops() || awaits_a_sender) within += how_.longest_limit;
      if (what_.sends == scenario::sending::source_is_slow) within += how_.longest_limit;
      // Nothing ends for those who do without the fallen: their answer is the update.
      if (cell_.who == victim::receiver && !cell_.stops()) within += how_.first_mapping;
      auto const took = std::max(*its.milliseconds, its.later_milliseconds);
      if (took > double(within.count()))
        wrong((i == the_sender ? "the sender" : name_of(i)) + " took " + std::to_string(std::lround(took)) +
                  " ms, more than " + std::to_string(within.count()),
              true);
    }
  }

  void connecting(std::uint32_t process) {
    auto const& its = fate_of(process);
    auto const all = its.answers("connect");
    if (all.empty()) return; // it fell before it was asked
    words right;
    bool const full = what_.more == scenario::extra::fills_the_last_place && process == odd_one;
    if (its.times("receiver: heard welcome") != 0) right = {"connected"};
    if (full && its.times("receiver: heard turned_away") != 0) right = {"error busy"};
    // Who has slept may also find that the other end has given up.
    if (right.empty() && killed(the_sender)) right = {"error peer_gone", "error connect_timeout"};
    if (right.empty() && slept(the_sender)) right = {"error handshake_timeout"};
    if (slept(process)) right.insert({"error handshake_timeout", "error peer_gone"});
    if (slept(process) && full) right.insert("error busy");
    expect(name_of(process) + " connects", all.front(), right);
  }

  void taking(std::uint32_t process) {
    auto const& its = fate_of(process);
    auto const all = its.answers("take");
    bool asked = false;
    auto const connected = its.answers("connect");
    if (!connected.empty() && connected.front() == "connected") asked = its.waits || !all.empty();
    if (!asked) return;
    std::string first = all.empty() ? "" : all.front();
    bool torn = false, whole = false;
    if (auto const at = first.rfind(' '); first.starts_with("error")) {
      torn = first.substr(at) == " torn";
      whole = !torn;
      first.resize(at);
    }
    expect(name_of(process) + " takes", first, right_take(process));
    bool const by_hand = what_.odd_takes == scenario::taking::by_hand ||
                         (process == odd_one && what_.odd_takes == scenario::taking::give_up);
    auto const wrote = its.times("receiver: did bucket") + its.times("receiver: did read_mapped");
    auto const copied = its.times("receiver: event loaded") + its.times("receiver: event mapped_read");
    if (torn && (by_hand || wrote == 0)) wrong(name_of(process) + " says torn, and nothing was written");
    if (whole && !by_hand && copied != 0) wrong(name_of(process) + " says whole, and a part was written");
    if (all.size() < 2) return;
    std::string second = all[1];
    if (second.starts_with("error")) second.resize(second.rfind(' '));
    expect(name_of(process) + " waits for the next", second, right_end(process));
  }

  words right_take(std::uint32_t process) const {
    auto const& its = fate_of(process);
    auto const heard = [&](char const* what) { return its.times(what) != 0; };
    if (heard("receiver: event commit_done")) return {"committed 1"};
    // A word that was given, be it that the sender never heard of it.
    using taking = scenario::taking;
    bool const offered = heard("receiver: do offer");
    if (process == odd_one && offered && what_.odd_takes == taking::refuse) return {"refused"};
    if (process == odd_one && offered && what_.odd_takes == taking::not_now) return {"put off"};
    if (heard("receiver: event give_up")) return {"error loader_failed"};
    if (heard("receiver: event manifest_bad") || heard("receiver: event placement_bad"))
      return {"error out_of_memory"};
    if (heard("receiver: heard abort_update") && offered) {
      words right;
      if (cell_.group()) right.insert("error group_incomplete");
      if (!cell_.group() || sender_gives_up() || slept(process)) right.insert("error peer_aborted");
      if (process == odd_one && odd_by_itself() == "refused/not_reachable") right = {"error peer_aborted"};
      return right;
    }
    words right = right_end(process);
    // It was never told of this version, and waits for the next.
    if (!killed(the_sender) && !offered) right.insert("");
    if (process == odd_one && !offered && what_.has == scenario::trouble::ring_refused)
      right.insert("stopped waiting");
    return right;
  }

  /// How a session ends, for who has nothing under way or was in the middle of an update.
  words right_end(std::uint32_t process) const {
    auto const& its = fate_of(process);
    bool const goodbye = its.times("receiver: heard goodbye") != 0;
    bool const closes = what_.then == scenario::ending::sender_closes;
    words right;
    if (killed(the_sender) || what_.then == scenario::ending::sender_is_lost)
      right.insert(goodbye && closes ? "ended" : "error peer_gone");
    else if (closes && !slept(the_sender) && !slept(process))
      right.insert("ended");
    if (slept(the_sender)) {
      if (its.times("receiver: said goodbye") != 0 || goodbye) right.insert("error peer_silent");
      if (goodbye && closes) right = {"ended"};
      if (right.empty()) right.insert("");
    }
    if (slept(process)) {
      right.insert({"error peer_silent", "error peer_gone"});
      if (closes) right.insert("ended");
    }
    return right;
  }

  /// The sender's report by receiver.
  std::vector<std::pair<std::string, std::string>> report() const {
    std::vector<std::pair<std::string, std::string>> all;
    auto const said = fate_of(the_sender).answers("send 1");
    if (said.empty()) return all;
    std::istringstream in(said.front());
    for (std::string word; in >> word;)
      if (auto const at = word.find('='); at != word.npos)
        all.emplace_back(word.substr(0, at), word.substr(at + 1));
    return all;
  }

  void sending() {
    auto const& its = fate_of(the_sender);
    auto const said = its.answers("send 1");
    if (said.empty()) {
      if (!victim_is(the_sender)) wrong("the sender did not say what came of its update");
      return;
    }
    std::istringstream in(said.front());
    std::string sent, error;
    in >> sent >> error;
    // Without anybody who takes part there is nothing to fail.
    bool const gave_up = its.times("sender: event give_up") + its.times("sender: event ring_failed") != 0;
    expect("the send", error, {gave_up ? senders_reason() : "ok"});

    auto const lines = report();
    for (std::uint32_t i = first_receiver; i < first_receiver + cell_.receivers(); ++i) {
      std::string line;
      for (auto const& [who, what] : lines)
        if (who == name_of(i)) line = what;
      auto const& one = fate_of(i);
      bool const committed = one.times("receiver: event commit_done") != 0;
      if (line == "committed/ok" && !committed)
        wrong("the report says that " + name_of(i) + " committed, and it did not");
      if (committed && line != "committed/ok" && !line.starts_with("unconfirmed/"))
        wrong("the report says " + line + " of " + name_of(i) + ", which committed");
      if (victim_is(the_sender)) continue; // it has slept: who it believes to be dead is up to its limits
      if (victim_is(i))
        expect("the report on " + name_of(i), line, right_line_of_victim(i));
      else
        expect("the report on " + name_of(i), line, right_line(i));
      if (slept(i)) told_that_it_was_dropped(i, line);
    }
  }

  words right_line(std::uint32_t process) const {
    auto const& sender = fate_of(the_sender);
    if (process == odd_one && odd_by_itself() != "committed/ok") { return {odd_by_itself()}; }
    if (cell_.group()) {
      if (sender.times("sender: said commit") != 0) return {"committed/ok"};
      words right{"skipped/group_incomplete"};
      if (sender_gives_up()) right.insert("skipped/" + senders_reason());
      return right;
    }
    if (sender_gives_up()) return {"skipped/" + senders_reason()};
    return {"committed/ok"};
  }

  /// Of the odd one, by what it had said and heard when it fell.
  words right_line_of_victim(std::uint32_t process) const {
    auto const& its = fate_of(process);
    auto const had = [&](char const* what) { return its.times_at_fall(what) != 0; };
    std::string const why = cell_.stops() ? "peer_silent" : "peer_gone";
    if (had("receiver: said committed") || had("receiver: said refuse") || had("receiver: said not_now") ||
        had("receiver: said abort_update") || had("receiver: said ring_refused") ||
        had("receiver: said goodbye")) {
      // What it said counts.
      words right{odd_by_itself()};
      if (sender_gives_up() && cell_.group()) right.insert("skipped/group_incomplete");
      return right;
    }
    bool const all_told = fate_of(the_sender).times("sender: said commit") == cell_.receivers();
    // Who commits by itself may have looked before it was given up. The others of an update do the same.
    bool const by_itself =
        std::ranges::any_of(how_.fates, [](auto const& one) { return one.times("receiver: do look") != 0; });
    if (all_told || (by_itself && had("receiver: said all_copied"))) {
      words right{"unconfirmed/unconfirmed"};
      if (cell_.stops()) right.insert("unconfirmed/commit_timeout");
      return right;
    }
    words right;
    if (!had("receiver: said hello")) return {""};
    if (!had("receiver: heard begin")) right.insert(""); // it may have fallen before the update began
    right.insert("dropped/" + why);
    // Its limit to decide may be the first to pass.
    if (cell_.stops() && !had("receiver: said accept")) right.insert("skipped/peer_silent");
    if (sender_gives_up()) right.insert("skipped/" + senders_reason());
    if (cell_.group()) right.insert("skipped/group_incomplete");
    if (odd_by_itself().empty()) right.insert("");
    return right;
  }

  /// Who has slept too long hears of it, if only by the end of its session.
  void told_that_it_was_dropped(std::uint32_t process, std::string const& line) {
    auto const all = fate_of(process).answers("take");
    if (all.empty() || all.front().starts_with("committed") || fate_of(process).waits) {
      if (line == "dropped/peer_silent" && !all.empty())
        wrong(name_of(process) + " was dropped and says " + all.front());
      if (line == "dropped/peer_silent" && fate_of(process).waits)
        wrong(name_of(process) + " was dropped and waits on");
    }
  }

  cell const& cell_;
  play_bill const& how_;
  scenario const& what_;
  std::vector<finding> wrong_;
};

} // namespace

std::vector<finding> judge(cell const& what, play_bill const& how) { return judgement(what, how).pass(); }

} // namespace ropeway::matrix
