#include "ropeway/status.hpp"

#include "ropeway/watch_status.hpp"

namespace ropeway {

std::string_view name(holding what) noexcept {
  switch (what) {
  case holding::nothing: return "nothing";
  case holding::committed: return "committed";
  case holding::loading: return "loading";
  case holding::torn: return "torn";
  }
  return "unknown";
}

std::string_view name(session_phase phase) noexcept {
  switch (phase) {
  case session_phase::closed: return "closed";
  case session_phase::connecting: return "connecting";
  case session_phase::idle: return "idle";
  case session_phase::offered: return "offered";
  case session_phase::loading: return "loading";
  case session_phase::committing: return "committing";
  }
  return "unknown";
}

std::string_view name(receiver_activity what) noexcept {
  switch (what) {
  case receiver_activity::idle: return "idle";
  case receiver_activity::late: return "late";
  case receiver_activity::deciding: return "deciding";
  case receiver_activity::loading: return "loading";
  case receiver_activity::waiting: return "waiting";
  case receiver_activity::committing: return "committing";
  }
  return "unknown";
}

} // namespace ropeway
