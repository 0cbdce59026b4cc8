// The processes of a cell: a sender or a receiver that does what it is told, word by word, and says how it
// went. Part of ropeway; Apache-2.0.
//
// A sender hears         and answers
//   open                   listening
//   peers                  peers NAME...
//   send VERSION           sent ERROR NAME=OUTCOME/ERROR...
//   close                  closed
// A receiver hears
//   connect                connected, already, or error ERROR
//   take                   taking, at once; and then committed VERSION, refused, put off, ended, stopped
//   waiting, wrong WORDS, or error ERROR torn|whole unmapped               unmapped once no memory of a
//   sender's is mapped any more, or mapped LINES close                  closed
// Both hear "end", close, and answer clean, or left WORDS.
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
  /// Of silence and handshake; and the longer ones, of decisions, commits and connects.
  std::chrono::milliseconds silence{}, longer{};
  bool is_sender() const { return number % reborn == the_sender; }
  bool is_odd() const { return number == odd_one; }
  bool first_life() const { return number < reborn; }
  std::uint32_t receivers() const { return group ? 4 : 3; }
};

/// Runs in a process of its own until it hears "end"; the exit status.
int play(part const& which, board& shared, unique_fd line);

/// How many of this device there are; asks the driver, so only in a process of its own.
bool exists(device where);

} // namespace ropeway::matrix
