// What the calls that start operations share, on either side. Part of ropeway; Apache-2.0.
#pragma once
#include <asio/error.hpp>
#include <memory>
#include <system_error>

#include "ropeway/detail/operation.hpp"
#include "wire/address.hpp"

namespace ropeway::detail {

/// A completion that a copyable function can carry to the strand.
template <class T>
std::shared_ptr<std::unique_ptr<completion<T>>> share(std::unique_ptr<completion<T>> done) {
  return std::make_shared<std::unique_ptr<completion<T>>>(std::move(done));
}

inline std::error_code aborted_by_caller() {
  return asio::error::make_error_code(asio::error::operation_aborted);
}

/// Whom a sender's or a receiver's options trust.
template <class Options>
wire::trust trust_of(Options const& options) {
  wire::trust whom;
  for (auto const user : options.allowed_users()) whom.user(user);
  whom.group_access(!options.allowed_users().empty());
  whom.any_directory(options.allow_shared_directory());
  return whom;
}

} // namespace ropeway::detail
