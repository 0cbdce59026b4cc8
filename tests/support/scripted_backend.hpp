// Devices whose copies finish when the test says so, or on a clock that the test moves. Part of ropeway;
// Apache-2.0.
//
// Their memory is host memory (regions are real ones, so peers in other processes can map them); devices
// cuda(0) to cuda(n-1) only say that they are CUDA. Bytes move when a list *finishes*, not before: who reads
// early sees old bytes, who frees early is caught by ASan. All members are thread-safe.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "ropeway/error.hpp"

namespace ropeway::testing {

class scripted_queue;

/// When copies finish: one script for all devices that take part in a test.
class script {
 public:
  enum class pace {
    immediate, ///< inside `copy`
    held,      ///< at `finish_next` and `finish_all`
    timed,     ///< each list takes what `scripted_devices::cost` says, one after the other in each queue; see
               ///< `advance`
  };
  explicit script(pace how = pace::immediate) : pace_(how) {}

  /// From now on; lists that wait already are not finished by this.
  void set(pace how);
  /// Finishes the list that was queued first (of those that wait for no stream or event); false if there is
  /// none.
  bool finish_next();
  /// Until nothing can be finished; how many were.
  std::size_t finish_all();
  /// Timed: moves the clock to when the next list is done and finishes it; false if there is none.
  bool advance();
  std::chrono::nanoseconds now() const;
  /// Lists queued after `ready_after` of this stream or event may run now; later ones with it at once.
  void signal(void const* stream_or_event);

  /// Lists that were queued and are not finished.
  std::size_t in_flight() const;
  /// Whether such a list would read or write in this range.
  bool touches(void const* memory, std::uint64_t bytes) const;

 private:
  friend class scripted_queue;
  friend class scripted_devices;
  using queues = std::vector<scripted_queue*>;
  bool open(void const* gate) const { return gate == nullptr || signalled_.count(gate) != 0; }

  mutable std::mutex mutex_;
  pace pace_;
  std::chrono::nanoseconds now_{0};
  std::uint64_t order_ = 0;
  std::map<void const*, std::chrono::nanoseconds> signalled_;
  queues queues_;
};

/// The devices of one side. Give it to a sender or a receiver.
class scripted_devices final : public memory::backends {
 public:
  explicit scripted_devices(std::shared_ptr<script> when, int cuda_count = 0);

  std::shared_ptr<memory::backend> get(device where) override;
  std::vector<memory::device_uuid> cuda_devices() override;
  /// The UUID of cuda(ordinal) here: the same for all `scripted_devices`, as on one machine.
  static memory::device_uuid uuid_of(int ordinal);

  using cost_function =
      std::function<std::chrono::nanoseconds(device where, std::span<memory::copy_op const> ops)>;
  /// How long a list takes, for `script::pace::timed`. Without: nothing.
  void cost(cost_function how_long);
  /// Called after each copy, and may spoil what was written.
  using corrupt_function = std::function<void(memory::copy_op const& done)>;
  void corrupt(corrupt_function how);
  /// Whether `device` may map memory of `origin` (by default all may, but the host only the host's).
  void reaches(device where, memory::device_uuid const& origin, bool can);

  /// Memory of a device that is an application's own: allocations of these sizes (whole pages), side by side.
  /// Peers can map each of them (part_kind::cuda_memory). Devices of other `scripted_devices` do not know it.
  std::shared_ptr<memory::region> allocate(device where, std::span<std::uint64_t const> sizes);
  /// As if the allocation at this address had been freed and made anew there: it has another identity and
  /// holds zeros, and who has mapped the old one keeps that.
  void make_anew(std::byte const* address);
  /// From now on the allocation at this address can't be exported; `why` is a literal, as in
  /// allocation::why_not.
  void hide(std::byte const* address, char const* why);

  /// What may fail. `import_segment` is asked for each part.
  enum class call : std::uint8_t {
    make_region,
    import_region,
    register_host,
    make_queue,
    copy,
    start_after,
    prepare,
    prepare_digests,
    digest,
    export_allocation,
    import_segment,
  };
  /// Lets the call after the next `successes` of them throw a `transfer_error` with this code, once.
  void fail(call what, errc why, int successes = 0);
  /// The device of all queues there are now fails: nothing that waits finishes, and `poll` says so.
  void fail_queues(device where, errc why);
  /// Lets `drain` time out at once instead of finishing what waits (which is what it does otherwise).
  void hang_on_drain(bool on = true);

  struct counts {
    std::uint64_t regions_made = 0, regions_alive = 0;
    std::uint64_t imports_made = 0, imports_alive = 0;
    std::uint64_t registrations_made = 0, registrations_alive = 0;
    std::uint64_t queues_made = 0, queues_alive = 0;
    std::uint64_t lists = 0, ops = 0, bytes = 0; ///< queued copies
    std::uint64_t lists_beside_link = 0;         ///< of these lists, with effort::beside_link
    std::uint64_t drained = 0;                   ///< lists that only a `drain` finished
    std::uint64_t waits = 0;                     ///< `start_after` something
    std::uint64_t prepared_made = 0, prepared_alive = 0;
    std::uint64_t repeats = 0;     ///< of prepared lists or portions of them
    std::uint32_t most_blocks = 0; ///< of the last such portion
    std::uint64_t digests = 0;     ///< runs that were queued
    std::uint64_t exports = 0;
    std::uint64_t segments_made = 0, segments_alive = 0; ///< imported ones
  };
  counts count() const;

 private:
  struct state;
  std::shared_ptr<state> state_;
  friend class scripted_queue;
  friend class scripted_device;
  friend class scripted_importer;
};

/// Runs a test's event loop and the script's clock: handlers first, and when none is ready the clock. Until
/// `done()` or until nothing has happened for `patience` of real time (then false). `Io` is an
/// asio::io_context.
template <class Io, class Done>
bool run_script(Io& io, script& what, Done const& done,
                std::chrono::milliseconds patience = std::chrono::seconds(10)) {
  while (!done()) {
    io.restart();
    if (io.poll() > 0) continue;
    if (what.advance()) continue;
    if (io.run_one_for(patience) == 0) return done();
  }
  return true;
}

} // namespace ropeway::testing
