// What the receiver's machine knows. What the sender says is handled in messages.cpp, everything else in
// ../receiver_machine.cpp. Part of ropeway; Apache-2.0.
#pragma once
#include <map>

#include "protocol/pace.hpp"
#include "protocol/receiver_machine.hpp"
#include "protocol/text.hpp"

namespace ropeway::protocol {

/// More rings than any sender has devices.
inline constexpr std::size_t max_rings = 65;

struct receiver_machine::impl {
  enum class session : std::uint8_t { unborn, handshake, open, over };
  enum class stage : std::uint8_t {
    idle,
    looking_up, ///< the driver looks whether it knows the layout
    asking,     ///< need_manifest was said
    reading,    ///< the driver reads the manifest
    looking_up_placement,
    asking_placement,
    reading_placement,
    offered, ///< the embedder decides; segments are mapped
    loading,
    all_copied, ///< waits for commit or abort
    committing,
    draining, ///< the update is given up; the driver's copies may still run
  };
  struct known_ring {
    ring what;
    enum class state : std::uint8_t { mapping, mapped, refused } at = state::mapping;
  };
  struct held_slot {
    std::uint64_t seq = 0;
    std::uint32_t ring = 0, slot = 0;
  };
  /// What is said when the driver has drained its copies.
  enum class last_word : std::uint8_t { none, aborted, failed };

  explicit impl(receiver_settings s) : settings(std::move(s)) {}

  receiver_settings settings;
  session life = session::unborn;
  welcome terms; ///< as the sender said
  std::map<std::uint32_t, known_ring> rings;

  stage at = stage::idle;
  begin current;
  std::vector<std::uint64_t> bucket_bytes;
  std::vector<bool> needed_buckets;        ///< of one that maps
  bool placed = false, mapped = false;     ///< the placement is known; it reads the sender's tensors
  bool told_to_read = false, read = false; ///< the mapped tensors; told, also before it has accepted
  bool commits_itself = false;             ///< no commit comes, of the running update or the one before
  bool looking = false;                    ///< the driver looks whether there is an abort
  bool crossed = false;     ///< an abort came when it had decided to commit by itself; answered after that
  bool may_be_told = false; ///< last_update was turned down, and word that it may be read may be on its way
  std::uint64_t table = 0;  ///< of digests, that was given last
  bool digests_ready = false, comparing = false, compared = false; ///< the digests of this update
  bytes16 digest{};                                                ///< as it was found
  std::uint64_t asked_segment = 0;                                 ///< and its parts [next_part, end_part)
  std::uint32_t next_part = 0, end_part = 0;
  std::uint32_t next_bucket = 0, loaded_buckets = 0, expected_buckets = 0;
  bool in_place = true; ///< the embedder has nothing more to do before all_copied
  std::uint64_t last_seq = 0;
  std::vector<held_slot> held; ///< published, not yet released; a few

  last_word at_drained = last_word::none;
  std::uint16_t failed_code = 0;
  std::string failed_text;
  bool closing = false; ///< goodbye follows the end of the update
  std::string closing_text;

  std::uint64_t last_update = 0; ///< the newest that was begun
  bool said_aborted = false;     ///< for last_update
  bool gave_up = false;          ///< last_update ended by our abort: the sender may not have known yet

  time_point now{}, born{}, heard{}, said{}, waiting_since{};
  pace idle; ///< of what the sender says that moves nothing, updates that nobody has decided about included
  std::vector<receiver_action> actions;

  // ---- messages.cpp ----
  void received(message const& what);
  void heard_idly(message const& what);
  /// Whether a message about this update is for the one that runs. If not, it is ignored (it crossed our
  /// abort) or it ended the session.
  bool is_current(std::uint64_t update, message const& what);
  void on(welcome const& m);
  void on(turned_away const& m);
  void on(ring const& m);
  void on(begin const& m);
  void on(manifest_follows const& m);
  void on(placement_follows const& m);
  void on(segment_part const& m);
  void on(read_mapped const& m);
  void on(digest_table const& m);
  void on(protocol::digests_ready const& m);
  void on(unmap const& m);
  void on(published const& m);
  void on(commit const& m);
  void on(abort_update const& m);
  void on(alive const& m);
  void on(goodbye const& m);
  template <class Other>
  void on(Other const& m);

  // ---- receiver_machine.cpp ----
  void say(message what);
  void go(stage next);
  /// Takes it out of `held`; false if it is not there.
  bool let_go(std::uint64_t seq);
  bool running() const noexcept { return at != stage::idle; }
  /// Stops the running update: the driver drains, then `word` is said.
  void stop(errc code, std::string const& text, bool by_peer, last_word word);
  void give_up(errc code, std::string const& text);
  void finish_update();
  void check_all_copied();
  void make_offer();
  /// The embedder does not want the update.
  void turn_down();
  /// Over buckets that it is not published.
  void skip_buckets();
  void end(errc code, std::string const& text);
  void end_with_goodbye(errc code, std::string const& text);
  void violated(std::string const& text) { end_with_goodbye(errc::protocol_error, text); }
  duration silence_limit() const;
  duration alive_interval() const;
  bool waits_for_sender() const noexcept;
  std::optional<time_point> due() const;
};

} // namespace ropeway::protocol
