#include "intermission.hpp"

#include <chrono>
#include <thread>

namespace ropeway::matrix {
namespace {

constexpr std::chrono::minutes longest{5};

} // namespace

template <class Others>
intermission::turn intermission::enter(std::atomic<std::uint32_t>& mine, Others const& others) {
  auto const end = std::chrono::steady_clock::now() + longest;
  for (;;) {
    // First in and then a look: of two that come at the same time at least one sees the other.
    ++mine;
    turn entered(&mine);
    if (broken_ || !others()) return entered;
    entered.reset();
    while (others() && !broken_) {
      if (std::chrono::steady_clock::now() > end) broken_ = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

intermission::turn intermission::play() {
  return enter(playing_, [this] { return is_on(); });
}

intermission::turn intermission::start() {
  ++waiting_;
  auto entered = enter(starting_, [this] { return playing_ != 0; });
  --waiting_;
  return entered;
}

} // namespace ropeway::matrix
