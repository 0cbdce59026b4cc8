// Random data made and compared on the device, and a load that reads. Part of ropeway; Apache-2.0.
#include <stdint.h>

namespace {

// As in data.cpp.
__device__ uint64_t random_word(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__device__ uint64_t my_index() { return blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; }
__device__ uint64_t all_threads() { return uint64_t(gridDim.x) * blockDim.x; }

} // namespace

// `memory` is aligned for words. The last may be a part of one.
extern "C" __global__ void bench_fill(unsigned char* memory, uint64_t bytes, uint64_t seed) {
  uint64_t const words = bytes / 8;
  for (uint64_t i = my_index(); i < words; i += all_threads())
    reinterpret_cast<uint64_t*>(memory)[i] = random_word(seed, i);
  if (my_index() == 0)
    for (uint64_t at = words * 8; at < bytes; ++at)
      memory[at] = static_cast<unsigned char>(random_word(seed, words) >> (8 * (at % 8)));
}

extern "C" __global__ void bench_compare(unsigned char const* memory, uint64_t bytes, uint64_t seed,
                                         uint64_t first, uint64_t run, uint64_t step,
                                         unsigned long long* right) {
  uint64_t const words = bytes / 8;
  unsigned long long mine = 0;
  auto const place = [&](uint64_t at) { return first + at / run * step + at % run; };
  for (uint64_t i = my_index(); i < words; i += all_threads())
    mine += reinterpret_cast<uint64_t const*>(memory)[i] == random_word(seed, place(i * 8) / 8);
  if (my_index() == 0 && words * 8 < bytes) {
    uint64_t const last = random_word(seed, place(words * 8) / 8);
    bool same = true;
    for (uint64_t at = words * 8; at < bytes; ++at)
      same = same && memory[at] == static_cast<unsigned char>(last >> (8 * (at % 8)));
    mine += same;
  }
  for (int lane = 16; lane > 0; lane /= 2) mine += __shfl_down_sync(0xffffffffu, mine, lane);
  if (threadIdx.x % 32 == 0 && mine != 0) atomicAdd(right, mine);
}

extern "C" __global__ void bench_read(uint4 const* memory, uint64_t count, uint4* sink) {
  uint4 all = {0, 0, 0, 0};
  for (uint64_t i = my_index(); i < count; i += all_threads()) {
    uint4 const one = memory[i];
    all.x ^= one.x, all.y ^= one.y, all.z ^= one.z, all.w ^= one.w;
  }
  // Never true of what is read here, which the compiler does not know.
  if (all.x == 0x12345678 && all.y == 0x9abcdef0 && all.z == 0x87654321 && all.w == 0x0fedcba9) *sink = all;
}
