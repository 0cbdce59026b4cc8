// Drives the receiver's machine with a socket, mapped rings and a copy queue. Part of ropeway; Apache-2.0.
//
// Everything runs on one strand. The machine decides; pump() carries out. The only coroutine is the one that
// connects: what happens once a bucket must not allocate.
#pragma once
#include <asio/cancellation_signal.hpp>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "plan/manifest.hpp"
#include "protocol/receiver_machine.hpp"
#include "ropeway/receiver.hpp"
#include "session/connecting.hpp"
#include "session/copy_stream.hpp"
#include "session/destination_set.hpp"
#include "session/digester.hpp"
#include "session/link.hpp"
#include "session/lookout.hpp"
#include "session/offload.hpp"
#include "session/received_digests.hpp"
#include "session/shadow_set.hpp"
#include "session/stage_log.hpp"

namespace ropeway::detail {

using session::copy_stream;
using session::strand;
class load_operation;

/// A sender's ring, mapped here.
struct mapped_ring {
  std::shared_ptr<memory::region> memory;
  std::shared_ptr<void> registration;
  std::uint64_t slot_bytes = 0;
  std::uint32_t slots = 0;
};

/// A bucket in the embedder's hands; keeps the ring mapped.
class held_bucket {
 public:
  ~held_bucket() { release({}); }
  void release(ready_after when);

  std::shared_ptr<load_operation> load;
  std::shared_ptr<mapped_ring> ring;
  std::uint64_t seq = 0, bytes = 0;
  std::uint32_t number = 0;
  std::byte const* slot = nullptr;
  std::chrono::steady_clock::time_point arrived_at{}, given_at{};
  std::vector<bucket_piece> pieces;
  session::profiler_range shown; ///< while the embedder has it

 private:
  std::atomic<bool> released_ = false;
};

/// One update, from its announcement until its end. Shared by the core, the embedder's `update` and its
/// buckets.
class load_operation : public std::enable_shared_from_this<load_operation> {
 public:
  std::shared_ptr<receiver_core> core;
  std::uint64_t session = 0;
  protocol::bytes16 sender{};
  protocol::begin what;
  std::shared_ptr<plan::manifest const> manifest;
  std::shared_ptr<plan::placement const> placement; ///< null: nothing is mapped

  // From here on: the strand's.
  enum class way { undecided, into, by_bucket } how = way::undecided;
  bool accepted = false, over = false, aborting = false, drained = false;
  bool committing = false; ///< the sender's order has come: it can't be taken back, only fail
  bool waits_for_leases = false;
  std::shared_ptr<destination_set> into;
  std::shared_ptr<shadow_set> shadow; // of which `into` is one
  destination_plan* part = nullptr;
  std::shared_ptr<mapped_copies const> mapped; ///< the sender's own tensors are read
  std::uint64_t next_unit = 0;                 ///< of its copies, at the pace that was set
  std::chrono::steady_clock::time_point reading_since{};
  std::shared_ptr<session::received_digests> digests; ///< null: the update has none
  std::optional<device> digested_slots;               ///< where buckets lie that were digested
  bool comparing = false;                             ///< as soon as the table is mapped
  std::optional<digest128> digest;                    ///< with which everything agrees
  ready_after when;
  bool wrote = false;
  std::chrono::steady_clock::time_point announced_at{}, offered_at{}, accepted_at{}, all_copied_at{};
  std::chrono::steady_clock::time_point asked_at{};   ///< for the next bucket
  std::chrono::steady_clock::time_point read_until{}; ///< of the mapped tensors, as far as was seen
  bool overslept = false;                             ///< and that was late
  std::optional<std::chrono::steady_clock::time_point> mapping_since, checking_since;
  session::stage_log stages;
  session::activity loading; ///< copies run, or the embedder has a bucket
  std::uint64_t bytes_copied = 0;
  std::string route_reason; ///< in the sender's words, once it has ordered the commit
  std::uint32_t copies_in_flight = 0;
  std::uint32_t in_hands = 0; ///< buckets that the embedder has not released
  std::uint32_t held = 0;     ///< those, and released ones that are still read
  std::uint32_t given = 0;
  std::uint64_t bytes_loaded = 0;
  std::deque<std::shared_ptr<held_bucket>> arrived; // by bucket: not taken yet
  std::optional<std::uint32_t> slots;               // of the ring that buckets come from
  std::uint32_t ring = 0;
  std::error_code because; // why this side gave up, if not for an errc
  failure error;
  std::unique_ptr<completion<load_report>> on_loaded; // load_into or commit
  std::unique_ptr<completion<std::optional<bucket>>> on_bucket;
};

/// The mapping that an offered load waits for.
struct mapping_job {
  std::shared_ptr<load_operation> load;
  std::vector<bool> wanted; // segments that a destination takes something of
  std::size_t segment = 0;  // index of the next
  std::uint32_t next_part = 0;
  std::shared_ptr<memory::segment_importer> importer;
  std::vector<memory::part_handle> parts; // of the batch that arrives
};

class receiver_core : public std::enable_shared_from_this<receiver_core> {
 public:
  receiver_core(asio::any_io_executor executor, receiver_options options,
                std::shared_ptr<memory::backends> memory);
  ~receiver_core();

