// What the program's exit status means, and which error leads to which. Part of ropeway; Apache-2.0.
#pragma once
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>

#include "ropeway/error.hpp"

namespace ropeway::cli {

/// A signal ends the program with 128 and its number: 130 for an interrupt, 143 for a request to terminate.
enum class exit_code : int {
  done = 0,
  usage = 2,  ///< the command line makes no sense
  peer = 3,   ///< the other side is missing, refused, died or fell silent
  data = 4,   ///< a checkpoint, or what was asked of its tensors, is wrong
  system = 5, ///< a file, a socket, a device or memory
};

exit_code to_exit_code(std::error_code const& error) noexcept;

/// What the error says itself, without the sentence of its code at the end. (All of it, where it says
/// nothing.)
std::string own_words(transfer_error const& error);

/// The status and the one line for whatever was thrown.
struct verdict {
  exit_code code = exit_code::system;
  std::string line;
};
verdict judge(std::exception_ptr const& error);

/// How a run of a command ended: the exit status, and the one line if something went wrong.
struct ending {
  int status = 0;
  std::string error;
};
/// Runs what gives 0 or the number of the signal that ended it, or throws.
ending carry_out(std::function<int()> const& run);
/// Says the line, if there is one, on standard error, and gives the status.
int say(ending const& how);

/// The text with everything that could disturb a terminal or break the line replaced: what a peer or a file
/// said.
std::string printable(std::string_view text);

} // namespace ropeway::cli
