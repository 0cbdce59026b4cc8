#include "plan/digests.hpp"

#include <algorithm>
#include <limits>

#include "base/codec.hpp"
#include "base/digest.hpp"
#include "plan/boxes.hpp"
#include "plan/strided.hpp"
#include "ropeway/error.hpp"

namespace ropeway::plan {
namespace {

std::uint64_t chunks_of(std::uint64_t bytes) { return (bytes + chunk_bytes - 1) / chunk_bytes; }

std::uint64_t wrapped(std::int64_t elements, std::uint64_t size) {
  return static_cast<std::uint64_t>(elements) * size;
}

std::uint16_t element_bytes(dtype type) {
  return bits(type) % 8 == 0 ? static_cast<std::uint16_t>(bits(type) / 8) : std::uint16_t{0};
}

/// A box of a tensor somewhere in memory: `place` has the address of its first element, where that is, what
/// its elements are and become, and which sum and group it goes to.
struct located {
  memory::digest_op place;
  strided_part array;
};

/// Appends what `[first, first + bytes)` of the image holds of it.
void add_range(located const& of, std::uint64_t first, std::uint64_t bytes,
               std::vector<memory::digest_op>& out) {
  std::uint64_t const element = of.place.image_element;
  std::vector<box> among;
  boxes_of_range(of.array.dims, first / element, bytes / element, among);
  for (box const& one : among) {
    strided_box part;
    if (!locate(of.array, one, part)) continue;
    memory::digest_op op = of.place;
    op.address += wrapped(part.array, op.data_element);
    op.image = part.image * element;
    if (op.convert == memory::conversion::none && part.contiguous()) {
      op.bytes = part.elements() * element;
    } else {
      op.rank =
          std::max<std::uint8_t>(part.rank, 1); // rank 0 is bytes; one element to convert is a box of one
      op.extent = part.extent;
      if (part.rank == 0) op.extent[0] = 1;
      for (std::size_t d = 0; d < op.rank; ++d) {
        op.data_stride[d] = static_cast<std::int64_t>(wrapped(part.array_stride[d], op.data_element));
        op.image_stride[d] = wrapped(part.image_stride[d], element);
      }
    }
    out.push_back(op);
  }
}

/// The same of a whole tensor of elements smaller than a byte, which lies in a row.
void add_packed(memory::digest_op const& place, std::uint64_t first, std::uint64_t bytes,
                std::vector<memory::digest_op>& out) {
  memory::digest_op op = place;
  op.address += first;
  op.image = first;
  op.bytes = bytes;
  op.data_element = op.image_element = 1;
  out.push_back(op);
}

/// Calls `visit(chunk within the tensor, first byte, bytes)` for each chunk that a range of a tensor touches.
template <class Visit>
void for_each_chunk(std::uint64_t first, std::uint64_t bytes, Visit const& visit) {
  std::uint64_t const end = first + bytes;
  for (std::uint64_t at = first; at < end;) {
    std::uint64_t const next = std::min(end, (at / chunk_bytes + 1) * chunk_bytes);
    visit(static_cast<std::uint32_t>(at / chunk_bytes), at, next - at);
    at = next;
  }
}

/// What of a tensor is not in a box: disjoint boxes, two a dimension at most.
std::vector<box> complement(shape const& dims, box const& part) {
  std::vector<box> rest;
  box left = whole(dims);
  for (std::size_t d = 0; d < part.rank; ++d) {
    auto const end = part.start[d] + part.extent[d];
    box slab = left;
    slab.extent[d] = part.start[d];
    if (slab.extent[d] != 0) rest.push_back(slab);
    slab.start[d] = end;
    slab.extent[d] = dims[d] - end;
    if (slab.extent[d] != 0) rest.push_back(slab);
    left.start[d] = part.start[d];
    left.extent[d] = part.extent[d];
  }
  return rest;
}

/// Whether some element of a box lies in a range of bytes of the image.
bool touches(shape const& dims, box const& part, std::uint64_t element, std::uint64_t first,
             std::uint64_t bytes, std::vector<box>& scratch) {
  scratch.clear();
  boxes_of_range(dims, first / element, bytes / element, scratch);
  return std::any_of(scratch.begin(), scratch.end(), [&](box const& one) {
    box common;
    return intersect(one, part, common);
  });
}

} // namespace

chunk_table::chunk_table(manifest const& of) {
  std::uint64_t all = 0;
  first_.reserve(of.tensors().size() + 1);
  first_.push_back(0);
  for (std::uint32_t t = 0; t < of.tensors().size(); ++t) {
    all += chunks_of(of.tensor_bytes(t)); // far from 2^64: sizes are below it, and so are their thousandths
    if (all > std::numeric_limits<std::uint32_t>::max())
      throw transfer_error(errc::overflow, "more bytes than there are digests for");
    first_.push_back(static_cast<std::uint32_t>(all));
    identities_.push_back(identity_of(of.tensors()[t]));
  }
}

digest128 chunk_table::whole(std::span<digest128 const> of_chunks) const noexcept {
  update_digest all;
  for (std::size_t t = 0; t < identities_.size(); ++t) {
    digest128 tensor;
    for (std::uint32_t i = first_[t]; i < first_[t + 1]; ++i) tensor += of_chunks[i];
    all.add(identities_[t], tensor);
  }
  return all.value();
}

std::vector<memory::digest_op> source_digests(manifest const& of, chunk_table const& chunks,
                                              std::span<tensor_view const> tensors) {
  gather const checked(of);
  std::vector<memory::digest_op> out;
  for (std::uint32_t t = 0; t < of.tensors().size(); ++t) {
    if (of.tensor_bytes(t) == 0) continue;
    tensor_view const& view = tensors[t];
    checked.check(t, view);
    located one;
    one.place.address = reinterpret_cast<std::uintptr_t>(view.data());
    one.place.where = view.where();
    one.place.convert = *conversion_between(view.type(), view.wire_type());
    one.place.data_element = element_bytes(view.type());
    one.place.image_element = element_bytes(view.wire_type());
    bool const packed = one.place.image_element == 0;
    if (!packed) one.array = collapse(view.dims(), whole(view.dims()), view.strides());
    for_each_chunk(0, of.tensor_bytes(t), [&](std::uint32_t chunk, std::uint64_t first, std::uint64_t bytes) {
      one.place.sum = chunks.first(t) + chunk;
      if (packed)
        add_packed(one.place, first, bytes, out);
      else
        add_range(one, first, bytes, out);
    });
  }
  return out;
}

std::vector<memory::digest_op> slot_digests(manifest const& of, chunk_table const& chunks, device where) {
  std::vector<memory::digest_op> out;
  for (piece const& p : of.pieces())
    for_each_chunk(p.tensor_offset, p.bytes,
                   [&](std::uint32_t chunk, std::uint64_t first, std::uint64_t bytes) {
                     memory::digest_op place;
                     place.address = p.bucket_offset - p.tensor_offset; // wraps
                     place.where = where;
                     place.sum = chunks.first(p.tensor) + chunk;
                     place.group = p.bucket;
                     add_packed(place, first, bytes, out);
                   });
  std::sort(out.begin(), out.end(), [](auto const& a, auto const& b) { return a.group < b.group; });
  return out;
}

digest_checks::digest_checks(manifest const& of, chunk_table const& chunks, scatter const& into)
    : of_(&of), chunks_(&chunks), into_(&into) {
  auto const targets = into.targets();
  for (std::uint32_t i = 0; i < targets.size(); ++i) add(chunks, targets[i].tensor, i, targets[i].part);
}

digest_checks::digest_checks(manifest const& of, chunk_table const& chunks) : of_(&of), chunks_(&chunks) {
  for (std::uint32_t t = 0; t < of.tensors().size(); ++t) {
    if (of.tensor_bytes(t) == 0) continue;
    auto const all = whole(of.tensors()[t].dims);
    add(chunks, t, 0, all);
    wanted_.back().rest.push_back(all); // nothing of it is kept: all is looked at where it comes
  }
}

void digest_checks::add(chunk_table const& chunks, std::uint32_t tensor, std::uint32_t target,
                        box const& part) {
  auto const& dims = of_->tensors()[tensor].dims;
  std::uint64_t const element = element_bytes(of_->tensors()[tensor].type);
  wanted one;
  one.tensor = tensor;
  one.target = target;
  one.first_check = static_cast<std::uint32_t>(checks_.size());
  if (element != 0) one.rest = complement(dims, part);
  std::vector<box> scratch;
  for (std::uint32_t i = chunks.first(tensor); i < chunks.first(tensor + 1); ++i) {
    checked_chunk const check{i, tensor, target};
    auto const [first, bytes] = bytes_of(check);
    if (one.rest.empty() || touches(dims, part, element, first, bytes, scratch)) checks_.push_back(check);
  }
  one.checks = static_cast<std::uint32_t>(checks_.size()) - one.first_check;
  wanted_.push_back(std::move(one));
}

std::pair<std::uint64_t, std::uint64_t> digest_checks::bytes_of(checked_chunk const& one) const noexcept {
  std::uint64_t const first = std::uint64_t(one.chunk - chunks_->first(one.tensor)) * chunk_bytes;
  return {first, std::min(chunk_bytes, of_->tensor_bytes(one.tensor) - first)};
}

std::vector<memory::digest_op> digest_checks::of_destinations() const {
  std::vector<memory::digest_op> out;
  if (!into_) return out;
  for (std::uint32_t i = 0; i < checks_.size(); ++i) {
    auto const& target = into_->targets()[checks_[i].target];
    located here;
    here.place.address = reinterpret_cast<std::uintptr_t>(target.data);
    here.place.where = target.where;
    here.place.data_element = here.place.image_element = target.element;
    here.place.sum = i;
    here.array = target.array;
    auto const [first, bytes] = bytes_of(checks_[i]);
    if (target.element == 0)
      add_packed(here.place, first, bytes, out);
    else
      add_range(here, first, bytes, out);
  }
  return out;
}

void digest_checks::add_rest(wanted const& one, memory::digest_op const& place,
                             std::span<std::int64_t const> strides, std::uint64_t first, std::uint64_t bytes,
                             std::vector<memory::digest_op>& out) const {
  auto const& dims = of_->tensors()[one.tensor].dims;
  auto const begin = checks_.begin() + one.first_check, end = begin + one.checks;
  for (box const& rest : one.rest) {
    located there;
    there.place = place;
    bool const packed = place.image_element == 0;
    if (!packed) {
      there.place.address += wrapped(offset_of(rest, strides), place.data_element);
      there.array = collapse(dims, rest, strides);
    }
    for_each_chunk(first, bytes, [&](std::uint32_t chunk, std::uint64_t from, std::uint64_t count) {
      auto const number = chunks_->first(one.tensor) + chunk;
      auto const at =
          std::lower_bound(begin, end, number, [](auto const& c, std::uint32_t n) { return c.chunk < n; });
      if (at == end || at->chunk != number) return; // its box has nothing of this chunk
      there.place.sum = static_cast<std::uint32_t>(at - checks_.begin());
      if (packed)
        add_packed(there.place, from, count, out);
      else
        add_range(there, from, count, out);
    });
  }
}

std::vector<memory::digest_op> digest_checks::of_slots(placement const* mapped, device where) const {
  std::vector<memory::digest_op> out;
  for (wanted const& one : wanted_) {
    if (one.rest.empty() || (mapped && mapped->tensors[one.tensor].mapped())) continue;
    auto const& info = of_->tensors()[one.tensor];
    auto const [first_piece, pieces] = of_->pieces_of_tensor(one.tensor);
    for (piece const& p : of_->pieces().subspan(first_piece, pieces)) {
      memory::digest_op place;
      place.address = p.bucket_offset - p.tensor_offset; // wraps: nothing is read there
      place.where = where;
      place.group = p.bucket;
      place.data_element = place.image_element = element_bytes(info.type);
      add_rest(one, place, row_major(info.dims), p.tensor_offset, p.bytes, out);
    }
  }
  std::sort(out.begin(), out.end(), [](auto const& a, auto const& b) { return a.group < b.group; });
  return out;
}

void digest_checks::of_source(std::uint32_t tensor, tensor_view const& source,
                              std::vector<memory::digest_op>& out) const {
  auto const by_tensor = [](wanted const& one, std::uint32_t t) { return one.tensor < t; };
  auto at = std::lower_bound(wanted_.begin(), wanted_.end(), tensor, by_tensor);
  for (; at != wanted_.end() && at->tensor == tensor; ++at) {
    if (at->rest.empty()) continue;
    memory::digest_op place;
    place.address = reinterpret_cast<std::uintptr_t>(source.data());
    place.where = source.where();
    place.convert = conversion_between(source.type(), source.wire_type()).value();
    place.data_element = element_bytes(source.type());
    place.image_element = element_bytes(source.wire_type());
    add_rest(*at, place, source.strides(), 0, of_->tensor_bytes(tensor), out);
  }
}

checked_chunk const* digest_checks::first_difference(std::span<digest128 const> sums,
                                                     std::span<digest128 const> of_chunks) const noexcept {
  for (std::size_t i = 0; i < checks_.size(); ++i)
    if (sums[i] != of_chunks[checks_[i].chunk]) return &checks_[i];
  return nullptr;
}

std::string digest_checks::words(checked_chunk const& where) const {
  auto const& info = of_->tensors()[where.tensor];
  auto const [first, bytes] = bytes_of(where);
  std::string text = "tensor " + codec::print(info.name);
  if (into_ && into_->targets()[where.target].part != whole(info.dims))
    text += ", box " + to_string(into_->targets()[where.target].part);
  return text + ", within bytes " + std::to_string(first) + " to " + std::to_string(first + bytes);
}

} // namespace ropeway::plan
