// That the tests see what is left behind.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/fork_child.hpp"

using namespace ropeway;
using namespace ropeway::testing;

namespace {

int status_of(std::function<int()> const& body) { return fork_child(body).wait(); }

} // namespace

TEST_CASE("a child that leaves a descriptor, a mapping or memory behind ends as one that littered") {
  CHECK(status_of([] { return 3; }) == 3);
  CHECK(status_of([] { return ::open("/dev/null", O_RDONLY | O_CLOEXEC) < 0; }) == fork_child::littered);
  CHECK(status_of([] {
          unique_fd const file(::memfd_create("test", MFD_CLOEXEC));
          return ::ftruncate(file.get(), 4096) != 0 ||
                 ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file.get(), 0) == MAP_FAILED;
        }) == fork_child::littered);
#ifdef __SANITIZE_ADDRESS__
  CHECK(status_of([] {
          static void* volatile forgotten = nullptr;
          forgotten = ::operator new(100);
          forgotten = nullptr;
          return forgotten != nullptr ? 4 : 0;
        }) == fork_child::littered);
#endif
}

TEST_CASE("what comes and what goes is told apart") {
  unique_fd before(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  auto const number = std::to_string(before.get());
  leftovers const since;
  CHECK(since.left_behind() == "");
  CHECK(since.lost() == "");
  unique_fd after(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  CHECK(since.left_behind() == "left behind: descriptor " + std::to_string(after.get()) + " -> /dev/zero\n");
  CHECK(since.lost() == "");
  after.reset();
  before.reset();
  CHECK(since.left_behind() == "");
  CHECK(since.lost() == "lost: descriptor " + number + " -> /dev/null\n");
}
