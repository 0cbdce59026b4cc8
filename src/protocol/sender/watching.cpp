// Who takes no part and only wants to know. A watcher is never greeted: no update sees it.
#include <algorithm>

#include "protocol/sender/state.hpp"
#include "ropeway/watch_status.hpp"

namespace ropeway::protocol {
namespace {

/// An answer has one for each receiver, and must fit into what may wait for a peer.
constexpr std::size_t longest_error = 1024;

std::uint64_t in_ns(duration d) {
  return static_cast<std::uint64_t>(
      std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(d).count()));
}

} // namespace

void sender_machine::impl::answer(peer_id id, watch const& what) {
  peer& p = peers.at(id);
  if (!speaks_as_we_do(id, "watch", "watcher", what.magic, what.oldest, what.newest, what.schema)) return;
  if (!p.watches && watching() >= max_watchers)
    return turn_away(id, errc::busy,
                     words("the sender has its limit of ", max_watchers, " watchers; try again later"));
  p.watches = true;
  if (!p.idle.spend(now, settings.silence))
    return violated(id, words("watch and no end: ", max_idle_messages, " questions in a row"));
  seen_sender whole;
  whole.sender = settings.instance;
  for (auto const& [other, state] : peers) {
    if (!state.greeted) continue;
    say(id, look_at(other, state));
    ++whole.receivers;
  }
  if (running) {
    whole.updating = 1;
    whole.version = running->facts.version;
    whole.total_bytes = running->facts.total_bytes;
    whole.tensors = running->facts.tensors;
    whole.buckets = running->buckets();
    whole.packed = running->packed;
    whole.running_ns = in_ns(now - running->began);
  }
  if (last_digest) {
    whole.has_digest = 1;
    whole.digest_version = last_digest->version;
    whole.digest = last_digest->what;
  }
  say(id, whole);
}

seen_receiver sender_machine::impl::look_at(peer_id id, peer const& p) const {
  seen_receiver seen;
  seen.name = p.name;
  seen.holds_version = p.holds_version ? 1 : 0;
  seen.version = p.holds_version ? p.version_held : 0;
  seen.last_bytes = p.last_bytes;
  seen.last_ns = in_ns(p.last_took);
  seen.has_digest = p.holds_version && p.digest ? 1 : 0;
  seen.digest = p.holds_version ? p.digest.value_or(bytes16{}) : bytes16{};
  seen.last_error = one_line(p.last_error, longest_error);
  auto doing = p.owes == debt::none ? receiver_activity::idle : receiver_activity::late;
  if (running) {
    auto const& all = running->participants;
    auto const part =
        std::find_if(all.begin(), all.end(), [&](auto const& one) { return one.result.peer == id; });
    if (part != all.end()) {
      // Nearly: what the last bucket has less, and what others lose to alignment, is not worth a sum.
      seen.bytes_released =
          std::min(running->facts.total_bytes, std::uint64_t(part->released) * settings.bucket_bytes);
      switch (part->at) {
      case stage::owing: doing = receiver_activity::late; break;
      case stage::preparing:
      case stage::deciding: doing = receiver_activity::deciding; break;
      case stage::loading:
      case stage::revoking: doing = receiver_activity::loading; break;
      case stage::all_copied: doing = receiver_activity::waiting; break;
      case stage::committing: doing = receiver_activity::committing; break;
      case stage::over: break;
      }
    }
  }
  seen.doing = static_cast<std::uint8_t>(doing);
  return seen;
}

} // namespace ropeway::protocol
