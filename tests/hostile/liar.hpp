// A peer that says what it likes, over a real socket, with real descriptors. Blocking; runs in a thread of
// its own. Knows the messages and none of the rules. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "plan/manifest.hpp"
#include "plan/placement.hpp"
#include "protocol/codec.hpp"
#include "protocol/messages.hpp"
#include "ropeway/error.hpp"

namespace ropeway::testing {

/// A code and words, as they stand in refuse, goodbye and their like.
struct told {
  errc code = errc::ok;
  std::string text;
};

class liar {
 public:
  explicit liar(unique_fd socket) : socket_(std::move(socket)) {}
  /// Connects to a sender.
  static liar at(std::string const& path);

  void say(protocol::message const& what, std::initializer_list<int> fds = {});
  void say_bytes(std::span<std::byte const> bytes, std::span<int const> fds = {});
  /// How a message is written, even one that nobody may send.
  static std::vector<std::byte> written(protocol::message const& what);

  /// Reads up to the next message of this kind; throws if none comes, or the end.
  template <class M>
  M expect() {
    for (;;) {
      auto next = hear();
      if (!next) throw std::runtime_error("the other side ended it: " + last_.text);
      if (auto* const found = std::get_if<M>(&*next)) return std::move(*found);
    }
  }
  /// The next message; nothing at the end. Keeps its descriptor, and the last code and words of any message.
  std::optional<protocol::message> hear();
  void hear_what_is_there();
  /// From now on it reads while it can't write: both sides would wait for each other.
  void hear_meanwhile() { hears_meanwhile_ = true; }
  /// Reads to the end, or throws after a while.
  void hear_out() {
    while (hear()) {}
  }
  told const& last() const { return last_; }
  unique_fd& fd() { return fd_; }
  int socket() const { return socket_.get(); }
  void hang_up() { socket_.reset(); }

  // What it knows, for lies about it.
  std::uint64_t update = 0, seq = 0;

 private:
  unique_fd socket_, fd_;
  told last_;
  bool hears_meanwhile_ = false;
};

/// Where a false sender waits.
class false_door {
 public:
  explicit false_door(std::string const& path);
  liar accept();

 private:
  unique_fd socket_;
};

// ---- descriptors ----

inline constexpr int all_seals = -1;
/// A memory file; with `all_seals` as ropeway makes them.
unique_fd memory_file(std::uint64_t bytes, int seals = all_seals, bool reserve = true);
unique_fd memory_file(std::span<std::byte const> content);
unique_fd pipe_end();
unique_fd event_counter();
unique_fd open_file(char const* path, int flags);
/// Another way to the same file.
unique_fd reopened(int fd, int flags);

// ---- what an honest sender would say ----

/// Six tensors of 2000 bytes: three buckets of at most 4 KiB, two slots.
std::vector<tensor_info> lied_about();
inline constexpr std::uint64_t lie_bucket = 4096;
inline constexpr std::uint32_t lie_slots = 2;
protocol::welcome honest_welcome();
protocol::ring honest_ring(std::uint32_t id = 0);
protocol::begin honest_begin(std::uint64_t update = 1);
plan::manifest const& honest_manifest();
/// The same with a placement: all tensors in one segment.
protocol::begin honest_mapped_begin(std::uint64_t update = 1, std::uint64_t placement = 9);
plan::placement honest_placement();
inline constexpr std::uint64_t lie_segment = 5, lie_segment_bytes = 12'288;
protocol::segment_part honest_part(std::uint64_t update);
protocol::published honest_published(std::uint64_t update, std::uint32_t bucket, std::uint32_t slot);
protocol::hello honest_hello(std::string name = "liar");
protocol::watch honest_watch();

/// A manifest's encoding, open to changes.
struct loose_tensor {
  std::string name;
  std::uint8_t type = 0;
  std::vector<std::uint64_t> dims;
};
struct loose_piece {
  std::uint32_t tensor = 0, bucket = 0;
  std::uint64_t tensor_offset = 0, bucket_offset = 0, bytes = 0;
};
struct loose_manifest {
  std::uint64_t bucket_bytes = lie_bucket;
  std::vector<loose_tensor> tensors;
  std::vector<loose_piece> pieces;
  static loose_manifest honest();
  std::vector<std::byte> encode() const;
};

/// Empty if these are the code and the words; else what they are.
std::string judged(told const& last, errc code, char const* words);

// ---- the tables ----

/// A false receiver goes so far as an honest one would, lies, and hears what the sender says to it.
struct receiver_lie {
  enum class step {
    connected,
    greeted,
    begun,
    accepted,
    published,
    released,
    copied,
    committing,
    committed,
    reading
  };
  char const* title;
  step at;
  void (*lie)(liar&);
  errc code;         ///< what the liar is told, and what the report says; ok: the connection just ends
  char const* words; ///< part of the text
  /// The sender's tensors lie in memory that it shares, and the liar maps, or seems to.
  bool mapped = false;
};
std::span<receiver_lie const> receiver_lies();
/// Calls `ready` once it is greeted, if it lies later than that. Returns what is not as it should be.
std::string tell(receiver_lie const& what, std::string const& path, void (*ready)(void*), void* with);

/// A false sender likewise.
struct sender_lie {
  enum class step {
    accepted,
    welcomed,
    offered,
    begun,
    asked,
    loading,
    streaming,
    copied,
    committed,
    placing,
    mapping,
    reading
  }; // the last three: of the mapped route
  char const* title;
  step at;
  void (*lie)(liar&);
  errc code;
  char const* words;
  /// refused_ring, not_mapped: the session goes on, and the words are in ring_refused or in accept.
  /// refused, given_up: so does it, and the words are in refuse or in abort_update.
  enum class way { ends, refused_ring, not_mapped, refused, given_up } how = way::ends;
  bool streams = false;          ///< honestly, before it lies: destinations were written
  bool is_not_committed = false; ///< although everything came
};
std::span<sender_lie const> sender_lies();
std::string tell(sender_lie const& what, false_door& door);

} // namespace ropeway::testing
