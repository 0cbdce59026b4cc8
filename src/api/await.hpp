// The throwing form of operations. Part of ropeway; Apache-2.0.
#pragma once
#include <type_traits>
#include <utility>

#include "ropeway/asio.hpp"
#include "ropeway/detail/operation.hpp"
#include "ropeway/report.hpp"

namespace ropeway::detail {

/// The throwing form of an operation whose compiled part takes a completion.
template <class T, class Start>
awaitable<T> await(any_io_executor executor, Start start) {
  if constexpr (std::is_same_v<T, nothing>) {
    failure const error = co_await detail::initiate<T, failure>(executor, start, use_awaitable);
    if (error) throw error.error();
    co_return nothing();
  } else {
    auto [error, result] = co_await detail::initiate<T, failure>(executor, start, use_awaitable);
    if constexpr (std::is_same_v<T, send_report>) {
      if (error) throw send_failed(error.error(), std::move(result));
    } else {
      if (error) throw error.error();
    }
    co_return std::move(result);
  }
}

inline awaitable<void> without_result(awaitable<nothing> operation) { co_await std::move(operation); }

} // namespace ropeway::detail
