// Two connected ends, and words for errors, for the tests of the wire. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/io_context.hpp>
#include <cstring>
#include <doctest/doctest.h>
#include <span>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <utility>

#include "ropeway/error.hpp"
#include "run_coroutine.hpp"
#include "wire/connection.hpp"

namespace ropeway::testing {

inline std::pair<unique_fd, unique_fd> socket_pair() {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  return {unique_fd(ends[0]), unique_fd(ends[1])};
}

struct connection_pair {
  wire::connection a, b;
  explicit connection_pair(asio::io_context& io) {
    auto [one, two] = socket_pair();
    a = wire::connection(io.get_executor(), std::move(one), wire::trust());
    b = wire::connection(io.get_executor(), std::move(two), wire::trust());
  }
};

inline std::span<std::byte const> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

/// Receives one message as text; how many descriptors came with it is added to `fds`.
inline awaitable<std::string> receive_text(wire::connection& from, std::size_t most_fds = 0,
                                           std::vector<unique_fd>* fds = nullptr) {
  std::vector<std::byte> buffer(wire::max_message);
  wire::received got = co_await from.receive(buffer, most_fds);
  if (fds != nullptr) *fds = std::move(got.fds);
  co_return std::string(reinterpret_cast<char const*>(buffer.data()), got.bytes);
}

/// The code of what `action` throws, or none.
template <class Action>
std::error_code code_of(Action const& action) {
  try {
    action();
  } catch (std::system_error const& error) { return error.code(); }
  return {};
}
template <class Action>
std::string words_of(Action const& action) {
  try {
    action();
  } catch (std::system_error const& error) { return error.what(); }
  return "nothing was thrown";
}

} // namespace ropeway::testing
