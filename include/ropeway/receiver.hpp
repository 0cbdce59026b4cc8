// Takes versions of a model's weights from the sender on this host. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ropeway/asio.hpp"
#include "ropeway/cuda.hpp"
#include "ropeway/destinations.hpp"
#include "ropeway/detail/operation.hpp"
#include "ropeway/detail/visibility.hpp"
#include "ropeway/options.hpp"
#include "ropeway/report.hpp"
#include "ropeway/shadow.hpp"
#include "ropeway/status.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

namespace memory {
class backends;
}
class receiver;
namespace detail {
class receiver_core;
receiver make_receiver(asio::any_io_executor, receiver_options, std::shared_ptr<memory::backends>);
class held_bucket;
class load_operation;
class destination_set;
class shadow_set;
/// One of the two.
class load_target {
 public:
  explicit load_target(std::shared_ptr<destination_set> to) : set(std::move(to)) {}
  explicit load_target(std::shared_ptr<shadow_set> to) : shadow(std::move(to)) {}
  std::shared_ptr<destination_set> set;
  std::shared_ptr<shadow_set> shadow;
};
} // namespace detail

/// A part of a tensor as it lies in a bucket: `bytes` bytes of the tensor's contiguous row-major image, from
/// `tensor_offset` on. Aligned to 256 bytes in memory.
struct bucket_piece {
  std::uint32_t tensor = 0;        ///< index into update::tensors()
  std::uint64_t tensor_offset = 0; ///< of its first byte in the tensor
  std::uint64_t bytes = 0;         ///< how many lie here
  std::byte const* data = nullptr; ///< readable memory on `where`; valid until the bucket is released
  device where;                    ///< `receiver_options::where`, or the host if it is served through that
};

/// A bucket to read from: views into the sender's ring. Move-only; its slot stays taken until `release`, so
/// release soon: the sender waits for it. Destroying it releases it.
class ROPEWAY_API bucket {
 public:
  bucket() = default;                  ///< empty: no pieces, nothing to release
  bucket(bucket&&) noexcept = default; ///< leaves the other empty
  /// Exchanges the two: what was held here is released with `other`.
  bucket& operator=(bucket&& other) noexcept;
  ~bucket();

  /// Its place in the update, from 0; 0 for an empty one.
  std::uint32_t number() const noexcept;
  /// What lies in it, in the order of the tensors. The list is valid as long as this bucket lives, the memory
  /// until it is released.
  std::span<bucket_piece const> pieces() const noexcept;
  /// Ends the use of the views now, or after the work that `when` names. Any thread. Does nothing the second
  /// time.
  void release(ready_after when = {});

 private:
  friend class update;
  friend class detail::receiver_core;
  explicit bucket(std::shared_ptr<detail::held_bucket> held) : held_(std::move(held)) {}
  std::shared_ptr<detail::held_bucket> held_;
};

/// What an update can be loaded into.
template <class T>
concept loadable = std::same_as<T, destinations> || std::same_as<T, shadow_destinations>;

/// An update that was announced. Move-only. Take it with `load_into`, or bucket by bucket with `next_bucket`
/// and `commit`; or say no with `refuse` or `not_now`. Destroying it unanswered refuses it; destroying it
/// half-way aborts it. Members may be called from any thread, one operation at a time (`errc::busy`). An
/// empty one (made by default, moved from) can only be assigned to and destroyed.
class ROPEWAY_API update {
 public:
  update() = default;                  ///< empty
  update(update&&) noexcept = default; ///< leaves the other empty
  /// Exchanges the two: what was held here ends with `other`.
  update& operator=(update&& other) noexcept;
  ~update();

  /// As the sender numbered it. A sender that was started anew may begin again at any number.
  std::uint64_t version() const noexcept;
  /// Of all tensors, counted once.
  std::uint64_t total_bytes() const noexcept;
  /// How many will come; 0 if no tensor has any bytes.
  std::uint32_t buckets() const noexcept;
  /// The tensors that will arrive, in order; valid as long as this update lives.
  std::span<tensor_info const> tensors() const noexcept;
  /// A hash of them, in order, and of how they lie in buckets: what was worked out for an update of this
  /// layout holds for every other of it.
  std::array<std::uint8_t, 16> layout() const noexcept;

