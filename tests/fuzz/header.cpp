// Any safetensors file: what is not refused covers its data exactly, and can be written again. The first byte
// says whether the rest is a whole file, or the JSON of one whose size field is right (two bytes and a shift
// say how much data follows).
#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <vector>

#include "checkpoint/header.hpp"
#include "checkpoint/input_file.hpp"
#include "choices.hpp"
#include "safetensors.hpp"

namespace ropeway::fuzz {
namespace {

std::optional<file_header> read(file_in_memory const& file) {
  try {
    return read_header(input_file(file.path()));
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::bad_checkpoint) ||
                e.code() == make_error_code(errc::unsupported),
            "a bad file is called a bad file");
    promise(std::string_view(e.what()).find('\n') == std::string_view::npos, "a refusal is one line");
    return std::nullopt;
  }
}

void check(file_header const& header, std::span<std::uint8_t const> bytes, std::uint64_t file_size) {
  std::set<std::string_view> names;
  std::uint64_t end = 0; // of what is accounted for
  for (std::size_t i = 8; i-- > 0;) end = end << 8 | bytes[i];
  end += 8;
  promise(end >= 8 && end <= file_size, "data begins behind the header");
  for (auto const& tensor : header.tensors) {
    promise(names.insert(tensor.info.name).second, "names are unique");
    promise(tensor.offset == end, "tensors lie one behind the other");
    promise(byte_size(tensor.info.type, tensor.info.dims) == tensor.bytes, "a tensor has its size");
    promise(tensor.bytes <= file_size - end, "a tensor lies within the file");
    end += tensor.bytes;
  }
  promise(end == file_size, "the tensors cover the file");
}

void write_again(file_in_memory& file, file_header const& header) {
  std::vector<tensor_info const*> infos;
  std::uint64_t data = 0;
  for (auto const& tensor : header.tensors) {
    infos.push_back(&tensor.info);
    data += tensor.bytes;
  }
  auto const made = make_header(infos, header.metadata);
  promise(made.size() % 8 == 0, "data begins aligned");
  if (data > std::uint64_t{1} << 60) return;
  file.fill({reinterpret_cast<std::uint8_t const*>(made.data()), made.size()}, made.size() + data);
  auto const again = read(file);
  promise(again.has_value(), "what was written can be read");
  promise(again->metadata == header.metadata, "with the same metadata");
  promise(
      std::ranges::equal(again->tensors, header.tensors,
                         [](auto const& a, auto const& b) { return a.info == b.info && a.bytes == b.bytes; }),
      "and the same tensors");
}

} // namespace

void header(input in) {
  static file_in_memory file;
  choices from(in);
  auto const how = from.byte();
  std::vector<std::uint8_t> bytes;
  std::uint64_t size = 0;
  if (how & 1) {
    auto const whole = from.rest();
    bytes.assign(whole.begin(), whole.end());
    size = bytes.size();
  } else {
    std::uint64_t const low = from.byte(), data = (low + 256u * from.byte()) << (how / 2 % 40);
    auto const json = from.rest();
    for (std::size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<std::uint8_t>(json.size() >> (8 * i)));
    bytes.insert(bytes.end(), json.begin(), json.end());
    size = bytes.size() + data;
  }
  file.fill(bytes, size);
  auto const header = read(file);
  if (!header) return;
  check(*header, bytes, size);
  write_again(file, *header);
}

} // namespace ropeway::fuzz
