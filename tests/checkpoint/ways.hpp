// The ways to the disk that a test goes through one after the other. Part of ropeway; Apache-2.0.
#pragma once
#include <doctest/doctest.h>

#include <vector>

#include "files.hpp"

namespace ropeway::test {

// Whether this system has io_uring: told by the library itself, whose refusal another test looks at.
inline bool has_io_uring() {
  scratch const here;
  write_pattern(here / "x.safetensors", {});
  try {
    checkpoint_reader(checkpoint::open(here / "x.safetensors"), read_options().backend(io_backend::io_uring));
    return true;
  } catch (transfer_error const& error) {
    MESSAGE("not tested: " << error.what());
    return false;
  }
}

inline std::vector<io_backend> backends() {
  static bool const uring = has_io_uring();
  if (uring) return {io_backend::io_uring, io_backend::pread};
  return {io_backend::pread};
}

// A few megabytes in tensors of odd sizes, so that none but the first is aligned to anything.
inline std::vector<tensor_info> const odd = {
    {"large", dtype::u8, {3'000'001}}, {"tiny", dtype::u8, {7}},         {"empty", dtype::u8, {0}},
    {"block", dtype::u8, {4096}},      {"middle", dtype::u8, {500'003}}, {"last", dtype::u8, {1'048'576}},
};

// `call` for every backend, with and without the page cache.
template <class Call>
void for_each_way(Call call) {
  for (io_backend backend : backends())
    for (bool direct : {true, false}) {
      CAPTURE(to_string(backend));
      CAPTURE(direct);
      read_options options;
      options.backend(backend).direct(direct).queue_depth(8);
      call(options);
    }
}

} // namespace ropeway::test
