#include "cli/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"

namespace ropeway::cli {

progress::progress(bool quiet) : quiet_(quiet), terminal_(!quiet && isatty(STDERR_FILENO) == 1) {}

progress::~progress() { clear(); }

void progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

void progress::line(std::string_view text) {
  if (quiet_) return;
  std::scoped_lock lock(mutex_);
  clear();
  std::fprintf(stderr, "%s\n", printable(text).c_str());
  std::fflush(stderr);
}

void progress::bar(std::string_view what, std::uint64_t done, std::uint64_t total) {
  if (!terminal_) return;
  std::scoped_lock lock(mutex_);
  auto const now = clock::now();
  if (what != what_) {
    what_ = what;
    began_ = now;
  } else if (now - last_draw_ < std::chrono::milliseconds(100)) {
    return;
  }
  last_draw_ = now;
  constexpr std::size_t cells = 30;
  double const part =
      total == 0 ? 1.0 : static_cast<double>(std::min(done, total)) / static_cast<double>(total);
  auto const full = static_cast<std::size_t>(part * cells);
  std::string const drawn = std::string(full, '=') + std::string(cells - full, ' ');
  std::string const text = printable(what) + " [" + drawn + "] " +
                           std::to_string(static_cast<int>(part * 100)) + " %  " + size_text(done) + " of " +
                           size_text(total) + "  " + rate_text(done, now - began_);
  std::fprintf(stderr, "\r%s\x1b[K", text.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void progress::end_bar() {
  std::scoped_lock lock(mutex_);
  clear();
  what_.clear();
}

void progress::receiver_joined(std::string_view name) { line("joined: " + std::string(name)); }

void progress::receiver_left(std::string_view name, std::string_view why) {
  line("left: " + std::string(name) + (why.empty() ? "" : ": ") + std::string(why));
}

void progress::update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t) {
  update_bytes_ = bytes;
  bar("version " + std::to_string(version), 0, bytes);
}

void progress::bucket_moved(std::uint64_t version, std::uint32_t, std::uint64_t bytes) {
  bar("version " + std::to_string(version), bytes, update_bytes_);
}

void progress::update_ended(std::uint64_t, bool) { end_bar(); }

} // namespace ropeway::cli
