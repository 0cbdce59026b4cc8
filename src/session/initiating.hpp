// What the calls that start operations share, on either side. Part of ropeway; Apache-2.0.
#pragma once
#include <algorithm>
#include <asio/error.hpp>
#include <chrono>
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

/// A limit that a clock can count to: somebody says "for ever" with the largest number there is.
inline std::chrono::milliseconds countable(std::chrono::milliseconds limit) {
  return std::min(limit, std::chrono::milliseconds(std::chrono::hours(24 * 365)));
}

/// Set while something runs that must not be entered again; also if it ends with an exception.
class running_guard {
 public:
  explicit running_guard(bool& runs) : runs_(runs) { runs_ = true; }
  running_guard(running_guard const&) = delete;
  running_guard& operator=(running_guard const&) = delete;
  ~running_guard() { runs_ = false; }

 private:
  bool& runs_;
};

/// Lives in a coroutine that stands in the event loop as long as a core works. If the loop is destroyed with
/// it, the core lets go of what waits for it: handlers may own the sender or receiver that owns the core.
template <class Core>
class loop_anchor {
 public:
  explicit loop_anchor(std::weak_ptr<Core> core) : core_(std::move(core)) {}
  loop_anchor(loop_anchor const&) = delete;
  loop_anchor& operator=(loop_anchor const&) = delete;
  ~loop_anchor() {
    if (auto const core = core_.lock()) core->dissolve();
  }
  /// The coroutine ends by itself.
  void lift() noexcept { core_.reset(); }

 private:
  std::weak_ptr<Core> core_;
};

/// Whom a sender's or a receiver's options trust.
template <class Options>
wire::trust trust_of(Options const& options) {
  wire::trust whom;
  for (auto const user : options.allowed_users()) whom.user(user);
  whom.group_access(!options.allowed_users().empty()).any_directory(options.allow_shared_directory());
  return whom;
}

} // namespace ropeway::detail
