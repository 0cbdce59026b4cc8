// Drives the sender's machine with a socket, rings and copy queues. Part of ropeway; Apache-2.0.
//
// Everything runs on one strand. The machine decides; pump() carries out. The only coroutines are the
// acceptor and, for an update from a source, its packer: what happens once a bucket must not allocate.
#pragma once
#include <asio/cancellation_signal.hpp>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "plan/copies.hpp"
#include "protocol/sender_machine.hpp"
#include "ropeway/sender.hpp"
#include "session/copy_stream.hpp"
#include "session/exports.hpp"
#include "session/link.hpp"
#include "session/lookout.hpp"
#include "session/notifier.hpp"
#include "session/offload.hpp"
#include "session/source_digests.hpp"
#include "session/stage_log.hpp"
#include "session/tensor_set.hpp"
#include "wire/listener.hpp"

namespace ropeway::detail {

using session::copy_stream;
using session::strand;

/// A version that is held, from `sender::hold` until nobody reads its tensors for it any more.
class hold_operation {
 public:
  std::weak_ptr<sender_core> owner;
  asio::any_io_executor executor;
  std::uint64_t version = 0;
  std::shared_ptr<tensor_set> set;
  ready_after when;

  /// Queues what reads the tensors, unless they are to be left alone, which any thread may say meanwhile:
  /// then false, and the delivery is about to be given up.
  template <class Queue>
  bool read(Queue const& queue) {
    std::scoped_lock lock(mutex_);
    if (left_alone_) return false;
    queue();
    return true;
  }
  /// From now on: the update that reads them runs, with this stream if it packs; or none does.
  void reading(bool runs, std::shared_ptr<copy_stream> packs = nullptr) {
    std::scoped_lock lock(mutex_);
    reading_ = runs;
    packs_ = std::move(packs);
  }
  bool left_alone() const {
    std::scoped_lock lock(mutex_);
    return left_alone_;
  }
  /// The sender was destroyed while copies that read the tensors were stuck on the device: why, else nothing.
  void is_stuck(failure why) {
    std::scoped_lock lock(mutex_);
    stuck_ = std::move(why);
  }
  failure stuck() const {
    std::scoped_lock lock(mutex_);
    return stuck_;
  }
  /// No copy that this side queues reads the tensors when this returns (but see memory::queue::drain_limit).
  void leave_alone(session::digester* digests) noexcept;

  std::vector<std::unique_ptr<completion<nothing>>> on_released; // the strand's

 private:
  mutable std::mutex mutex_;
  bool left_alone_ = false, reading_ = false;
  failure stuck_;
  std::shared_ptr<copy_stream> packs_;
};

/// One `send_weights` or `start`, from its call until its last completion; or one delivery of what is held.
class send_operation {
 public:
  std::weak_ptr<sender_core> owner;
  asio::any_io_executor executor;
  std::shared_ptr<hold_operation> hold; ///< null: the trainer sends it
  std::uint64_t version = 0;
  std::shared_ptr<tensor_set> set;
  ready_after when;
  std::chrono::steady_clock::time_point called;

  /// Queues what reads the tensors; false where they are held, and are to be left alone.
  template <class Queue>
  bool read(Queue const& queue) {
    if (hold) return hold->read(queue);
    queue();
    return true;
  }

  // From here on: the strand's.
  std::unique_ptr<completion<sending>> on_started;
  std::vector<std::unique_ptr<completion<nothing>>> on_source_free;
  std::unique_ptr<completion<send_report>> on_done;
  std::optional<plan::gather> gather;
  std::shared_ptr<session::exported_placement> placement; // null: nothing is mapped
  bool ordered = false;                                   // packing was told to start after `when`
  bool stopping = false;                                  // given up: nothing more is packed
  bool packer_runs = false;                               // of a source
  bool finished = false;                                  // the machine said so
  bool over = false;                                      // every completion was or can be given
  bool source_is_free = false;
  bool moves = false; // a receiver was told of a bucket, to read, or to commit
  session::stage_log stages;
  session::activity packing; // or making what is packed
  std::uint32_t buckets_packed = 0;
  bool digest_wanted = false;                                // the machine asked for it
  std::uint32_t buckets_digesting = 0, buckets_digested = 0; // on the fly
  std::vector<session::copied> undigested;                   // until the list for them is made
  std::optional<std::chrono::steady_clock::time_point> first_packed, asked_source;
  std::error_code because; // why this side gave up, if not for an errc
  failure error;
  send_report report;
};

class sender_core : public std::enable_shared_from_this<sender_core> {
 public:
  sender_core(asio::any_io_executor executor, std::string path, sender_options options,
              std::shared_ptr<memory::backends> memory);
  ~sender_core();
  /// Starts to accept; after construction, since it needs shared_from_this.
  void start();