  /// Accepts, copies every tensor into its destination (bucket k loads while k+1 is packed), and commits.
  /// No byte of a destination is written before `when`. Completes when the sender has been told of the
  /// commit; what is launched then, on any stream, sees the new bytes.
  ///
  /// With `shadow_destinations` the version arrives in the set that is not served, and goes live, whole, with
  /// the commit; cancellation after the sender's order to commit has no effect any more.
  ///
  /// Errors: `destination_mismatch` (the update is refused with the list, nothing was written),
  /// `peer_aborted`, `peer_gone`, `peer_silent`, `protocol_error`, `device_failed`, `busy`, `leased`,
  /// `asio::error::operation_aborted`. After any but the first, `busy` and `leased`, destinations that were
  /// being written are torn (never a live shadow set; see there). Completion: always after every copy into
  /// the destinations has finished. Cancellation (all types): aborts the update for this receiver; the
  /// session stays.
  /// @{
  awaitable<load_report> load_into(destinations& into, ready_after when = {}) {
    return await_load(operation_, target(into), when);
  }
  awaitable<load_report> load_into(shadow_destinations& into, ready_after when = {}) {
    return await_load(operation_, target(into), when);
  }
  template <loadable Into, class Token>
  auto load_into(Into& into, ready_after when, Token&& token) {
    auto start = [self = operation_, to = target(into), when](auto done, auto stop) {
      begin_load(self, to, when, std::move(done), std::move(stop));
    };
    return detail::initiate<load_report, std::error_code>(executor(), std::move(start),
                                                          std::forward<Token>(token));
  }
  template <loadable Into, class Token>
  requires(!std::same_as<std::remove_cvref_t<Token>, ready_after>) auto load_into(Into& into, Token&& token) {
    return load_into(into, ready_after(), std::forward<Token>(token));
  }
  /// @}

  /// Accepts at the first call; then the next bucket, in order, or nothing after the last. Fails with
  /// `errc::slots_held` at once when every slot is held by buckets that were not released: nothing could
  /// come. Errors otherwise, and cancellation, as for `load_into`.
  /// @{
  awaitable<std::optional<bucket>> next_bucket() { return await_bucket(operation_); }
  template <class Token>
  auto next_bucket(Token&& token) {
    auto start = [self = operation_](auto done, auto stop) {
      begin_bucket(self, std::move(done), std::move(stop));
    };
    return detail::initiate<std::optional<bucket>, std::error_code>(executor(), std::move(start),
                                                                    std::forward<Token>(token));
  }
  /// @}

  /// Says that everything of the update is in place, and completes when the sender agrees and was told. Every
  /// bucket must have been taken and released (`errc::invalid_argument` otherwise). Errors otherwise, and
  /// cancellation, as for `load_into`.
  /// @{
  awaitable<load_report> commit() { return await_commit(operation_); }
  template <class Token>
  auto commit(Token&& token) {
    auto start = [self = operation_](auto done, auto stop) {
      begin_commit(self, std::move(done), std::move(stop));
    };
    return detail::initiate<load_report, std::error_code>(executor(), std::move(start),
                                                          std::forward<Token>(token));
  }
  /// @}

  /// Says no; the sender's report carries the words. Before acceptance only; later it gives the update up.
  void refuse(std::string why);
  /// Says that another time is better. Before acceptance only.
  void not_now(milliseconds retry, std::string why);

 private:
  friend class detail::receiver_core;
  using operation_pointer = std::shared_ptr<detail::load_operation>;
  using load_target = detail::load_target;
  explicit update(operation_pointer operation) : operation_(std::move(operation)) {}
  static load_target target(destinations const& into) { return load_target(into.set_); }
  static load_target target(shadow_destinations const& into) { return load_target(into.set_); }
  static awaitable<load_report> await_load(operation_pointer operation, load_target into, ready_after when);
  static awaitable<std::optional<bucket>> await_bucket(operation_pointer operation);
  static awaitable<load_report> await_commit(operation_pointer operation);
  static void begin_load(operation_pointer const& operation, load_target into, ready_after when,
                         std::unique_ptr<detail::completion<load_report>> done,
                         std::shared_ptr<detail::stop_request> stop);
  static void begin_bucket(operation_pointer const& operation,
                           std::unique_ptr<detail::completion<std::optional<bucket>>> done,
                           std::shared_ptr<detail::stop_request> stop);
  static void begin_commit(operation_pointer const& operation,
                           std::unique_ptr<detail::completion<load_report>> done,
                           std::shared_ptr<detail::stop_request> stop);
  asio::any_io_executor executor() const;
  operation_pointer operation_;
};

