#include "session/copy_stream.hpp"

#include <doctest/doctest.h>

#include <asio/io_context.hpp>
#include <memory>
#include <vector>

#include "support/scripted_backend.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;

namespace {

/// A stream of a device that copies when it is told to, and one list queued on it.
class waiting_copy {
 public:
  explicit waiting_copy(std::chrono::microseconds poll_for)
      : stream_(std::make_shared<session::copy_stream>(
            wire::make_strand(io_.get_executor()), devices_.get(device::cuda(0))->make_queue(),
            [this](session::copied&, std::error_code) { done = true; }, poll_for)) {
    memory::copy_op op;
    op.from = from_.data(), op.to = to_.data(), op.bytes = to_.size();
    stream_->copy({&op, 1});
    stream_->then({});
  }
  ~waiting_copy() {
    finish();
    CHECK(stream_->shut(std::chrono::steady_clock::now() + 10s));
    stream_->forget();
  }
  void expect(std::chrono::steady_clock::duration so_long) {
    stream_->expect(so_long, [this] { ++soon; });
  }
  void finish() { when_->finish_all(); }
  template <class Done>
  bool run_until(Done const& is_so) {
    auto const end = std::chrono::steady_clock::now() + 10s;
    while (!is_so() && std::chrono::steady_clock::now() < end) io_.run_one_for(100ms);
    return is_so();
  }
  /// Longer than `so_long` from now, whatever else the loop has to do.
  void run_past(std::chrono::steady_clock::duration so_long) {
    wire::timer past(wire::make_strand(io_.get_executor()), so_long + 1ms);
    bool over = false;
    past.async_wait([&](std::error_code) { over = true; });
    CHECK(run_until([&] { return over; }));
  }

  bool done = false;
  int soon = 0;

 private:
  std::shared_ptr<script> when_ = std::make_shared<script>(script::pace::held);
  scripted_devices devices_{when_, 1};
  std::vector<std::byte> from_{std::size_t(64)}, to_{std::size_t(64)};
  asio::io_context io_{1};
  std::shared_ptr<session::copy_stream> stream_;
};

} // namespace

TEST_CASE("who expects a long copy hears of its end beforehand, once") {
  waiting_copy copy(200us);
  copy.expect(5ms);
  CHECK(copy.run_until([&] { return copy.soon != 0; }));
  CHECK_FALSE(copy.done);
  copy.finish();
  CHECK(copy.run_until([&] { return copy.done; }));
  CHECK(copy.soon == 1);
}

TEST_CASE("of a copy that has ended before nobody hears that it is about to") {
  waiting_copy copy(200us);
  copy.expect(5ms);
  copy.finish();
  CHECK(copy.run_until([&] { return copy.done; }));
  copy.run_past(5ms);
  CHECK(copy.soon == 0);
}

TEST_CASE("the end of a short copy is announced to nobody") {
  waiting_copy copy(5ms);
  copy.expect(1ms);
  copy.run_past(1ms);
  CHECK_FALSE(copy.done);
  copy.finish();
  CHECK(copy.run_until([&] { return copy.done; }));
  CHECK(copy.soon == 0);
}
