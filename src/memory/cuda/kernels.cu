// The fused copies: one launch moves a whole list, and blocks take chunks of it in turn. A list that is
// copied once comes as a kernel parameter, so nothing is uploaded, and blocks find by binary search to which
// entry a chunk belongs; one that was prepared lies in device memory, chunk by chunk. Part of ropeway;
// Apache-2.0.
#include "kernels.h"

namespace {

constexpr uint32_t threads = ropeway_threads;

// The last entry that begins at or before this chunk. Uniform in a block, so the parameters are read once a
// warp.
template <class Entry>
__device__ uint32_t entry_of(Entry const* entries, uint32_t count, uint32_t chunk) {
  uint32_t low = 0, high = count;
  while (high - low > 1) {
    uint32_t middle = (low + high) / 2;
    if (entries[middle].first_chunk <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Four independent accesses in flight a thread; streaming, since nobody reads this again soon.
template <class Word>
__device__ void copy_words(Word* to, Word const* from, uint32_t count) {
  constexpr uint32_t flight = 4;
  uint32_t i = threadIdx.x;
  for (; i + (flight - 1) * threads < count; i += flight * threads) {
    Word word[flight];
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k) word[k] = __ldcs(from + i + k * threads);
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k) __stcs(to + i + k * threads, word[k]);
  }
  for (; i < count; i += threads) __stcs(to + i, __ldcs(from + i));
}

__device__ void copy_each_byte(uint64_t to, uint64_t from, uint32_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes; i += threads) ((uint8_t*)to)[i] = ((uint8_t const*)from)[i];
}

// Both ends lie equally within a Word.
template <class Word>
__device__ void copy_aligned(uint64_t to, uint64_t from, uint32_t bytes) {
  uint32_t head = (uint32_t)(-to & (sizeof(Word) - 1));
  if (head > bytes) head = bytes;
  uint32_t words = (bytes - head) / sizeof(Word), done = head + words * (uint32_t)sizeof(Word);
  copy_each_byte(to, from, head);
  copy_words((Word*)(to + head), (Word const*)(from + head), words);
  copy_each_byte(to + done, from + done, bytes - done);
}

// Aligned stores put together from two aligned loads; no load goes beyond the source.
__device__ void copy_shifted(uint64_t to, uint64_t from, uint32_t bytes) {
  uint32_t head = (uint32_t)(-to & 3);
  if (((from + head) & ~uint64_t(3)) < from) head += 4;
  if (bytes < head + 8) return copy_each_byte(to, from, bytes);
  uint64_t first = (from + head) & ~uint64_t(3);
  uint32_t shift = (uint32_t)(from + head - first) * 8;
  uint32_t count = (uint32_t)((from + bytes - first) / 4 - 1), done = head + count * 4;
  uint32_t const* words = (uint32_t const*)first;
  uint32_t* target = (uint32_t*)(to + head);
  copy_each_byte(to, from, head);
  uint32_t i = threadIdx.x;
  for (; i + 3 * threads < count; i += 4 * threads) {
    uint32_t low[4], high[4]; // neighbours share what they load, so these are meant to be cached
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
      low[k] = words[i + k * threads];
      high[k] = words[i + k * threads + 1];
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k)
      __stcs(target + i + k * threads, __funnelshift_r(low[k], high[k], shift));
  }
  for (; i < count; i += threads) __stcs(target + i, __funnelshift_r(words[i], words[i + 1], shift));
  copy_each_byte(to + done, from + done, bytes - done);
}

__device__ void copy_run(uint64_t to, uint64_t from, uint32_t bytes) {
  uint32_t skew = (uint32_t)(to ^ from);
  if (!(skew & 15))
    copy_aligned<uint4>(to, from, bytes);
  else if (!(skew & 7))
    copy_aligned<uint2>(to, from, bytes);
  else if (!(skew & 3))
    copy_aligned<uint32_t>(to, from, bytes);
  else
    copy_shifted(to, from, bytes);
}

template <class List>
__device__ void copy_pieces(List const& list) {
  for (uint32_t chunk = blockIdx.x; chunk < list.chunks; chunk += gridDim.x) {
    ropeway_piece const& piece = list.pieces[entry_of(list.pieces, list.count, chunk)];
    uint32_t begin = (chunk - piece.first_chunk) << list.chunk_shift;
    uint32_t bytes = min(piece.bytes - begin, 1u << list.chunk_shift);
    copy_run(piece.to + begin, piece.from + begin, bytes);
  }
}