  // Any thread.
  asio::any_io_executor executor() const { return executor_; }
  std::optional<std::uint64_t> version() const noexcept;
  receiver_status status() const;
  void post_connect(std::string path, std::unique_ptr<completion<nothing>> done,
                    std::shared_ptr<stop_request> stop);
  void post_next(std::unique_ptr<completion<std::optional<update>>> done, std::shared_ptr<stop_request> stop);
  void post_close(std::unique_ptr<completion<nothing>> done);
  void post_load(std::shared_ptr<load_operation> load, load_target into, ready_after when,
                 std::unique_ptr<completion<load_report>> done, std::shared_ptr<stop_request> stop);
  void post_bucket(std::shared_ptr<load_operation> load,
                   std::unique_ptr<completion<std::optional<bucket>>> done,
                   std::shared_ptr<stop_request> stop);
  void post_commit(std::shared_ptr<load_operation> load, std::unique_ptr<completion<load_report>> done,
                   std::shared_ptr<stop_request> stop);
  void post_refuse(std::shared_ptr<load_operation> load, std::string why);
  void post_not_now(std::shared_ptr<load_operation> load, milliseconds retry, std::string why);
  void post_released(held_bucket const& what, ready_after when);
  /// From the owner's destructor: no copy touches the embedder's memory any more when this returns (but see
  /// memory::queue::drain_limit).
  void abandon() noexcept;
  /// The event loop is destroyed: lets go of every handler.
  void dissolve() noexcept;

 private:
  using clock = std::chrono::steady_clock;

  void connected(wire::connection connection);
  void connect_failed(failure error);
  void drop_session();
  void give_up(std::shared_ptr<load_operation> const& load, std::error_code code, errc on_wire,
               std::string text, std::string const& tensor = {});
  void give_up_on_stop(std::shared_ptr<load_operation> const& load, stop_request& stop,
                       bool (*still_waits)(load_operation const&));
  void accept(load_operation& load, load_operation::way how, failure why_not_mapped = {});

  // Reading the sender's own tensors.
  /// Accepts a load into destinations, once what it reads is mapped.
  void accept_into(std::shared_ptr<load_operation> const& load);
  bool is_mapped() const;
  /// What is slow and new begins: destinations were given, and may be written.
  static void mapping_begins(load_operation& load);
  void map_next_segment();
  void segment_mapped(std::shared_ptr<load_operation> const& load, std::shared_ptr<memory::region> region);
  void prepare_copies(std::shared_ptr<load_operation> const& load);
  void accept_unmapped(std::shared_ptr<load_operation> const& load, failure why);
  void read_on(std::shared_ptr<load_operation> const& load);
  void nearly_read();
  void unmap_later();
  void watch_idle_mappings(clock::time_point until);
  void drop_idle_mappings();
  std::vector<std::uint64_t> all_segments() const;
  /// Takes these segments, and what was made to read them, to be let go of off the loop.
  std::vector<std::shared_ptr<void const>> take_segments(std::vector<std::uint64_t> const& ids);

