// The configurations. Each is small in one direction so that it can be large in another.
#include "bounds.hpp"

namespace ropeway::explorer {
namespace {

std::vector<fault> every_fault() {
  std::vector<fault> all;
  for (std::size_t f = 0; f < fault_kinds; ++f) all.push_back(static_cast<fault>(f));
  return all;
}

/// How many faults at most, by effort; where it is less than nothing, the configuration is left out.
struct amount {
  int brief, normal, thorough;
  int of(effort how) const {
    return how == effort::brief ? brief : how == effort::normal ? normal : thorough;
  }
};

class collector {
 public:
  explicit collector(effort how) : how_(how) {}
  void add(bounds b, amount faults) {
    if (faults.of(how_) < 0) return;
    b.at_most = static_cast<std::uint8_t>(faults.of(how_));
    if (b.ring_exists) b.buckets.insert(b.buckets.begin(), 1); // the update that makes the rings
    all.push_back(std::move(b));
  }
  std::vector<bounds> all;

 private:
  effort how_;
};

bounds make(std::string name, std::vector<receiver_wish> receivers, std::vector<std::uint8_t> buckets,
            std::vector<fault> faults) {
  bounds b;
  b.name = std::move(name);
  b.receivers = std::move(receivers);
  b.buckets = std::move(buckets);
  b.faults = std::move(faults);
  return b;
}

} // namespace

std::vector<bounds> configurations(effort how) {
  using enum fault;
  receiver_wish const plain;
  receiver_wish stranger;
  stranger.knows_layout = false;
  receiver_wish device = plain;
  device.on_device = true;
  receiver_wish member = plain;
  member.grouped = true;
  receiver_wish latecomer = stranger;
  latecomer.late = true;
  receiver_wish late_member = latecomer;
  late_member.grouped = true;
  receiver_wish late_device = latecomer;
  late_device.on_device = true;
  receiver_wish mapper = plain;
  mapper.maps = true;
  receiver_wish mapping_member = member;
  mapping_member.maps = true;
  receiver_wish mapping_latecomer = latecomer;
  mapping_latecomer.maps = true;
  std::vector<fault> const cuts{kill, receiver_cancels, sender_cancels};
  std::vector<fault> const sleep_and_cuts{stop, kill, receiver_cancels, sender_cancels};
  auto not_of_time = every_fault();
  std::erase(not_of_time, time_jumps);
  std::erase(not_of_time, sender_stops);
  collector list(how);

  {
    auto b = make("one receiver, from the first update on, every fault", {stranger}, {3, 1}, every_fault());
    b.ring_exists = b.prompt = false;
    list.add(b, {1, 1, 3});
    b.name = "one receiver of a device's ring, from the first update on, every fault";
    b.receivers = {device};
    b.buckets = {2, 1};
    b.device_ring = true;
    list.add(b, {1, 1, 3});
    b = make("one receiver, every fault", {plain}, {3, 1}, every_fault());
    b.prompt = false;
    list.add(b, {1, 2, 3});
    b = make("one receiver through the host ring, every fault", {plain}, {3, 1}, every_fault());
    b.prompt = false;
    b.device_ring = true;
    list.add(b, {1, 1, 3});
    b = make("one receiver that takes buckets by hand, every fault", {plain}, {3, 1}, every_fault());
    b.prompt = false;
    b.by_hand = true;
    list.add(b, {1, 1, 3});
    b = make("one receiver, one slot, every fault", {plain}, {3, 1}, every_fault());
    b.prompt = false;
    b.slots = 1;
    list.add(b, {-1, 2, 3});
    b.name = "one receiver, three slots, every fault";
    b.slots = 3;
    b.buckets = {4, 1};
    list.add(b, {-1, 1, 2});
  }
  list.add(make("two receivers, death and cancel", {plain, plain}, {2, 1}, cuts), {1, 2, 3});
  list.add(make("two receivers, 3 buckets, death and cancel", {plain, plain}, {3, 1}, cuts), {-1, 1, 3});
  list.add(make("two receivers, one of them may sleep", {plain, plain}, {2},
                {stop, kill, sender_cancels, load_fails}),
           {1, 2, 3});
  list.add(make("two receivers, two updates, one receiver may sleep", {plain, plain}, {1, 1},
                {stop, kill, sender_cancels}),
           {-1, 2, 3});
  list.add(make("two receivers, the sender dies, sleeps or closes", {plain, plain}, {2},
                {sender_dies, sender_stops, sender_closes, kill}),
           {-1, 1, 2});
  list.add(make("two receivers, every fault", {plain, plain}, {2, 1}, every_fault()), {-1, -1, 1});
  // Without those of them that keep receivers from being interchangeable.
  list.add(make("two receivers, every fault but the sender's sleep", {plain, plain}, {2}, not_of_time),
           {-1, 1, 2});
  list.add(make("a group of two, refusal, failure, death, cancel", {member, member}, {2, 1},
                {refuse, load_fails, commit_fails, kill, receiver_cancels, sender_cancels}),
           {1, 2, 3});
  list.add(make("a group of two, sleep and time", {member, member}, {2}, {stop, kill, not_now, time_jumps}),
           {-1, 1, 2});
  list.add(make("a group of two, two updates, sleep and cancel", {member, member}, {1, 1},
                {stop, sender_cancels, receiver_cancels}),
           {-1, 1, 3});
  list.add(make("a group of two, every fault but the sender's sleep", {member, member}, {2}, not_of_time),
           {-1, -1, 2});
  list.add(make("a group of two, one of them late, 2 updates", {member, late_member}, {1, 1}, cuts),
           {-1, 1, 2});
  list.add(make("a receiver and a late one, 2 updates", {plain, latecomer}, {2, 1},
                {kill, sender_cancels, receiver_closes}),
           {0, 1, 2});
  {
    auto b = make("one receiver on the device, one through the host ring", {device, plain}, {2, 1},
                  {kill, receiver_cancels, sender_cancels, load_fails});
    b.device_ring = true;
    list.add(b, {0, 1, 2});
    b = make("one receiver on the device and a late one, from the first update on", {device, late_device},
             {1, 1}, {ring_refused, ring_fails, refuse, kill});
    b.device_ring = true;
    b.ring_exists = false;
    list.add(b, {-1, 1, 2});
  }
  list.add(make("three receivers, sleep, death and cancel", {plain, plain, plain}, {2, 1}, sleep_and_cuts),
           {0, 1, 1});
  list.add(make("three receivers, death and cancel", {plain, plain, plain}, {2, 1}, cuts), {-1, -1, 2});
  list.add(make("three receivers, 1 bucket, sleep, death and cancel together", {plain, plain, plain}, {1},
                sleep_and_cuts),
           {-1, 2, 3});
  list.add(
      make("a group of three", {member, member, member}, {1}, {kill, refuse, load_fails, receiver_cancels}),
      {0, 1, 2});
  list.add(make("a group of three, sleep, death and cancel", {member, member, member}, {1}, sleep_and_cuts),
           {0, 1, 2});
  list.add(make("a receiver and a late one, sleep, death and cancel together", {plain, latecomer}, {1},
                sleep_and_cuts),
           {0, 2, 4});
  list.add(make("two receivers and a late one, sleep, death and cancel", {plain, plain, latecomer}, {1, 1},
                sleep_and_cuts),
           {-1, 1, 1});
  list.add(make("two receivers and a late one, sleep, death and cancel together", {plain, plain, latecomer},
                {1}, sleep_and_cuts),
           {-1, -1, 2});
  list.add(make("a group of two and a late receiver, sleep, death and cancel", {member, member, latecomer},
                {1}, sleep_and_cuts),
           {-1, 1, 2});
  list.add(make("a group of two, one of them late, sleep, death and cancel", {member, late_member}, {1},
                sleep_and_cuts),
           {0, 1, 2});
  list.add(make("two receivers and a late one, 2 buckets, sleep, death and cancel", {plain, plain, latecomer},
                {2, 1}, sleep_and_cuts),
           {-1, -1, 1});
  list.add(make("a group of three, one of them late, sleep, death and cancel", {member, member, late_member},
                {1}, sleep_and_cuts),
           {-1, -1, 1});
  list.add(make("a group of two and one alone", {member, member, plain}, {2}, cuts), {-1, 1, 1});
  {
    auto b = make("a group of two and one more who may replace a member", {member, member, late_member},
                  {1, 1}, cuts);
    b.group_size = 2;
    list.add(b, {-1, 1, 2});
    b = make("two receivers, both may die, sleep or cancel", {plain, plain}, {2},
             {kill, stop, receiver_cancels, load_fails});
    b.kind_most = 2;
    list.add(b, {-1, 1, 2});
    b.name = "a group of two, both may die, sleep or cancel";
    b.receivers = {member, member};
    list.add(b, {-1, 1, 2});
    b = make("two receivers, one slot, death and cancel", {plain, plain}, {2, 1}, cuts);
    b.slots = 1;
    list.add(b, {-1, 1, 3});
    b = make("two receivers, updates without buckets", {plain, plain}, {0, 1, 0},
             {kill, receiver_cancels, stop, refuse});
    list.add(b, {0, 1, 2});
    b.name = "a group of two by hand, updates without buckets";
    b.receivers = {member, member};
    b.buckets = {0, 1};
    b.by_hand = true;
    list.add(b, {0, 1, 2});
  }
  {
    auto b = make("one receiver that maps, every fault", {mapper}, {2, 1}, every_fault());
    b.prompt = false;
    b.parts = 2;
    b.needed = 2;
    b.retires = 1;
    list.add(b, {1, 1, 2});
    b.name = "one receiver that maps, from the first update on, every fault";
    b.ring_exists = false;
    b.needed = 1;
    list.add(b, {-1, 1, 2});
    b = make("a receiver that maps, on the mapped route alone", {mapper}, {2, 1}, every_fault());
    b.parts = 1;
    b.only_mapped = true;
    b.retires = 1;
    list.add(b, {-1, 1, 3});
    b = make("two receivers that map, death, cancel and no mapping", {mapper, mapper}, {1, 1},
             {kill, receiver_cancels, sender_cancels, import_fails});
    b.parts = 1;
    list.add(b, {0, 1, 2});
    b = make("two receivers that map, one may sleep, and need a bucket", {mapper, mapper}, {2},
             {stop, kill, load_fails, sender_cancels});
    b.parts = 1;
    b.needed = 1;
    list.add(b, {-1, 1, 2});
    b = make("a receiver that maps and one that does not", {mapper, plain}, {2},
             {kill, receiver_cancels, sender_cancels, import_fails, export_fails, ring_fails});
    b.parts = 2;
    b.needed = 2;
    list.add(b, {0, 1, 2});
    b.name = "a receiver that maps and one by a device's ring, from the first update on";
    b.ring_exists = false;
    b.device_ring = true;
    list.add(b, {-1, 1, 2});
    b = make("a group of two that maps", {mapping_member, mapping_member}, {1, 1},
             {refuse, kill, load_fails, receiver_cancels, sender_cancels, commit_fails});
    b.parts = 1;
    list.add(b, {0, 1, 2});
    b.name = "a group of which one maps, sleep and time";
    b.receivers = {mapping_member, member};
    b.buckets = {1};
    b.faults = {stop, not_now, time_jumps, import_fails};
    list.add(b, {-1, 1, 2});
    b = make("a receiver that maps and a late one, 2 updates, memory that moves", {mapper, mapping_latecomer},
             {1, 1}, {kill, sender_cancels});
    b.parts = 1;
    b.retires = 1;
    list.add(b, {-1, 0, 1});
    b = make("a receiver that maps and is told to read at once, every fault", {mapper}, {2, 1},
             every_fault());
    b.prompt = false;
    b.parts = 1;
    b.retires = 1;
    b.ready = true;
    list.add(b, {1, 1, 2});
    b.name = "a receiver that maps, tensors that are ready, of some updates in part";
    b.needed = 2; // of those with a second bucket
    list.add(b, {1, 1, 2});
    b.name = "a receiver that maps and is told to read at once, on the mapped route alone";
    b.needed = 0;
    b.prompt = b.only_mapped = true;
    list.add(b, {-1, 1, 3});
    b = make("two receivers that map, one of them told to read at once, the other with its group",
             {mapper, mapping_member}, {1, 1}, {refuse, kill, stop, receiver_cancels, sender_cancels});
    b.parts = 1;
    b.ready = true;
    list.add(b, {0, 1, 2});
    b = make("a receiver that maps and one that does not, tensors that are ready", {mapper, plain}, {2},
             {kill, not_now, sender_cancels, import_fails, ring_fails, time_jumps});
    b.parts = 1;
    b.ready = true;
    list.add(b, {0, 1, 2});
    b = make("receivers that may map and take buckets by hand", {mapper}, {2, 1}, every_fault());
    b.parts = 1;
    b.by_hand = true;
    list.add(b, {-1, 1, 2});
  }
  {
    auto b =
        make("one receiver, digests of layouts that change, every fault", {plain}, {2, 1}, every_fault());
    b.digests = true;
    b.prompt = false;
    list.add(b, {1, 1, 2});
    b.name = "one receiver by hand, digests, every fault";
    b.by_hand = true;
    list.add(b, {-1, 1, 2});
    b = make("one receiver that maps, digests, every fault", {mapper}, {2, 1}, every_fault());
    b.digests = true;
    b.parts = 1;
    b.needed = 2;
    b.retires = 1;
    list.add(b, {1, 1, 2});
    b = make("a group of two, one of which maps, digests", {mapping_member, member}, {1, 1},
             {refuse, kill, load_fails, receiver_cancels, sender_cancels});
    b.digests = true;
    b.parts = 1;
    list.add(b, {0, 1, 2});
    b = make("a receiver and a late one, digests", {plain, latecomer}, {1, 2},
             {kill, sender_cancels, not_now});
    b.digests = true;
    list.add(b, {0, 1, 2});
    b = make("two receivers, digests of updates without buckets", {plain, plain}, {0, 1, 0},
             {kill, receiver_cancels, refuse});
    b.digests = true;
    list.add(b, {0, 1, 2});
  }
  {
    auto b = make("a receiver and a late one, a version that is held", {plain, latecomer}, {1},
                  {kill, load_fails, refuse, sender_cancels});
    b.holds = true;
    list.add(b, {0, 1, 2});
    b.name = "one receiver that fails or puts off, a version that is held, another send";
    b.receivers = {latecomer};
    b.buckets = {1, 1};
    b.faults = {load_fails, not_now, commit_fails, stop, receiver_cancels, sender_cancels, ring_fails};
    list.add(b, {0, 1, 2});
    b.name = "a late receiver that maps, a version that is held";
    b.receivers = {mapping_latecomer};
    b.buckets = {1};
    b.parts = 1;
    list.add(b, {0, 1, 2});
    b.name = "a late receiver that is told to read at once, a version that is held";
    b.ready = true;
    list.add(b, {0, 1, 2});
    b = make("a group of two and one more who may replace a member, a version that is held",
             {member, member, late_member}, {}, cuts);
    b.group_size = 2;
    b.holds = true;
    list.add(b, {0, 1, 1});
    b.name = "a group of two, one of them late, a version that is held";
    b.receivers = {member, late_member};
    b.group_size = 0;
    b.buckets = {1};
    list.add(b, {-1, 0, 1});
  }
  {
    auto b = make("two late ones, a version that is held, and a rest after one has left",
                  {latecomer, latecomer}, {}, {kill});
    b.holds = true;
    b.turnover = 0;
    list.add(b, {-1, 1, 2});
  }
  return list.all;
}

} // namespace ropeway::explorer
