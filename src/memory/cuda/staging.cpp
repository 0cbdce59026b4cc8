// Part of ropeway; Apache-2.0.
#include "memory/cuda/staging.hpp"

#include <algorithm>

#include "memory/host/box.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

/// What an operation takes when packed, its elements the larger of the two sizes.
std::uint64_t packed_bytes(copy_op const& op) {
  if (op.rank == 0) return op.bytes;
  std::uint64_t bytes = std::max(op.from_element, op.to_element);
  for (std::size_t d = 0; d < op.rank; ++d) bytes *= op.extent[d];
  return bytes;
}

/// Halves an operation until its parts fit.
template <class Do>
void split(copy_op const& op, std::uint64_t most, Do const& run) {
  if (packed_bytes(op) <= most) return run(op);
  copy_op first = op, second = op;
  if (op.rank == 0) {
    first.bytes = most;
    second.bytes -= most;
    second.from += most;
    second.to += most;
    run(first);
    return split(second, most, run);
  }
  std::size_t d = 0;
  while (op.extent[d] == 1) ++d;
  first.extent[d] = op.extent[d] / 2;
  second.extent[d] -= first.extent[d];
  second.from += static_cast<std::int64_t>(first.extent[d]) * op.from_stride[d];
  second.to += static_cast<std::int64_t>(first.extent[d]) * op.to_stride[d];
  split(first, most, run);
  split(second, most, run);
}

void pack(copy_op const& op, std::array<std::int64_t, max_rank>& strides, std::uint16_t element) {
  std::int64_t stride = element;
  for (std::size_t d = op.rank; d > 0; --d) {
    strides[d - 1] = stride;
    stride *= static_cast<std::int64_t>(op.extent[d - 1]);
  }
}

} // namespace

staging::staging(std::shared_ptr<gpu> owner)
    : owner_(std::move(owner))
    , slots_{slot{nullptr, event(owner_, true), false, false, {}},
             slot{nullptr, event(owner_, true), false, false, {}}} {
  void* memory = nullptr;
  driver const& d = owner_->call();
  d.check(d.cuMemHostAlloc(&memory, slots_.size() * slot_bytes,
                           CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
          "no 8 MiB of pinned memory to copy pageable memory through", errc::out_of_memory);
  pinned_ = static_cast<std::byte*>(memory);
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].memory = pinned_ + i * slot_bytes;
}

staging::~staging() {
  scope here(*owner_, std::nothrow);
  if (here.entered()) (void)owner_->call().cuMemFreeHost(pinned_);
}

void staging::run(std::span<copy_op const> ops, lane& on) {
  // The processor takes part now, so everything before must be done now.
  on.finish();
  for (copy_op const& op : ops) {
    if (!op.from_where.is_cuda() && !op.to_where.is_cuda()) {
      host::copy(op, false);
      continue;
    }
    split(op, slot_bytes, [&](copy_op const& some) { part(some, on); });
  }
  for (slot& one : slots_)
    if (one.to_be_copied_out) settle(one);
}

/// Waits until a slot is free, and takes out for the host what is still in it.
void staging::settle(slot& which) {
  driver const& d = owner_->call();
  if (which.used) d.check(d.cuEventSynchronize(which.done.get()), "a copy failed");
  which.used = false;
  if (which.to_be_copied_out) host::copy(which.out, false);
  which.to_be_copied_out = false;
}

void staging::part(copy_op const& op, lane& on) {
  slot& via = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  settle(via);
  copy_op in = op, out = op;
  in.to = via.memory;
  in.to_where = device::host();
  out.from = via.memory;
  out.from_where = device::host();
  // Where two steps could convert, the device does, on the way in: the processor is slow at it. What is far
  // is moved by the driver, which converts nothing, so there the second step must do it.
  bool const host_in = !op.from_where.is_cuda(), host_out = !op.to_where.is_cuda();
  bool convert_in = !host_in && op.from_where.ordinal() == owner_->ordinal();
  if (host_in && op.to_where.ordinal() != owner_->ordinal()) convert_in = true;
  std::uint16_t const between = convert_in ? op.to_element : op.from_element;
  in.to_element = between;
  out.from_element = between;
  (convert_in ? out : in).convert = conversion::none;
  pack(op, in.to_stride, between);
  pack(op, out.from_stride, between);
  auto on_device = [&](copy_op const& step) {
    if (on.sort({&step, 1}))
      throw transfer_error(errc::unsupported,
                           "a copy converts between two devices that this one does not reach; "
                           "queue it on one of them");
    on.launch();
  };
  if (host_in)
    host::copy(in, false);
  else
    on_device(in);
  if (!host_out) on_device(out);
  on.record(via.done);
  via.used = true;
  via.to_be_copied_out = host_out;
  if (host_out) via.out = out;
}

} // namespace ropeway::memory::cuda
