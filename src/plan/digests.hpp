// What digests of an update are made of: fixed chunks of its tensors, and for each place where bytes of them
// lie what that adds. Pure. Part of ropeway; Apache-2.0.
//
// A chunk is 1 MiB of a tensor's dense row-major image as delivered, the last one of a tensor what is left.
// The sender says a digest for each chunk. Who takes a whole tensor compares the sums over its chunks. Who
// takes a box compares, for each chunk that the box touches, what lies in its destination plus the rest of
// the chunk where it can be read at the source: digests add up, so that the sender needs to know nothing of
// boxes.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memory/digest.hpp"
#include "plan/copies.hpp"
#include "plan/manifest.hpp"
#include "plan/placement.hpp"
#include "ropeway/digest.hpp"

namespace ropeway::plan {

inline constexpr std::uint64_t chunk_bytes = std::uint64_t(1) << 20;

/// The chunks of a manifest's tensors, numbered through, and what its tensors are. Made once a layout.
class chunk_table {
 public:
  /// Throws errc::overflow for more chunks than there are numbers.
  explicit chunk_table(manifest const& of);
  std::uint32_t chunks() const noexcept { return first_.back(); }
  /// Of tensor t: [first(t), first(t + 1)).
  std::uint32_t first(std::uint32_t tensor) const noexcept { return first_[tensor]; }
  /// Of a table with these digests, one a chunk: of all tensors.
  digest128 whole(std::span<digest128 const> of_chunks) const noexcept;

 private:
  std::vector<std::uint32_t> first_; ///< one more than tensors
  std::vector<std::uint64_t> identities_;
};

/// Digests of all tensors where they lie, into one sum a chunk. Throws as gather::check, and what lies where
/// is said by each view.
std::vector<memory::digest_op> source_digests(manifest const& of, chunk_table const& chunks,
                                              std::span<tensor_view const> tensors);
/// The same of what lies in slots: one group a bucket, addresses from the slot's.
std::vector<memory::digest_op> slot_digests(manifest const& of, chunk_table const& chunks, device where);

/// A chunk of a destination, to be compared with the sender's digest of that chunk.
struct checked_chunk {
  std::uint32_t chunk = 0;  ///< of the table
  std::uint32_t tensor = 0; ///< of the manifest
  std::uint32_t target = 0; ///< of the scatter
  friend bool operator==(checked_chunk const&, checked_chunk const&) = default;
};

/// What a receiver compares, of destinations or of what it takes by hand. Made once a layout.
class digest_checks {
 public:
  /// Of destinations. All three must outlive it.
  digest_checks(manifest const& of, chunk_table const& chunks, scatter const& into);
  /// Of whole tensors that are taken bucket by bucket.
  digest_checks(manifest const& of, chunk_table const& chunks);

  /// One sum each.
  std::span<checked_chunk const> checks() const noexcept { return checks_; }
  /// What lies in the destinations.
  std::vector<memory::digest_op> of_destinations() const;
  /// The rest of their chunks in slots: one group a bucket, addresses from the slot's. Of tensors that are
  /// mapped by `mapped` (if not null), nothing.
  std::vector<memory::digest_op> of_slots(placement const* mapped, device where) const;
  /// The rest of their chunks of a tensor that is mapped, where it lies itself, appended.
  void of_source(std::uint32_t tensor, tensor_view const& source, std::vector<memory::digest_op>& out) const;
  /// The first chunk whose digest is another than the sender's, if there is one. `sums`: one for each check.
  checked_chunk const* first_difference(std::span<digest128 const> sums,
                                        std::span<digest128 const> of_chunks) const noexcept;
  /// Where that is, for people: the tensor, the box that was wanted of it, and the bytes of the chunk.
  std::string words(checked_chunk const& where) const;

 private:
  /// What is compared for one destination: its checks, and which boxes of the tensor are not in it.
  struct wanted {
    std::uint32_t tensor = 0, target = 0;
    std::uint32_t first_check = 0, checks = 0;
    std::vector<box> rest;
  };
  void add(chunk_table const& chunks, std::uint32_t tensor, std::uint32_t target, box const& part);
  /// A chunk's bytes of its tensor: first, and how many.
  std::pair<std::uint64_t, std::uint64_t> bytes_of(checked_chunk const& one) const noexcept;
  /// The rest of its chunks, as far as it lies in `[first, first + bytes)` of the tensor. `place` has the
  /// address of the tensor's first element.
  void add_rest(wanted const& one, memory::digest_op const& place, std::span<std::int64_t const> strides,
                std::uint64_t first, std::uint64_t bytes, std::vector<memory::digest_op>& out) const;

  manifest const* of_;
  chunk_table const* chunks_;
  scatter const* into_ = nullptr;
  std::vector<checked_chunk> checks_;
  std::vector<wanted> wanted_; ///< by tensor
};

} // namespace ropeway::plan
