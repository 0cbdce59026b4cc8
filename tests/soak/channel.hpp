// What the conductor of a soak and its processes say to each other: fixed structs, one a datagram.
// Part of ropeway; Apache-2.0.
#pragma once
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <system_error>

#include "sample.hpp"

namespace ropeway::soak {

/// Text of a bounded length inside a datagram.
template <std::size_t Size>
struct words {
  std::array<char, Size> bytes{};
  words& operator=(std::string_view text) {
    bytes.fill(0);
    std::memcpy(bytes.data(), text.data(), std::min(text.size(), Size - 1));
    return *this;
  }
  std::string_view view() const { return {bytes.data(), strnlen(bytes.data(), Size)}; }
};

enum class verb : std::uint8_t {
  open,    ///< sender: listen, with this ring
  who,     ///< sender: who is connected, once `count` are or the limit has passed
  send,    ///< sender: this update
  arm,     ///< receiver: what to do with the next update
  connect, ///< receiver: for the first time
  over,    ///< receiver: the update is over at the sender; what came of it?
  sample,
  close, ///< sender: gracefully; `open` may follow. Receiver: gracefully, and end.
  quit,  ///< sender: close, and end
};

/// How a sender gives an update's tensors.
enum class way : std::uint8_t { views, prepared, started, source, writer, count };
/// Which of them lie in memory that receivers can map.
enum class sharing : std::uint8_t { none, partly, all, count };
/// Where a receiver puts them.
enum class style : std::uint8_t { whole, boxes, shard, subset, buckets, count };
/// What goes wrong, or is decided.
enum class fault : std::uint8_t {
  none,
  refuse,  ///< receiver
  not_now, ///< receiver
  loader,  ///< receiver: its loader throws at `bucket`
  drop,    ///< receiver: the update object is destroyed there
  source,  ///< sender: its source or writer throws at tensor or bucket `bucket`
  cancel,  ///< either: timer || operation
  leave,   ///< receiver: closes while the update runs, and ends
  kill,    ///< either
  nap,     ///< receiver: stopped, and continued at once
  stall,   ///< either: stopped for longer than the silence limit
  count,
};
/// When a kill, nap or stall comes; if that moment never comes, at the end of the update.
enum class moment : std::uint8_t { announced, bucket, timer, committing, count };

struct order {
  verb what = verb::sample;
  std::uint32_t update = 0;
  std::uint64_t version = 0;
  std::uint64_t layout = 0;
  bool partial = false; ///< the update leaves tensors out
  way how = way::views;
  sharing shared = sharing::none;
  bool moves = false;   ///< the tensors lie elsewhere in their memory than in the update before
  bool release = false; ///< afterwards the sender wants its memory back
  style into = style::whole;
  fault goes_wrong = fault::none;
  moment when = moment::announced;
  std::uint32_t bucket = 0, micros = 0;
  std::uint32_t keep = 0;  ///< buckets: how many to hold while asking for the next
  std::uint32_t count = 0; ///< who
  std::uint64_t bucket_bytes = 0;
  std::uint32_t slots = 0, silence_ms = 0;
};

enum class tell : std::uint8_t {
  ready, ///< the process is there
  opened,
  who,
  report,
  armed,
  connected,
  lost, ///< the session has ended: `code` 0 if gracefully
  came, ///< receiver: what came of the update
  sample,
  closed,
  broken, ///< something is wrong that must not be: ends the soak
  no_device,
};

struct peer_line {
  words<24> name;
  std::uint8_t what = 0; ///< ropeway::outcome
  std::uint8_t way = 0;  ///< ropeway::route
  bool holds = false;
  std::uint64_t version = 0;
  words<160> text;
};

struct answer {
  tell what = tell::ready;
  std::uint32_t update = 0;
  bool seen = false;      ///< came: it was offered the update
  bool committed = false; ///< came: the load said so
  bool exact = false;     ///< came: every byte that is not torn is what it must be
  bool threw = false;     ///< report: the source did
  std::int32_t code = 0;
  words<16> category;
  words<400> text;
  std::uint64_t bytes = 0; ///< report: sent. came: compared
  std::uint32_t buckets = 0;
  figures sample;
  std::uint32_t peers = 0;
  std::array<peer_line, 16> lines{};
};

/// Says it, or throws (the other process is gone).
template <class Message>
void say(int socket, Message const& what) {
  if (::send(socket, &what, sizeof what, MSG_NOSIGNAL) != sizeof what)
    throw std::system_error(errno, std::generic_category(), "saying something on the control channel");
}
/// The next message if there is one: 1; -1 if not; 0 if the other process is gone.
template <class Message>
int hear(int socket, Message& what) {
  ssize_t const got = ::recv(socket, &what, sizeof what, MSG_DONTWAIT);
  if (got == sizeof what) return 1;
  if (got == 0 || (got < 0 && errno == ECONNRESET)) return 0;
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return -1;
  throw std::system_error(errno, std::generic_category(), "hearing something on the control channel");
}

} // namespace ropeway::soak
