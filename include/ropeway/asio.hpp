// The only file that knows Asio's versions (1.22 to 1.38): one spelling for what moved between them.
// Part of ropeway; Apache-2.0.
//
// Includes the narrow headers that every awaitable operation needs and no more: <asio.hpp> as a whole doubles
// the time that a translation unit takes. Sockets, timers and strands are included where they are used; they
// are the same in every version.
#pragma once
#include <asio/version.hpp>

#if ASIO_VERSION < 102200
#error "ropeway needs Asio 1.22 or newer (Debian: libasio-dev)"
#endif
#if !defined(ASIO_STANDALONE)
#error "ropeway uses standalone Asio: define ASIO_STANDALONE (its pkg-config file and CMake package do)"
#endif

#include <asio/any_io_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/co_spawn.hpp>
#include <asio/error.hpp>
#include <asio/experimental/awaitable_operators.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#if ASIO_VERSION >= 102300
#include <asio/as_tuple.hpp>
#include <asio/deferred.hpp>
#else
#include <asio/experimental/as_tuple.hpp>
#include <asio/experimental/deferred.hpp>
#endif

#if !defined(ASIO_HAS_CO_AWAIT)
#error                                                                                                       \
    "ropeway needs coroutines: compile as C++20 (clang with Asio 1.22: add -DASIO_HAS_CO_AWAIT=1 -DASIO_HAS_STD_COROUTINE=1)"
#endif

namespace ropeway {

using asio::any_io_executor;
using asio::awaitable;
using asio::use_awaitable;

/// Names that live elsewhere in some Asio version, or are missing there.
namespace compat {

#if ASIO_VERSION >= 102300
using asio::as_tuple;
using asio::as_tuple_t;
using asio::deferred;
using asio::deferred_t;
#else
using asio::experimental::as_tuple;
using asio::experimental::as_tuple_t;
using asio::experimental::deferred;
using asio::experimental::deferred_t;
#endif

/// `using namespace compat::awaitable_operators;` for `co_await (a() || b())` and `co_await (a() && b())`.
namespace awaitable_operators = asio::experimental::awaitable_operators;

/// `auto [error, value] = co_await op(compat::as_result);`: errors as values instead of exceptions.
inline constexpr as_tuple_t<asio::use_awaitable_t<>> as_result{asio::use_awaitable_t<>{}};

} // namespace compat
} // namespace ropeway