// Bit by bit, so that NaN keeps its payload and the result is the host's.
__device__ uint16_t to_bf16(uint32_t f) {
  if ((f & 0x7fffffff) > 0x7f800000) return (uint16_t)(f >> 16 | 0x40);
  return (uint16_t)((f + 0x7fff + (f >> 16 & 1)) >> 16);
}
__device__ uint16_t to_f16(uint32_t f) {
  uint32_t sign = f >> 16 & 0x8000, rest = f & 0x7fffffff;
  if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x1ff));
  if (rest >= 0x47800000) return (uint16_t)(sign | 0x7c00); // 65536 and above; 65520 rounds there by itself
  if (rest < 0x38800000) {                                  // subnormal in f16
    if (rest < 0x33000000) return (uint16_t)sign;           // below half of the smallest
    uint32_t mantissa = (rest & 0x7fffff) | 0x800000, shift = 126 - (rest >> 23);
    uint32_t kept = mantissa >> shift, lost = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    return (uint16_t)(sign | (kept + (lost > half || (lost == half && (kept & 1)))));
  }
  uint32_t rebased = rest - 0x38000000;
  return (uint16_t)(sign | ((rebased + 0xfff + (rebased >> 13 & 1)) >> 13));
}
__device__ uint32_t from_bf16(uint16_t b) { return (uint32_t)b << 16; }
__device__ uint32_t from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return sign | 0x7f800000 | mantissa << 13;
  if (exponent) return sign | (exponent + 112) << 23 | mantissa << 13;
  if (!mantissa) return sign;
  uint32_t up = __clz(mantissa) - 21; // to make bit 10 the leading one
  return sign | (113 - up) << 23 | (mantissa << up & 0x3ff) << 13;
}

// How a unit is read, what it becomes, how it is written.
template <class Word>
struct as_is {
  using from_type = Word;
  using to_type = Word;
  static __device__ Word load(uint64_t p) { return __ldcs((Word const*)p); }
  static __device__ void store(uint64_t p, Word value) { __stcs((Word*)p, value); }
  static __device__ Word convert(Word value) { return value; }
};
struct f32_bf16 {
  static __device__ uint16_t one(uint32_t v) { return to_bf16(v); }
  using from = uint32_t;
  using to = uint16_t;
};
struct f32_f16 {
  static __device__ uint16_t one(uint32_t v) { return to_f16(v); }
  using from = uint32_t;
  using to = uint16_t;
};
struct bf16_f32 {
  static __device__ uint32_t one(uint16_t v) { return from_bf16(v); }
  using from = uint16_t;
  using to = uint32_t;
};
struct f16_f32 {
  static __device__ uint32_t one(uint16_t v) { return from_f16(v); }
  using from = uint16_t;
  using to = uint32_t;
};

template <class Conversion>
struct converted {
  using from_type = typename Conversion::from;
  using to_type = typename Conversion::to;
  static __device__ from_type load(uint64_t p) { return __ldcs((from_type const*)p); }
  static __device__ void store(uint64_t p, to_type value) { __stcs((to_type*)p, value); }
  static __device__ to_type convert(from_type value) { return Conversion::one(value); }
};
template <class Conversion>
struct unaligned : converted<Conversion> {
  using typename converted<Conversion>::from_type;
  using typename converted<Conversion>::to_type;
  static __device__ from_type load(uint64_t p) {
    from_type value = 0;
    for (uint32_t i = 0; i < sizeof value; ++i)
      value |= (from_type)((from_type)((uint8_t const*)p)[i] << 8 * i);
    return value;
  }
  static __device__ void store(uint64_t p, to_type value) {
    for (uint32_t i = 0; i < sizeof value; ++i) ((uint8_t*)p)[i] = (uint8_t)(value >> 8 * i);
  }
};
template <class Element>
struct four;
template <>
struct four<uint32_t> {
  using type = uint4;
};
template <>
struct four<uint16_t> {
  using type = ushort4;
};
template <class Conversion>
struct four_converted {
  using from_type = typename four<typename Conversion::from>::type;
  using to_type = typename four<typename Conversion::to>::type;
  static __device__ from_type load(uint64_t p) { return __ldcs((from_type const*)p); }
  static __device__ void store(uint64_t p, to_type value) { __stcs((to_type*)p, value); }
  static __device__ to_type convert(from_type v) {
    return {Conversion::one(v.x), Conversion::one(v.y), Conversion::one(v.z), Conversion::one(v.w)};
  }
};

// Exact for n < 2^31; the multiplier is made in lists.cpp.
__device__ uint32_t divide(uint32_t n, ropeway_dim const& dim) {
  return (__umulhi(n, dim.multiplier) + n) >> (32 - __clz(dim.extent - 1));
}

template <class Unit>
__device__ void copy_units(ropeway_box const& box, ropeway_dim const* dims, uint32_t begin, uint32_t end) {
  constexpr uint32_t flight = 4;
  for (uint32_t base = begin + threadIdx.x; base < end; base += flight * threads) {
    uint64_t to[flight];
    typename Unit::from_type value[flight];
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k) {
      uint32_t index = base + k * threads;
      if (index >= end) continue;
      uint64_t from = box.from;
      to[k] = box.to;
#pragma unroll 1
      for (uint32_t d = box.rank - 1u; d > 0; --d) {
        uint32_t outer = divide(index, dims[d]), here = index - outer * dims[d].extent;
        from += here * dims[d].from_stride;
        to[k] += here * dims[d].to_stride;
        index = outer;
      }
      from += index * dims[0].from_stride;
      to[k] += index * dims[0].to_stride;
      value[k] = Unit::load(from);
    }
#pragma unroll
    for (uint32_t k = 0; k < flight; ++k)
      if (base + k * threads < end) Unit::store(to[k], Unit::convert(value[k]));
  }
}

