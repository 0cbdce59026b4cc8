// Cuts a read into requests that the disk can serve. Pure. Part of ropeway; Apache-2.0.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace ropeway {

/// The largest request straight into the caller's memory, and the size of a bounce buffer.
inline constexpr std::uint64_t largest_part = 1024 * 1024;
inline constexpr std::uint64_t bounce_size = 256 * 1024;
/// Up to here one request through a bounce buffer beats a head, a middle and a tail.
inline constexpr std::uint64_t small_read = 64 * 1024;

/// What a file demands of reads past the page cache; 0: it is read through the page cache.
struct alignment_rule {
  std::uint32_t offset = 0;
  std::uint32_t memory = 0;
};

/// One request to the disk: `bytes` from file offset `begin`. Either straight to the destination (then `skip`
/// is 0), or to a bounce buffer, of which the `wanted` bytes after `skip` are copied on.
struct part {
  std::uint64_t begin = 0;
  std::uint32_t bytes = 0;
  std::uint32_t skip = 0;
  std::uint32_t wanted = 0;
  bool bounce = false;
  bool direct = false;
};

/// The first part of the read of `[begin, end)`, not empty, to memory at address `to`.
constexpr part next_part(std::uint64_t begin, std::uint64_t end, std::uintptr_t to, alignment_rule rule) {
  std::uint64_t const left = end - begin;
  auto const in_place = [&](std::uint64_t bytes, bool direct) {
    auto const size = static_cast<std::uint32_t>(bytes);
    return part{.begin = begin, .bytes = size, .skip = 0, .wanted = size, .bounce = false, .direct = direct};
  };
  if (rule.offset == 0) return in_place(std::min(left, largest_part), false);

  std::uint64_t const skip = begin % rule.offset;
  auto const bounced = [&](std::uint64_t most) {
    std::uint64_t const wanted = std::min({left, bounce_size - skip, most});
    std::uint64_t const bytes = (skip + wanted + rule.offset - 1) / rule.offset * rule.offset;
    return part{.begin = begin - skip,
                .bytes = static_cast<std::uint32_t>(bytes),
                .skip = static_cast<std::uint32_t>(skip),
                .wanted = static_cast<std::uint32_t>(wanted),
                .bounce = true,
                .direct = true};
  };
  std::uint64_t const head = skip == 0 ? 0 : rule.offset - skip;
  bool const meets = (to + head) % rule.memory == 0; // the aligned middle would arrive at aligned memory
  std::uint64_t const tail = left > head ? (left - head) % rule.offset : 0;
  if (meets && head == 0 && tail == 0) return in_place(std::min(left, largest_part), true);
  if (!meets || left <= small_read) return bounced(left);
  if (head != 0) return bounced(head);
  return in_place(std::min(left - tail, largest_part), true);
}

} // namespace ropeway
