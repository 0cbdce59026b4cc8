// The kernels of digests: a part of kernels.cu. Part of ropeway; Apache-2.0.
//
// A run costs each thread 8 multiplications for 16 bytes and one row's factor: its four columns stay in
// registers, and the factors of the 16 rows of a window are computed by the lanes of a warp, one each.
#include "../../base/digest_math.h"

namespace {

constexpr uint32_t digest_threads = ropeway_digest_threads;
static_assert(digest_threads * 16 == ropeway_digest_row_bytes, "a thread has four columns of each row");

struct two_lanes {
  uint64_t a = 0, b = 0;
  __device__ void add(uint64_t other_a, uint64_t other_b) {
    a += other_a;
    b += other_b;
  }
};

struct four_columns {
  uint64_t a[4], b[4];
  __device__ explicit four_columns(uint32_t first) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      a[i] = ropeway_digest_column(first + i, 0);
      b[i] = ropeway_digest_column(first + i, 1);
    }
  }
};

// Four words of the image and where they come from.
struct as_delivered {
  static constexpr uint32_t ratio = 16; // bytes of memory for 16 of the image
  static __device__ uint4 load(uint64_t p) { return __ldcs((uint4 const*)p); }
};
template <class Conversion>
struct narrowed {
  static constexpr uint32_t ratio = 32;
  static __device__ uint4 load(uint64_t p) {
    uint4 low = __ldcs((uint4 const*)p), high = __ldcs((uint4 const*)p + 1);
    return {pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w)};
  }
  static __device__ uint32_t pair(uint32_t first, uint32_t second) {
    return Conversion::one(first) | (uint32_t)Conversion::one(second) << 16;
  }
};
template <class Conversion>
struct widened {
  static constexpr uint32_t ratio = 8;
  static __device__ uint4 load(uint64_t p) {
    uint2 both = __ldcs((uint2 const*)p);
    return {Conversion::one((uint16_t)both.x), Conversion::one((uint16_t)(both.x >> 16)),
            Conversion::one((uint16_t)both.y), Conversion::one((uint16_t)(both.y >> 16))};
  }
};

__device__ void add_byte(two_lanes& sum, uint8_t byte, uint64_t image) {
  uint64_t word = (uint64_t)byte << 8 * (image & 3), row = image / ropeway_digest_row_bytes;
  uint32_t column = (uint32_t)(image % ropeway_digest_row_bytes) / 4;
  sum.add(ropeway_digest_column(column, 0) * word * ropeway_digest_row(row, 0),
          ropeway_digest_column(column, 1) * word * ropeway_digest_row(row, 1));
}

// What is left over at the ends of a run as it is: fewer than 32 bytes.
__device__ void add_ends(two_lanes& sum, ropeway_digest_task const& task, uint64_t address, uint32_t begin,
                         uint32_t first, uint32_t last, uint32_t end) {
  if (first > last) first = last = end; // not one whole quad
  uint32_t head = first - begin, i = threadIdx.x;
  if (i < head)
    add_byte(sum, ((uint8_t const*)address)[i], task.image + i);
  else if (i - head < end - last) {
    uint32_t at = last - begin + (i - head);
    add_byte(sum, ((uint8_t const*)address)[at], task.image + at);
  }
}

