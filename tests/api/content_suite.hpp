// What must arrive, and how: one coroutine a behaviour, for any pair of memories and any depth of the ring.
// content_host_test.cpp and content_cuda_test.cpp run them. Part of ropeway; Apache-2.0.
#pragma once
#include "line.hpp"

namespace ropeway::testing {

using behaviour = awaitable<void> (*)(setting const& how);

// X(function, sentence)
#define ROPEWAY_CONTENT_SUITE(X)                                                                             \
  X(one_small_tensor, "one small tensor")                                                                    \
  X(three_in_one_bucket, "three small tensors share one bucket")                                             \
  X(twenty_through_one_mib, "20 x (128, 128) f32 through 1 MiB buckets")                                     \
  X(mixed_dtypes, "mixed dtypes in one bucket")                                                              \
  X(every_dtype, "every dtype, packed ones included")                                                        \
  X(no_tensors, "no tensors at all: the commit is still seen")                                               \
  X(empty_and_scalar, "zero-element tensors and scalars arrive with their shape")                            \
  X(exactly_one_bucket, "exactly one bucket's size is one bucket")                                           \
  X(larger_than_the_bucket, "tensors larger than the bucket: first, in the middle, last, several in a row")  \
  X(larger_than_the_ring, "a tensor larger than the whole ring")                                             \
  X(odd_then_wide, "every tensor starts aligned for its dtype")                                              \
  X(tied_weights, "two names for one memory")                                                                \
  X(twenty_thousand, "20,000 tensors, a fifth with a sanitizer")                                             \
  X(long_names, "names of 1 KiB with any UTF-8")                                                             \
  X(names_refused, "names given twice, empty or broken are refused by name, and the next send works")        \
  X(strided_sources, "strided sources: transposed, every second row, permuted, reversed, broadcast")         \
  X(strided_and_large, "strided sources larger than the bucket")                                             \
  X(moved_tensor, "a tensor that moves between two updates")                                                 \
  X(new_layout, "another set of tensors at the next update")                                                 \
  X(cast_to_bf16, "f32 cast to bf16 while packing, exact to round-to-nearest-even")                          \
  X(cast_to_f16, "f32 cast to f16 while packing, exact to round-to-nearest-even")                            \
  X(cast_to_f32, "bf16 and f16 cast to f32 while packing")                                                   \
  X(cast_unknown, "a cast that is not known fails the send by name")                                         \
  X(prepared_set, "a prepared set, sent twice")                                                              \
  X(from_a_source, "a source that makes one tensor after the other, run twice")                              \
  X(from_a_writer, "a writer that fills the slots itself, run twice")                                        \
  X(mismatches, "destinations that do not fit: told apart, in one message, before a byte moves")             \
  X(subsets, "a subset is asked for explicitly")                                                             \
  X(shards, "destinations that are rows, columns or a block of a tensor")                                    \
  X(shards_of_large, "shards of tensors that are larger than the bucket")                                    \
  X(ranks, "shards by rank, of rows and of columns; an uneven split is refused")                             \
  X(tied_destinations,                                                                                       \
    "names for one memory are one place, where that is allowed, whichever of them are sent")                 \
  X(fused, "q, k and v into one destination")                                                                \
  X(strided_destinations, "strided destinations")

#define ROPEWAY_DECLARE(function, sentence) awaitable<void> function(setting const& how);
ROPEWAY_CONTENT_SUITE(ROPEWAY_DECLARE)
#undef ROPEWAY_DECLARE

/// Runs a behaviour with rings of 1, 2 and 3 slots.
void run_at_every_depth(behaviour what, pairing const& how);

/// Sends `views` of `source` twice with different bytes, loaded in place and then taken bucket by bucket,
/// over a line of its own; all receivers must hold exactly what was sent, guards and report included.
awaitable<void> crosses(setting const& how, model& source, std::vector<tensor_view> views,
                        std::uint64_t bucket_bytes);
/// The same for a model made of these tensors.
awaitable<void> crosses(setting const& how, std::vector<tensor_info> specs,
                        std::uint64_t bucket_bytes = 64 * kib);
/// The specs of views, as receivers see them.
std::vector<tensor_info> specs_of(std::vector<tensor_view> const& views);
/// Empty models for what the views send, one a lane of the setting.
std::deque<model> blanks(setting const& how, std::vector<tensor_info> const& specs);
std::vector<destinations> into_all(std::deque<model>& models);
/// n tensors of this kind: "prefix.0", ...
std::vector<tensor_info> many(std::size_t count, std::string const& prefix, dtype type, shape const& dims);

} // namespace ropeway::testing
