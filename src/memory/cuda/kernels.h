/* What the copy kernels are given: plain C, read by nvcc and by the C++ compiler alike.
   Part of ropeway; Apache-2.0. */
#ifndef ROPEWAY_MEMORY_CUDA_KERNELS_H
#define ROPEWAY_MEMORY_CUDA_KERNELS_H
#include <stdint.h>

enum { ropeway_threads = 1024 }; /* of one block */

/* Contiguous bytes. Pieces of 4 GiB and more are cut. */
typedef struct {
  uint64_t from, to;
  uint32_t bytes;
  uint32_t first_chunk; /* chunks of all pieces before this one */
} ropeway_piece;

/* What a unit of a box is: so many bytes as they are, or elements that are converted. */
typedef enum {
  ropeway_copy_1,
  ropeway_copy_2,
  ropeway_copy_4,
  ropeway_copy_8,
  ropeway_copy_16,
  ropeway_f32_bf16,
  ropeway_f32_f16,
  ropeway_bf16_f32,
  ropeway_f16_f32, /* one element */
  ropeway_f32_bf16_4,
  ropeway_f32_f16_4,
  ropeway_bf16_f32_4,
  ropeway_f16_f32_4, /* four aligned neighbours */
  ropeway_f32_bf16_u,
  ropeway_f32_f16_u,
  ropeway_bf16_f32_u,
  ropeway_f16_f32_u /* one element, unaligned */
} ropeway_unit;

/* A strided box of fewer than 2^31 units. */
typedef struct {
  uint64_t from, to;
  uint32_t units;
  uint32_t first_chunk;
  uint32_t first_dim; /* in the list's dimensions; outermost first */
  uint8_t rank;
  uint8_t unit; /* ropeway_unit */
  uint16_t unused;
} ropeway_box;

typedef struct {
  int64_t from_stride, to_stride; /* bytes */
  uint32_t extent;
  uint32_t multiplier; /* divides by extent: see ropeway_divide */
} ropeway_dim;

/* Up to 4,096 bytes of parameters work everywhere; 32,764 from CUDA 12.1 on. The first four members of all
   lists are alike. Units and bytes of one chunk are 1 << chunk_shift. */
enum {
  ropeway_small_pieces = 168,
  ropeway_large_pieces = 1360,
  ropeway_small_boxes = 56,
  ropeway_small_dims = 92,
  ropeway_large_boxes = 480,
  ropeway_large_dims = 720
};
typedef struct {
  uint32_t count, chunks, chunk_shift, unused;
  ropeway_piece pieces[ropeway_small_pieces];
} ropeway_small_piece_list;
typedef struct {
  uint32_t count, chunks, chunk_shift, unused;
  ropeway_piece pieces[ropeway_large_pieces];
} ropeway_large_piece_list;
typedef struct {
  uint32_t count, chunks, chunk_shift, unused;
  ropeway_box boxes[ropeway_small_boxes];
  ropeway_dim dims[ropeway_small_dims];
} ropeway_small_box_list;
typedef struct {
  uint32_t count, chunks, chunk_shift, unused;
  ropeway_box boxes[ropeway_large_boxes];
  ropeway_dim dims[ropeway_large_dims];
} ropeway_large_box_list;

/* A prepared list lies in device memory, cut into chunks beforehand: one launch takes it whole, and no block
   has to look for its work. A chunk is a run of bytes or, with a box, so many units of it. */
typedef struct {
  uint64_t from, to; /* addresses; of a box: `from` is its first unit */
  uint32_t count;    /* bytes; units of a box */
  uint32_t box;      /* of the list's boxes, plus one; 0: a run of bytes */
  uint64_t unused;   /* makes an entry one sector of memory */
} ropeway_chunk;
typedef struct {
  uint64_t chunks, boxes, dims; /* addresses of ropeway_chunk, ropeway_box, ropeway_dim */
  uint32_t first, count;        /* of the chunks */
} ropeway_prepared_list;

/* Digests. A task is a run of the image within 64 KiB of it, or some units of a box; what it comes to is
   added to a sum. Of a run as it is, address and image lie equally within 16 bytes; of one that is converted,
   both ends of the image lie at multiples of 16 and the address at one of what 16 bytes are made of. */
enum { ropeway_digest_threads = 256, ropeway_digest_window = 65536 };
typedef enum {
  ropeway_digest_as_is,
  ropeway_digest_f32_bf16,
  ropeway_digest_f32_f16,
  ropeway_digest_bf16_f32,
  ropeway_digest_f16_f32
} ropeway_digest_form;
typedef struct {
  uint64_t address; /* of a run, from the list's base */
  uint64_t image;   /* of a run: its first byte; of a box: its first unit */
  uint32_t count;   /* bytes of the image; units of a box */
  uint32_t sum;
  uint32_t box;  /* of the list's boxes, plus one; 0: a run */
  uint32_t form; /* of a run */
} ropeway_digest_task;
/* from_stride of its dimensions is for memory, to_stride for the image. Units lie at multiples of their size
   in the image. */
typedef struct {
  uint64_t address, image;
  uint32_t first_dim;
  uint16_t rank, unit; /* a ropeway_unit */
} ropeway_digest_box;
typedef struct {
  uint64_t tasks, boxes, dims,
      sums; /* addresses of ropeway_digest_task, ropeway_digest_box, ropeway_dim, uint64_t[2] */
  uint64_t base;
  uint32_t first, count; /* of the tasks */
} ropeway_digest_list;

#endif
