// Named places in the two cores where a test stops or kills its own process: every event that goes into a
// machine, and every action that comes out of one, before and after it was carried out. Part of ropeway;
// Apache-2.0.
//
// They are nothing at all unless ROPEWAY_FAILPOINTS is defined, which only the second build of this layer for
// tests/matrix does. Names of messages and actions are those of their structs, and every place that is
// compiled announces itself before main: a test can know of those that it never came to.
#pragma once
#include <cstddef>
#include <utility>

#if defined(ROPEWAY_FAILPOINTS)
#include <array>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "base/codec.hpp"
#include "protocol/messages.hpp"
#endif

namespace ropeway::session {

/// Whose core.
enum class side : bool { sender, receiver };

namespace failpoints {

template <std::size_t Size>
struct word {
  char text[Size];
  consteval word(char const (&from)[Size]) { // NOLINT: written as a literal
    for (std::size_t i = 0; i < Size; ++i) text[i] = from[i];
  }
};

#if defined(ROPEWAY_FAILPOINTS)
// The test defines these two.
std::size_t announce(std::string name);
void pass(std::size_t which);

inline std::string full_name(side who, std::string_view verb, std::string_view what) {
  return (who == side::sender ? "sender: " : "receiver: ") + std::string(verb) + " " + std::string(what);
}

template <side Who, word Verb, word What>
inline std::size_t const place = announce(full_name(Who, Verb.text, What.text));

template <side Who, word Verb, class Action>
inline std::size_t const action_place = announce(full_name(Who, Verb.text,
                                                           codec::detail::type_name<Action>()));

template <class... Messages>
std::array<std::size_t, sizeof...(Messages)> announce_all(side who, std::string_view verb,
                                                          std::variant<Messages...> const*) {
  return {announce(full_name(who, verb, codec::detail::type_name<Messages>()))...};
}
template <side Who, word Verb>
inline auto const message_places = announce_all(Who, Verb.text, static_cast<protocol::message*>(nullptr));
#endif

} // namespace failpoints

/// An event is about to go into the machine.
template <side Who, failpoints::word What>
void failpoint() {
#if defined(ROPEWAY_FAILPOINTS)
  failpoints::pass(failpoints::place<Who, "event", What>);
#endif
}

/// A message of the peer's is about to go into the machine.
template <side Who, class Message>
void failpoint_heard([[maybe_unused]] Message const& what) {
#if defined(ROPEWAY_FAILPOINTS)
  failpoints::pass(failpoints::message_places<Who, "heard">[what.index()]);
#endif
}

/// Carries an action of the machine's out.
template <side Who, class Action, class Act>
void between_failpoints(Action& action, Act const& act) {
#if defined(ROPEWAY_FAILPOINTS)
  if constexpr (requires { requires std::is_same_v<decltype(action.what), protocol::message>; }) {
    auto const which = action.what.index();
    failpoints::pass(failpoints::message_places<Who, "say">[which]);
    act(action);
    failpoints::pass(failpoints::message_places<Who, "said">[which]);
  } else {
    failpoints::pass(failpoints::action_place<Who, "do", Action>);
    act(action);
    failpoints::pass(failpoints::action_place<Who, "did", Action>);
  }
#else
  act(action);
#endif
}

} // namespace ropeway::session