__device__ void copy_some_units(ropeway_box const& box, ropeway_dim const* dims, uint32_t begin,
                                uint32_t end) {
  switch (box.unit) {
  case ropeway_copy_1: copy_units<as_is<uint8_t>>(box, dims, begin, end); break;
  case ropeway_copy_2: copy_units<as_is<uint16_t>>(box, dims, begin, end); break;
  case ropeway_copy_4: copy_units<as_is<uint32_t>>(box, dims, begin, end); break;
  case ropeway_copy_8: copy_units<as_is<uint2>>(box, dims, begin, end); break;
  case ropeway_copy_16: copy_units<as_is<uint4>>(box, dims, begin, end); break;
  case ropeway_f32_bf16: copy_units<converted<f32_bf16>>(box, dims, begin, end); break;
  case ropeway_f32_f16: copy_units<converted<f32_f16>>(box, dims, begin, end); break;
  case ropeway_bf16_f32: copy_units<converted<bf16_f32>>(box, dims, begin, end); break;
  case ropeway_f16_f32: copy_units<converted<f16_f32>>(box, dims, begin, end); break;
  case ropeway_f32_bf16_4: copy_units<four_converted<f32_bf16>>(box, dims, begin, end); break;
  case ropeway_f32_f16_4: copy_units<four_converted<f32_f16>>(box, dims, begin, end); break;
  case ropeway_bf16_f32_4: copy_units<four_converted<bf16_f32>>(box, dims, begin, end); break;
  case ropeway_f16_f32_4: copy_units<four_converted<f16_f32>>(box, dims, begin, end); break;
  case ropeway_f32_bf16_u: copy_units<unaligned<f32_bf16>>(box, dims, begin, end); break;
  case ropeway_f32_f16_u: copy_units<unaligned<f32_f16>>(box, dims, begin, end); break;
  case ropeway_bf16_f32_u: copy_units<unaligned<bf16_f32>>(box, dims, begin, end); break;
  case ropeway_f16_f32_u: copy_units<unaligned<f16_f32>>(box, dims, begin, end); break;
  }
}

template <class List>
__device__ void copy_boxes(List const& list) {
  for (uint32_t chunk = blockIdx.x; chunk < list.chunks; chunk += gridDim.x) {
    ropeway_box const& box = list.boxes[entry_of(list.boxes, list.count, chunk)];
    ropeway_dim const* dims = list.dims + box.first_dim;
    uint32_t begin = (chunk - box.first_chunk) << list.chunk_shift;
    uint32_t end = min(box.units, begin + (1u << list.chunk_shift));
    copy_some_units(box, dims, begin, end);
  }
}

__device__ void copy_chunk_of_box(ropeway_prepared_list const& list, ropeway_chunk const& chunk) {
  ropeway_box const& box = ((ropeway_box const*)list.boxes)[chunk.box - 1];
  uint32_t begin = (uint32_t)chunk.from;
  copy_some_units(box, (ropeway_dim const*)list.dims + box.first_dim, begin, begin + chunk.count);
}

template <bool boxes>
__device__ void copy_prepared(ropeway_prepared_list const& list) {
  ropeway_chunk const* chunks = (ropeway_chunk const*)list.chunks + list.first;
  for (uint32_t i = blockIdx.x; i < list.count; i += gridDim.x) {
    // Where few blocks run, each would wait for device memory before every chunk.
    if (list.count - i > gridDim.x) asm volatile("prefetch.global.L2 [%0];" ::"l"(chunks + i + gridDim.x));
    ropeway_chunk const chunk = chunks[i];
    if (boxes && chunk.box)
      copy_chunk_of_box(list, chunk);
    else
      copy_run(chunk.to, chunk.from, chunk.count);
  }
}

} // namespace

extern "C" {
__global__ void __launch_bounds__(ropeway_threads)
    ropeway_copy_pieces_small(__grid_constant__ ropeway_small_piece_list const list) {
  copy_pieces(list);
}
__global__ void __launch_bounds__(ropeway_threads)
    ropeway_copy_boxes_small(__grid_constant__ ropeway_small_box_list const list) {
  copy_boxes(list);
}
// A list without boxes needs few registers, so that an SM holds two blocks.
__global__ void __launch_bounds__(ropeway_threads, 2)
    ropeway_copy_prepared_pieces(__grid_constant__ ropeway_prepared_list const list) {
  copy_prepared<false>(list);
}
__global__ void __launch_bounds__(ropeway_threads)
    ropeway_copy_prepared_boxes(__grid_constant__ ropeway_prepared_list const list) {
  copy_prepared<true>(list);
}
// Compilers before 12.1 know no larger parameters; the loader then does without these two.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
__global__ void __launch_bounds__(ropeway_threads)
    ropeway_copy_pieces_large(__grid_constant__ ropeway_large_piece_list const list) {
  copy_pieces(list);
}
__global__ void __launch_bounds__(ropeway_threads)
    ropeway_copy_boxes_large(__grid_constant__ ropeway_large_box_list const list) {
  copy_boxes(list);
}
#endif
}

#include "digests.cuh"
