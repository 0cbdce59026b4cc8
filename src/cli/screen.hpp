// What fits on a terminal, so that it can be drawn over again. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace ropeway::cli {

/// A terminal's size; 0 where it is not known, which is no limit.
struct screen_size {
  std::size_t columns = 0, rows = 0;
  bool operator==(screen_size const&) const = default;
};
/// Of the terminal that this descriptor leads to; zeros if it leads to none.
screen_size size_of(int terminal) noexcept;

/// The lines of `text`, of which each takes one row, and all together one less than there are: the cursor
/// stands below them. The last row tells how many were left out. A character that may be two columns wide
/// counts as two.
std::string fitted(std::string_view text, screen_size into);

} // namespace ropeway::cli