  // Digests: in receiver_digests.cpp.
  /// Accepts a load, once what it will compare is prepared; or turns it down for want of digests.
  void accept_compared(std::shared_ptr<load_operation> const& load, load_operation::way how,
                       failure why_not_mapped = {});
  void accepted(std::shared_ptr<load_operation> const& load, load_operation::way how, failure why_not_mapped);
  session::received_digests::purpose purpose_of(load_operation const& load, load_operation::way how) const;
  /// Whether the bucket, which was loaded, is digested before its slot is released.
  bool digest_bucket(std::shared_ptr<load_operation> const& load, session::copied& what);
  void digested(session::copied& what, std::error_code error);
  void compare_digests(std::shared_ptr<load_operation> const& load);
  void table_mapped(std::uint64_t id, std::exception_ptr error, std::shared_ptr<memory::region> region);
  void drop_mapping();
  /// Those of all plans that read one of these segments, taken from the plans.
  std::vector<std::shared_ptr<mapped_copies const>>
  take_copies_of(std::vector<std::uint64_t> const& segments);
  void give_bucket(load_operation& load);
  /// Something of a load is copied, or in the embedder's hands.
  static void loading_starts(load_operation& load);
  /// Nothing is copied, and there will be more: for profilers.
  static void waits_for_more(load_operation& load);
  static void loading_ends(load_operation& load, clock::time_point now);
  void loaded(std::shared_ptr<load_operation> const& load, std::uint64_t seq, std::uint64_t bytes);
  void copied(session::copied& what, std::error_code error);
  /// Makes the stream if there is none, or if its device failed: it may work again.
  void need_stream(memory::backend& on);
  void begin_writing(load_operation& load);
  /// Whether nobody reads what is about to be written. Else leases_ended() is called when it is so, or the
  /// load is put off, or its commit fails, after the lease limit.
  bool free_of_leases(std::shared_ptr<load_operation> const& load, bool at_commit);
  void leases_ended(std::shared_ptr<load_operation> const& load, bool at_commit);
  void put_off(std::shared_ptr<load_operation> const& load, failure why);
  void turn_down(std::shared_ptr<load_operation> const& load, transfer_error const& why);
  void copy_over(std::shared_ptr<load_operation> const& load);
  void copy_for_commit(std::shared_ptr<load_operation> const& load);
  void fail_commit(std::shared_ptr<load_operation> const& load, failure error);
  void commit(std::shared_ptr<load_operation> const& load);
  void say_goodbye();
  void ended(failure const& why);
  static void let_go_of_sets(load_operation& load);
  void enter(session_phase phase);
  void settle(std::shared_ptr<load_operation> load);
  void end_load(std::shared_ptr<load_operation> const& load, failure error);
  void end_session(failure error, bool graceful);
  void end_close();
  failure not_usable(load_operation const& load) const;
  copy_stream& stream();

  void pump();
  void arm_deadline();
  void act(protocol::receive_action::say& action);
  void act(protocol::receive_action::greeted& action);
  void act(protocol::receive_action::map_ring& action);
  void act(protocol::receive_action::read_manifest& action);
  void act(protocol::receive_action::look_up_placement& action);
  void act(protocol::receive_action::read_placement& action);
  void act(protocol::receive_action::take_part& action);
  void act(protocol::receive_action::read_mapped& action);
  void act(protocol::receive_action::unmap& action);
  void act(protocol::receive_action::take_digest_table& action);
  void act(protocol::receive_action::check_digests& action);
  void read_next();
  void act(protocol::receive_action::look_up_manifest& action);
  void act(protocol::receive_action::offer& action);
  void act(protocol::receive_action::bucket& action);
  void act(protocol::receive_action::look& action);
  void act(protocol::receive_action::commit& action);
  void act(protocol::receive_action::abort& action);

  asio::any_io_executor executor_;
  receiver_options options_;
  session::observed observer_;
  std::shared_ptr<memory::backends> memory_;
  strand strand_;

