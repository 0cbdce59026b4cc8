// What can go wrong, as values. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "ropeway/detail/visibility.hpp"

namespace ropeway {

/// Every error that ropeway itself reports. Errors of the operating system and of Asio (for example
/// `asio::error::operation_aborted` after a cancellation) pass through with their own category.
/// The numbers travel on the wire: append only.
enum class errc : std::uint16_t {
  ok = 0,
  // The caller.
  invalid_argument = 1,     ///< an argument makes no sense; the message says which
  busy = 2,                 ///< an operation of this kind is already running on the object
  not_open = 3,             ///< the object is closed, or was never connected
  too_few_receivers = 4,    ///< fewer than `min_receivers` committed, or none came in time
  duplicate_name = 5,       ///< two tensors of one update have the same name
  source_failed = 6,        ///< the tensor source threw, or delivered other tensors than it announced
  slots_held = 7,           ///< every slot of the ring is held by buckets that were not released
  destination_mismatch = 8, ///< destinations and update do not fit; the message lists the differences
  torn = 9,                 ///< destinations hold parts of two versions and must not be served
  leased = 10,              ///< readers still hold the weights that would be written
  // The other side.
  peer_gone = 20,         ///< the peer's process ended or closed the connection
  peer_silent = 21,       ///< the peer said nothing for longer than the silence limit, or reads nothing
  peer_refused = 22,      ///< the peer refused, with its own words
  peer_aborted = 23,      ///< the peer gave the update up, with its own words
  protocol_error = 24,    ///< the peer sent something that the protocol does not allow
  version_mismatch = 25,  ///< no protocol version, or no message schema, in common
  not_permitted = 26,     ///< the peer's user, or the socket's directory, is not trusted
  unconfirmed = 27,       ///< a receiver was to commit and its answer never came
  group_incomplete = 28,  ///< a member of the receiver's group is missing or failed
  connect_timeout = 29,   ///< no sender listened at the path within the connect limit
  handshake_timeout = 30, ///< the peer did not finish its handshake in time
  commit_timeout = 31,    ///< the peer did not finish its commit in time
  loader_failed = 32,     ///< the embedder's code that loads a bucket failed
  // The system.
  no_device = 40,      ///< the device does not exist or its driver can't be loaded
  device_failed = 41,  ///< the device or its driver reported an error; usually fatal for the process
  out_of_memory = 42,  ///< host or device memory ran out; the message says how much was asked for
  not_reachable = 43,  ///< the peer's memory can't be mapped here; the message names the device
  bad_region = 44,     ///< a file descriptor is not the shared memory it should be
  address_in_use = 45, ///< a living sender listens at this path already
  bad_path = 46,       ///< a path is too long, is no socket, or lies in an unsuitable directory
  no_resources = 47,   ///< descriptors or threads ran out; the message says which limit to raise
  // Data.
  bad_checkpoint = 60,  ///< a file is no safetensors file, or breaks the format's rules
  unsupported = 61,     ///< valid, but not something that this version can carry
  overflow = 62,        ///< sizes or counts exceed what can be represented or what is allowed
  digest_mismatch = 63, ///< what arrived is not what was sent; the message names the tensor and the box
  digest_missing = 64,  ///< the receiver takes only updates that carry digests, and this one has none
};

/// The enumerator's own spelling: "peer_gone"; "unknown" for a number that is none.
ROPEWAY_API std::string_view name(errc e) noexcept;
/// The category of `errc`; its `message()` is a sentence that says what happened and what to do.
ROPEWAY_API std::error_category const& ropeway_category() noexcept;
/// Lets an `errc` be compared with, and assigned to, a `std::error_code`.
ROPEWAY_API std::error_code make_error_code(errc e) noexcept;

/// What the throwing forms of the operations throw: a `std::system_error` that also names what it was about.
/// `what()` is one complete line.
class ROPEWAY_API transfer_error : public std::system_error {
 public:
  /// `text` says what was being done; `what()` is that and the code's own sentence.
  /// @{
  transfer_error(std::error_code code, std::string const& text) : std::system_error(code, text) {}
  transfer_error(errc code, std::string const& text) : std::system_error(make_error_code(code), text) {}
  /// @}

  /// The tensor concerned, or empty.
  std::string const& tensor() const noexcept { return tensor_; }
  /// The bucket concerned, if one was.
  std::optional<std::uint64_t> bucket() const noexcept { return bucket_; }
  /// The peer concerned (its name and process number), or empty.
  std::string const& peer() const noexcept { return peer_; }
  /// What the peer itself said, or empty. Foreign text: never interpret it.
  std::string const& peer_words() const noexcept { return peer_words_; }

  /// These name what it is about, for whoever throws: they change nothing but the getters above.
  /// @{
  transfer_error& tensor(std::string_view name) {
    tensor_ = name;
    return *this;
  }
  transfer_error& bucket(std::uint64_t number) {
    bucket_ = number;
    return *this;
  }
  transfer_error& peer(std::string_view name) {
    peer_ = name;
    return *this;
  }
  transfer_error& peer_words(std::string_view words) {
    peer_words_ = words;
    return *this;
  }
  /// @}

 private:
  std::string tensor_, peer_, peer_words_;
  std::optional<std::uint64_t> bucket_;
};

} // namespace ropeway

/// \cond
template <>
struct std::is_error_code_enum<ropeway::errc> : std::true_type {};
/// \endcond
