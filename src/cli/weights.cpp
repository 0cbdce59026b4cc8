#include "cli/weights.hpp"

#include <algorithm>

#include "ropeway/error.hpp"

namespace ropeway::cli {
namespace {

/// As the library aligns pieces in its buckets: copies run at full speed.
constexpr std::uint64_t alignment = 256;

std::uint64_t size_of(tensor_info const& info) {
  auto const bytes = byte_size(info.type, info.dims);
  if (!bytes) {
    transfer_error error(errc::overflow, "the size of tensor " + info.name + " can't be represented");
    throw error.tensor(info.name);
  }
  return *bytes;
}

} // namespace

weights::weights(std::span<tensor_info const> tensors, device where, bool shared) : where_(where) {
  entries_.reserve(tensors.size());
  for (auto const& info : tensors) entries_.push_back({info, size_of(info), nullptr});
  place(shared);
}

weights::weights(checkpoint const& from, device where, bool shared) : where_(where) {
  entries_.reserve(from.tensors().size());
  for (auto const& stored : from.tensors()) entries_.push_back({stored.info, stored.bytes, nullptr});
  if (where.is_cuda()) {
    place(false);
    return;
  }
  std::vector<std::uint64_t> ends(from.files().size());
  for (auto const& stored : from.tensors())
    ends[stored.file] = std::max(ends[stored.file], stored.offset + stored.bytes);
  std::vector<std::byte*> begins;
  for (auto const end : ends) {
    if (shared && end != 0)
      begins.push_back(shared_.emplace_back(shared_memory::make(end)).data());
    else
      begins.push_back(host_.emplace_back(end).data());
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    auto const& stored = from.tensors()[i];
    entries_[i].data = begins[stored.file] + stored.offset;
  }
}

void weights::place(bool shared) {
  std::uint64_t total = 0;
  std::vector<std::uint64_t> offsets;
  offsets.reserve(entries_.size());
  for (auto const& one : entries_) {
    offsets.push_back(total);
    if (one.bytes > UINT64_MAX / 2 - alignment - total)
      throw transfer_error(errc::overflow, "the tensors together are larger than memory can be");
    total += (one.bytes + alignment - 1) / alignment * alignment;
  }
  std::byte* start = nullptr;
  if (where_.is_cuda()) {
    region_ = memory::system_backends()->get(where_)->make_region(std::max<std::uint64_t>(total, 1)).memory;
    start = region_->data();
  } else if (shared && total != 0) {
    start = shared_.emplace_back(shared_memory::make(total)).data();
  } else {
    start = host_.emplace_back(total).data();
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) entries_[i].data = start + offsets[i];
}

std::uint64_t weights::total_bytes() const noexcept {
  std::uint64_t total = 0;
  for (auto const& one : entries_) total += one.bytes;
  return total;
}

bool weights::fits(std::span<tensor_info const> tensors) const noexcept {
  return std::ranges::equal(entries_, tensors, {}, &entry::info);
}

std::vector<tensor_view> weights::views() const {
  std::vector<tensor_view> views;
  views.reserve(entries_.size());
  for (auto const& one : entries_)
    views.emplace_back(one.info.name, one.info.type, one.info.dims, one.data, where_);
  return views;
}

std::vector<mutable_tensor_view> weights::mutable_views() const {
  std::vector<mutable_tensor_view> views;
  views.reserve(entries_.size());
  for (auto const& one : entries_)
    views.emplace_back(one.info.name, one.info.type, one.info.dims, one.data, where_);
  return views;
}

} // namespace ropeway::cli
