// What a `destinations` object is: places, what they hold, and how the last layouts map onto them.
// Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memory/memory.hpp"
#include "plan/copies.hpp"
#include "plan/destination.hpp"
#include "plan/manifest.hpp"
#include "plan/placement.hpp"
#include "ropeway/status.hpp"

namespace ropeway::session {
class received_digests;
}

namespace ropeway::detail {

/// How the destinations of one plan are loaded from the sender's own memory, resolved once for a placement.
/// Immutable; copies that run hold it.
class mapped_copies {
 public:
  std::array<std::uint8_t, 16> sender{}; ///< the instance whose placement it is
  std::uint64_t placement = 0;
  std::shared_ptr<memory::prepared_copies const> list;
  std::vector<std::uint64_t> segments;                   ///< that they read
  std::vector<std::shared_ptr<memory::region>> mappings; ///< of these
};

/// Where a plan keeps them, until the session that mapped the memory lets go of it.
class mapped_copies_place {
 public:
  explicit mapped_copies_place(std::shared_ptr<mapped_copies const> of) : of_(std::move(of)) {}
  std::shared_ptr<mapped_copies const> get() const {
    std::scoped_lock lock(mutex_);
    return of_;
  }
  std::shared_ptr<mapped_copies const> take() {
    std::scoped_lock lock(mutex_);
    return std::exchange(of_, nullptr);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<mapped_copies const> of_;
};

/// Resolved once for each layout: which destinations take part, and the copies for each bucket.
class destination_plan {
 public:
  plan::scatter scatter;
  std::vector<std::uint32_t> covered;          ///< the destinations that an update of this layout writes
  std::shared_ptr<mapped_copies_place> mapped; ///< of the newest placement; may be null
  std::shared_ptr<session::received_digests> digests; ///< of the newest mapping; may be null
};

/// A version on its way in, and whose it is.
struct arrival {
  std::uint64_t version = 0;
  std::string from; ///< in words
};

/// Places are added by the embedder before a load; what they hold is written by the session and read by
/// anyone.
class destination_set {
 public:
  std::vector<plan::destination> places;
  bool allow_unsent = false, allow_unplaced = false, allow_tied = false;

  /// The plan for this layout; made on first need. Look at scatter.check() before use.
  destination_plan& plan_for(plan::manifest const& manifest);
  /// Call when places or rules change.
  void forget_plans() {
    plans_.clear();
    tied_.clear();
  }
  /// For each place the first one in exactly the same memory, where that is allowed; itself for most.
  std::vector<std::uint32_t> const& tied();

  /// One load at a time: false if one runs.
  bool start_load();
  void end_load();
  /// The first byte of these is about to be written; committed() is what heals them.
  void writing(destination_plan const& part, arrival const& of);
  void committed(destination_plan const& part);
  /// The same for all places.
  void writing_all(arrival const& of);
  void committed_all();

  bool torn() const;
  std::vector<std::string> torn_tensors() const;
  std::optional<std::uint64_t> version() const;
  weights_status status() const;

 private:
  struct known {
    plan::layout_hash layout;
    std::unique_ptr<destination_plan> plan;
  };
  bool any_torn() const; // locked, as the next two
  void begin_writing(arrival const& of);
  void end_writing();

  std::vector<known> plans_;        // the newest last; a handful
  std::vector<std::uint32_t> tied_; // made on first need

  mutable std::mutex mutex_; // for what follows: servers ask from any thread
  std::vector<bool> torn_;
  std::optional<std::uint64_t> version_;
  bool loading_ = false, wrote_ = false; // wrote_: by the running load
  arrival arriving_, held_;              // kept as they are, so that a steady update allocates no words
  std::chrono::system_clock::time_point since_{};
};

} // namespace ropeway::detail
