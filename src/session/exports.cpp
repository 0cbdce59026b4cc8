#include "session/exports.hpp"

#include <algorithm>
#include <map>

#include "ropeway/error.hpp"

namespace ropeway::session {
namespace {

constexpr std::size_t placements_kept = 4;
/// Segments that no tensor of the last updates lies in, but whose memory is still there.
constexpr std::uint64_t updates_kept = 16;

std::byte* at(void const* address) { return static_cast<std::byte*>(const_cast<void*>(address)); }

} // namespace

memory::part_handle part_source::make() const {
  return block ? block->handle() : backend->export_allocation(what);
}

void exports::share(std::shared_ptr<memory::shared_block const> block) {
  shared_.push_back({std::move(block), next_identity_++});
  last_.reset(); // look again
}

exports::known exports::look_up(std::byte* address, device where) {
  known one;
  if (!where.is_cuda()) {
    one.what.why_not = "host memory that is not shared (see sender::share)";
    for (shared const& each : shared_) {
      auto const* const begin = each.block->data();
      if (address < begin || address >= begin + each.block->size()) continue;
      one.block = each.block;
      one.what.begin = each.block->data();
      one.what.bytes = each.block->size();
      one.what.identity = each.identity;
      one.what.kind = memory::part_kind::host_memory;
      break;
    }
    return one;
  }
  try {
    one.backend = memory_->get(where);
    one.what = one.backend->find_allocation(address);
    if (one.what.where.is_cuda() && one.what.where != where) { // not where the view says
      one.backend = memory_->get(one.what.where);
      one.what = one.backend->find_allocation(address);
    }
  } catch (std::exception const&) {
    one.what = {};
    one.what.why_not = "on a device that can't be asked";
  }
  return one;
}

bool exports::still_there(known const& one) const noexcept {
  return one.block || one.backend->are_there({&one.what, 1}); // blocks are held
}

bool exports::same_as_last(std::shared_ptr<detail::tensor_set const> const& tensors) const noexcept {
  return last_ == tensors && !placements_.empty() &&
         std::all_of(watched_.begin(), watched_.end(),
                     [](watched_memory const& some) { return some.of->are_there(some.what); });
}

exports::spot exports::find(tensor_view const& tensor, std::vector<known>& found, std::byte*& low) {
  spot result;
  plan::reach touched;
  auto const strides = tensor.strides();
  if (!plan::reach_of(tensor.dims(), strides, bits(tensor.type()), touched)) {
    result.why_not = "larger than any memory";
    return result;
  }
  low = at(tensor.data()) + touched.low;
  std::byte* const high = at(tensor.data()) + touched.high;
  auto const by_begin = [](known const& one, std::byte const* address) { return one.what.begin <= address; };
  auto const look = [&](std::byte* address) {
    auto next = std::lower_bound(found.begin(), found.end(), address, by_begin);
    if (next != found.begin() && address < std::prev(next)->end()) return std::prev(next);
    known one = look_up(address, tensor.where());
    if (one.what.kind == memory::part_kind::none) {
      result.why_not = one.what.why_not;
      return found.end();
    }
    next = std::lower_bound(found.begin(), found.end(), one.what.begin, by_begin);
    return found.insert(next, std::move(one));
  };
  auto first = look(low);
  if (first == found.end()) return result;
  // The vector grows under our hands, so what is kept is an address.
  std::byte* const begin = first->what.begin;
  for (auto part = first; part->end() < high;) {
    std::byte* const border = part->end();
    auto const [kind, where] = std::pair(part->what.kind, part->what.where);
    part = look(border);
    if (part == found.end()) return result;
    if (part->what.kind != memory::part_kind::cuda_memory || kind != part->what.kind ||
        where != part->what.where) {
      result.why_not = "in several allocations that can't be mapped side by side";
      return result;
    }
    std::prev(part)->joined = true;
  }
  auto const again =
      std::lower_bound(found.begin(), found.end(), begin,
                       [](known const& one, std::byte const* a) { return one.what.begin < a; });
  result.first = static_cast<std::size_t>(again - found.begin());
  return result;
}

std::uint32_t exports::segment_of(std::vector<known> const& found, std::size_t first, std::size_t last,
                                  plan::placement& into) {
  auto const parts = std::span(found).subspan(first, last - first);
  auto const same = [](known const& a, known const& b) {
    return a.what.begin == b.what.begin && a.what.identity == b.what.identity && a.what.where == b.what.where;
  };
  auto known_segment = std::find_if(segments_.begin(), segments_.end(), [&](exported_segment const& one) {
    return std::equal(parts.begin(), parts.end(), one.parts.begin(), one.parts.end(), same);
  });
  if (known_segment == segments_.end()) {
    exported_segment made;
    made.what.id = next_segment_++;
    made.what.parts = static_cast<std::uint32_t>(parts.size());
    made.what.kind = static_cast<std::uint8_t>(parts.front().what.kind);
    for (known const& part : parts) made.what.bytes += part.what.bytes;
    if (parts.front().backend) made.what.origin = parts.front().backend->uuid();
    made.parts.assign(parts.begin(), parts.end());
    segments_.push_back(std::move(made));
    known_segment = std::prev(segments_.end());
  }
  known_segment->last_used = updates_;
  into.segments.push_back(known_segment->what);
  return static_cast<std::uint32_t>(into.segments.size() - 1);
}

/// What is gone, what has become part of something larger, and what nobody has used for long.
void exports::retire_unused(std::vector<std::uint64_t>& retired) {
  auto const overlaps = [](exported_segment const& a, exported_segment const& b) {
    return a.parts.front().what.begin < b.parts.back().end() &&
           b.parts.front().what.begin < a.parts.back().end();
  };
  for (exported_segment const& one : segments_) {
    if (one.last_used == updates_) continue;
    bool const stays = one.last_used + updates_kept > updates_ &&
                       std::all_of(one.parts.begin(), one.parts.end(),
                                   [&](known const& part) { return still_there(part); }) &&
                       std::none_of(segments_.begin(), segments_.end(), [&](exported_segment const& other) {
                         return other.last_used == updates_ && overlaps(one, other);
                       });
    if (!stays) retired.push_back(one.what.id);
  }
  if (retired.empty()) return;
  std::erase_if(segments_, [&](exported_segment const& one) {
    return std::find(retired.begin(), retired.end(), one.what.id) != retired.end();
  });
  // Placements that name them are no longer true.
  std::erase_if(placements_, [&](auto const& one) {
    return std::any_of(one->segments.begin(), one->segments.end(), [&](auto const& segment) {
      return std::find(retired.begin(), retired.end(), segment.id) != retired.end();
    });
  });
}

std::shared_ptr<exported_placement> exports::place(std::shared_ptr<detail::tensor_set const> const& set,
                                                   std::vector<std::uint64_t>& retired) {
  if (same_as_last(set)) return placements_.back();
  ++updates_;
  auto const& layout = set->layout;
  std::span<tensor_view const> const tensors = set->views;
  auto made = std::make_shared<exported_placement>();
  made->layout = layout;
  auto const& manifest = layout->manifest;
  std::vector<known> found;
  struct place {
    std::byte* begin = nullptr; // of its first allocation
    char const* why_not = nullptr;
  };
  std::vector<place> places(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (manifest.tensor_bytes(static_cast<std::uint32_t>(i)) == 0) continue;
    std::byte* low = nullptr;
    auto const begins = find(tensors[i], found, low);
    places[i].why_not = begins.why_not;
    if (!begins.why_not) places[i].begin = found[begins.first].what.begin;
  }
  // Runs of allocations that tensors join are a segment each.
  std::vector<std::uint32_t> segment_at(found.size());
  std::vector<std::byte*> segment_begin;
  for (std::size_t first = 0; first < found.size();) {
    std::size_t last = first;
    while (found[last].joined) ++last;
    auto const index = segment_of(found, first, last + 1, made->what);
    segment_begin.push_back(found[first].what.begin);
    for (; first <= last; ++first) segment_at[first] = index;
  }
  std::map<std::string_view, std::size_t> reasons;
  made->what.tensors.resize(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto& to = made->what.tensors[i];
    to.type = tensors[i].type();
    if (places[i].why_not) {
      ++reasons[places[i].why_not];
      continue;
    }
    if (!places[i].begin) continue; // no bytes
    auto const part =
        std::lower_bound(found.begin(), found.end(), places[i].begin,
                         [](known const& one, std::byte const* a) { return one.what.begin < a; });
    to.segment = segment_at[static_cast<std::size_t>(part - found.begin())];
    to.offset = static_cast<std::uint64_t>(at(tensors[i].data()) - segment_begin[to.segment]);
    to.strided = tensors[i].is_strided();
    if (to.strided) to.strides = tensors[i].strides();
  }
  for (auto const& [why, count] : reasons) {
    if (!made->not_mapped.empty()) made->not_mapped += "; ";
    made->not_mapped +=
        std::to_string(count) + (count == 1 ? " tensor is " : " tensors are ") + std::string(why);
  }
  retire_unused(retired);
  last_ = set;
  watched_.clear();
  for (known& one : found) {
    if (one.block) continue; // held
    auto device = std::find_if(watched_.begin(), watched_.end(),
                               [&](watched_memory const& some) { return some.of == one.backend; });
    if (device == watched_.end()) device = watched_.insert(device, {one.backend, {}});
    device->what.push_back(one.what);
  }
  // A layout that comes again after another one is made anew, if it was not prepared.
  auto const before = std::find_if(placements_.begin(), placements_.end(), [&](auto const& one) {
    return one->layout->manifest.layout() == manifest.layout() && one->what == made->what;
  });
  if (before != placements_.end()) {
    std::rotate(before, before + 1, placements_.end());
    placements_.back()->layout = layout;
    return placements_.back();
  }
  made->id = next_placement_++;
  made->needed = made->what.needed_buckets(manifest);
  for (auto const& one : made->what.segments) made->segments.push_back({one.id, one.parts});
  if (placements_.size() == placements_kept) placements_.erase(placements_.begin());
  placements_.push_back(std::move(made));
  return placements_.back();
}

std::vector<std::uint64_t> exports::release() {
  std::vector<std::uint64_t> all;
  for (auto const& one : segments_) all.push_back(one.what.id);
  segments_.clear();
  placements_.clear();
  last_.reset();
  watched_.clear();
  shared_.clear();
  return all;
}

std::vector<part_source> exports::parts(std::uint64_t segment, std::uint32_t first,
                                        std::uint32_t count) const {
  std::vector<part_source> result;
  auto const one = std::find_if(segments_.begin(), segments_.end(),
                                [&](exported_segment const& s) { return s.what.id == segment; });
  if (one == segments_.end()) return result;
  for (std::size_t i = first; i < one->parts.size() && i < std::size_t(first) + count; ++i)
    result.push_back({one->parts[i].backend, one->parts[i].block, one->parts[i].what});
  return result;
}

} // namespace ropeway::session
