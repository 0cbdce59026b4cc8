// Publishes versions of a model's weights to the receivers on this host. Part of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <concepts>
#include <cstdint>
#include <memory>
#include <ranges>
#include <span>
#include <string>
#include <vector>

#include "ropeway/asio.hpp"
#include "ropeway/cuda.hpp"
#include "ropeway/detail/operation.hpp"
#include "ropeway/detail/visibility.hpp"
#include "ropeway/options.hpp"
#include "ropeway/report.hpp"
#include "ropeway/shared_memory.hpp"
#include "ropeway/source.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

namespace memory {
class backends;
}
class sender;
namespace detail {
class sender_core;
class tensor_set;
class send_operation;
class hold_operation;
/// What a send is called with, and when that was.
struct send_call {
  std::shared_ptr<tensor_set> set;
  std::chrono::steady_clock::time_point at;
};
sender make_sender(asio::any_io_executor, std::string, sender_options, std::shared_ptr<memory::backends>);
template <class Token>
concept token = !std::same_as<std::remove_cvref_t<Token>, ready_after>;
} // namespace detail

/// Anything whose elements convert to tensor_view: a vector of views, a map's values, a transform.
template <class R>
concept tensor_range = std::ranges::input_range<R const> &&
    std::convertible_to<std::ranges::range_reference_t<R const>, tensor_view>;

/// Tensors that were looked at once: names and shapes compared, nothing to do at the next send but to read
/// the memory. A cheap shared value; safe to use again for every version whose tensors lie where they lay,
/// with the sender that prepared them (`errc::invalid_argument` with another).
class prepared_tensors {
 public:
  prepared_tensors() = default; ///< none, which no send takes
  /// Whether there are any: false for one made by default.
  explicit operator bool() const noexcept { return set_ != nullptr; }

 private:
  friend class sender;
  explicit prepared_tensors(std::shared_ptr<detail::tensor_set> set) : set_(std::move(set)) {}
  std::shared_ptr<detail::tensor_set> set_;
};

/// A version on its way, from `sender::start`. Move-only. Destroying it before `done` gives the version up.
/// An empty one (made by default, moved from, from a `start` that failed) can only be assigned to and
/// destroyed.
class ROPEWAY_API sending {
 public:
  sending() = default;                   ///< empty
  sending(sending&&) noexcept = default; ///< leaves the other empty
  /// Exchanges the two: what was held here ends with `other`.
  sending& operator=(sending&& other) noexcept;
  ~sending();

  /// As `start` was told; 0 for an empty one.
  std::uint64_t version() const noexcept;

