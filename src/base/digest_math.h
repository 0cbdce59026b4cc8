/* The coefficients of a digest: plain C, read by the host's compiler and by nvcc alike.
   Part of ropeway; Apache-2.0.

   A tensor as delivered (after any conversion), dense and in row-major order, is taken as little-endian words
   of 32 bits, the last one filled up with zeros. Its digest has two lanes of 64 bits; each is the sum of
   c(i) * word(i) modulo 2^64, where i is the word's place in the tensor and

       c(i) = row(i / 1024) * column(i % 1024), both odd and pseudo-random, others in each lane.

   What follows from that:
    - It is linear in the bytes. However a tensor is cut (into buckets, chunks, boxes, columns, strided runs,
      threads), the digests of the cuts add up, in any order, to the digest of the whole. A byte is its value
      times 2^(8 * its place in the word) of that word, so that cuts may go through words.
    - A changed word always changes it: c(i) is odd, and the difference is not 0 modulo 2^32. So does any
      change within one word, one flipped bit to start with.
    - Two words that change places change it by (c(i) - c(k)) * (word(k) - word(i)). That is 0 in a lane only
      if the two factors have 64 powers of 2 between them, of which the words have 31 at most. The tests
      look at all pairs within a chunk.
    - Any other fixed change goes unnoticed by a lane with a chance of about 2^-33 for the worst kind (only
   top bits change), and of 2^-64 for most; two lanes make that 2^-66 and less. The products have a structure
      (a row's changes are seen through one factor), which only a change that cancels within rows could use.
   It finds faults: what a copy, a device or a bug does without knowing the coefficients. It is no signature:
   who means to can make other bytes of the same digest. */
#ifndef ROPEWAY_BASE_DIGEST_MATH_H
#define ROPEWAY_BASE_DIGEST_MATH_H
#include <stdint.h>

#if defined(__CUDACC__)
#define ROPEWAY_ON_BOTH __host__ __device__
#else
#define ROPEWAY_ON_BOTH
#endif

enum {
  ropeway_digest_columns = 1024,  /* words of a row */
  ropeway_digest_row_bytes = 4096 /* and bytes */
};

/* A bijection that makes unlike what is alike (the finalizer of splitmix64). */
static inline ROPEWAY_ON_BOTH uint64_t ropeway_digest_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* Lane 0 or 1. */
static inline ROPEWAY_ON_BOTH uint64_t ropeway_digest_column(uint32_t column, uint32_t lane) {
  return ropeway_digest_mix(((uint64_t)(lane + 1) << 62) | column) | 1;
}
static inline ROPEWAY_ON_BOTH uint64_t ropeway_digest_row(uint64_t row, uint32_t lane) {
  return ropeway_digest_mix(((uint64_t)lane << 61) | row) | 1;
}

#endif
