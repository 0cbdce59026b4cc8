#include "scenario.hpp"

#include <algorithm>
#include <array>
#include <boost/mp11.hpp>
#include <csignal>
#include <set>
#include <string_view>
#include <utility>

#include "protocol/codec.hpp"
#include "protocol/receiver_machine.hpp"
#include "protocol/sender_machine.hpp"

namespace ropeway::matrix {
namespace {

using namespace protocol;

/// A failpoint that is passed once a bucket is armed at its first passing and at this one.
constexpr std::uint32_t later_passing = 5;

template <class Visit>
void for_each_message(Visit const& visit) {
  boost::mp11::mp_for_each<boost::mp11::mp_transform<boost::mp11::mp_identity, message>>(
      [&](auto type) { visit(message(typename decltype(type)::type{})); });
}

/// Whether the machine that hears it takes it for a word that its peer never says. The machines know: nobody
/// keeps a list.
bool only_a_receiver_says(message const& what) {
  receiver_machine machine{receiver_settings{}};
  machine.connected({});
  welcome greeting;
  greeting.version = version_max;
  greeting.bucket_bytes = greeting.silence_ms = 1;
  machine.received(greeting, {});
  machine.take();
  machine.received(what, {});
  for (auto const& action : machine.take())
    if (auto const* end = std::get_if<receive_action::closed>(&action))
      return end->text.find("only a receiver says") != end->text.npos;
  return false;
}
bool only_a_sender_says(message const& what) {
  if (std::holds_alternative<hello>(what)) return false; // it comes first, and never again
  sender_machine machine{sender_settings{}};
  machine.connected(1, "it", {});
  hello greeting;
  greeting.magic = hello_magic;
  greeting.oldest = version_min;
  greeting.newest = version_max;
  greeting.schema = schema_hash();
  machine.received(1, greeting, {});
  machine.take();
  machine.received(1, what, {});
  for (auto const& action : machine.take())
    if (auto const* end = std::get_if<send_action::drop>(&action))
      return end->text.find("which a receiver never says") != end->text.npos;
  return false;
}

struct reason {
  std::string_view what; ///< a failpoint, or a message for all that name it
  std::string_view why;
};
constexpr std::array excuses{
    reason{"failed",
           "into plain destinations a version is made whole in the handler that hears commit, where nothing "
           "can fail; loaders fail before, by abort_update. A shadow set that copies at the commit can: "
           "tests/api/shadow_test.cpp"},
    reason{"receiver: event commit_failed", "as for failed"},
    reason{"sender: event held_failed",
           "a delivery of what is held that can't begin, which nobody hears of: tests/api/hold_test.cpp"},
    reason{"sender: do cut",
           "of one that sleeps where it may commit by itself: in cells with SIGSTOP, not without"},
    reason{"sender: did cut", "as for do cut"},
    reason{"watch", "who watches takes part in no update, and nothing waits for it: "
                    "tests/protocol/sender_session_test.cpp, tests/api/order_test.cpp"},
    reason{"seen_receiver", "as for watch"},
    reason{"seen_sender", "as for watch"},
};

/// The message that a failpoint is about, if it is about one.
std::string message_of(std::string const& point) {
  for (std::string_view const verb : {": say ", ": said ", ": heard "})
    if (auto const at = point.find(verb); at != point.npos) return point.substr(at + verb.size());
  return {};
}

/// Whether it is passed because time has: where nothing is slow on purpose, and how often, is up to the
/// machine.
bool is_of_time(std::string_view point) { return point.ends_with(" alive") || point.ends_with(" tick"); }

/// How often the process of this side came to it, as far as it always does.
std::uint32_t reached(walk const& one, std::size_t which) {
  bool const slow = one.what->sends == scenario::sending::source_is_slow;
  if (is_of_time(points()[which]) && !slow) return 0;
  auto const times = points()[which].starts_with("sender") ? one.by_sender[which] : one.by_odd_one[which];
  return is_of_time(points()[which]) ? std::min(times, 1u) : times;
}

std::uint32_t reached(std::vector<walk> const& walks, std::size_t which) {
  std::uint32_t sum = 0;
  for (auto const& one : walks) sum += reached(one, which);
  return sum;
}

} // namespace

std::vector<scenario> const& scenarios() {
  using s = scenario;
  static std::vector<scenario> const all = [] {
    std::vector<scenario> list;
    auto const add = [&](std::string_view name) -> scenario& {
      list.emplace_back().name = name;
      return list.back();
    };
    add("plain");
    add("by hand").odd_takes = s::taking::by_hand;
    add("refused").odd_takes = s::taking::refuse;
    add("not now").odd_takes = s::taking::not_now;
    add("loader fails").odd_takes = s::taking::give_up;
    add("source fails").sends = s::sending::source_fails;
    add("source is slow").sends = s::sending::source_is_slow;
    add("receiver leaves").then = s::ending::odd_leaves;
    add("sender closes").then = s::ending::sender_closes;
    add("sender is lost").then = s::ending::sender_is_lost;
    add("another is lost").more = s::extra::is_lost;
    add("no place left").more = s::extra::fills_the_last_place;
    add("ring refused").has = s::trouble::ring_refused;
    add("manifest lost").has = s::trouble::manifest_lost;
    add("ring fails").has = s::trouble::ring_fails;
    add("relayed").has = s::trouble::relays;
    add("mapped").lies = s::memory::shared;
    auto& streamed = add("mapped, on a stream");
    streamed.lies = s::memory::shared, streamed.sends = s::sending::on_a_stream;
    add("partly mapped").lies = s::memory::partly;
    add("digests").digests = true;
    add("held").holds = true;
    auto& compared = add("mapped, digests");
    compared.lies = s::memory::shared, compared.digests = true;
    auto& lost = add("placement lost");
    lost.lies = s::memory::shared, lost.has = s::trouble::placement_lost;
    auto& released = add("memory released");
    released.lies = s::memory::shared, released.then = s::ending::memory_wanted_back;
    return list;
  }();
  return all;
}

std::string_view name(victim who) {
  switch (who) {
  case victim::nobody: return "nobody";
  case victim::sender: return "sender";
  case victim::sender_with_child: return "sender with a child";
  case victim::receiver: return "one of three";
  case victim::member: return "one of a group";
  case victim::everybody: return "all";
  }
  return "?";
}

bool cell::stops() const { return trigger.signal == SIGSTOP; }

std::string cell::full_name() const {
  std::string text(who == victim::nobody ? "nothing" : transition());
  text.append(" | ").append(who == victim::nobody ? "-" : signal_name()).append(" | ").append(name(who));
  text.append(" | ").append(what->name).append(" | ").append(std::to_string(trigger.passing));
  return text;
}

void walk::add(passings const& sender, passings const& odd) {
  for (std::size_t i = 0; i < most_points; ++i) {
    by_sender[i] = std::max(by_sender[i], sender[i]);
    by_odd_one[i] = std::max(by_odd_one[i], odd[i]);
  }
}

std::vector<cell> cells_of(std::vector<walk> const& walks, places const& where) {
  std::vector<cell> all;
  for (std::size_t which = 0; which < points().size(); ++which) {
    for (auto const who :
         {victim::sender, victim::sender_with_child, victim::receiver, victim::member, victim::everybody}) {
      bool const is_sender = points()[which].starts_with("sender");
      if ((who == victim::sender || who == victim::sender_with_child) && !is_sender) continue;
      if ((who == victim::receiver || who == victim::member) && is_sender) continue;
      std::set<std::pair<std::string_view, bool>> ways;
      for (auto const& one : walks) {
        auto const passed = reached(one, which);
        if (one.group != (who == victim::member) || passed == 0) continue;
        // With the announcement, and after accept.
        bool const told_later =
            one.what->sends == scenario::sending::on_a_stream && points()[which].ends_with("read_mapped");
        if (!ways.insert({where.route(*one.what), told_later}).second) continue;
        for (std::uint32_t const passing : {1u, later_passing}) {
          if (passing > passed) continue;
          for (int const signal : {SIGKILL, SIGSTOP}) {
            cell next;
            next.what = one.what;
            next.who = who;
            next.trigger.process = is_sender ? the_sender : odd_one;
            next.trigger.point = static_cast<std::uint32_t>(which);
            next.trigger.passing = passing;
            next.trigger.signal = signal;
            next.trigger.leaves_child = who == victim::sender_with_child;
            next.trigger.everybody = who == victim::everybody;
            all.push_back(next);
          }
        }
      }
    }
  }
  return all;
}

std::string excuse(std::string const& point) {
  auto const about = message_of(point);
  bool const sender = point.starts_with("sender"), heard = point.find(": heard ") != point.npos;
  std::string text;
  for_each_message([&](message const& one) {
    if (name_of(one) != about) return;
    if (sender != heard && only_a_receiver_says(one)) text = "only a receiver says it";
    if (sender == heard && only_a_sender_says(one)) text = "only a sender says it";
  });
  if (!text.empty()) return text;
  for (auto const& one : excuses)
    if (one.what == point || one.what == about) return std::string(one.why);
  return {};
}

std::vector<std::string> gaps(std::vector<walk> const& walks) {
  std::vector<std::string> wrong;
  for (std::size_t which = 0; which < points().size(); ++which) {
    auto const& name = points()[which];
    auto const why = excuse(name);
    bool const here = reached(walks, which) != 0;
    if (!here && why.empty()) wrong.push_back("no scenario comes to the failpoint \"" + name + "\"");
    if (here && !why.empty()) wrong.push_back("a scenario comes to \"" + name + "\", although " + why);
  }
  for_each_message([&](message const& one) {
    bool said = false, excused = false;
    for (std::size_t which = 0; which < points().size(); ++which) {
      if (message_of(points()[which]) != name_of(one)) continue;
      said = said || reached(walks, which) != 0;
    }
    for (auto const& known : excuses) excused = excused || known.what == name_of(one);
    if (!said && !excused) wrong.push_back("no scenario has the message " + std::string(name_of(one)));
  });
  return wrong;
}

} // namespace ropeway::matrix