  // Any thread.
  asio::any_io_executor executor() const { return executor_; }
  std::string const& path() const noexcept { return path_; }
  std::shared_ptr<session::layout> last_layout() const;
  void keep_layout(std::shared_ptr<session::layout> layout);
  /// From any thread.
  set_pool& sets() const noexcept { return *sets_; }
  sender_options const& options() const noexcept { return options_; }
  protocol::bytes16 const& instance() const noexcept { return instance_; }
  /// A send like the last one is about to be begun: receivers on a GPU had better look out for it. Any
  /// thread.
  void rouse();
  void post_begin(std::shared_ptr<send_operation> operation);
  void post_stop(std::shared_ptr<send_operation> operation);
  void post_source_free(std::shared_ptr<send_operation> operation, std::unique_ptr<completion<nothing>> done,
                        std::shared_ptr<stop_request> stop);
  void post_done(std::shared_ptr<send_operation> operation, std::unique_ptr<completion<send_report>> done,
                 std::shared_ptr<stop_request> stop);
  void post_wait(std::size_t count, milliseconds limit, std::unique_ptr<completion<std::size_t>> done,
                 std::shared_ptr<stop_request> stop);
  void post_receivers(std::unique_ptr<completion<std::vector<connected_receiver>>> done);
  void post_share(std::shared_ptr<memory::shared_block const> block);
  void post_release(std::unique_ptr<completion<nothing>> done, std::shared_ptr<stop_request> stop);
  void post_close(std::unique_ptr<completion<nothing>> done);
  void post_hold(std::shared_ptr<hold_operation> hold);
  void post_release_hold(std::shared_ptr<hold_operation> hold, std::unique_ptr<completion<nothing>> done,
                         std::shared_ptr<stop_request> stop);
  /// From its owner's destructor.
  void abandon_hold(std::shared_ptr<hold_operation> hold) noexcept;
  /// From the owner's destructor: no copy reads the caller's memory any more when this returns (but see
  /// memory::queue::drain_limit), and nobody can connect.
  void abandon() noexcept;
  /// The event loop is destroyed: lets go of every handler.
  void dissolve() noexcept;

 private:
  using clock = std::chrono::steady_clock;
  /// The ring in one device's memory, with the streams that fill it and relay from it.
  struct ring_memory {
    std::shared_ptr<memory::backend> backend;
    memory::backend::shared_region shared;
    std::shared_ptr<copy_stream> pack, relay;
    std::vector<std::shared_ptr<void>> registrations; // of the host ring, with devices that relay to it
  };
  struct peer {
    std::shared_ptr<session::link> link;
    std::string name;
    bool announced = false; // to the observer
    std::string cut_because;
  };
  struct count_waiter {
    std::size_t count;
    std::unique_ptr<completion<std::size_t>> done;
    std::unique_ptr<wire::timer> limit;
  };

  static awaitable<void> accept_peers(std::shared_ptr<sender_core> self);
  using operation_pointer = std::shared_ptr<send_operation>;
  /// Of a source: the tensor that the last piece came from.
  struct delivered {
    source_tensor tensor;
    std::optional<std::uint32_t> index;
  };
  static awaitable<void> pack_on_the_fly(std::shared_ptr<sender_core> self, operation_pointer operation);
  static awaitable<void> pack_from_source(std::shared_ptr<sender_core> self, operation_pointer operation,
                                          protocol::send_action::pack job, delivered& last);
  static awaitable<void> pack_by_writer(std::shared_ptr<sender_core> self, operation_pointer operation,
                                        protocol::send_action::pack job);

