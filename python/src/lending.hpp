// Buckets that are lent to Python, and what was made of their memory there. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <mutex>
#include <vector>

#include "engine.hpp"
#include "ropeway/receiver.hpp"
#include "sharing.hpp"

namespace nb = nanobind;

namespace ropeway::python {

/// A bucket whose pieces may be looked at through DLPack. Each array that was made of a piece counts; the
/// slot is not given back before the last of them is gone, so that none ever sees what the sender writes
/// next.
class lent_bucket : public shareable<lent_bucket> {
 public:
  lent_bucket(std::shared_ptr<engine> loop, bucket what);
  ~lent_bucket();
  lent_bucket(lent_bucket const&) = delete;
  lent_bucket& operator=(lent_bucket const&) = delete;

  std::uint32_t number() const noexcept { return bucket_.number(); }
  std::span<bucket_piece const> pieces() const noexcept { return bucket_.pieces(); }
  /// A capsule named "dltensor" of one piece, or nothing if the bucket was released.
  nb::object capsule(std::size_t piece, dtype type, shape const& dims);
  /// No more capsules. The slot is free after `when`, which `owner` keeps, or when the last array is gone;
  /// gives the pieces that arrays are left of.
  std::vector<std::size_t> release(ready_after when, kept owner);
  bool released() const;

 private:
  friend struct exported;
  void returned(std::size_t piece);
  std::shared_ptr<engine> loop_;
  bucket bucket_; // goes before the loop
  mutable std::mutex mutex_;
  std::vector<std::uint32_t> exports_; // of each piece
  std::uint64_t all_exports_ = 0;
  bool released_ = false;
};

} // namespace ropeway::python
