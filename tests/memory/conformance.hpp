// What every kind of memory must do, as one suite. Part of ropeway; Apache-2.0.
//
// How to run it for a kind of memory: derive from `memory_kind` (see host_test.cpp), then
//
//   TEST_CASE("cuda memory conforms") {
//     import_peer peer("cuda:0");                 // a process of its own; before CUDA starts in this one
//     cuda_kind kind(peer);                       // may return from the test case here if there is no device
//     for (conformance_case const& c : conformance_cases()) {
//       SUBCASE(c.sentence) { c.run(kind); }      // the test case is entered anew for each
//     }
//   }
//
// and link conformance.cpp and import_peer.cpp. The executable `import-peer` must lie beside the test's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <sys/types.h>
#include <vector>

#include "base/unique_fd.hpp"
#include "import_peer.hpp"
#include "memory/memory.hpp"

namespace ropeway::testing {

/// Another process that imports regions (import_peer_main.cpp), with memory of the device it is told.
class import_peer {
 public:
  explicit import_peer(std::string const& device_name);
  ~import_peer();
  import_peer(import_peer const&) = delete;
  import_peer& operator=(import_peer const&) = delete;

  /// Hands it a region; it copies the bytes into its own host memory through a queue of its device. Its
  /// answer is `hash_of` these bytes, or an error's text. It keeps the region mapped until the next call.
  struct answer {
    std::uint64_t hash = 0;
    std::string error;
  };
  answer import(int handle, std::uint64_t bytes, memory::device_uuid const& origin);
  /// The same of a segment in parts of one kind.
  answer import(std::span<memory::part_handle const> parts, std::uint64_t bytes,
                memory::device_uuid const& origin);
  /// What is in the region now, which it has still mapped.
  answer look_again();
  /// It unmaps the region now.
  answer let_go();

 private:
  answer ask(import_request const& request, int fd);
  unique_fd socket_;
  pid_t pid_ = 0;
};

/// Bytes that differ from place to place and from seed to seed.
std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed);

/// One kind of memory, as the suite sees it.
class memory_kind {
 public:
  virtual ~memory_kind() = default;
  virtual memory::backend& backend() = 0;
  /// Private memory of this kind, aligned to 256 bytes; freed with the last copy of the pointer.
  virtual std::shared_ptr<std::byte> allocate(std::uint64_t bytes) = 0;
  /// Copies from host memory to this kind's, and is done when it returns.
  virtual void write(std::byte* to, std::span<std::byte const> from) = 0;
  /// Copies from this kind's memory to host memory, and is done when it returns.
  virtual void read(std::span<std::byte> to, std::byte const* from) = 0;
  virtual import_peer& peer() = 0;
};

struct conformance_case {
  char const* sentence;
  void (*run)(memory_kind& kind);
};
std::span<conformance_case const> conformance_cases();

/// Waits until the queue has reached the ticket, by its event descriptor alone; false after ten seconds or on
/// error.
bool reaches(memory::queue& queue, std::uint64_t ticket);

} // namespace ropeway::testing
