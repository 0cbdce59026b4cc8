#include "ropeway/report.hpp"

#include <algorithm>

namespace ropeway {

std::string_view name(outcome what) noexcept {
  switch (what) {
  case outcome::committed: return "committed";
  case outcome::refused: return "refused";
  case outcome::skipped: return "skipped";
  case outcome::failed: return "failed";
  case outcome::dropped: return "dropped";
  case outcome::unconfirmed: return "unconfirmed";
  }
  return "unknown";
}

std::string_view name(route way) noexcept { return way == route::staged ? "staged" : "host"; }

std::size_t send_report::count(outcome what) const noexcept {
  return static_cast<std::size_t>(std::count_if(
      receivers.begin(), receivers.end(), [&](receiver_report const& one) { return one.what == what; }));
}

} // namespace ropeway
