#include "intermission.hpp"

#include <cerrno>
#include <chrono>
#include <new>
#include <sys/mman.h>
#include <system_error>
#include <thread>

namespace ropeway::matrix {
namespace {

constexpr std::chrono::minutes longest{5};

/// Enters among `mine` once there is nobody among those who must not be beside it.
template <class Others>
void enter(std::atomic<std::uint32_t>& mine, Others const& others) {
  auto const end = std::chrono::steady_clock::now() + longest;
  for (;;) {
    // First in and then a look: of two that come at the same time at least one sees the other.
    ++mine;
    if (!others() || std::chrono::steady_clock::now() > end) return;
    --mine;
    while (others() && std::chrono::steady_clock::now() <= end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

} // namespace

intermission* intermission::make() {
  void* const shared =
      ::mmap(nullptr, sizeof(intermission), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  return new (shared) intermission;
}

void intermission::begin_play() {
  enter(playing_, [this] { return is_on(); });
}

void intermission::begin_starting() {
  ++waiting_;
  enter(starting_, [this] { return playing_ != 0; });
  --waiting_;
}

} // namespace ropeway::matrix
