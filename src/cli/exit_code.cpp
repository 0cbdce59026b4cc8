#include "cli/exit_code.hpp"

#include <cstdint>
#include <iostream>
#include <new>

namespace ropeway::cli {

exit_code to_exit_code(std::error_code const& error) noexcept {
  if (error.category() != ropeway_category()) return exit_code::system;
  switch (static_cast<errc>(error.value())) {
  case errc::ok: return exit_code::done;
  case errc::invalid_argument: return exit_code::usage;
  case errc::duplicate_name:
  case errc::source_failed:
  case errc::destination_mismatch:
  case errc::torn:
  case errc::digest_mismatch:
  case errc::bad_checkpoint:
  case errc::unsupported:
  case errc::overflow: return exit_code::data;
  case errc::too_few_receivers:
  case errc::peer_gone:
  case errc::peer_silent:
  case errc::peer_refused:
  case errc::peer_aborted:
  case errc::protocol_error:
  case errc::version_mismatch:
  case errc::unconfirmed:
  case errc::group_incomplete:
  case errc::digest_missing:
  case errc::connect_timeout:
  case errc::handshake_timeout:
  case errc::commit_timeout:
  case errc::loader_failed: return exit_code::peer;
  default: return exit_code::system;
  }
}

std::string printable(std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (char const c : text) {
    auto const byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
  }
  return out;
}

std::string own_words(transfer_error const& error) {
  std::string line = error.what();
  if (std::string const tail = ": " + error.code().message(); line.ends_with(tail))
    line.erase(line.size() - tail.size());
  return line.empty() ? error.code().message() : line;
}

verdict judge(std::exception_ptr const& error) {
  try {
    std::rethrow_exception(error);
  } catch (transfer_error const& e) {
    // This code's sentence speaks of a report; where the error has words of its own, they say it all.
    std::string line = e.code() == errc::too_few_receivers ? own_words(e) : e.what();
    if (!e.peer_words().empty() && line.find(e.peer_words()) == line.npos)
      line += " (the other side said: " + e.peer_words() + ")";
    return {to_exit_code(e.code()), printable(line)};
  } catch (std::system_error const& e) {
    return {to_exit_code(e.code()), printable(e.what())};
  } catch (std::bad_alloc const&) {
    return {exit_code::system, "out of memory: close other programs, or use a smaller checkpoint or bucket"};
  } catch (std::exception const& e) { return {exit_code::system, printable(e.what())}; } catch (...) {
    return {exit_code::system, "an unknown error"};
  }
}

ending carry_out(std::function<int()> const& run) {
  try {
    int const signal = run();
    if (signal == 0) return {};
    return {128 + signal, "interrupted by a signal"};
  } catch (...) {
    auto const failed = judge(std::current_exception());
    return {static_cast<int>(failed.code), failed.line};
  }
}

int say(ending const& how) {
  if (!how.error.empty()) std::cerr << "ropeway: " << how.error << std::endl;
  return how.status;
}

} // namespace ropeway::cli
