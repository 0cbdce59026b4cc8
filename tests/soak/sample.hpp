// What a process holds now. Part of ropeway; Apache-2.0.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace ropeway::soak {

struct figures {
  std::uint64_t anon_kib = 0;   ///< RssAnon
  std::uint64_t shared_kib = 0; ///< RssShmem
  std::uint64_t heap_bytes = 0; ///< in use, by malloc's own account; 0 under a sanitizer
  std::uint64_t fds = 0;
  std::uint64_t mappings = 0; ///< lines of /proc/self/maps
  std::uint64_t threads = 0;
  std::uint64_t device_mib = 0; ///< in use on the process's GPU, by all processes; 0 for the host
};

/// Of this process. `cuda_ordinal` < 0: no device.
figures sample_now(int cuda_ordinal);

/// The best moment to ask malloc for everything that it keeps to itself back, so that samples compare.
void give_back_free_memory();

} // namespace ropeway::soak