/// The server's side of one session with a sender.
///
/// Thread-safety, lifetime and the two forms of every operation: as for `sender`; updates and buckets, too,
/// must go before the loop. The loop must run while an update does. After the session has ended (`peer_gone`,
/// ...), `connect` again on the same object.
class ROPEWAY_API receiver {
 public:
  /// Without a session yet. Throws `errc::invalid_argument` for options that make no sense.
  explicit receiver(asio::any_io_executor executor, receiver_options options = {});
  receiver(receiver&&) noexcept = default; ///< the other may then only be assigned to and destroyed
  /// Ends what this one was, as the destructor does, and takes over the other.
  receiver& operator=(receiver&& other) noexcept;
  ~receiver();

  /// As given to the constructor; what operations with a token run on unless their handler has its own.
  asio::any_io_executor get_executor() const;

  /// Connects to the sender at `path`, waiting for it to appear until the connect limit.
  /// Errors: `connect_timeout`, `bad_path`, `not_permitted`, `peer_refused`, `version_mismatch`,
  /// `handshake_timeout`, `peer_gone`, `no_device` (for `receiver_options::where`), `busy` (a session
  /// exists). Cancellation: all types; there is no session then.
  /// @{
  awaitable<void> connect(std::string path);
  template <class Token>
  auto connect(std::string path, Token&& token) {
    auto start = [core = core_, path = std::move(path)](auto done, auto stop) {
      begin_connect(core, path, std::move(done), std::move(stop));
    };
    return detail::initiate<detail::nothing, std::error_code>(get_executor(), std::move(start),
                                                              std::forward<Token>(token));
  }
  /// @}

  /// Waits for the next update, without limit; nothing when the sender has closed gracefully. One that was
  /// announced while nobody waited is given at once, if the sender has not passed over it meanwhile. Errors:
  /// `not_open`, `busy`, and why the session ended (`peer_gone`, `peer_silent`, `protocol_error`, ...).
  /// Cancellation: all types; stops this wait only.
  /// @{
  awaitable<std::optional<update>> next_update();
  template <class Token>
  auto next_update(Token&& token) {
    auto start = [core = core_](auto done, auto stop) { begin_next(core, std::move(done), std::move(stop)); };
    return detail::initiate<std::optional<update>, std::error_code>(get_executor(), std::move(start),
                                                                    std::forward<Token>(token));
  }
  /// @}

  /// The version that this receiver committed last, in any session. Any thread.
  std::optional<std::uint64_t> version() const noexcept;
  /// Where the session is, since when, and with whom. Any thread. What memory holds, its destinations say.
  receiver_status status() const;

  /// Says goodbye; a running update is given up. No error; bounded by `receiver_options::close_limit`.
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
  friend receiver detail::make_receiver(asio::any_io_executor, receiver_options,
                                        std::shared_ptr<memory::backends>);
  using core_pointer = std::shared_ptr<detail::receiver_core>;
  explicit receiver(core_pointer core) : core_(std::move(core)) {}
  static void begin_connect(core_pointer const& core, std::string path,
                            std::unique_ptr<detail::completion<detail::nothing>> done,
                            std::shared_ptr<detail::stop_request> stop);
  static void begin_next(core_pointer const& core,
                         std::unique_ptr<detail::completion<std::optional<update>>> done,
                         std::shared_ptr<detail::stop_request> stop);
  static void begin_close(core_pointer const& core,
                          std::unique_ptr<detail::completion<detail::nothing>> done);
  core_pointer core_;
};

} // namespace ropeway
