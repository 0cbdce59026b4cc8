// Tests whose body is a coroutine: CO_TEST("sentence") { ... co_await ... }. The body is spawned on an
// io_context of its own, which must run out of work in time: a test that hangs, or leaves an operation
// behind, fails with a message. Part of ropeway; Apache-2.0.
//
// Inside a body: CHECK bound values, never `co_await` expressions; SUBCASE doesn't work; name lambdas and
// options.
#pragma once
#include <chrono>
#include <doctest/doctest.h>
#include <functional>

#include "patient.hpp"
#include "ropeway/asio.hpp"

namespace ropeway::testing {

/// Runs the coroutine that `start` makes until nothing is left to do on its io_context. What it throws fails
/// the test.
void run_to_end(std::function<awaitable<void>()> const& start,
                std::chrono::milliseconds limit = std::chrono::seconds(20));

/// Ends the process, with the test's name, when it isn't destroyed in time: for what blocks the loop itself,
/// or runs without one.
class deadline_guard {
 public:
  explicit deadline_guard(std::chrono::milliseconds limit);
  ~deadline_guard();
  deadline_guard(deadline_guard const&) = delete;
  deadline_guard& operator=(deadline_guard const&) = delete;
};

} // namespace ropeway::testing

// The parameter keeps g++ 12 from miscompiling coroutines without parameters and locals.
#define ROPEWAY_CO_TEST(function, title)                                                                     \
  static ropeway::awaitable<void> function(int);                                                             \
  TEST_CASE(title) {                                                                                         \
    ropeway::testing::run_to_end([] { return function(0); });                                                \
  }                                                                                                          \
  static ropeway::awaitable<void> function([[maybe_unused]] int unused_)
#define CO_TEST(title) ROPEWAY_CO_TEST(DOCTEST_ANONYMOUS(co_test_), title)