template <class Form>
__device__ void add_run(two_lanes& sum, ropeway_digest_task const& task, uint64_t address,
                        four_columns const& columns) {
  constexpr uint32_t flight = 4;
  uint32_t const begin = (uint32_t)(task.image % ropeway_digest_window), end = begin + task.count;
  uint32_t const first = (begin + 15) & ~15u, last = end & ~15u; // quads
  if (Form::ratio == 16 && (begin != first || end != last || first > last))
    add_ends(sum, task, address, begin, first, last, end);
  if (first >= last) return;
  uint32_t const lane = threadIdx.x & 31;
  uint64_t const row = (task.image - begin) / ropeway_digest_row_bytes + lane / 2;
  uint64_t const factor = ropeway_digest_row(row, lane & 1);
  uint32_t const rows = (last + ropeway_digest_row_bytes - 1) / ropeway_digest_row_bytes;
  for (uint32_t r = first / ropeway_digest_row_bytes; r < rows; r += flight) {
    uint4 word[flight];
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k) {
      uint32_t at = (r + k) * ropeway_digest_row_bytes + threadIdx.x * 16;
      bool const here = at >= first && at < last; // both are multiples of 16
      word[k] = here ? Form::load(address + (uint64_t)(at - begin) / 16 * Form::ratio +
                                  (Form::ratio == 16 ? (at - begin) % 16 : 0))
                     : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k) {
      uint64_t a = columns.a[0] * word[k].x + columns.a[1] * word[k].y + columns.a[2] * word[k].z +
                   columns.a[3] * word[k].w;
      uint64_t b = columns.b[0] * word[k].x + columns.b[1] * word[k].y + columns.b[2] * word[k].z +
                   columns.b[3] * word[k].w;
      uint32_t const from = 2 * (r + k) & 31; // beyond the window, words are 0
      sum.add(a * __shfl_sync(~0u, factor, from), b * __shfl_sync(~0u, factor, from + 1));
    }
  }
}

__device__ void add_run_of(two_lanes& sum, ropeway_digest_task const& task, uint64_t base,
                           four_columns const& columns) {
  uint64_t const address = task.address + base;
  switch (task.form) {
  case ropeway_digest_as_is: add_run<as_delivered>(sum, task, address, columns); break;
  case ropeway_digest_f32_bf16: add_run<narrowed<f32_bf16>>(sum, task, address, columns); break;
  case ropeway_digest_f32_f16: add_run<narrowed<f32_f16>>(sum, task, address, columns); break;
  case ropeway_digest_bf16_f32: add_run<widened<bf16_f32>>(sum, task, address, columns); break;
  case ropeway_digest_f16_f32: add_run<widened<f16_f32>>(sum, task, address, columns); break;
  }
}

// A unit of a box, as words of the image.
struct column_table {
  uint64_t a[ropeway_digest_columns], b[ropeway_digest_columns];
};
__device__ void add_word(two_lanes& row, column_table const& of, uint32_t column, uint32_t word) {
  row.add(of.a[column] * word, of.b[column] * word);
}
__device__ void add_value(two_lanes& row, column_table const& of, uint32_t column, uint32_t shift,
                          uint32_t value) {
  add_word(row, of, column, value << shift);
}
__device__ void add_value(two_lanes& row, column_table const& of, uint32_t column, uint32_t, uint2 value) {
  add_word(row, of, column, value.x);
  add_word(row, of, column + 1, value.y);
}
__device__ void add_value(two_lanes& row, column_table const& of, uint32_t column, uint32_t, uint4 value) {
  add_word(row, of, column, value.x);
  add_word(row, of, column + 1, value.y);
  add_word(row, of, column + 2, value.z);
  add_word(row, of, column + 3, value.w);
}

template <class Unit>
__device__ void add_units(two_lanes& sum, ropeway_digest_box const& box, ropeway_dim const* dims,
                          uint64_t base, uint32_t begin, uint32_t end, column_table const& columns) {
  for (uint32_t i = begin + threadIdx.x; i < end; i += digest_threads) {
    uint32_t index = i;
    uint64_t from = box.address + base, image = box.image;
#pragma unroll 1
    for (uint32_t d = box.rank - 1u; d > 0; --d) {
      uint32_t outer = divide(index, dims[d]), here = index - outer * dims[d].extent;
      from += here * dims[d].from_stride;
      image += here * dims[d].to_stride;
      index = outer;
    }
    from += index * dims[0].from_stride;
    image += index * dims[0].to_stride;
    two_lanes row;
    uint32_t within = (uint32_t)(image % ropeway_digest_row_bytes);
    add_value(row, columns, within / 4, 8 * (within & 3), Unit::convert(Unit::load(from)));
    uint64_t number = image / ropeway_digest_row_bytes;
    sum.add(row.a * ropeway_digest_row(number, 0), row.b * ropeway_digest_row(number, 1));
  }
}

