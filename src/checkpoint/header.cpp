#include "checkpoint/header.hpp"

#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <boost/json/string_view.hpp>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "checkpoint/header_listener.hpp"
#include "checkpoint/input_file.hpp"
#include "checkpoint/text.hpp"

namespace ropeway {
namespace {

constexpr std::uint64_t size_field = 8;

[[noreturn]] void refuse(input_file const& file, std::string const& why) {
  throw transfer_error(errc::bad_checkpoint, label(file.path()) + ": " + why);
}

std::uint64_t read_size(input_file const& file) {
  if (file.size() < size_field)
    refuse(file, "has " + std::to_string(file.size()) + " bytes, less than the header's size field of 8");
  std::array<char, size_field> field;
  file.read_exactly(0, field);
  std::uint64_t size = 0;
  for (std::size_t i = size_field; i-- > 0;) size = size << 8 | static_cast<unsigned char>(field[i]);
  if (size > max_header_size)
    refuse(file, "the size field claims a header of " + std::to_string(size) + " bytes; at most " +
                     std::to_string(max_header_size) + " are allowed (is this a safetensors file?)");
  if (size > file.size() - size_field)
    refuse(file, "the size field claims a header of " + std::to_string(size) + " bytes, but only " +
                     std::to_string(file.size() - size_field) + " follow; the file is cut off");
  return size;
}

void parse(input_file const& file, std::uint64_t size, header_listener& into) {
  if (size == 0) refuse(file, "the header is empty");
  json_feed feed(into, label(file.path()) + ": header");
  std::vector<char> piece(static_cast<std::size_t>(std::min<std::uint64_t>(size, 64 * 1024)));
  for (std::uint64_t done = 0; done < size;) {
    auto const now = static_cast<std::size_t>(std::min<std::uint64_t>(size - done, piece.size()));
    file.read_exactly(size_field + done, std::span(piece).first(now));
    if (done == 0 && piece.front() != '{') refuse(file, "the header does not begin with '{'");
    feed.feed({piece.data(), now});
    done += now;
  }
  feed.finish();
}

// The entries must cover the data from its first to its last byte, each byte once.
void check_cover(input_file const& file, std::vector<header_entry> const& entries, std::uint64_t data_size) {
  std::uint64_t end = 0;
  header_entry const* previous = nullptr;
  for (auto const& entry : entries) {
    auto const subject = [&] {
      return "tensor " + in_quotes(entry.info.name) + " (data bytes " + std::to_string(entry.begin) + " to " +
             std::to_string(entry.end) + ")";
    };
    if (entry.begin < end)
      refuse(file, subject() + " overlaps tensor " + in_quotes(previous->info.name) + ", which ends at " +
                       std::to_string(end));
    if (entry.begin > end)
      refuse(file, subject() + " leaves a hole of " + std::to_string(entry.begin - end) +
                       " bytes before it; no byte may be unused");
    end = entry.end;
    previous = &entry;
  }
  if (end > data_size)
    refuse(file, "tensor " + in_quotes(previous->info.name) + " ends at data byte " + std::to_string(end) +
                     ", but the file has only " + std::to_string(data_size) + "; the file is cut off");
  if (end < data_size)
    refuse(file, std::to_string(data_size - end) + " bytes follow the last tensor; no byte may be unused");
}

void check_names(input_file const& file, std::vector<header_entry> const& entries) {
  std::unordered_set<std::string_view> seen;
  seen.reserve(entries.size());
  for (auto const& entry : entries)
    if (!seen.insert(entry.info.name).second)
      refuse(file, "tensor " + in_quotes(entry.info.name) + " appears twice in the header");
}

std::string text(std::string_view value) {
  return boost::json::serialize(boost::json::string_view(value.data(), value.size()));
}

} // namespace

file_header read_header(input_file const& file) {
  std::uint64_t const size = read_size(file);
  header_listener header;
  parse(file, size, header);
  std::sort(header.entries.begin(), header.entries.end(), [](auto const& a, auto const& b) {
    return std::tie(a.begin, a.end, a.info.name) < std::tie(b.begin, b.end, b.info.name);
  });
  check_names(file, header.entries);
  check_cover(file, header.entries, file.size() - size_field - size);

  file_header result;
  result.metadata = std::move(header.metadata);
  result.tensors.reserve(header.entries.size());
  for (auto& entry : header.entries)
    result.tensors.push_back({.info = std::move(entry.info),
                              .bytes = entry.end - entry.begin,
                              .offset = size_field + size + entry.begin,
                              .file = 0});
  return result;
}

std::string make_header(std::span<tensor_info const* const> tensors, checkpoint_metadata const& metadata) {
  std::string json(size_field, '\0');
  json += '{';
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (auto const& [key, value] : metadata) {
      if (json.back() != '{') json += ',';
      json += text(key) + ':' + text(value);
    }
    json += '}';
  }
  std::uint64_t begin = 0;
  for (tensor_info const* tensor : tensors) {
    std::uint64_t const end = begin + byte_size(tensor->type, tensor->dims).value();
    if (json.back() != '{') json += ',';
    json += text(tensor->name) + ":{\"dtype\":\"" + std::string(name(tensor->type)) + "\",\"shape\":[";
    for (std::size_t i = 0; i < tensor->dims.rank(); ++i)
      json += (i == 0 ? "" : ",") + std::to_string(tensor->dims[i]);
    json += "],\"data_offsets\":[" + std::to_string(begin) + ',' + std::to_string(end) + "]}";
    begin = end;
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::uint64_t const size = json.size() - size_field;
  if (size > max_header_size)
    throw transfer_error(errc::overflow, "the header would take " + std::to_string(size) +
                                             " bytes; the format allows " + std::to_string(max_header_size) +
                                             "; spread the tensors over several files");
  for (std::size_t i = 0; i < size_field; ++i) json[i] = static_cast<char>(size >> (8 * i) & 0xFF);
  return json;
}

} // namespace ropeway
