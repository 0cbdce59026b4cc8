#include "co_test.hpp"

#include <asio/io_context.hpp>
#include <csignal>
#include <cstring>
#include <exception>
#include <unistd.h>

#include "ropeway/error.hpp"

namespace ropeway::testing {
namespace {

extern "C" void end_hung_test(int) {
  char const words[] = "\na test blocked its thread past its limit; the process ends\n";
  [[maybe_unused]] auto written = ::write(STDERR_FILENO, words, std::strlen(words));
  ::_exit(124);
}

} // namespace

deadline_guard::deadline_guard(std::chrono::milliseconds limit) {
  std::signal(SIGALRM, end_hung_test);
  ::alarm(static_cast<unsigned>(std::chrono::ceil<std::chrono::seconds>(limit).count()) + 1);
}

deadline_guard::~deadline_guard() { ::alarm(0); }

void run_to_end(std::function<awaitable<void>()> const& start, std::chrono::milliseconds limit) {
  limit = patient(limit);
  deadline_guard guard(limit + std::chrono::seconds(25));
  asio::io_context io(1);
  std::exception_ptr thrown;
  bool finished = false;
  asio::co_spawn(io, start(), [&](std::exception_ptr e) {
    thrown = e;
    finished = true;
  });
  io.run_for(limit);
  if (!finished) {
    FAIL("the test did not end within " << limit.count()
                                        << " ms: an operation that should have completed waits");
  } else if (!io.stopped()) {
    FAIL_CHECK("the test's body ended, but work is left on its io_context after " << limit.count() << " ms");
  }
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (std::exception const& e) {
    FAIL_CHECK("the test's body threw: " << std::string(e.what()));
  } // anything else is doctest's own, which ends the test case
}

} // namespace ropeway::testing
