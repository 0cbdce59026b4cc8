// One sender and its receivers on one io_context, over any pair of memories: what most tests of the public
// face start from. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "ropeway/receiver.hpp"
#include "ropeway/sender.hpp"
#include "support/attempt.hpp"
#include "support/scratch.hpp"
#include "support/weights.hpp"

namespace ropeway::testing {

/// A receiver: where it loads, and the devices that it sees (null: the system's).
struct lane {
  std::shared_ptr<memory_kind> memory;
  std::shared_ptr<memory::backends> devices;
};

/// From which memory to which memories bytes go.
struct pairing {
  std::string name;
  std::shared_ptr<memory_kind> from;
  std::shared_ptr<memory::backends> devices;
  std::vector<lane> into;
  /// Of the sender; and the way that updates into destinations must then take, if that is known.
  route_choice choice = route_choice::automatic;
  std::optional<route> way = {};
  bool digests = false; ///< both sides compute and compare them
};
/// The same with digests.
inline pairing digested(pairing how) {
  how.digests = true;
  return how;
}

/// A pairing, and how deep the ring is.
struct setting {
  pairing how;
  std::uint32_t slots = 2;
};
/// Host to `receivers` on the host.
setting host_setting(std::size_t receivers = 1, std::uint32_t slots = 2);
/// The same, with the sender's tensors in memory that the receivers map.
setting mapped_setting(std::size_t receivers = 1, std::uint32_t slots = 2);

inline constexpr std::uint64_t kib = 1024, mib = 1024 * kib;

/// Options with limits that suit a test: long enough for a loaded machine, short enough to notice.
sender_options quick_sender(std::uint64_t bucket_bytes = 64 * kib);
receiver_options quick_receiver(std::string name = "server");

/// A sender and one receiver a lane. The sender's slots and the receivers' devices and names ("server-0",
/// ...) come from the setting.
class line {
 public:
  line(any_io_executor executor, setting const& how, sender_options options = quick_sender(),
       receiver_options server = quick_receiver());

  /// Connects every receiver that is not connected yet, and waits until the sender knows all of them.
  awaitable<void> connect();
  /// Closes both sides; the socket's directory must be empty then.
  awaitable<void> close();

  ropeway::sender& sender() { return *sender_; }
  ropeway::receiver& receiver(std::size_t index = 0) { return receivers_[index]; }
  std::size_t receivers() const { return receivers_.size(); }
  /// One more receiver, not connected.
  ropeway::receiver& add_receiver(receiver_options options, lane const& where = {});
  std::string path() const { return directory_.file("weights.sock"); }
  scratch const& directory() const { return directory_; }
  setting const& how() const { return how_; }
  any_io_executor const& executor() const { return executor_; }

 private:
  setting how_;
  any_io_executor executor_;
  scratch directory_;
  std::optional<ropeway::sender> sender_;
  std::deque<ropeway::receiver> receivers_;
  std::size_t connected_ = 0;
};

/// Waits for the next update; throws if the sender closed instead.
awaitable<update> announced(receiver& from);
/// Loads the next update in place.
awaitable<load_report> load_next(receiver& from, destinations& into);
/// Takes the next update bucket by bucket, checks what each says of itself, and commits.
awaitable<std::vector<image>> take_next(receiver& from, memory_kind& memory);
/// Reads the pieces of a bucket into the images of the update's tensors, and checks that nothing is left out.
class assembly {
 public:
  explicit assembly(update const& from);
  void add(bucket const& next, memory_kind& memory);
  /// Throws if a byte is missing.
  std::vector<image> finish();

 private:
  std::vector<image> tensors_;
  std::vector<std::uint64_t> filled_;
  std::uint32_t buckets_ = 0;
  std::uint32_t last_tensor_ = 0;
};

/// Sends to all receivers of the line, which load in place, and gives the sender's report. A receiver's
/// failure is thrown.
awaitable<send_report> deliver(line& over, std::uint64_t version, std::vector<tensor_view> tensors,
                               std::vector<destinations>& into);

/// "committed refused", for messages and comparisons.
std::string outcomes(send_report const& report);
/// The line of the receiver whose name starts so; throws if there is none.
receiver_report const& of(send_report const& report, std::string_view name);

} // namespace ropeway::testing