__device__ void add_box(two_lanes& sum, ropeway_digest_list const& list, ropeway_digest_task const& task,
                        column_table const& columns) {
  ropeway_digest_box const& box = ((ropeway_digest_box const*)list.boxes)[task.box - 1];
  ropeway_dim const* dims = (ropeway_dim const*)list.dims + box.first_dim;
  uint32_t const begin = (uint32_t)task.image, end = begin + task.count;
#define ROPEWAY_UNIT(name, type)                                                                             \
  case name: add_units<type>(sum, box, dims, list.base, begin, end, columns); break
  switch (box.unit) {
    ROPEWAY_UNIT(ropeway_copy_1, as_is<uint8_t>);
    ROPEWAY_UNIT(ropeway_copy_2, as_is<uint16_t>);
    ROPEWAY_UNIT(ropeway_copy_4, as_is<uint32_t>);
    ROPEWAY_UNIT(ropeway_copy_8, as_is<uint2>);
    ROPEWAY_UNIT(ropeway_copy_16, as_is<uint4>);
    ROPEWAY_UNIT(ropeway_f32_bf16, converted<f32_bf16>);
    ROPEWAY_UNIT(ropeway_f32_f16, converted<f32_f16>);
    ROPEWAY_UNIT(ropeway_bf16_f32, converted<bf16_f32>);
    ROPEWAY_UNIT(ropeway_f16_f32, converted<f16_f32>);
    ROPEWAY_UNIT(ropeway_f32_bf16_u, unaligned<f32_bf16>);
    ROPEWAY_UNIT(ropeway_f32_f16_u, unaligned<f32_f16>);
    ROPEWAY_UNIT(ropeway_bf16_f32_u, unaligned<bf16_f32>);
    ROPEWAY_UNIT(ropeway_f16_f32_u, unaligned<f16_f32>);
  }
#undef ROPEWAY_UNIT
}

// Sums add up in any order: whoever is done adds what it has.
__device__ void add_to(uint64_t sums, uint32_t which, two_lanes sum) {
#pragma unroll
  for (uint32_t distance = 16; distance != 0; distance /= 2)
    sum.add(__shfl_down_sync(~0u, sum.a, distance), __shfl_down_sync(~0u, sum.b, distance));
  if ((threadIdx.x & 31) != 0) return;
  unsigned long long* const to = (unsigned long long*)sums + 2 * (uint64_t)which;
  atomicAdd(to, (unsigned long long)sum.a);
  atomicAdd(to + 1, (unsigned long long)sum.b);
}

} // namespace

extern "C" {
__global__ void __launch_bounds__(ropeway_digest_threads)
    ropeway_digest_runs(__grid_constant__ ropeway_digest_list const list) {
  ropeway_digest_task const* const tasks = (ropeway_digest_task const*)list.tasks + list.first;
  four_columns const columns(4 * threadIdx.x);
  for (uint32_t i = blockIdx.x; i < list.count; i += gridDim.x) {
    ropeway_digest_task const task = tasks[i];
    two_lanes sum;
    add_run_of(sum, task, list.base, columns);
    add_to(list.sums, task.sum, sum);
  }
}
__global__ void __launch_bounds__(ropeway_digest_threads)
    ropeway_digest_boxes(__grid_constant__ ropeway_digest_list const list) {
  __shared__ column_table table;
  ropeway_digest_task const* const tasks = (ropeway_digest_task const*)list.tasks + list.first;
  four_columns const columns(4 * threadIdx.x);
  for (uint32_t k = 0; k < 4; ++k) {
    table.a[4 * threadIdx.x + k] = columns.a[k];
    table.b[4 * threadIdx.x + k] = columns.b[k];
  }
  __syncthreads();
  for (uint32_t i = blockIdx.x; i < list.count; i += gridDim.x) {
    ropeway_digest_task const task = tasks[i];
    two_lanes sum;
    if (task.box)
      add_box(sum, list, task, table);
    else
      add_run_of(sum, task, list.base, columns);
    add_to(list.sums, task.sum, sum);
  }
}
}
