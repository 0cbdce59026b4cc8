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

std::string_view name(route way) noexcept {
  switch (way) {
  case route::mapped: return "mapped";
  case route::staged: return "staged";
  case route::host: return "host";
  }
  return "unknown";
}

std::optional<route_choice> parse_route_choice(std::string_view word) noexcept {
  for (auto const one :
       {route_choice::automatic, route_choice::mapped, route_choice::staged, route_choice::host})
    if (word == name(one)) return one;
  return std::nullopt;
}

std::string_view name(route_choice way) noexcept {
  switch (way) {
  case route_choice::automatic: return "automatic";
  case route_choice::mapped: return "mapped";
  case route_choice::staged: return "staged";
  case route_choice::host: return "host";
  }
  return "unknown";
}

std::string_view name(update_stage what) noexcept {
  switch (what) {
  case update_stage::announce: return "announce";
  case update_stage::decide: return "decide";
  case update_stage::map: return "map";
  case update_stage::source: return "source";
  case update_stage::pack: return "pack";
  case update_stage::relay: return "relay";
  case update_stage::publish: return "publish";
  case update_stage::wait: return "wait";
  case update_stage::load: return "load";
  case update_stage::digest: return "digest";
  case update_stage::commit: return "commit";
  }
  return "unknown";
}

std::size_t send_report::count(outcome what) const noexcept {
  return static_cast<std::size_t>(std::count_if(
      receivers.begin(), receivers.end(), [&](receiver_report const& one) { return one.what == what; }));
}

} // namespace ropeway
