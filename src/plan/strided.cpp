#include "plan/strided.hpp"

#include <algorithm>

namespace ropeway::plan {
namespace {

/// Unsigned: strides come from callers, and wrapping is harmless where overflow would be undefined.
std::int64_t times(std::int64_t stride, std::uint64_t count) noexcept {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(stride) * count);
}

} // namespace

strided_part collapse(shape const& dims, box const& part, std::span<std::int64_t const> strides) {
  std::array<std::uint64_t, max_rank> extents{};
  strided_part result;
  std::size_t rank = 0; // dimensions kept so far, those at the back of `extents` being the inner ones
  for (std::size_t d = 0; d < dims.rank(); ++d) {
    if (dims[d] == 1) continue; // neither side moves along it
    bool const taken_whole = part.start[d] == 0 && part.extent[d] == dims[d];
    // One step of the dimension outside must be all of this one, in the image and in the array. Where the
    // part has but one step outside, the array's stride there is never used, and any will do.
    bool const one_step = rank != 0 && result.part.extent[rank - 1] == 1;
    if (rank != 0 && taken_whole && (one_step || result.strides[rank - 1] == times(strides[d], dims[d]))) {
      extents[rank - 1] *= dims[d];
      result.part.start[rank - 1] *= dims[d];
      result.part.extent[rank - 1] *= dims[d];
      result.strides[rank - 1] = strides[d];
      continue;
    }
    extents[rank] = dims[d];
    result.part.start[rank] = part.start[d];
    result.part.extent[rank] = part.extent[d];
    result.strides[rank] = strides[d];
    ++rank;
  }
  result.dims = shape(std::span<std::uint64_t const>(extents).first(rank));
  result.part.rank = static_cast<std::uint8_t>(rank);
  return result;
}

bool is_dense(strided_part const& array) noexcept {
  std::uint64_t step = 1;
  for (std::size_t d = array.dims.rank(); d-- > 0;) {
    if (array.part.extent[d] != 1 && array.strides[d] != static_cast<std::int64_t>(step)) return false;
    step *= array.part.extent[d];
  }
  return true;
}

std::uint64_t strided_box::elements() const noexcept {
  std::uint64_t product = 1;
  for (std::size_t d = 0; d < rank; ++d) product *= extent[d];
  return product;
}

bool locate(strided_part const& array, box const& among, strided_box& out) noexcept {
  box common;
  if (!intersect(array.part, among, common)) return false;
  auto const image_strides = row_major(array.dims);
  out = {};
  out.image = static_cast<std::uint64_t>(offset_of(common, image_strides));
  for (std::size_t d = 0; d < common.rank; ++d) {
    std::uint64_t const within = common.start[d] - array.part.start[d];
    out.array = static_cast<std::int64_t>(static_cast<std::uint64_t>(out.array) +
                                          static_cast<std::uint64_t>(array.strides[d]) * within);
    std::uint64_t const extent = common.extent[d];
    if (extent == 1) continue;
    if (out.rank != 0) {
      std::size_t const outer = out.rank - 1u;
      if (out.image_stride[outer] == times(image_strides[d], extent) &&
          out.array_stride[outer] == times(array.strides[d], extent)) {
        out.extent[outer] *= extent;
        out.image_stride[outer] = image_strides[d];
        out.array_stride[outer] = array.strides[d];
        continue;
      }
    }
    out.extent[out.rank] = extent;
    out.image_stride[out.rank] = image_strides[d];
    out.array_stride[out.rank] = array.strides[d];
    ++out.rank;
  }
  return true;
}

} // namespace ropeway::plan
