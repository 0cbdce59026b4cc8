// The configurations, smallest first. Each is small in one direction so that it can be large in another.
#include "bounds.hpp"

namespace ropeway::explorer {
namespace {

std::vector<fault> every_fault() {
  std::vector<fault> all;
  for (std::size_t f = 0; f < fault_kinds; ++f) all.push_back(static_cast<fault>(f));
  return all;
}

receiver_wish member() {
  receiver_wish w;
  w.grouped = true;
  return w;
}
receiver_wish latecomer() {
  receiver_wish w;
  w.late = true;
  w.knows_layout = false;
  return w;
}
receiver_wish on_device() {
  receiver_wish w;
  w.on_device = true;
  return w;
}

bounds make(std::string name, std::vector<receiver_wish> receivers, std::vector<std::uint8_t> buckets,
            std::vector<fault> faults, std::uint8_t at_most) {
  bounds b;
  b.name = std::move(name);
  b.receivers = std::move(receivers);
  b.buckets = std::move(buckets);
  b.faults = std::move(faults);
  b.at_most = at_most;
  b.buckets.insert(b.buckets.begin(), 1); // the one that makes the rings
  return b;
}

bounds cold(bounds b) {
  b.ring_exists = false;
  b.buckets.erase(b.buckets.begin());
  return b;
}

} // namespace

std::vector<bounds> configurations(bool all) {
  using enum fault;
  receiver_wish const plain;
  receiver_wish stranger;
  stranger.knows_layout = false;
  std::vector<bounds> list;
  auto& add = list;
  {
    auto b = cold(make("first update", {stranger}, {3, 1}, every_fault(), 2));
    b.prompt = false;
    add.push_back(b);
  }
  {
    auto b = make("one", {plain}, {3, 1}, every_fault(), 2);
    b.prompt = false;
    add.push_back(b);
    b.name = "by hand";
    b.by_hand = true;
    add.push_back(b);
  }
  add.push_back(make("two", {plain, plain}, {2, 1}, {kill, receiver_cancels, sender_cancels}, 2));
  add.push_back(make("two sleepers", {plain, plain}, {2}, {kill, stop, receiver_cancels, sender_cancels}, 2));
  add.push_back(make("two, the sender", {plain, plain}, {2},
                     {sender_dies, sender_stops, sender_closes, time_jumps}, 1));
  add.push_back(make("group", {member(), member()}, {2, 1},
                     {kill, receiver_cancels, sender_cancels, refuse, load_fails}, 2));
  add.push_back(
      make("group asleep", {member(), member()}, {2}, {stop, kill, commit_fails, not_now, time_jumps}, 2));
  add.push_back(make("late", {plain, latecomer()}, {2, 1}, {kill, sender_cancels, receiver_closes}, 1));
  {
    auto b = make("relay", {plain, on_device()}, {2}, {kill, receiver_cancels, sender_cancels, stop}, 1);
    b.device_ring = true;
    add.push_back(b);
  }
  add.push_back(make("three", {plain, plain, plain}, {1}, {kill, receiver_cancels, sender_cancels}, 1));
  add.push_back(make("group and one", {member(), member(), plain}, {1}, {kill, receiver_cancels}, 1));
  (void)all;
  return list;
}

} // namespace ropeway::explorer
