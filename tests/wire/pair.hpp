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

inline wire::strand strand_of(asio::io_context& io) { return wire::make_strand(io.get_executor()); }

/// For use by the coroutine that asks.
inline awaitable<wire::connection>
connect_to(std::string path, std::chrono::steady_clock::time_point deadline, wire::trust whom = {}) {
  any_io_executor const here = co_await asio::this_coro::executor;
  wire::connection made =
      co_await wire::connect(wire::make_strand(here), std::move(path), deadline, std::move(whom));
  co_return made;
}

/// The next message, waited for. A cancelled one takes none.
inline awaitable<wire::received> receive(wire::connection& from, std::span<std::byte> buffer,
                                         std::size_t most_fds = 0) {
  for (;;) {
    auto const cancelled = co_await asio::this_coro::cancellation_state;
    if (cancelled.cancelled() != asio::cancellation_type::none)
      throw asio::system_error(asio::error::operation_aborted);
    if (auto got = from.try_receive(buffer, most_fds)) co_return std::move(*got);
    co_await from.wait(use_awaitable);
  }
}

struct connection_pair {
  wire::connection a, b;
  explicit connection_pair(asio::io_context& io) {
    auto [one, two] = socket_pair();
    a = wire::connection(strand_of(io), std::move(one), wire::trust());
    b = wire::connection(strand_of(io), std::move(two), wire::trust());
  }
};

inline std::span<std::byte const> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

/// Receives one message as text; how many descriptors came with it is added to `fds`.
inline awaitable<std::string> receive_text(wire::connection& from, std::size_t most_fds = 0,
                                           std::vector<unique_fd>* fds = nullptr) {
  std::vector<std::byte> buffer(wire::max_message);
  wire::received got = co_await receive(from, buffer, most_fds);
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
