#include "plan/copies.hpp"

#include <string>

#include "base/codec.hpp"
#include "ropeway/error.hpp"

namespace ropeway::plan {
namespace {

constexpr std::size_t most_boxes = 2 * max_rank; // of one piece, see boxes_of_range

std::uint64_t bytes_of(std::int64_t elements, std::uint16_t size) {
  return static_cast<std::uint64_t>(elements) * size;
}

memory::copy_op op_between(std::byte const* from, device from_where, std::byte* to, device to_where) {
  memory::copy_op op;
  op.from = from;
  op.to = to;
  op.from_where = from_where;
  op.to_where = to_where;
  return op;
}

using strides = std::array<std::int64_t, max_rank>;

/// How much an op copies, and in which steps. Strides in elements.
void set_extent(memory::copy_op& op, strided_box const& part, strides const& from, std::uint16_t from_element,
                strides const& to, std::uint16_t to_element) {
  if (op.convert == memory::conversion::none && part.contiguous()) {
    op.bytes = part.elements() * to_element;
    return;
  }
  op.from_element = from_element;
  op.to_element = to_element;
  op.rank = part.rank;
  op.extent = part.extent;
  for (std::size_t d = 0; d < op.rank; ++d) {
    op.from_stride[d] = static_cast<std::int64_t>(bytes_of(from[d], from_element));
    op.to_stride[d] = static_cast<std::int64_t>(bytes_of(to[d], to_element));
  }
  if (op.rank == 0) { // rank 0 copies bytes; one element to convert is a box of one
    op.rank = 1;
    op.extent[0] = 1;
    op.from_stride[0] = from_element;
    op.to_stride[0] = to_element;
  }
}

/// Bytes of an element, or 0 if it is smaller than one.
std::uint16_t element_bytes(dtype type) {
  return bits(type) % 8 == 0 ? static_cast<std::uint16_t>(bits(type) / 8) : std::uint16_t{0};
}

} // namespace

std::optional<memory::conversion> conversion_between(dtype from, dtype to) noexcept {
  using memory::conversion;
  if (from == to) return conversion::none;
  if (from == dtype::f32 && to == dtype::bf16) return conversion::f32_to_bf16;
  if (from == dtype::f32 && to == dtype::f16) return conversion::f32_to_f16;
  if (from == dtype::bf16 && to == dtype::f32) return conversion::bf16_to_f32;
  if (from == dtype::f16 && to == dtype::f32) return conversion::f16_to_f32;
  return {};
}

gather::gather(manifest const& of) : of_(&of) { scratch_.reserve(most_boxes); }

void gather::check(std::uint32_t tensor, tensor_view const& source) const {
  if (tensor >= of_->tensors().size())
    throw transfer_error(errc::source_failed, "a tensor beyond the " + std::to_string(of_->tensors().size()) +
                                                  " announced was delivered");
  auto const& announced = of_->tensors()[tensor];
  auto const wrong = [&](errc code, std::string const& why) {
    throw transfer_error(code, "tensor " + codec::print(announced.name) + " " + why).tensor(announced.name);
  };
  if (source.dims() != announced.dims)
    wrong(errc::source_failed, "was announced with shape " + to_string(announced.dims) +
                                   " and delivered with " + to_string(source.dims()));
  if (source.wire_type() != announced.type)
    wrong(errc::source_failed, "was announced as " + std::string(name(announced.type)) +
                                   " and delivered as " + std::string(name(source.wire_type())));
  if (!conversion_between(source.type(), source.wire_type()))
    wrong(errc::unsupported, "can't be converted from " + std::string(name(source.type())) + " to " +
                                 std::string(name(source.wire_type())) + "; send it as it is");
  if (of_->tensor_bytes(tensor) == 0) return;
  if (source.data() == nullptr) wrong(errc::invalid_argument, "has elements but no memory");
  if (source.is_strided() && element_bytes(source.type()) == 0)
    wrong(errc::unsupported,
          "has strides, which elements smaller than a byte can't have; make it contiguous");
}

void gather::ops_for_piece(piece const& p, tensor_view const& source, std::byte* slot_base, device slot_where,
                           std::vector<memory::copy_op>& out) {
  check(p.tensor, source);
  std::byte* const slot = slot_base + p.bucket_offset;
  auto const convert = *conversion_between(source.type(), source.wire_type());
  if (!source.is_strided() && convert == memory::conversion::none) {
    out.push_back(op_between(source.data() + p.tensor_offset, source.where(), slot, slot_where));
    out.back().bytes = p.bytes;
    return;
  }
  std::uint16_t const from_element = element_bytes(source.type()),
                      to_element = element_bytes(source.wire_type());
  auto const array = collapse(source.dims(), whole(source.dims()), source.strides());
  std::uint64_t const first = p.tensor_offset / to_element;
  scratch_.clear();
  boxes_of_range(array.dims, first, p.bytes / to_element, scratch_);
  for (box const& among : scratch_) {
    strided_box part;
    if (!locate(array, among, part)) continue;
    auto op = op_between(source.data() + static_cast<std::int64_t>(bytes_of(part.array, from_element)),
                         source.where(), slot + (part.image - first) * to_element, slot_where);
    op.convert = convert;
    set_extent(op, part, part.array_stride, from_element, part.image_stride, to_element);
    out.push_back(op);
  }
}

bool scatter::wants(std::uint32_t tensor) const noexcept {
  return tensor + std::size_t{1} < first_target_.size() && first_target_[tensor] != first_target_[tensor + 1];
}

void scatter::ops_for_piece(piece const& p, std::byte const* slot_base, device slot_where,
                            std::vector<memory::copy_op>& out) {
  if (!wants(p.tensor)) return;
  std::byte const* const slot = slot_base + p.bucket_offset;
  for (std::uint32_t t = first_target_[p.tensor]; t < first_target_[p.tensor + 1]; ++t) {
    target const& into = targets_[t];
    if (into.element == 0) {
      out.push_back(op_between(slot, slot_where, into.data + p.tensor_offset, into.where));
      out.back().bytes = p.bytes;
      continue;
    }
    std::uint64_t const first = p.tensor_offset / into.element;
    scratch_.clear();
    boxes_of_range(into.array.dims, first, p.bytes / into.element, scratch_);
    for (box const& among : scratch_) {
      strided_box part;
      if (!locate(into.array, among, part)) continue;
      auto op =
          op_between(slot + (part.image - first) * into.element, slot_where,
                     into.data + static_cast<std::int64_t>(bytes_of(part.array, into.element)), into.where);
      set_extent(op, part, part.image_stride, into.element, part.array_stride, into.element);
      out.push_back(op);
    }
  }
}

namespace {

/// Puts the extents of a copy, whose steps are given in bytes, into `op`. Neighbouring dimensions are merged
/// where one step outside is all of the inside, on both sides.
void set_steps(memory::copy_op& op, std::span<std::uint64_t const> extents, strides const& from_step,
               strides const& to_step) {
  for (std::size_t d = 0; d < extents.size(); ++d) {
    std::uint64_t const extent = extents[d];
    if (extent == 1) continue;
    bool const merges = op.rank != 0 &&
                        op.from_stride[op.rank - 1u] == from_step[d] * static_cast<std::int64_t>(extent) &&
                        op.to_stride[op.rank - 1u] == to_step[d] * static_cast<std::int64_t>(extent);
    if (!merges) ++op.rank;
    auto& merged = op.extent[op.rank - 1u];
    merged = merges ? merged * extent : extent;
    op.from_stride[op.rank - 1u] = from_step[d];
    op.to_stride[op.rank - 1u] = to_step[d];
  }
  if (op.convert != memory::conversion::none) {
    if (op.rank != 0) return;
    op.rank = 1; // rank 0 copies bytes; one element to convert is a box of one
    op.extent[0] = 1;
    op.from_stride[0] = op.from_element;
    op.to_stride[0] = op.to_element;
    return;
  }
  bool const dense = op.rank == 0 || (op.rank == 1 && op.from_stride[0] == op.from_element &&
                                      op.to_stride[0] == op.to_element);
  if (!dense) return;
  op.bytes = op.rank == 0 ? op.to_element : op.extent[0] * op.to_element;
  op.rank = 0;
  op.from_element = op.to_element = 1;
}

} // namespace

void ops_between(mutable_tensor_view const& from, mutable_tensor_view const& to,
                 std::vector<memory::copy_op>& out) {
  std::uint64_t const bytes = byte_size(from.type(), from.dims()).value_or(0);
  if (bytes == 0) return;
  auto op = op_between(from.data(), from.where(), to.data(), to.where());
  std::uint16_t const element = element_bytes(from.type());
  if (element == 0) {
    op.bytes = bytes;
  } else {
    auto from_step = from.strides(), to_step = to.strides();
    for (auto& step : from_step) step = static_cast<std::int64_t>(bytes_of(step, element));
    for (auto& step : to_step) step = static_cast<std::int64_t>(bytes_of(step, element));
    op.from_element = op.to_element = element;
    set_steps(op, from.dims().extents(), from_step, to_step);
  }
  out.push_back(op);
}

void scatter::ops_for_source(std::uint32_t tensor, tensor_view const& source,
                             std::vector<memory::copy_op>& out) const {
  if (!wants(tensor)) return;
  auto const convert = conversion_between(source.type(), source.wire_type());
  if (!convert)
    throw transfer_error(errc::unsupported, "a tensor of " + std::string(name(source.type())) +
                                                " can't be converted to " +
                                                std::string(name(source.wire_type())));
  std::uint16_t const from_element = element_bytes(source.type());
  auto const source_strides = source.strides();
  for (std::uint32_t t = first_target_[tensor]; t < first_target_[tensor + 1]; ++t) {
    target const& into = targets_[t];
    auto op = op_between(source.data(), source.where(), into.data, into.where);
    if (into.element == 0) {
      op.bytes = byte_size(source.type(), source.dims()).value_or(0);
      out.push_back(op);
      continue;
    }
    op.convert = *convert;
    op.from_element = from_element;
    op.to_element = into.element;
    strides from_step{}, to_step{};
    for (std::size_t d = 0; d < into.part.rank; ++d) {
      from_step[d] = static_cast<std::int64_t>(bytes_of(source_strides[d], from_element));
      to_step[d] = static_cast<std::int64_t>(bytes_of(into.strides[d], into.element));
    }
    op.from += offset_of(into.part, std::span(from_step).first(into.part.rank));
    set_steps(op, std::span(into.part.extent).first(into.part.rank), from_step, to_step);
    out.push_back(op);
  }
}

} // namespace ropeway::plan
