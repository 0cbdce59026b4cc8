// The one place where the benchmark meets the choice of a route and the pace of copies in the library's
// interface. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "ropeway/error.hpp"
#include "ropeway/options.hpp"
#include "ropeway/report.hpp"
#include "ropeway/shared_memory.hpp"

namespace ropeway::bench {

/// Which route is asked for.
enum class way : std::uint8_t { automatic, mapped, staged, host };

constexpr char const* name(way which) {
  constexpr char const* names[] = {"automatic", "mapped", "staged", "host"};
  return names[static_cast<int>(which)];
}
inline std::optional<way> parse_way(std::string_view text) {
  for (auto const one : {way::automatic, way::mapped, way::staged, way::host})
    if (text == name(one)) return one;
  return std::nullopt;
}

/// How much of a GPU copies may take: a number of blocks, or of bytes a second; 0: no limit.
struct pace {
  std::uint32_t blocks = 0;
  std::uint64_t bytes_per_second = 0;
  bool unlimited() const { return blocks == 0 && bytes_per_second == 0; }
};
std::string to_string(pace const& of);
/// "unlimited", "blocks:16", "rate:200" (in 10^9 bytes a second).
std::optional<pace> parse_pace(std::string_view text);

/// Whether what a report says is what was asked for.
inline bool agrees(way asked, route taken) {
  return asked == way::automatic || ropeway::name(taken) == name(asked);
}

constexpr route_choice to_choice(way which) {
  constexpr route_choice choices[] = {route_choice::automatic, route_choice::mapped, route_choice::staged,
                                      route_choice::host};
  return choices[static_cast<int>(which)];
}
inline void choose(sender_options& options, way which) { options.use_route(to_choice(which)); }
inline void choose(receiver_options& options, way which) { options.use_route(to_choice(which)); }
inline void set_pace(receiver_options& options, pace const& of) {
  if (of.unlimited()) return;
  copy_pace limit;
  if (of.blocks != 0) limit.most_blocks(of.blocks);
  if (of.bytes_per_second != 0) limit.bytes_per_second(of.bytes_per_second);
  options.pace(limit);
}

/// Host memory that peers can map.
class sharable {
 public:
  explicit sharable(std::uint64_t bytes) : memory_(shared_memory::make(bytes)) {}
  std::byte* data() const { return static_cast<std::byte*>(memory_.data()); }
  shared_memory const& memory() const { return memory_; }

 private:
  shared_memory memory_;
};
/// A template, so that not every file of the benchmark must know what a sender is.
template <class Sender>
void share(Sender& by, sharable const& what) {
  by.share(what.memory());
}

} // namespace ropeway::bench
