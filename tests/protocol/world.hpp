// A whole job in one process without processes: one sender's machine and several receivers' machines, FIFO
// sockets between them, and drivers that answer when the dice say so. Slots are modelled by what was written
// into them, so that a slot which is written while it is read is seen. Part of ropeway; Apache-2.0.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "protocol/codec.hpp"
#include "protocol/receiver_machine.hpp"
#include "protocol/sender_machine.hpp"

namespace ropeway::test {

using namespace ropeway::protocol;

/// How often things go wrong, in 1/1000 of the times that they could.
struct faults {
  unsigned refuse = 0, not_now = 0, never_decides = 0;
  unsigned refuse_device_ring = 0, refuse_host_ring = 0, ring_fails = 0;
  unsigned load_fails = 0, commit_fails = 0, never_commits = 0, receiver_cancels = 0;
  unsigned kill = 0, stop = 0, sender_cancels = 0, receiver_closes = 0;
};

/// Thrown when a promise of the protocol is broken.
struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class world {
 public:
  world(std::uint32_t seed, faults odds, std::uint32_t slots);

  struct wish {
    std::string group;
    std::uint32_t group_size = 0;
    bool cuda = false;
  };
  void join(wish const& how);
  /// Random steps, with updates begun whenever none runs, `updates` of them at most.
  void run(unsigned steps, unsigned updates);
  /// No new faults: everything that was begun must come to its end.
  void wind_down();

  unsigned committed = 0, updates_finished = 0, not_committed = 0, incomplete = 0;

 private:
  using job = std::function<void()>;
  struct slot_content {
    std::uint64_t seq = 0, update = 0;
    std::uint32_t bucket = 0;
    bool writing = false;
  };
  struct reading {
    std::uint64_t update, seq;
    std::uint32_t bucket, ring, slot;
    bool spoiled = false;
  };
  struct end {
    peer_id id = 0;
    wish how;
    std::unique_ptr<receiver_machine> machine;
    std::deque<message> to_sender, to_receiver;
    bool alive = true, stopped = false;
    bool sender_closed = false, receiver_closed = false; ///< their half of the connection
    bool sender_knows = true, receiver_knows = true;     ///< not yet seen the other's half close
    std::vector<job> jobs;                               ///< what the driver has under way, any order
    std::vector<reading> reads;
    bool drain_asked = false, knows_layout = false, by_hand = false;
    std::uint64_t machine_update = 0; ///< the newest that its machine has named
    std::uint64_t update = 0;
    std::set<std::uint32_t> good; ///< buckets of `update` that were loaded as they were packed
    std::set<std::uint64_t> all_copied, committed, released;
    std::map<std::uint64_t, std::string> reasons; ///< of the route, that came with the commit of an update
  };

  void check(bool good, std::string const& promise) const {
    if (!good) throw broken(promise);
  }
  unsigned dice(unsigned n) { return static_cast<unsigned>(random_() % n); }
  bool happens(unsigned odds) { return calm_ ? false : dice(1000) < odds; }

  bool step();
  bool wait_for_time();
  void begin();
  void act(sender_action& what);
  void act(end& e, receiver_action& what);
  void take_all();
  void write(std::uint32_t ring, std::uint32_t slot, std::uint64_t seq, std::uint32_t bucket);
  void accept_offer(end& e);
  void put_in_place(end& e);
  bool deliver(end& e, bool to_sender);
  void kill(end& e);
  void said(end& e, message const& m);
  void judge(send_action::finished const& f);
  end* find(peer_id id);

  std::mt19937 random_;
  faults odds_;
  bool calm_ = false;
  std::uint32_t slots_;
  time_point now_{};
  sender_machine sender_;
  std::vector<std::unique_ptr<end>> ends_;
  std::deque<job> copies_; ///< the sender's packs and relays, in order
  std::vector<job> sender_jobs_;
  std::map<std::uint32_t, std::vector<slot_content>> memory_;
  // The running update.
  std::uint64_t update_ = 0;
  update_facts facts_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> history_; ///< bucket bytes of each update
  std::vector<peer_id> present_;
  bool source_free_ = false, drain_asked_ = false, running_ = false;
  std::uint32_t packed_ = 0;
  std::map<std::uint64_t, std::uint32_t> bucket_of_seq_;
  std::map<std::string, std::vector<peer_id>> groups_;
};

} // namespace ropeway::test
