// Everything that must arrive, from host memory to host memory. Part of ropeway; Apache-2.0.
#include "content_suite.hpp"

#include <doctest/doctest.h>

using namespace ropeway::testing;

#define ROPEWAY_HOST_TEST(function, sentence)                                                                \
  TEST_CASE("host: " sentence) { run_at_every_depth(function, host_setting(1).how); }
ROPEWAY_CONTENT_SUITE(ROPEWAY_HOST_TEST)

#define ROPEWAY_MAPPED_TEST(function, sentence)                                                              \
  TEST_CASE("mapped: " sentence) { run_at_every_depth(function, mapped_setting(1).how); }
ROPEWAY_CONTENT_SUITE(ROPEWAY_MAPPED_TEST)

// Everything once more, compared before each commit.
#define ROPEWAY_DIGESTED_TEST(function, sentence)                                                            \
  TEST_CASE("with digests: " sentence) {                                                                     \
    run_at_every_depth(function, digested(host_setting(1).how));                                             \
    run_at_every_depth(function, digested(mapped_setting(1).how));                                           \
  }
ROPEWAY_CONTENT_SUITE(ROPEWAY_DIGESTED_TEST)

TEST_CASE("mapped, three receivers: tensors larger than the bucket, shards and strides") {
  for (auto what : {larger_than_the_bucket, strided_and_large, shards_of_large, from_a_source, mismatches})
    run_at_every_depth(what, mapped_setting(3).how);
}

TEST_CASE("host, three receivers: tensors larger than the bucket, shards and strides") {
  for (auto what : {larger_than_the_bucket, strided_and_large, shards_of_large, from_a_source, mismatches})
    run_at_every_depth(what, host_setting(3).how);
}
