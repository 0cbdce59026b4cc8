// Kernels that tests need: one that takes its time, one that breaks its context. Part of ropeway; Apache-2.0.
#include <stdint.h>

extern "C" {

// Waits so many nanoseconds, then writes.
__global__ void test_slow_fill(uint32_t* to, uint32_t value, uint32_t count, uint64_t nanoseconds) {
  uint64_t begin, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  while (now - begin < nanoseconds);
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = value;
}

// Runs until the host writes something else than 0.
__global__ void test_wait(uint32_t const volatile* flag) {
  while (*flag == 0) {}
}

__global__ void test_trap() { asm volatile("trap;"); }
}