  /// Completes when no copy reads the tensors any more: the trainer may change its weights. Fails if the
  /// version was given up. Cancellation: stops this wait only.
  /// @{
  awaitable<void> source_free();
  template <class Token>
  auto source_free(Token&& token) {
    auto start = [self = operation_](auto done, auto stop) {
      wait_source_free(self, std::move(done), std::move(stop));
    };
    return detail::initiate<detail::nothing, std::error_code>(executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

  /// Completes when every outcome is known. Errors, report and cancellation as for `sender::send_weights`.
  /// @{
  awaitable<send_report> done();
  template <class Token>
  auto done(Token&& token) {
    auto start = [self = operation_](auto done, auto stop) {
      wait_done(self, std::move(done), std::move(stop));
    };
    return detail::initiate<send_report, std::error_code>(executor(), std::move(start),
                                                          std::forward<Token>(token));
  }
  /// @}

 private:
  friend class sender;
  friend class detail::sender_core;
  explicit sending(std::shared_ptr<detail::send_operation> operation) : operation_(std::move(operation)) {}
  using operation_pointer = std::shared_ptr<detail::send_operation>;
  static void wait_source_free(operation_pointer const& operation,
                               std::unique_ptr<detail::completion<detail::nothing>> done,
                               std::shared_ptr<detail::stop_request> stop);
  static void wait_done(operation_pointer const& operation,
                        std::unique_ptr<detail::completion<send_report>> done,
                        std::shared_ptr<detail::stop_request> stop);
  asio::any_io_executor executor() const;
  std::shared_ptr<detail::send_operation> operation_;
};

/// A promise from `sender::hold`: the tensors stay as they are while this lives. Move-only. An empty one
/// (made by default, moved from) can only be assigned to and destroyed.
///
/// Destroying it ends the promise, and gives a delivery that runs up. No copy that this process queued reads
/// the tensors when the destructor returns: it waits for those, at most 10 s, as the sender's own destructor
/// does. A receiver that reads the tensors by itself (`route::mapped`) is told to stop when the loop turns
/// next, and may read on until it hears of it. Nothing that it has read by then is ever committed; and as
/// long as it maps memory from `shared_memory` or CUDA's virtual memory management, that stays where it is,
/// also when it was freed. Memory from cudaMalloc does not: await `release` before it is freed.
class ROPEWAY_API held_version {
 public:
  held_version() = default;                        ///< empty
  held_version(held_version&&) noexcept = default; ///< leaves the other empty
  /// Exchanges the two: what was held here ends with `other`.
  held_version& operator=(held_version&& other) noexcept;
  ~held_version();

  /// As `hold` was told; 0 for an empty one.
  std::uint64_t version() const noexcept;

  /// Ends the promise: gives up a delivery that still reads the tensors, and completes when nobody reads them
  /// any more, receivers that map them included. (Where that is so already, a delivery that runs goes on.) A
  /// receiver that says nothing while it reads, or may, is waited for until the sender's `silence_limit`.
  /// That is while the sender is open: of receivers that a closed or destroyed sender has let go of, nobody
  /// knows what they still read. Later calls do nothing. Error: `device_failed`, if the sender was destroyed
  /// while copies were stuck. Cancellation: all types; stops this wait only, the promise has ended.
  /// @{
  awaitable<void> release();
  template <class Token>
  auto release(Token&& token) {
    auto start = [self = operation_](auto done, auto stop) {
      begin_release(self, std::move(done), std::move(stop));
    };
    return detail::initiate<detail::nothing, std::error_code>(executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

 private:
  friend class sender;
  using operation_pointer = std::shared_ptr<detail::hold_operation>;
  explicit held_version(operation_pointer operation) : operation_(std::move(operation)) {}
  static void begin_release(operation_pointer const& operation,
                            std::unique_ptr<detail::completion<detail::nothing>> done,
                            std::shared_ptr<detail::stop_request> stop);
  asio::any_io_executor executor() const;
  operation_pointer operation_;
};

/// What `sender::receivers` tells of one of them.
struct connected_receiver {
  std::string name;           ///< as it called itself, with its process number
  bool holds_version = false; ///< of this sender instance
  std::uint64_t version = 0;  ///< which, if so
};

/// The trainer's side: listens at a path, and sends versions to all receivers that are connected then.
///
/// Thread-safety: all members may be called from any thread; operations run on the sender's own strand and
/// complete on the caller's executor. One send runs at a time (`errc::busy`). The executor's loop must run
/// while a send does: it also tells receivers that the sender is alive, and one that blocks it for longer
/// than their `silence_limit` (10 s) loses them.
///
/// Lifetime: destroy it, and what it gave (`sending`, `held_version`), before the loop. The destructor stops
/// listening and frees the path at once, ends the connections to receivers, which then commit nothing that
/// they read later, and waits (at most 10 s) for copies of this process that still read the caller's tensors;
/// operations that run end with `asio::error::operation_aborted`, when the loop turns next. Copies that are
/// stuck even then end them with `errc::device_failed`: their memory is kept, and the tensors may still be
/// read. `co_await close()` is the graceful end. A loop that is destroyed while operations wait drops their
/// handlers.
///
/// Every operation has two forms: one that returns an awaitable and throws `transfer_error` (a send:
/// `send_failed`), and one with a completion token of signature `void(std::error_code, T)`. The call itself
/// copies names and views: only the tensors' memory must live until completion, and no copy touches it
/// afterwards, whatever the outcome.
class ROPEWAY_API sender {
 public:
  /// Listens at `path` at once. Its directory is made (0700) if only that is missing.
  /// Throws transfer_error: `errc::bad_path`, `errc::not_permitted`, `errc::address_in_use`,
  /// `errc::invalid_argument`.
  sender(asio::any_io_executor executor, std::string path, sender_options options = {});
  sender(sender&&) noexcept = default; ///< the other may then only be assigned to and destroyed
  /// Ends what this one was, as the destructor does, and takes over the other.
  sender& operator=(sender&& other) noexcept;
  ~sender();

  /// As given to the constructor; what operations with a token run on unless their handler has its own.
  asio::any_io_executor get_executor() const;
  /// Where it listens, as given.
  std::string const& path() const noexcept;

  /// Sends `tensors` as `version` to every receiver that is connected now, and completes when every outcome
  /// is known. Tensors on a CUDA device are read after `when`. No receiver at all: `errc::too_few_receivers`
  /// (unless `min_receivers` is 0).
  ///
  /// Completion: after the last outcome, and after every copy from the tensors has finished.
  /// Errors: `too_few_receivers`, `busy`, `duplicate_name`, `unsupported`, `overflow`, `invalid_argument`,
  /// `source_failed`, `out_of_memory`, `no_device`, `device_failed`, `not_open`,
  /// `asio::error::operation_aborted`. What goes wrong with one receiver is no error of the send: it stands
  /// in the report, which is filled either way. Cancellation (all types): gives the version up; receivers
  /// keep what they hold, or are torn where they load in place; sessions stay.
  /// @{
  template <tensor_range R>
  awaitable<send_report> send_weights(std::uint64_t version, R const& tensors, ready_after when = {}) {
    return await_send(core_, version, collect(tensors), when);
  }
  template <tensor_range R, detail::token Token>
  auto send_weights(std::uint64_t version, R const& tensors, Token&& token) {
    return initiate_send(version, collect(tensors), ready_after(), std::forward<Token>(token));
  }
  template <tensor_range R, detail::token Token>
  auto send_weights(std::uint64_t version, R const& tensors, ready_after when, Token&& token) {
    return initiate_send(version, collect(tensors), when, std::forward<Token>(token));
  }
  /// @}

  /// The same for tensors that were prepared.
  /// @{
  awaitable<send_report> send_weights(std::uint64_t version, prepared_tensors const& tensors,
                                      ready_after when = {}) {
    return await_send(core_, version, call_with(tensors), when);
  }
  template <detail::token Token>
  auto send_weights(std::uint64_t version, prepared_tensors const& tensors, Token&& token) {
    return initiate_send(version, call_with(tensors), ready_after(), std::forward<Token>(token));
  }
  template <detail::token Token>
  auto send_weights(std::uint64_t version, prepared_tensors const& tensors, ready_after when, Token&& token) {
    return initiate_send(version, call_with(tensors), when, std::forward<Token>(token));
  }
  /// @}

  /// The same for tensors that are made on the fly. `source` must outlive the operation.
  /// @{
  awaitable<send_report> send_weights(std::uint64_t version, tensor_source& source) {
    return await_send(core_, version, collect(source), ready_after());
  }
  template <detail::token Token>
  auto send_weights(std::uint64_t version, tensor_source& source, Token&& token) {
    return initiate_send(version, collect(source), ready_after(), std::forward<Token>(token));
  }
  /// @}

  /// The same for tensors that are written straight into the ring. `writer` must outlive the operation.
  /// @{
  awaitable<send_report> send_weights(std::uint64_t version, slot_writer& writer) {
    return await_send(core_, version, collect(writer), ready_after());
  }
  template <detail::token Token>
  auto send_weights(std::uint64_t version, slot_writer& writer, Token&& token) {
    return initiate_send(version, collect(writer), ready_after(), std::forward<Token>(token));
  }
  /// @}

  /// Starts a version and completes as soon as it is announced; see `sending` for the rest. Errors: those of
  /// `send_weights` that are known by then; the others come from `sending`. A source or writer must outlive
  /// the `sending`. Cancellation (all types): gives the version up.
  /// @{
  template <tensor_range R>
  awaitable<sending> start(std::uint64_t version, R const& tensors, ready_after when = {}) {
    return await_start(core_, version, collect(tensors), when);
  }
  template <tensor_range R, detail::token Token>
  auto start(std::uint64_t version, R const& tensors, ready_after when, Token&& token) {
    return initiate_start(version, collect(tensors), when, std::forward<Token>(token));
  }
  template <tensor_range R, detail::token Token>
  auto start(std::uint64_t version, R const& tensors, Token&& token) {
    return initiate_start(version, collect(tensors), ready_after(), std::forward<Token>(token));
  }
  awaitable<sending> start(std::uint64_t version, prepared_tensors const& tensors, ready_after when = {}) {
    return await_start(core_, version, call_with(tensors), when);
  }
  template <detail::token Token>
  auto start(std::uint64_t version, prepared_tensors const& tensors, ready_after when, Token&& token) {
    return initiate_start(version, call_with(tensors), when, std::forward<Token>(token));
  }
  template <detail::token Token>
  auto start(std::uint64_t version, prepared_tensors const& tensors, Token&& token) {
    return initiate_start(version, call_with(tensors), ready_after(), std::forward<Token>(token));
  }
  awaitable<sending> start(std::uint64_t version, tensor_source& source) {
    return await_start(core_, version, collect(source), ready_after());
  }
  template <detail::token Token>
  auto start(std::uint64_t version, tensor_source& source, Token&& token) {
    return initiate_start(version, collect(source), ready_after(), std::forward<Token>(token));
  }
  awaitable<sending> start(std::uint64_t version, slot_writer& writer) {
    return await_start(core_, version, collect(writer), ready_after());
  }
  template <detail::token Token>
  auto start(std::uint64_t version, slot_writer& writer, Token&& token) {
    return initiate_start(version, collect(writer), ready_after(), std::forward<Token>(token));
  }
  /// @}

  /// Promises that `tensors` stay as they are while what this returns lives. Until then every receiver that
  /// lacks `version` is given it, without another call: whoever joins or comes back, has failed a send, or
  /// was not there. A receiver lacks it that holds another version of this sender's, or none, or may be torn;
  /// not one that was sent something whole since `hold` was called (or by a send that ran then), which nobody
  /// is taken back from, unless a still later send failed there half-way: then it may be torn, and is given
  /// this. So this can follow a send of the same version, which those that have it are not sent
  /// again, or take the place of one.
  ///
  /// A delivery is an update like any other to the receivers and to observers, only that nobody else takes
  /// part. One runs at a time; who joins meanwhile has the next. `min_receivers` means nothing to it. Who
  /// refuses it or fails it is not asked again in this session, who says not now is when that time is over,
  /// who says nothing after another `decide_limit`. A group is given it as soon as it is complete: the
  /// members that lack it together, while the others go on with what they hold if that is this version; if
  /// one of them has something newer, nobody.
  ///
  /// Receivers that leave after they were given it, and come back without it, are given it again: at once 64
  /// times, or as many as `max_receivers` if that is more, one more every 10 s, whoever they are. Beyond that
  /// there is a rest between two deliveries, as long as the last one took (1 s at least, 10 s at most), and
  /// the next one is for all who lack the version by then.
  ///
  /// A send that is started while a delivery runs gives it up, and begins when its copies have ended: the
  /// receivers that it went to take part in the send, too. Should the send fail for them, they are given the
  /// held version again. A later `hold` takes the place of this one, whose delivery is given up; `close` ends
  /// it. While one stands, `release_memory` fails with `errc::busy`.
  ///
  /// Tensors on a CUDA device are read after `when`, at each delivery: an event must live as long.
  /// Throws transfer_error: as a send, for what is wrong with the tensors (`duplicate_name`, `unsupported`,
  /// `overflow`, `invalid_argument`). What goes wrong later on this side ends the delivery, which observers
  /// hear of, and is tried again after `decide_limit`. Tensors that are made on the fly can't be held.
  /// @{
  template <tensor_range R>
  held_version hold(std::uint64_t version, R const& tensors, ready_after when = {}) {
    return begin_hold(version, collect(tensors).set, when);
  }
  held_version hold(std::uint64_t version, prepared_tensors const& tensors, ready_after when = {}) {
    return begin_hold(version, tensors.set_, when);
  }
  held_version hold(std::uint64_t version, tensor_source& source) = delete; ///< made once, they are gone
  held_version hold(std::uint64_t version, slot_writer& writer) = delete;   ///< as for a source
  /// @}

  /// Compares names and shapes once, for sends that skip even that. The views' memory and strides are kept as
  /// they are now. An error in them (a name twice, say) is reported by the send.
  template <tensor_range R>
  prepared_tensors prepare(R const& tensors) {
    return prepared_tensors(collect(tensors).set);
  }

  /// Says that a send of large tensors on a GPU is near, so that its receivers are awake when it is
  /// announced: for a caller that has to look at its tensors first, as a binding for another language does.
  /// What `send_weights` looks at itself needs no call. Where there is nothing to gain, and while a send runs
  /// or after `close`, nothing happens. Any thread.
  void rouse();

  /// Completes with the number of receivers once at least `count` are connected.
  /// Errors: `errc::too_few_receivers` after `limit`; `not_open`. Cancellation: all types, stops this wait
  /// only.
  /// @{
  awaitable<std::size_t> wait_for_receivers(std::size_t count, milliseconds limit);
  template <class Token>
  auto wait_for_receivers(std::size_t count, milliseconds limit, Token&& token) {
    auto start = [core = core_, count, limit](auto done, auto stop) {
      begin_wait(core, count, limit, std::move(done), std::move(stop));
    };
    return detail::initiate<std::size_t, std::error_code>(get_executor(), std::move(start),
                                                          std::forward<Token>(token));
  }
  /// @}

  /// The receivers that are connected now. No error; no cancellation.
  /// @{
  awaitable<std::vector<connected_receiver>> receivers();
  template <class Token>
  auto receivers(Token&& token) {
    auto start = [core = core_](auto done, auto) { begin_receivers(core, std::move(done)); };
    return detail::initiate<std::vector<connected_receiver>, std::error_code>(
        get_executor(), std::move(start), std::forward<Token>(token));
  }
  /// @}

  /// Lets receivers map tensors that lie in this memory. Keeps it as long as the sender lives, or until
  /// `release_memory`. Before the send whose tensors lie there.
  void share(shared_memory const& memory);

  /// Wants back all that receivers have mapped of the trainer's memory, for trainers that free or offload
  /// their weights: completes when every receiver has unmapped it, or has gone. What was shared is shared no
  /// more. The next update maps anew. (The staging ring stays.) A delivery of a version that is held no more
  /// is given up for it. Errors: `busy` while a send runs or a version is held (or one begins before
  /// receivers were asked), `peer_silent` if a receiver has not done so within
  /// `sender_options::commit_limit`, `not_open`. Cancellation: all types, stops this wait only.
  /// @{
  awaitable<void> release_memory();
  template <class Token>
  auto release_memory(Token&& token) {
    auto start = [core = core_](auto done, auto stop) {
      begin_release(core, std::move(done), std::move(stop));
    };
    return detail::initiate<detail::nothing, std::error_code>(get_executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

  /// Ends gracefully: a running send is given up, receivers are told goodbye, the socket is removed. No
  /// error. A send whose copies take longer than `sender_options::close_limit` ends after it. Cancellation:
  /// none.
  /// @{
  awaitable<void> close();
  template <class Token>
  auto close(Token&& token) {
    auto start = [core = core_](auto done, auto) { begin_close(core, std::move(done)); };
    return detail::initiate<detail::nothing, std::error_code>(get_executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

 private:
  /// Compares tensors with the last layout, in one pass; allocates only for a new one.
  class collector {
   public:
    explicit collector(detail::sender_core& core);
    ~collector();
    void add(tensor_view const& tensor);
    void add(std::span<tensor_view const> tensors);
    detail::send_call finish();

   private:
    void differ();
    std::shared_ptr<detail::tensor_set> end();
    detail::sender_core& core_;
    std::chrono::steady_clock::time_point const began_ = std::chrono::steady_clock::now();
    std::shared_ptr<detail::tensor_set> last_; // while everything so far is as in the last send
    std::size_t same_ = 0;                     // how many tensors that are,
    std::size_t place_ = 0;                    // and the place in its record after them
    std::shared_ptr<detail::tensor_set> set_;  // once something differs
    std::vector<tensor_info> infos_;           // once something differs from the last layout
    bool known_ = true;                        // everything so far is as in the last layout
  };
  template <tensor_range R>
  detail::send_call collect(R const& tensors) {
    collector pass(*core_);
    if constexpr (std::ranges::contiguous_range<R const> && std::ranges::sized_range<R const> &&
                  std::same_as<std::ranges::range_value_t<R const>, tensor_view>)
      pass.add(std::span<tensor_view const>(tensors));
    else
      for (auto&& tensor : tensors) pass.add(tensor);
    return pass.finish();
  }
  static detail::send_call collect(tensor_source& source);
  static detail::send_call collect(slot_writer& writer);
  static detail::send_call call_with(prepared_tensors const& tensors) {
    return {tensors.set_, std::chrono::steady_clock::now()};
  }

  friend sender detail::make_sender(asio::any_io_executor, std::string, sender_options,
                                    std::shared_ptr<memory::backends>);
  using core_pointer = std::shared_ptr<detail::sender_core>;
  explicit sender(core_pointer core) : core_(std::move(core)) {}
  using set_pointer = std::shared_ptr<detail::tensor_set>;
  static awaitable<send_report> await_send(core_pointer core, std::uint64_t version, detail::send_call call,
                                           ready_after when);
  static awaitable<sending> await_start(core_pointer core, std::uint64_t version, detail::send_call call,
                                        ready_after when);
  static void begin_send(core_pointer const& core, std::uint64_t version, detail::send_call call,
                         ready_after when, std::unique_ptr<detail::completion<send_report>> done,
                         std::shared_ptr<detail::stop_request> stop);
  static void begin_start(core_pointer const& core, std::uint64_t version, detail::send_call call,
                          ready_after when, std::unique_ptr<detail::completion<sending>> done,
                          std::shared_ptr<detail::stop_request> stop);
  held_version begin_hold(std::uint64_t version, set_pointer set, ready_after when);
  static void begin_wait(core_pointer const& core, std::size_t count, milliseconds limit,
                         std::unique_ptr<detail::completion<std::size_t>> done,
                         std::shared_ptr<detail::stop_request> stop);
  static void begin_receivers(core_pointer const& core,
                              std::unique_ptr<detail::completion<std::vector<connected_receiver>>> done);
  static void begin_release(core_pointer const& core,
                            std::unique_ptr<detail::completion<detail::nothing>> done,
                            std::shared_ptr<detail::stop_request> stop);
  static void begin_close(core_pointer const& core,
                          std::unique_ptr<detail::completion<detail::nothing>> done);

  template <class Token>
  auto initiate_send(std::uint64_t version, detail::send_call call, ready_after when, Token&& token) {
    auto start = [core = core_, version, call = std::move(call), when](auto done, auto stop) {
      begin_send(core, version, call, when, std::move(done), std::move(stop));
    };
    return detail::initiate<send_report, std::error_code>(get_executor(), std::move(start),
                                                          std::forward<Token>(token));
  }
  template <class Token>
  auto initiate_start(std::uint64_t version, detail::send_call call, ready_after when, Token&& token) {
    auto start = [core = core_, version, call = std::move(call), when](auto done, auto stop) {
      begin_start(core, version, call, when, std::move(done), std::move(stop));
    };
    return detail::initiate<sending, std::error_code>(get_executor(), std::move(start),
                                                      std::forward<Token>(token));
  }

  core_pointer core_;
};

} // namespace ropeway
