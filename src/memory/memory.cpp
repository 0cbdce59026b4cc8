// What every kind of memory can do, if not well. Part of ropeway; Apache-2.0.
#include "memory/memory.hpp"

#include <algorithm>

#include "ropeway/error.hpp"

namespace ropeway::memory {
namespace {

/// A prepared list that is only kept; its units are its copies.
class kept_copies final : public prepared_copies {
 public:
  explicit kept_copies(std::span<copy_op const> ops) : ops_(ops.begin(), ops.end()) {
    units_ = ops_.size();
    for (copy_op const& op : ops_) bytes_ += bytes_of(op);
  }
  std::span<copy_op const> ops() const noexcept { return ops_; }

 private:
  std::vector<copy_op> ops_;
};

} // namespace

std::uint64_t bytes_of(copy_op const& op) noexcept {
  if (op.rank == 0) return op.bytes;
  std::uint64_t bytes = op.to_element;
  for (std::size_t d = 0; d < op.rank; ++d) bytes *= op.extent[d];
  return bytes;
}

void queue::digest(prepared_digests&, digest_run) {
  throw transfer_error(errc::unsupported, "this memory has no digests; send without them");
}

std::shared_ptr<prepared_digests> backend::prepare_digests(std::span<digest_op const>, std::uint32_t) {
  throw transfer_error(errc::unsupported, "this memory has no digests; send without them");
}

void queue::repeat(prepared_copies const& list, portion what) {
  auto const* const kept = dynamic_cast<kept_copies const*>(&list);
  if (!kept) throw transfer_error(errc::invalid_argument, "a list that another backend has prepared");
  auto const first = std::min<std::uint64_t>(what.first, list.units());
  copy(kept->ops().subspan(first, std::min(what.count, list.units() - first)));
}

std::shared_ptr<prepared_copies const> backend::prepare(std::span<copy_op const> ops) {
  return std::make_shared<kept_copies>(ops);
}

bool backend::is_past(ready_after const& when) const noexcept {
  return when.type() == ready_after::kind::nothing;
}

bool backend::are_there(std::span<allocation const> known) const noexcept {
  return std::ranges::all_of(known, [&](allocation const& one) {
    auto const now = find_allocation(one.begin);
    return now.identity == one.identity && now.kind == one.kind;
  });
}

allocation backend::find_allocation(std::byte const*) const noexcept {
  allocation none;
  none.why_not = "ordinary host memory";
  return none;
}

part_handle backend::export_allocation(allocation const&) {
  throw transfer_error(errc::not_reachable, "this memory can't be mapped by peers");
}

std::unique_ptr<segment_importer> backend::start_import(part_kind, std::uint64_t, std::uint32_t,
                                                        device_uuid const&) {
  throw transfer_error(errc::not_reachable, "this memory can't be mapped into " + to_string(where()));
}

} // namespace ropeway::memory
