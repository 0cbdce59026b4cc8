// Part of ropeway; Apache-2.0.
#include "memory/cuda/digests.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "memory/cuda/handles.hpp"
#include "memory/digest_copy.hpp"
#include "ropeway/error.hpp"

namespace ropeway::memory::cuda {
namespace {

constexpr std::uint32_t units_of_task = 16 * ropeway_digest_threads;
constexpr std::uint32_t blocks_per_multiprocessor = 4; // as many as fit, by their registers

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 255) / 256 * 256; }

[[noreturn]] void refuse(errc code, char const* why) { throw transfer_error(code, why); }

ropeway_digest_form form_of(conversion convert) {
  return static_cast<ropeway_digest_form>(static_cast<int>(convert));
}
static_assert(static_cast<int>(conversion::f32_to_bf16) == ropeway_digest_f32_bf16 &&
              static_cast<int>(conversion::f16_to_f32) == ropeway_digest_f16_f32);

/// All bits that addresses of a box have below its innermost dimension.
struct low_bits {
  std::uint64_t from, to;
};
low_bits bits_of(box const& area) {
  low_bits all{reinterpret_cast<std::uint64_t>(area.from), reinterpret_cast<std::uint64_t>(area.to)};
  for (std::size_t d = 0; d + 1 < area.rank; ++d) {
    all.from |= static_cast<std::uint64_t>(area.from_stride[d]);
    all.to |= static_cast<std::uint64_t>(area.to_stride[d]);
  }
  return all;
}

} // namespace

digest_table::digest_table(std::span<digest_op const> ops, std::uint32_t sums) {
  std::uint32_t group = 0;
  for (digest_op const& op : ops) {
    if (op.sum >= sums) refuse(errc::invalid_argument, "a digest adds to a sum that there is not");
    if (op.group < group) refuse(errc::invalid_argument, "groups of digests must ascend");
    group = op.group;
    while (first.size() <= op.group) first.push_back(static_cast<std::uint32_t>(tasks.size()));
    add(op); // or refuses what has no bytes to count
    bytes += bytes_of(op);
    if (tasks.size() > UINT32_MAX / 2) refuse(errc::overflow, "too many digests in one list");
  }
  first.push_back(static_cast<std::uint32_t>(tasks.size()));
}

void digest_table::add(digest_op const& op) {
  box area = simplify(as_copy(op));
  if (area.empty()) return;
  std::size_t const inner = area.rank - 1;
  bool const runs = area.from_stride[inner] == area.from_element && area.to_stride[inner] == area.to_element;
  if (area.convert == conversion::none) {
    bool const alike = (op.address - op.image) % 16 == 0;
    if (area.contiguous() && alike) return add_run(op, area.extent[0], ropeway_digest_as_is);
    // Bytes, of which as many are a unit as lie in a row on both sides. Without any in a row, one is.
    std::uint64_t unit = 16;
    low_bits const low = bits_of(area);
    while (unit > 1 &&
           !(runs && area.extent[inner] % unit == 0 && low.from % unit == 0 && low.to % unit == 0))
      unit /= 2;
    return add_units(area, unit, static_cast<ropeway_unit>(ropeway_copy_1 + std::countr_zero(unit)), op.sum);
  }
  low_bits low = bits_of(area);
  low.from |= static_cast<std::uint64_t>(area.from_stride[inner]);
  low.to |= static_cast<std::uint64_t>(area.to_stride[inner]);
  if (low.to % area.to_element != 0)
    refuse(errc::invalid_argument, "a digest's elements do not lie at multiples of their size");
  auto const which = [&](ropeway_unit first_one) {
    return static_cast<ropeway_unit>(first_one + static_cast<int>(area.convert) -
                                     static_cast<int>(conversion::f32_to_bf16));
  };
  std::uint64_t const ratio = 16 / area.to_element * area.from_element; // bytes that make 16 of the image
  bool const whole_quads =
      area.rank == 1 && runs && op.image % 16 == 0 && op.address % std::min(ratio, std::uint64_t(16)) == 0;
  if (whole_quads) {
    std::uint64_t const elements = area.extent[0] / (16 / area.to_element) * (16 / area.to_element);
    if (elements != 0) add_run(op, elements * area.to_element, form_of(area.convert));
    area.from += elements * area.from_element;
    area.to += elements * area.to_element;
    area.extent[0] -= elements;
    if (area.extent[0] == 0) return;
  }
  add_units(area, 1, which(low.from % area.from_element == 0 ? ropeway_f32_bf16 : ropeway_f32_bf16_u),
            op.sum);
}

