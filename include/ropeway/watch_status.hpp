// What a watcher sees of a sender and its receivers. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/digest.hpp"
#include "ropeway/stage.hpp"

namespace ropeway {

/// What a receiver does, as its sender sees it.
enum class receiver_activity : std::uint8_t {
  idle,       ///< it takes no part in an update
  late,       ///< it has not finished with an update that is over
  deciding,   ///< it was asked, and maps what it must, or has not answered
  loading,    ///< it takes part, and not all of its bytes are there
  waiting,    ///< it has everything; other members of its group have not
  committing, ///< it was told to commit
};
/// The enumerator's own spelling: "idle".
ROPEWAY_API std::string_view name(receiver_activity what) noexcept;

/// One receiver of the sender that is watched.
struct watched_receiver {
  std::string name;                                  ///< as it called itself, with its process number
  receiver_activity doing = receiver_activity::idle; ///< now
  std::optional<std::uint64_t> version;              ///< held, of this sender instance
  std::uint64_t bytes_released =
      0; ///< of the running update, about, and as far as the ring tells: not what is mapped
  std::uint64_t last_bytes = 0;    ///< that it copied of the last update which it committed
  nanoseconds last_took{};         ///< and from that update's begin until the commit
  std::optional<digest128> digest; ///< of the version held, if it was compared with the sender's digests
  std::string last_error;          ///< what became of its last update, if it did not commit it; foreign text
};

/// An update that runs.
struct watched_update {
  std::uint64_t version = 0; ///< as the trainer numbered it
  std::uint64_t bytes = 0;   ///< of all tensors
  std::uint32_t tensors = 0; ///< how many
  std::uint32_t buckets = 0; ///< how many they fill
  std::uint32_t packed = 0;  ///< how many of these are packed, or needed by nobody
  nanoseconds since{};       ///< how long it has been running
};

/// A version that was sent with digests.
struct watched_digest {
  std::uint64_t version = 0; ///< as the trainer numbered it
  digest128 digest;          ///< of all its tensors
};

/// A sender, as it was when it answered.
struct watched_sender {
  std::string id;                          ///< of this sender instance, 32 hexadecimal digits
  std::optional<watched_update> updating;  ///< nothing while no update runs
  std::vector<watched_receiver> receivers; ///< connected then
  std::optional<watched_digest> last;      ///< the last version that had digests
};

} // namespace ropeway
