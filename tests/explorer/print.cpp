// Steps in words.
#include "state.hpp"

namespace ropeway::explorer {

std::string world::print(step const& s) const {
  std::string const r = "r" + std::to_string(s.who + 1);
  auto const first = [](socket const& from) {
    return from.empty() ? std::string() : protocol::print(from.front());
  };
  switch (s.what) {
  case kind::sender_hears: return "the sender hears from " + r + ": " + first(*to_sender_[s.who]);
  case kind::sender_sees_end: return "the sender sees that " + r + " has gone";
  case kind::ring_made: return "the sender's ring " + std::to_string(s.arg) + " is made";
  case kind::packed: return "the sender's oldest pack finishes";
  case kind::relayed: return "the sender's oldest relay finishes";
  case kind::pack_forgotten: return "the sender's newest pack is forgotten";
  case kind::relay_forgotten: return "the sender's newest relay is forgotten";
  case kind::source_readied: return "the sender's tensors are ready";
  case kind::digested: return "the sender has computed its digests";
  case kind::held_delivered: return "the sender begins to deliver what is held";
  case kind::parts_sent: return "the sender has exported what " + r + " asked for";
  case kind::sender_drained: return "the sender's copies are drained";
  case kind::sender_ticks: return "the sender looks at its clock";
  case kind::receiver_hears: return r + " hears: " + first(*to_receiver_[s.who]);
  case kind::receiver_sees_end: return r + " sees that the sender has gone";
  case kind::ring_mapped: return r + " has mapped ring " + std::to_string(s.arg);
  case kind::looked_up: return r + " has looked the layout up";
  case kind::manifest_read: return r + " has read the manifest";
  case kind::placement_looked_up: return r + " has looked the placement up";
  case kind::placement_read: return r + " has read the placement";
  case kind::segment_asked: return r + " wants to map the tensors";
  case kind::segment_mapped: return r + " has mapped the tensors";
  case kind::accepted: {
    constexpr char const* how[] = {"", ", to take buckets by hand", ", to read the tensors",
                                   ", but can't map the tensors"};
    return r + " accepts" + how[s.arg];
  }
  case kind::loaded:
    return r + " has loaded bucket " + std::to_string(receivers_[s.who]->reads.at(s.arg).bucket);
  case kind::source_read: return r + " has read the tensors";
  case kind::heard_all: return r + " has looked whether the update was given up";
  case kind::compared: return r + " has compared digests";
  case kind::unmapped: return r + " has unmapped what the sender wants back";
  case kind::placed: return r + " has all in place";
  case kind::committed: return r + " has committed";
  case kind::receiver_drained: return r + " has drained its copies";
  case kind::receiver_ticks: return r + " looks at its clock";
  case kind::begin: return "an update begins";
  case kind::hold: return "the version that was sent last is held";
  case kind::hold_ends: return "nothing is held any more";
  case kind::gives_way: return "the delivery of what is held gives way";
  case kind::retire: return "the sender's tensors lie elsewhere from now on";
  case kind::join: return r + " connects";
  case kind::receiver_continues: return r + " continues";
  case kind::sender_continues: return "the sender continues";
  case kind::time_passes: return "time passes to the next limit";
  case kind::fault: break;
  }
  auto const what = static_cast<fault>(s.arg);
  std::string line = "FAULT " + std::string(name(what));
  if (what == fault::time_jumps) return line + " by " + std::to_string(s.more) + " s";
  if (what < fault::sender_cancels && what != fault::ring_fails) line += " at " + r;
  return line;
}

} // namespace ropeway::explorer