  struct release_waiter {
    std::unique_ptr<completion<nothing>> done;
    std::unique_ptr<wire::timer> limit;
    bool asked = false; ///< receivers, for what they have mapped
  };

  using completions = std::vector<std::unique_ptr<completion<nothing>>>;
  /// Puts it among others that wait for the same, until `stop` is asked for. On the strand.
  void wait_among(std::shared_ptr<completions> others, std::unique_ptr<completion<nothing>> done,
                  stop_request& stop);
  void peer_ended(protocol::peer_id id, errc code, std::string const& words);
  void rouse_receivers();
  void begin(std::shared_ptr<send_operation> const& operation);
  void begin_now(std::shared_ptr<send_operation> const& operation);
  void ask_for_release();
  void refuse_release(failure const& why);
  completions take_release_waiters(bool asked);
  // What is held.
  void post_delivery();
  void deliver_held();
  void end_hold(std::shared_ptr<hold_operation> const& hold);
  bool reads(hold_operation const& hold) const;
  /// Gives up the delivery of what is held that runs, if one does.
  void interrupt_held(std::string const& why);
  void let_go_of(send_operation const& delivery, failure error = {});
  void heed_left_alone();
  /// Where a bucket is packed; lives as long as somebody packs there.
  struct place {
    std::shared_ptr<copy_stream> stream;
    std::shared_ptr<memory::region> memory;
    std::byte* slot = nullptr;
  };
  place place_for(send_operation& operation, protocol::send_action::pack const& job);
  void pack_views(protocol::send_action::pack const& job);
  void queue_pack(std::shared_ptr<send_operation> const& operation, protocol::send_action::pack const& job,
                  place const& at, std::shared_ptr<void const> owners);
  void copied(bool relayed, session::copied& what, std::error_code error);
  std::shared_ptr<copy_stream> make_stream(memory::backend& of, device where, bool relays);
  /// Where the tensors lie, if they may be mapped; tells what is not there any more.
  void place_tensors(send_operation& operation, protocol::update_facts& facts);
  bool is_ready(send_operation& operation) noexcept;
  void say_part(protocol::peer_id to, protocol::segment_part what, std::shared_ptr<unique_fd const> fd);
  // Digests: in sender_digests.cpp.
  template <class Ready>
  void prepare_digests(operation_pointer const& operation, Ready ready);
  void digest_source(operation_pointer const& operation, std::shared_ptr<session::digest_list const> list);
  void digest_tensors(operation_pointer const& operation, std::shared_ptr<session::digest_list const> list,
                      ready_after const& when);
  void wait_at_gate(send_operation& operation, session::copied what);
  void prepare_slot_digests(operation_pointer const& operation);
  /// Whether a bucket that was made on the fly and packed is digested before the machine hears of it.
  bool digest_packed(operation_pointer const& operation, session::copied& what);
  void digested(session::copied& what, std::error_code error);
  void say_digested(send_operation& operation);
  void wake_released();
  void bytes_move();
  void end_stages(send_operation& operation);
  /// Something is packed or made for it, after nothing was.
  static void packing_starts(send_operation& operation);
  static void packing_stops(send_operation& operation, clock::time_point now);
  static stage_times stages_of(protocol::peer_result const& result, send_operation const& operation);
  /// After this was said or heard: for the answer that is due, or the end of the reading that has begun by
  /// then.
  void look_out(protocol::message const& what);
  /// A device that has failed once may work again.
  void replace_failed_streams();
  void give_up(std::error_code code, errc on_wire, std::string text);
  void give_up_later(transfer_error what);
  template <class Carried, class Content>
  bool carry(Carried& one, Content const& content);
  void packer_ended(std::shared_ptr<send_operation> const& operation, std::exception_ptr error);
  void settle();
  void finish(std::shared_ptr<send_operation> const& operation);
  void fail_begin(std::shared_ptr<send_operation> const& operation, failure error);
  void complete(std::shared_ptr<send_operation> const& operation);

