// The header of a safetensors file, read and written by the rules of the format. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ropeway/checkpoint.hpp"

namespace ropeway {

class input_file;

/// The longest header that the format allows, without its size field.
inline constexpr std::uint64_t max_header_size = 100'000'000;

struct file_header {
  std::vector<stored_tensor> tensors; ///< by offset, which counts from the start of the file
  checkpoint_metadata metadata;
};

/// Reads and checks the header. Throws `transfer_error` with the file's name, what is wrong and where.
file_header read_header(input_file const& file);

/// The file's beginning: the size field, the JSON and the padding that aligns the data. The tensors lie in
/// the given order without gaps; their sizes must have been checked.
std::string make_header(std::span<tensor_info const* const> tensors, checkpoint_metadata const& metadata);

} // namespace ropeway