void digest_table::add_run(digest_op const& op, std::uint64_t count, ropeway_digest_form form) {
  // Bytes of memory for 16 of the image.
  std::uint64_t const ratio = form == ropeway_digest_as_is                                        ? 16
                              : form == ropeway_digest_f32_bf16 || form == ropeway_digest_f32_f16 ? 32
                                                                                                  : 8;
  for (std::uint64_t done = 0; done < count;) {
    std::uint64_t const image = op.image + done,
                        some = std::min(count - done, ropeway_digest_window - image % ropeway_digest_window);
    ropeway_digest_task task{};
    task.address = op.address + (form == ropeway_digest_as_is ? done : done / 16 * ratio);
    task.image = image;
    task.count = static_cast<std::uint32_t>(some);
    task.sum = op.sum;
    task.form = form;
    tasks.push_back(task);
    done += some;
  }
}

void digest_table::add_units(box const& area, std::uint64_t unit, ropeway_unit which, std::uint32_t sum) {
  ropeway_digest_box made{};
  made.address = reinterpret_cast<std::uint64_t>(area.from);
  made.image = reinterpret_cast<std::uint64_t>(area.to);
  made.first_dim = static_cast<std::uint32_t>(dims.size());
  made.rank = static_cast<std::uint16_t>(area.rank);
  made.unit = static_cast<std::uint16_t>(which);
  std::uint64_t units = 1;
  for (std::size_t d = 0; d < area.rank; ++d) {
    std::uint64_t const step = d + 1 == area.rank ? unit : 1;
    std::uint64_t const extent = area.extent[d] / step;
    if (__builtin_mul_overflow(units, extent, &units) || units > INT32_MAX)
      refuse(errc::overflow, "a box of a digest has more than 2^31 units; cut it into chunks");
    dims.push_back(make_dim(extent, area.from_stride[d] * static_cast<std::int64_t>(step),
                            area.to_stride[d] * static_cast<std::int64_t>(step)));
  }
  boxes.push_back(made);
  for (std::uint64_t done = 0; done < units; done += units_of_task) {
    ropeway_digest_task task{};
    task.image = done;
    task.count = static_cast<std::uint32_t>(std::min<std::uint64_t>(units_of_task, units - done));
    task.sum = sum;
    task.box = static_cast<std::uint32_t>(boxes.size());
    tasks.push_back(task);
  }
}

device_digests::device_digests(std::shared_ptr<gpu> owner, std::span<digest_op const> ops, std::uint32_t sums)
    : owner_(std::move(owner)), count_(sums) {
  digest_table const table(ops, sums);
  bytes_ = table.bytes;
  boxes_ = !table.boxes.empty();
  first_ = table.first;
  scope here(*owner_);
  try {
    make(table);
  } catch (...) {
    free();
    throw;
  }
}

device_digests::~device_digests() { free(); }

void device_digests::free() noexcept {
  scope here(*owner_, std::nothrow);
  if (!here.entered()) return;
  if (memory_ != 0) (void)owner_->call().cuMemFree(memory_);
  if (fetched_ != nullptr) (void)owner_->call().cuMemFreeHost(fetched_);
}