  void announced();
  void pump();
  void arm_deadline();
  void wake_waiters();
  void end_close();
  void teardown();
  void keep_for_ever();
  void failed_to_act(std::exception_ptr error);
  void welcome(wire::connection connection);
  void stop_packer();
  void act(protocol::send_action::say& action);
  void act(protocol::send_action::make_ring& action);
  void act(protocol::send_action::pack& action);
  void act(protocol::send_action::relay& action);
  void act(protocol::send_action::await_source& action);
  void act(protocol::send_action::send_parts& action);
  void act(protocol::send_action::digest_source& action);
  void act(protocol::send_action::cut& action);
  void act(protocol::send_action::drop& action);
  void act(protocol::send_action::source_free& action);
  void act(protocol::send_action::drain& action);
  void act(protocol::send_action::deliver_held& action);
  void act(protocol::send_action::finished& action);
  std::byte* slot(std::uint32_t ring, std::uint32_t number) const;
  static std::uint32_t ring_of(device where) {
    return where.is_cuda() ? 1 + std::uint32_t(where.ordinal()) : 0;
  }
  static device device_of(std::uint32_t ring) {
    return ring == 0 ? device::host() : device::cuda(int(ring) - 1);
  }
  std::uint64_t slot_bytes() const noexcept { return options_.bucket_bytes(); }
  void tell_observer_of_peers();

  asio::any_io_executor executor_;
  std::string path_;
  sender_options options_;
  session::observed observer_;
  protocol::bytes16 const instance_;
  std::shared_ptr<memory::backends> memory_;
  strand strand_;
  wire::listener listener_;
  protocol::sender_machine machine_;
  std::map<protocol::peer_id, peer> peers_;
  protocol::peer_id next_peer_ = 1;
  std::map<std::uint32_t, ring_memory> rings_;
  session::exports exports_;
  session::source_digests digests_;
  std::shared_ptr<session::digester> digester_; // null: without digests; as it was made by start()
  std::shared_ptr<session::lookout> lookout_;   // for answers in updates of CUDA tensors
  std::chrono::steady_clock::time_point reading_since_{};
  std::chrono::steady_clock::duration reading_took_{}; // the last time, of this placement:
  std::uint64_t read_placement_ = 0;
  std::map<int, std::shared_ptr<copy_stream>> gates_; // by device: what waits for the caller's streams
  std::shared_ptr<send_operation> current_;
  std::shared_ptr<send_operation> waiting_; // for a delivery of what is held to end
  std::shared_ptr<hold_operation> hold_;
  std::vector<protocol::sender_action> actions_;
  std::vector<protocol::send_action::pack> packs_; // for the packer of a source
  session::notifier packs_changed_;
  asio::cancellation_signal stop_packer_;
  std::vector<memory::copy_op> ops_;
  std::uint32_t copies_in_flight_ = 0; // of the current update: packs and relays
  bool drain_asked_ = false;
  std::uint64_t bytes_packed_ = 0;
  clock::time_point roused_{};
  wire::timer deadline_;
  std::optional<clock::time_point> armed_;
  std::vector<count_waiter> waiters_;
  std::vector<release_waiter> release_waiters_;
  std::vector<std::unique_ptr<completion<nothing>>> on_closed_;
  wire::timer close_limit_;
  bool pumping_ = false, closing_ = false, closed_ = false;

  mutable std::mutex shared_mutex_; // for what initiating calls read on any thread, and abandon()
  std::shared_ptr<session::layout> last_layout_;
  std::shared_ptr<set_pool> const sets_ = std::make_shared<set_pool>();
  std::vector<std::shared_ptr<copy_stream>> all_streams_;
  std::vector<std::weak_ptr<session::link>> connections_;
  bool abandoned_ = false;
  session::offload offload_; // last: its thread ends before what its jobs use
};

} // namespace ropeway::detail
