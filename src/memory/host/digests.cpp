#include "memory/host/digests.hpp"

#include <algorithm>

#include "base/digest.hpp"
#include "memory/digest_copy.hpp"
#include "memory/host/box.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::host {
namespace {

constexpr std::uint64_t converted_at_once = 4096; // bytes

std::uint64_t times(std::uint64_t count, std::int64_t stride) noexcept {
  return count * static_cast<std::uint64_t>(stride); // wraps as addresses do
}

std::byte const* pointer(std::uint64_t address) noexcept {
  return reinterpret_cast<std::byte const*>(static_cast<std::uintptr_t>(address));
}

/// The innermost dimension of a box, from one position of the others.
void add_row(digest_op const& op, std::uint64_t address, std::uint64_t image, std::size_t inner,
             digest128& sum) noexcept {
  std::uint64_t const count = op.extent[inner];
  bool const in_a_row = op.image_stride[inner] == op.image_element;
  if (in_a_row && op.convert == conversion::none && op.data_stride[inner] == op.data_element) {
    sum += digest_of_run(pointer(address), image, count * op.image_element);
    return;
  }
  std::array<std::byte, converted_at_once> as_delivered;
  std::uint64_t const most =
      in_a_row ? std::max<std::uint64_t>(1, converted_at_once / op.image_element) : std::uint64_t(1);
  for (std::uint64_t i = 0; i < count;) {
    std::uint64_t const some = std::min(most, count - i);
    if (op.image_element > converted_at_once) { // an element of no tensor's, but legal
      sum += digest_of_run(pointer(address + times(i, op.data_stride[inner])),
                           image + i * op.image_stride[inner], op.image_element);
      ++i;
      continue;
    }
    copy_op copy;
    copy.from = pointer(address + times(i, op.data_stride[inner]));
    copy.to = as_delivered.data();
    copy.convert = op.convert;
    copy.rank = 1;
    copy.from_element = op.data_element;
    copy.to_element = op.image_element;
    copy.extent[0] = some;
    copy.from_stride[0] = op.data_stride[inner];
    copy.to_stride[0] = op.image_element;
    host::copy(copy, false);
    sum += digest_of_run(as_delivered.data(), image + i * op.image_stride[inner], some * op.image_element);
    i += some;
  }
}

void add_box(digest_op const& op, std::uint64_t address, std::uint64_t image, std::size_t d,
             digest128& sum) noexcept {
  if (d + 1 == op.rank) return add_row(op, address, image, d, sum);
  for (std::uint64_t i = 0; i < op.extent[d]; ++i)
    add_box(op, address + times(i, op.data_stride[d]), image + i * op.image_stride[d], d + 1, sum);
}

void check(digest_op const& op, std::uint32_t sums) {
  host::check(as_copy(op));
  if (op.sum >= sums)
    throw transfer_error(errc::invalid_argument, "a digest adds to a sum that there is not");
}

} // namespace

digest128 digest_of(digest_op const& op, std::byte const* base) noexcept {
  std::uint64_t const address = op.address + reinterpret_cast<std::uintptr_t>(base);
  if (op.rank == 0) return digest_of_run(pointer(address), op.image, op.bytes);
  digest128 sum;
  add_box(op, address, op.image, 0, sum);
  return sum;
}

host_digests::host_digests(std::span<digest_op const> ops, std::uint32_t sums)
    : ops_(ops.begin(), ops.end()), sums_(sums) {
  for (std::size_t i = 0; i < ops_.size(); ++i) {
    check(ops_[i], sums);
    bytes_ += bytes_of(ops_[i]);
    if (i != 0 && ops_[i].group < ops_[i - 1].group)
      throw transfer_error(errc::invalid_argument, "groups of digests must ascend");
    while (first_.size() <= ops_[i].group) first_.push_back(i);
  }
  first_.push_back(ops_.size());
}

void host_digests::carry_out(digest_run const& what) noexcept {
  if (what.begin) std::fill(sums_.begin(), sums_.end(), digest128());
  std::size_t const groups = first_.size() - 1, first = std::min<std::size_t>(what.first, groups),
                    last = first + std::min<std::size_t>(what.count, groups - first);
  for (std::size_t i = first_[first]; i < first_[last]; ++i)
    sums_[ops_[i].sum] += digest_of(ops_[i], what.base);
}

} // namespace ropeway::memory::host
