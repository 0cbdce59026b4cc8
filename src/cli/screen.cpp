#include "cli/screen.hpp"

#include <sys/ioctl.h>

#include <algorithm>

namespace ropeway::cli {
namespace {

/// Of UTF-8: how much of `line` fits.
std::string_view cut(std::string_view line, std::size_t columns) {
  if (columns == 0) return line;
  std::size_t used = 0;
  for (std::size_t at = 0; at < line.size(); ++at) {
    auto const byte = static_cast<unsigned char>(line[at]);
    if ((byte & 0xc0) == 0x80) continue; // continues the character before
    // From U+1000 on, where three bytes begin with more than 0xe0, there are wide ones.
    used += byte > 0xe0 ? 2 : 1;
    if (used > columns) return line.substr(0, at);
  }
  return line;
}

} // namespace

screen_size size_of(int terminal) noexcept {
  winsize size{};
  if (::ioctl(terminal, TIOCGWINSZ, &size) != 0) return {};
  return {size.ws_col, size.ws_row};
}

std::string fitted(std::string_view text, screen_size into) {
  auto const lines = static_cast<std::size_t>(std::ranges::count(text, '\n'));
  // A terminal of one row has no room for both a line and the cursor.
  auto const room = into.rows == 0 ? lines : std::max<std::size_t>(into.rows, 2) - 1;
  auto const shown = lines <= room ? lines : room - 1;
  std::string out;
  for (std::size_t i = 0; i < shown; ++i) {
    auto const end = text.find('\n');
    out.append(cut(text.substr(0, end), into.columns)) += '\n';
    text.remove_prefix(end + 1);
  }
  if (shown < lines)
    out.append(cut("and " + std::to_string(lines - shown) + " more line(s)", into.columns)) += '\n';
  return out;
}

} // namespace ropeway::cli
