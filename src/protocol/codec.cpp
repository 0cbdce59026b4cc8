#include "protocol/codec.hpp"

#include <algorithm>
#include <array>
#include <type_traits>

#include "base/codec.hpp"
#include "protocol/text.hpp"

namespace ropeway::protocol {
namespace {

constexpr codec::limits limits{.max_string = max_text, .max_elements = max_unmap};

/// What is too long to be sent or to be believed; empty if nothing is.
std::string too_long(message const& what) {
  if (auto const* h = std::get_if<hello>(&what)) {
    if (h->name.size() > max_name)
      return words("the name in hello has ", h->name.size(), " bytes, more than ", max_name);
    if (h->group.size() > max_name)
      return words("the group in hello has ", h->group.size(), " bytes, more than ", max_name);
    if (h->devices.size() > max_devices)
      return words("hello names ", h->devices.size(), " devices, more than ", max_devices);
  }
  return std::visit(
      [&](auto const& m) -> std::string {
        if constexpr (requires { m.segments; })
          if (m.segments.size() > max_unmap)
            return words(name_of(what), " names ", m.segments.size(), " segments, more than ", max_unmap);
        if constexpr (requires { m.text; })
          if (m.text.size() > max_text)
            return words("the text in ", name_of(what), " has ", m.text.size(), " bytes, more than ",
                         max_text);
        if constexpr (requires { m.last_error; })
          if (auto const most = std::max(m.name.size(), m.last_error.size()); most > max_text)
            return words("a text in ", name_of(what), " has ", most, " bytes, more than ", max_text);
        return {};
      },
      what);
}

} // namespace

void encode(message const& what, std::vector<std::byte>& out) {
  if (auto wrong = too_long(what); !wrong.empty()) throw transfer_error(errc::overflow, wrong);
  out.clear();
  codec::encode(what, out);
}

std::optional<message> decode(std::span<std::byte const> datagram, std::string& what_is_wrong) {
  if (datagram.size() > max_datagram) {
    what_is_wrong = words("a datagram of ", datagram.size(), " bytes, more than ", max_datagram);
    return std::nullopt;
  }
  message what;
  if (auto const read = codec::decode(datagram, what, limits); !read) {
    what_is_wrong = words("a datagram of ", datagram.size(), " bytes is no message: ", read.text());
    return std::nullopt;
  }
  what_is_wrong = too_long(what);
  if (!what_is_wrong.empty()) return std::nullopt;
  return what;
}

std::uint64_t schema_hash() {
  static constexpr std::uint64_t hash = codec::schema_hash<message>();
  return hash;
}

bool has_fd(std::uint8_t part_kind) noexcept { return part_kind == 1 || part_kind == 2; }

std::string print(message const& what) { return codec::print(what); }

std::string_view name_of(message const& what) noexcept {
  return std::visit(
      [](auto const& m) { return codec::detail::type_name<std::remove_cvref_t<decltype(m)>>(); }, what);
}

std::size_t expected_fds(message const& what) noexcept {
  if (auto const* part = std::get_if<segment_part>(&what)) return part->code == 0 && has_fd(part->kind);
  return std::holds_alternative<ring>(what) || std::holds_alternative<manifest_follows>(what) ||
         std::holds_alternative<placement_follows>(what) || std::holds_alternative<digest_table>(what);
}

} // namespace ropeway::protocol
