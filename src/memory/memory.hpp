// The one seam between host and CUDA memory: shared regions, and queues of ordered copies.
// Everything above this file is written against it; memory/host, memory/cuda and the tests' scripted device
// implement it. Nothing here knows Asio, sockets or the protocol. Part of ropeway; Apache-2.0.
//
// Errors: functions that can fail throw `transfer_error` (errc::out_of_memory, no_device, device_failed,
// not_reachable, bad_region), with a message that says what was asked for and what to do.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "base/unique_fd.hpp"
#include "memory/copy.hpp"
#include "memory/digest.hpp"
#include "memory/segment.hpp"
#include "ropeway/cuda.hpp"
#include "ropeway/digest.hpp"

namespace ropeway::memory {

/// "GPU-xxxxxxxx-xxxx-..." or "host".
std::string to_string(device_uuid const& id);

/// A contiguous range of memory that processes share. The destructor unmaps it (which can be slow: off the
/// loop).
class region {
 public:
  virtual ~region() = default;
  std::byte* data() const noexcept { return data_; }
  std::uint64_t size() const noexcept { return size_; }
  device where() const noexcept { return where_; }

 protected:
  region(std::byte* data, std::uint64_t size, device where) : data_(data), size_(size), where_(where) {}
  region(region const&) = delete;
  region& operator=(region const&) = delete;
  std::byte* data_;
  std::uint64_t size_;
  device where_;
};

/// How far a queue is.
struct progress {
  std::uint64_t completed = 0; ///< every ticket up to this one is done
  std::error_code error;       ///< set once, for good: the queue's device failed; nothing more will complete
};

/// A list of copies that is carried out again and again, looked at once: sorted, and kept where the device
/// reads it. Its memory must live as long as copies of it run, and be the same each time. Immutable.
class prepared_copies {
 public:
  virtual ~prepared_copies() = default;
  /// Of all copies.
  std::uint64_t bytes() const noexcept { return bytes_; }
  /// The list in units of about equal work, in which it can be carried out bit by bit; 0 if it is empty.
  std::uint64_t units() const noexcept { return units_; }

 protected:
  std::uint64_t bytes_ = 0, units_ = 0;
};

/// Which units of a prepared list, and how much of the device they may take.
struct portion {
  std::uint64_t first = 0;
  std::uint64_t count = ~std::uint64_t(0); ///< as many as there are
  std::uint32_t most_blocks = 0; ///< of a kernel at a time, which the device runs beside others; 0: no limit
};

/// How much of a device copies may take.
enum class effort : std::uint8_t {
  full,
  /// While another device reads this one's memory over a link: plain runs take a few multiprocessors, which
  /// are faster than the link all the same and leave it the memory's bandwidth (docs/performance.md). Boxes
  /// and conversions, which would be slower than the link then, take what they need.
  beside_link
};

/// A list of digests that are computed again and again, with the memory that takes their sums. One run after
/// the other: its memory must live until the last was seen complete.
class prepared_digests {
 public:
  virtual ~prepared_digests() = default;
  /// The sums, once a run that fetches them was seen complete and until the next begins.
  virtual std::span<digest128 const> sums() const noexcept = 0;
  /// Of the image, of all groups.
  std::uint64_t bytes() const noexcept { return bytes_; }

 protected:
  std::uint64_t bytes_ = 0;
};

/// Which groups of a prepared list, and what becomes of the sums.
struct digest_run {
  std::uint32_t first = 0;
  std::uint32_t count = ~std::uint32_t(0); ///< as many as there are
  std::byte const* base = nullptr;         ///< that addresses count from; aligned to 256 bytes
  bool begin = true;                       ///< sums start at 0; else they go on
  bool fetch = true;                       ///< sums() is wanted
};

/// Copies in order, on a thread or stream of its own. All members but the destructor may be called from one
/// thread at a time; none blocks (a host queue has a worker thread, a CUDA queue a stream; copies that would
/// block, from pageable memory say, go through a worker of the queue's own).
class queue {
 public:
  /// Waits for what was queued (at most `drain_limit`); past the limit the process is in trouble: the
  /// implementation keeps alive what the device may still touch.
  virtual ~queue() = default;
  static constexpr std::chrono::seconds drain_limit{10};

