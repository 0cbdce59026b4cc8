// Messages as datagrams: one message, one datagram. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/messages.hpp"

namespace ropeway::protocol {

/// No datagram is longer; a Unix socket of default size takes it whole.
inline constexpr std::size_t max_datagram = 128 * 1024;

/// Writes one datagram; `out` is cleared first. Throws transfer_error(errc::overflow) for a message that a
/// peer would have to refuse because a text, a name or a list is too long.
void encode(message const& what, std::vector<std::byte>& out);

/// Reads one datagram, trusting nothing. Nothing if it is no message; then `what_is_wrong` says why, in one
/// line.
std::optional<message> decode(std::span<std::byte const> datagram, std::string& what_is_wrong);

/// Differs between builds whose messages differ.
std::uint64_t schema_hash();

/// One line for logs: name{field=value, ...}.
std::string print(message const& what);

/// The message's name, as in docs/protocol.md.
std::string_view name_of(message const& what) noexcept;

/// Whether parts of this memory::part_kind come with a descriptor (as opposed to a handle in the message).
bool has_fd(std::uint8_t part_kind) noexcept;

/// How many file descriptors must come with it: 1 for ring, manifest_follows, placement_follows,
/// digest_table and a segment_part that has one; 0 for everything else.
std::size_t expected_fds(message const& what) noexcept;

} // namespace ropeway::protocol
