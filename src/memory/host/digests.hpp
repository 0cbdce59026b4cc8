// Digests of host memory. Part of ropeway; Apache-2.0.
#pragma once
#include <vector>

#include "memory/memory.hpp"

namespace ropeway::memory::host {

/// What one operation adds to its sum. `base` as in digest_run.
digest128 digest_of(digest_op const& op, std::byte const* base) noexcept;

class host_digests final : public prepared_digests {
 public:
  /// Throws as backend::prepare_digests. Where the memory lies is not looked at.
  host_digests(std::span<digest_op const> ops, std::uint32_t sums);
  std::span<digest128 const> sums() const noexcept override { return sums_; }
  /// What a queue does when its turn has come.
  void carry_out(digest_run const& what) noexcept;

 private:
  std::vector<digest_op> ops_;
  std::vector<std::size_t> first_; ///< of each group, and one more
  std::vector<digest128> sums_;
};

} // namespace ropeway::memory::host