  // The session, while there is one.
  std::shared_ptr<session::link> link_;
  std::optional<protocol::receiver_machine> machine_;
  std::uint64_t session_ = 0;           // counts; answers of slow jobs for an older one are dropped
  unique_fd incoming_fd_;               // came with the message that is being acted on
  clock::time_point announced_at_{};    // the last update
  session::stage_log announced_stages_; // of it, until it is offered
  std::uint64_t wanted_update_ = 0; // whose manifest is looked for; an answer for another one comes too late
  struct unread_list {
    protocol::begin what;
    std::uint64_t bytes = 0;
    unique_fd fd;
    std::shared_ptr<plan::manifest const> placement_of; // null: it is a manifest itself
  };
  std::optional<unread_list> unread_; // waits while another one is read
  bool reading_ = false;              // also one of a session that is over
  std::map<std::uint32_t, std::shared_ptr<mapped_ring>> rings_;
  std::map<std::uint64_t, std::shared_ptr<memory::region>> segments_; // of the sender's, that are mapped
  struct known_placement {
    std::uint64_t id = 0;
    plan::layout_hash layout{};
    std::shared_ptr<plan::placement const> what;
    std::vector<bool> needed; ///< by bucket, of those that must come although the rest is mapped
  };
  std::vector<known_placement> placements_; // the newest last; a handful
  std::optional<mapping_job> mapping_;
  std::vector<std::weak_ptr<mapped_copies_place>> mapped_copies_; // that may read mapped segments
  std::uint64_t unmappable_ = 0;                                  // a placement that could not be mapped
  failure unmappable_why_;
  std::shared_ptr<session::lookout> lookout_;    // for answers to a receiver on a GPU
  std::weak_ptr<mapped_copies const> read_last_; // and how long that took:
  std::chrono::steady_clock::duration reading_took_{};
  std::vector<std::uint64_t> to_unmap_; // while a load reads or a job maps
  struct digest_table {
    std::uint64_t id = 0, bytes = 0;
    std::shared_ptr<memory::region> memory; // null: not mapped yet
    failure why_not;                        // it can't be
  } table_;
  std::uint32_t mapping_jobs_ = 0;           // under way: they hold what they map, wanted or not
  std::shared_ptr<memory::backend> backend_; // where copies run
  std::shared_ptr<load_operation> load_;
  std::optional<update> unclaimed_; // offered while nobody waited
  bool closing_ = false, graceful_end_ = false;
  arrival arriving_; // of the load that writes; its words name the sender
  failure session_end_{errc::not_open, "connect first"};
  protocol::bytes16 sender_{};
  std::string path_; // of the socket

  // Kept over sessions.
  std::vector<std::shared_ptr<plan::manifest const>> manifests_; // the newest last; a handful
  std::shared_ptr<copy_stream> stream_;
  std::shared_ptr<session::received_digests> by_hand_; // of the last layout that was taken so
  std::vector<protocol::receiver_action> actions_;
  std::vector<memory::copy_op> ops_;
  std::vector<memory::device_uuid> devices_;
  protocol::bytes16 held_sender_{};
  std::uint64_t held_update_ = 0, held_version_ = 0;

  std::shared_ptr<connect_attempt> attempt_; // until it is connected or has failed
  wire::timer close_limit_;
  wire::timer deadline_;
  wire::timer pace_; // until the next part of a mapped update is copied
  wire::timer idle_; // until what is mapped is let go of
  clock::time_point mappings_used_{};
  wire::timer lease_limit_; // on readers that hold what a load must write
  std::optional<clock::time_point> armed_;
  std::unique_ptr<completion<nothing>> on_connected_;
  std::unique_ptr<completion<std::optional<update>>> on_update_;
  std::vector<std::unique_ptr<completion<nothing>>> on_closed_;
  bool pumping_ = false;

  mutable std::mutex shared_mutex_; // for status() and abandon()
  receiver_status status_;
  std::shared_ptr<copy_stream> stream_to_drain_;
  std::shared_ptr<session::digester> digester_; // once a table came; written on the strand
  session::offload offload_;                    // last: its thread ends before what its jobs use
};

} // namespace ropeway::detail
