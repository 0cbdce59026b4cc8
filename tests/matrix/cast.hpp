// The processes of the cells: a sender or a receiver that does what it is told, word by word, and says how it
// went. Part of ropeway; Apache-2.0.
//
// A process says "ready" when it has all that is slow to come by, a device's memory above all. Then it plays
// one part after the other, as long as nobody kills it: it hears "play" and the part, and answers made. A
// sender hears
//                        and answers
//   open                   listening
//   peers                  peers NAME...
//   send VERSION           sent ERROR NAME=OUTCOME/ERROR...
//   close                  closed
// A receiver hears
//   connect                connected, already, or error ERROR
//   take                   taking, at once; and then committed VERSION, refused, put off, ended, stopped
//   waiting, wrong WORDS, or error ERROR torn|whole unmapped               unmapped once no memory of a
//   sender's is mapped any more, or mapped LINES close                  closed
// Both hear "end", close, and answer clean, or left WORDS: what they have now and had not before the part. In
// the end a process hears "leave".
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include "base/unique_fd.hpp"
#include "board.hpp"
#include "scenario.hpp"

namespace ropeway::matrix {

struct part {
  std::uint32_t number = 0; ///< on the board
  std::string name, path;
  scenario const* what = nullptr;
  bool group = false;
  places where;
  /// Of silence and handshake; the longer ones, of commits and connects; and that of decisions.
  std::chrono::milliseconds silence{}, longer{}, decide{};
  bool is_sender() const { return number % reborn == the_sender; }
  bool is_odd() const { return number == odd_one; }
  bool first_life() const { return number < reborn; }
  std::uint32_t receivers() const { return group ? 4 : 3; }
  device at() const { return is_sender() ? where.sender : where.receivers; }
};
/// As a word for a process, without `where`, which it knows.
std::string to_word(part const& which);

/// Runs in a process of its own, which keeps memory of that device, until it hears "leave"; the exit status.
int stay(device at, places const& where, board& shared, unique_fd line);

/// How many of this device there are; asks the driver, so only in a process of its own.
bool exists(device where);

} // namespace ropeway::matrix