  /// Lets copies queued from now on start only after `when`.
  virtual void start_after(ready_after const& when) = 0;
  /// Queues copies. The list is taken over before this returns; the memory must live until they completed.
  virtual void copy(std::span<copy_op const> ops, effort how = effort::full) = 0;
  /// The same of a prepared list of this queue's backend, which must live until they completed. One kernel on
  /// a device, as far as its copies are for kernels.
  virtual void repeat(prepared_copies const& list, portion what = {});
  /// Computes digests of a prepared list of this queue's backend, in order with the copies. Writes to nothing
  /// but the list's sums.
  virtual void digest(prepared_digests& list, digest_run what = {});
  /// A number, greater than any before, that `poll().completed` reaches once everything queued so far is
  /// done.
  virtual std::uint64_t mark() = 0;
  /// The same for a caller that polls: `event_fd` may stay silent about it until `notify()`, which costs a
  /// device something for each mark.
  virtual std::uint64_t mark_quietly() { return mark(); }
  /// Makes `event_fd` readable once everything that was marked by now is done.
  virtual void notify() {}
  /// How far the queue is, seen now. Cheap; never blocks.
  virtual progress poll() = 0;
  /// Becomes readable (eventfd) when `poll()` may have something new. The caller reads it empty before
  /// `poll()`.
  virtual int event_fd() const noexcept = 0;
  /// Blocks until everything queued is done, at most for `limit`; false if it is not. For destructors only.
  virtual bool drain(std::chrono::milliseconds limit) noexcept = 0;
};

/// Memory of one device: where regions are made and copied.
class backend {
 public:
  virtual ~backend() = default;
  virtual device where() const noexcept = 0;
  virtual device_uuid uuid() const noexcept = 0;

  /// Makes memory that peers can map, and the descriptor to give them (valid as long as the region).
  struct shared_region {
    std::shared_ptr<region> memory;
    unique_fd handle;
  };
  virtual shared_region make_region(std::uint64_t bytes) = 0;
  /// Maps a peer's region, for reading only where the system allows it. `origin` is the device that it was
  /// made on. Checks that the descriptor is what it should be (kind, seals, exact size) before touching it.
  /// Slow.
  virtual std::shared_ptr<region> import_region(unique_fd handle, std::uint64_t bytes,
                                                device_uuid const& origin) = 0;
  /// Whether `import_region` from that device has a chance. The real answer is the import itself.
  virtual bool can_reach(device_uuid const& origin) const noexcept = 0;
  /// Makes a host region fast to copy from and to for this device's queues; keep the result as long as that
  /// is wanted. Null where there is nothing to do (the host itself). Slow: 0.5 s per GB. The result keeps
  /// `memory` alive.
  virtual std::shared_ptr<void> register_host(std::shared_ptr<region> memory) = 0;
  virtual std::unique_ptr<queue> make_queue() = 0;

  /// Whether `when`, of this device, has come already, so that there is nothing to wait for; false if that
  /// can't be told without disturbing a capture. Cheap. Thread-safe.
  virtual bool is_past(ready_after const& when) const noexcept;

  /// Looks at a list once. Throws as queue::copy, and `out_of_memory`. May wait for the device, so: off the
  /// loop. Thread-safe, as are the next six.
  virtual std::shared_ptr<prepared_copies const> prepare(std::span<copy_op const> ops);
  /// The same of digests into `sums` sums. Throws errc::unsupported where there are none,
  /// errc::invalid_argument and errc::overflow for what makes no sense.
  virtual std::shared_ptr<prepared_digests> prepare_digests(std::span<digest_op const> ops,
                                                            std::uint32_t sums);

  /// Where an address lies; of another device's memory only that: `where` says whom to ask.
  virtual allocation find_allocation(std::byte const* address) const noexcept;
  /// Whether all of these, found here, are still there: none was freed, and none made anew at its address. It
  /// allocates nothing and takes next to no time each: asked for every allocation in every update.
  virtual bool are_there(std::span<allocation const> known) const noexcept;
  /// What lets a peer map it. Throws transfer_error(not_reachable) if that can't be. Slow (1 ms): off the
  /// loop.
  virtual part_handle export_allocation(allocation const& what);
  /// Prepares for a segment of so many bytes in so many parts, made on `origin`. Throws
  /// transfer_error(not_reachable) if this kind of part can't be mapped here.
  virtual std::unique_ptr<segment_importer> start_import(part_kind kind, std::uint64_t bytes,
                                                         std::uint32_t parts, device_uuid const& origin);
};

/// The backends of this process, made on first use and shared. Injected into sender and receiver, so that
/// tests can bring devices of their own. Thread-safe.
class backends {
 public:
  virtual ~backends() = default;
  /// Throws `transfer_error(errc::no_device)` with the reason if there is no such device.
  virtual std::shared_ptr<backend> get(device where) = 0;
  /// The UUIDs of the CUDA devices that this process sees; empty without a driver. Never throws for "none".
  virtual std::vector<device_uuid> cuda_devices() = 0;
};

/// Host memory, and CUDA where this build and this machine have it.
std::shared_ptr<backends> system_backends();

} // namespace ropeway::memory
