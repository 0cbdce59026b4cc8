// Any datagram: what is no message is refused in one line; what is one has exactly one encoding.
#include <type_traits>
#include <vector>

#include "base/codec.hpp"
#include "protocol/codec.hpp"
#include "protocol/text.hpp"
#include "targets.hpp"

namespace ropeway::fuzz {
namespace {

using namespace ropeway::protocol;

/// Later versions may append to it.
bool extensible(protocol::message const& m) {
  return std::visit([](auto const& what) { return codec::extensible<std::remove_cvref_t<decltype(what)>>; },
                    m);
}

bool is_one_line(std::string const& text) { return text.find_first_of("\r\n") == std::string::npos; }

/// What can't be sent can't be received either, and the other way round.
void check_limit(protocol::message const& m, bool allowed) {
  std::vector<std::byte> bytes;
  bool sent = true;
  try {
    encode(m, bytes);
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::overflow), "what is too long to send is an overflow");
    sent = false;
  }
  promise(sent == allowed, "limits are exact for who sends");
  std::vector<std::byte> raw;
  codec::encode(m, raw);
  std::string wrong;
  promise(decode(raw, wrong).has_value() == allowed, "limits are exact for who receives");
  promise(wrong.empty() == allowed && is_one_line(wrong), "a refusal has words");
  auto const line = print(m);
  promise(line.size() < 2500 && is_one_line(line), "however long a message is, it is shown in a short line");
}

/// The same message with its texts and lists as long as they may be, and one longer.
void check_limits(protocol::message const& m) {
  for (std::size_t const more : {0u, 1u}) {
    std::visit(
        [&](auto const& what) {
          if constexpr (requires { what.text; }) {
            auto longer = what;
            longer.text.assign(max_text + more, 'x');
            check_limit(longer, more == 0);
          } else if constexpr (requires { what.last_error; }) {
            auto longer = what;
            longer.last_error.assign(max_text + more, 'x');
            check_limit(longer, more == 0);
            longer = what;
            longer.name.assign(max_text + more, 'x');
            check_limit(longer, more == 0);
          } else if constexpr (requires { what.devices; }) {
            auto longer = what;
            longer.name.assign(max_name + more, 'x');
            check_limit(longer, more == 0);
            longer = what;
            longer.group.assign(max_name + more, 'x');
            check_limit(longer, more == 0);
            longer = what;
            longer.devices.resize(max_devices + more);
            check_limit(longer, more == 0);
            std::vector<std::byte> raw;
            codec::encode(protocol::message(what), raw);
            raw.resize(max_datagram + more);
            std::string wrong;
            promise(decode(raw, wrong).has_value() == (more == 0), "a hello may be longer, up to a datagram");
          }
        },
        m);
  }
}

/// What the codec itself says of bytes that are no such struct. (Of the whole variant only
/// src/protocol/codec.cpp knows what the codec needs to know.)
void check_words(std::span<std::byte const> bytes) {
  ring_refused m;
  auto const read = codec::decode(bytes, m, {.max_string = max_text, .max_elements = max_devices});
  promise(static_cast<bool>(read) == read.what().empty() && read.at() <= bytes.size(),
          "a fault is a sentence and a place");
  promise(read ? read.text() == "ok" : read.text().starts_with(read.what()), "its words begin with it");
  promise(read.member().empty() || read.text().find(read.member()) != std::string::npos,
          "and name the member");
}

/// Cut to at most `most` bytes, on one line, and otherwise the same.
void check_cut(std::string const& text, std::size_t most) {
  auto const shown = one_line(text, most);
  promise(shown.size() <= most && shown.size() <= text.size() && is_one_line(shown),
          "text is cut and on one line");
  auto const goes_on = [&](std::size_t i) { return (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80; };
  auto const end = shown.size();
  promise(end == text.size() || text.size() > most, "what is short enough is whole");
  promise(end == text.size() || end == 0 || !goes_on(end), "text is cut between two characters");
  for (std::size_t i = end + 1; i <= most && i < text.size(); ++i)
    promise(goes_on(i), "and no shorter than need be");
  for (std::size_t i = 0; i < shown.size(); ++i) {
    auto const was = static_cast<unsigned char>(text[i]);
    promise(shown[i] == (was < 0x20 || was == 0x7f ? ' ' : text[i]), "only what controls is replaced");
  }
}

/// There is nothing between messages: one byte less or more is another message, or none.
void check_neighbours(protocol::message const& m, std::vector<std::byte> bytes) {
  bool const may_be_longer = extensible(m);
  std::string wrong;
  bytes.push_back(bytes.back());
  promise(decode(bytes, wrong).has_value() == may_be_longer,
          "bytes left over are refused, but for first words");
  bytes.resize(bytes.size() - 2);
  promise(!decode(bytes, wrong), "a message that ends early is refused");
}

} // namespace

void message(input in) {
  static std::uint64_t const schema = schema_hash();
  promise(schema == schema_hash() && schema != 0, "the messages have one hash");
  auto const bytes = std::as_bytes(in);
  if (!bytes.empty()) check_words(bytes.subspan(1));
  std::string wrong;
  auto const m = decode(bytes, wrong);
  promise(m.has_value() == wrong.empty(), "a datagram is a message, or there are words why not");
  promise(is_one_line(wrong), "a refusal is one line");
  if (!m) return;

  std::vector<std::byte> again;
  encode(*m, again);
  bool const may_be_longer = extensible(*m);
  promise(again.size() == bytes.size() || (may_be_longer && again.size() < bytes.size()),
          "an encoding is as long as what was read");
  promise(std::equal(again.begin(), again.end(), bytes.begin()), "there is one encoding of a message");
  auto const twice = decode(again, wrong);
  promise(twice && codec::described_equal(*m, *twice), "what is encoded reads as the same");
  auto const line = print(*m);
  promise(line == print(*twice) && is_one_line(line), "it prints the same, on one line");
  promise(line.substr(0, line.find('{')) == name_of(*m), "a message knows its name");
  promise(expected_fds(*m) <= 1, "no message has more than one descriptor");
  check_neighbours(*m, again);
  std::visit(
      [&](auto const& what) {
        if constexpr (requires { what.text; })
          for (std::size_t const most : {std::size_t{8}, bytes.size() % 7, what.text.size()})
            check_cut(what.text, most);
      },
      *m);
  // Long texts are slow, so they are not tried with each input.
  if (bytes.size() % 16 == 1) check_limits(*m);
}

} // namespace ropeway::fuzz
