#include "model_memory.hpp"

#include <algorithm>
#include <array>

#include "gpu.hpp"
#include "ropeway/error.hpp"
#include "routes.hpp"

namespace ropeway::bench {
namespace {

constexpr std::array kinds{memory_kind::region, memory_kind::segments, memory_kind::shared};
constexpr std::array names{"region", "segments", "shared"};

std::uint64_t up(std::uint64_t bytes, std::uint64_t to) { return (bytes + to - 1) / to * to; }
constexpr std::uint64_t mib = std::uint64_t(1) << 20;
/// As the library aligns pieces in its buckets.
constexpr std::uint64_t alignment = 256;
/// As PyTorch's allocator does.
constexpr std::uint64_t step = 512;

/// The segment that a tensor of this size makes the allocator ask for.
std::uint64_t segment_bytes(std::uint64_t bytes) {
  if (bytes <= mib) return 2 * mib;
  if (bytes < 10 * mib) return 20 * mib;
  return up(bytes, 2 * mib);
}

} // namespace

char const* name(memory_kind kind) { return names[static_cast<std::size_t>(kind)]; }
std::optional<memory_kind> parse_memory_kind(std::string_view text) {
  for (auto const one : kinds)
    if (text == name(one)) return one;
  return std::nullopt;
}

model_memory::model_memory(std::vector<tensor_info> const& tensors, device where, memory_kind kind)
    : where_(where) {
  if (kind == (where.is_cuda() ? memory_kind::shared : memory_kind::segments))
    throw transfer_error(errc::invalid_argument,
                         std::string("memory of kind ") + name(kind) + " is not for " + to_string(where));
  if (kind == memory_kind::region) {
    region_.emplace(tensors, where);
    entries_.assign(region_->entries().begin(), region_->entries().end());
    if (!entries_.empty())
      whole_bytes_ =
          static_cast<std::uint64_t>(entries_.back().data - entries_.front().data) + entries_.back().bytes;
    return;
  }
  for (auto const& one : tensors) entries_.push_back({one, byte_size(one.type, one.dims).value(), nullptr});
  if (kind == memory_kind::segments)
    place_segments();
  else
    place_shared();
}

model_memory::~model_memory() = default;

void model_memory::place_segments() {
  struct open_segment {
    std::byte* at = nullptr;
    std::uint64_t left = 0;
  } small, medium;
  auto& on = gpu::of(where_.ordinal());
  for (auto& one : entries_) {
    auto const size = up(std::max<std::uint64_t>(one.bytes, 1), step);
    auto const take = segment_bytes(size);
    open_segment alone;
    auto& from = size <= mib ? small : size < 10 * mib ? medium : alone;
    if (from.left < size) {
      blocks_.push_back(std::make_unique<device_block>(on, take));
      from = {blocks_.back()->data(), take};
    }
    one.data = from.at;
    from.at += size;
    from.left -= size;
  }
}

void model_memory::place_shared() {
  std::uint64_t total = 0;
  for (auto const& one : entries_) total += up(one.bytes, alignment);
  shared_ = std::make_unique<sharable>(std::max<std::uint64_t>(total, 1));
  std::byte* at = shared_->data();
  for (auto& one : entries_) {
    one.data = at;
    at += up(one.bytes, alignment);
  }
  whole_bytes_ = total;
}

std::uint64_t model_memory::total_bytes() const noexcept {
  std::uint64_t total = 0;
  for (auto const& one : entries_) total += one.bytes;
  return total;
}

std::span<std::byte> model_memory::whole() const noexcept {
  if (whole_bytes_ == 0) return {};
  return {entries_.front().data, whole_bytes_};
}

std::vector<tensor_view> model_memory::views() const {
  std::vector<tensor_view> views;
  for (auto const& one : entries_)
    views.emplace_back(one.info.name, one.info.type, one.info.dims, one.data, where_);
  return views;
}

std::vector<mutable_tensor_view> model_memory::mutable_views() const {
  std::vector<mutable_tensor_view> views;
  for (auto const& one : entries_)
    views.emplace_back(one.info.name, one.info.type, one.info.dims, one.data, where_);
  return views;
}

} // namespace ropeway::bench