void device_digests::make(digest_table const& table) {
  driver const& d = owner_->call();
  auto const size = [](auto const& entries) { return aligned(entries.size() * sizeof entries[0]); };
  std::uint64_t const sums_bytes = std::uint64_t{count_} * sizeof(digest128), boxes_at = size(table.tasks),
                      dims_at = boxes_at + size(table.boxes), sums_at = dims_at + size(table.dims),
                      bytes = sums_at + aligned(std::max<std::uint64_t>(1, sums_bytes));
  auto const no_room = [&](CUresult result, std::uint64_t wanted, char const* where) {
    d.fail(result, ("no " + std::to_string(wanted) + " bytes " + where + " to keep digests").c_str(),
           result == CUDA_ERROR_OUT_OF_MEMORY ? errc::out_of_memory : errc::device_failed);
  };
  if (CUresult const result = d.cuMemAlloc(&memory_, bytes); result != CUDA_SUCCESS) {
    memory_ = 0;
    no_room(result, bytes, "of device memory");
  }
  void* pinned = nullptr;
  std::uint64_t const pinned_bytes = std::max<std::uint64_t>(1, sums_bytes);
  if (CUresult const result = d.cuMemHostAlloc(&pinned, pinned_bytes, CU_MEMHOSTALLOC_PORTABLE);
      result != CUDA_SUCCESS)
    no_room(result, pinned_bytes, "of pinned memory");
  std::memset(pinned, 0, pinned_bytes);
  fetched_ = static_cast<digest128*>(pinned);
  list_.tasks = memory_;
  list_.boxes = memory_ + boxes_at;
  list_.dims = memory_ + dims_at;
  list_.sums = memory_ + sums_at;
  // On a stream of its own: nobody's work waits for this or is waited for.
  stream on(owner_);
  event done(owner_, true);
  char const* const what = "a list of digests can't be put on the device";
  auto put = [&](std::uint64_t to, auto const& entries) {
    if (!entries.empty())
      d.check(d.cuMemcpyHtoDAsync(to, entries.data(), entries.size() * sizeof entries[0], on.get()), what);
  };
  put(list_.tasks, table.tasks);
  put(list_.boxes, table.boxes);
  put(list_.dims, table.dims);
  d.check(d.cuEventRecord(done.get(), on.get()), what);
  d.check(d.cuEventSynchronize(done.get()), what);
}

void device_digests::launch(digest_run const& what, CUstream on) const {
  if (reinterpret_cast<std::uintptr_t>(what.base) % 256 != 0)
    refuse(errc::invalid_argument, "the base of digests is not aligned to 256 bytes");
  driver const& d = owner_->call();
  char const* const failed = "digests can't be computed";
  std::uint64_t const sums_bytes = std::uint64_t{count_} * sizeof(digest128);
  if (what.begin && sums_bytes != 0) d.check(d.cuMemsetD8Async(list_.sums, 0, sums_bytes, on), failed);
  std::size_t const groups = first_.size() - 1, first = std::min<std::size_t>(what.first, groups),
                    last = first + std::min<std::size_t>(what.count, groups - first);
  if (first_[last] != first_[first]) {
    ropeway_digest_list some = list_;
    some.base = reinterpret_cast<std::uint64_t>(what.base);
    some.first = first_[first];
    some.count = first_[last] - first_[first];
    void* parameters[] = {&some};
    std::uint32_t const blocks = std::min(some.count, blocks_per_multiprocessor * owner_->multiprocessors());
    auto const kernel =
        owner_->kernel(boxes_ ? copy_lists::kernel::digest_boxes : copy_lists::kernel::digest_runs);
    d.check(d.cuLaunchKernel(kernel, blocks, 1, 1, ropeway_digest_threads, 1, 1, 0, on, parameters, nullptr),
            failed);
  }
  if (what.fetch && sums_bytes != 0)
    d.check(d.cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(fetched_), list_.sums, sums_bytes, on), failed);
}

} // namespace ropeway::memory::cuda
