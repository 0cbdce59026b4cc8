// Compares what is sent with where it should go: the half of scatter that runs before any byte moves.
#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "base/codec.hpp"
#include "plan/copies.hpp"

namespace ropeway::plan {
namespace {

std::string quoted(std::string_view name) { return codec::print(std::string(name)); }

bool within(box const& part, shape const& dims) {
  if (part.rank != dims.rank()) return false;
  for (std::size_t d = 0; d < part.rank; ++d)
    if (part.start[d] > dims[d] || part.extent[d] > dims[d] - part.start[d]) return false;
  return true;
}

/// The memory from the first to the last element that a destination writes.
struct hull {
  std::uintptr_t low = 0, high = 0; ///< one beyond the last byte
  std::size_t target = 0;
  bool dense = false;
};

} // namespace

void mismatches::add(mismatch::kind what, std::string_view tensor, std::string text) {
  ++count;
  if (first.size() < most_in_words) first.push_back({what, std::string(tensor), std::move(text)});
}

std::string to_string(mismatches const& all) {
  std::string text = std::to_string(all.count) + (all.count == 1 ? " difference: " : " differences: ");
  for (std::size_t i = 0; i < all.first.size(); ++i) {
    if (i != 0) text += "; ";
    text += all.first[i].text;
  }
  if (all.count > all.first.size()) text += "; and " + std::to_string(all.count - all.first.size()) + " more";
  return text;
}

scatter::scatter(manifest const& sent, std::span<destination const> into, bool subset) {
  named_.resize(sent.tensors().size());
  targets_.reserve(into.size());
  for (auto const& one : into) add(sent, one);
  if (!subset) find_unexpected(sent);
  find_overlaps(sent);
  index_targets(sent.tensors().size());
  scratch_.reserve(2 * max_rank);
}

void scatter::add(manifest const& sent, destination const& into) {
  using kind = mismatch::kind;
  auto const differs = [&](kind what, std::string const& text) {
    mismatches_.add(what, into.tensor, quoted(into.tensor) + " " + text);
  };
  auto const found = sent.find(into.tensor);
  if (!found) return differs(kind::missing, "is not sent");
  named_[*found] = true;
  auto const& tensor = sent.tensors()[*found];
  auto const& view = into.into;
  box const part = into.part.value_or(whole(tensor.dims));
  auto const before = mismatches_.count;

  if (view.type() != tensor.type)
    differs(kind::wrong_dtype, "is sent as " + std::string(name(tensor.type)) + " but its destination is " +
                                   std::string(name(view.type())));
  if (into.part && !within(part, tensor.dims))
    differs(kind::out_of_bounds, "has shape " + to_string(tensor.dims) + " and no box " + to_string(part));
  else if (into.shape_sent && *into.shape_sent != tensor.dims)
    differs(kind::wrong_shape, "has shape " + to_string(tensor.dims) + ", but its shards make one of shape " +
                                   to_string(*into.shape_sent));
  std::span<std::uint64_t const> const extents(part.extent.data(),
                                               std::min<std::size_t>(part.rank, max_rank));
  if (!std::ranges::equal(view.dims().extents(), extents))
    differs(kind::wrong_shape,
            "needs a destination of shape " + to_string(shape(extents)) + ", not " + to_string(view.dims()));
  if (mismatches_.count != before) return;

  auto const elements = view.dims().elements();
  if (!elements || *elements == 0) return; // nothing to copy, and all is said
  if (view.data() == nullptr)
    return differs(kind::no_memory, "has elements but its destination has no memory");
  target made;
  made.tensor = *found;
  made.where = view.where();
  made.data = view.data();
  if (bits(tensor.type) % 8 != 0) {
    if (view.is_strided() || part != whole(tensor.dims))
      return differs(kind::unsupported,
                     "has elements smaller than a byte: only a whole, contiguous one can be taken");
  } else
    made.element = static_cast<std::uint16_t>(bits(tensor.type) / 8);
  auto const strides = view.strides();
  for (std::size_t d = 0; d < part.rank; ++d)
    if (part.extent[d] > 1 && strides[d] == 0)
      return differs(kind::overlapping,
                     "has a destination whose elements overlap: stride 0 in dimension " + std::to_string(d));
  if (into.tied) return;
  made.array = collapse(tensor.dims, part, strides);
  made.part = part;
  made.strides = strides;
  targets_.push_back(made);
}

void scatter::find_unexpected(manifest const& sent) {
  for (std::size_t t = 0; t < named_.size(); ++t)
    if (!named_[t])
      mismatches_.add(mismatch::kind::unexpected, sent.tensors()[t].name,
                      quoted(sent.tensors()[t].name) + " is sent but has no destination");
}

/// Strided destinations may interleave (the columns of a fused array), so only two cases are sure: one that
/// begins within a contiguous one, and two that are exactly alike.
void scatter::find_overlaps(manifest const& sent) {
  std::vector<hull> hulls;
  hulls.reserve(targets_.size());
  for (std::size_t i = 0; i < targets_.size(); ++i) {
    auto const& one = targets_[i];
    auto low = reinterpret_cast<std::uintptr_t>(one.data), high = low;
    if (one.element == 0)
      high += sent.tensor_bytes(one.tensor);
    else {
      for (std::size_t d = 0; d < one.array.dims.rank(); ++d) {
        auto const reach =
            (one.array.part.extent[d] - 1) * static_cast<std::uint64_t>(one.array.strides[d]) * one.element;
        (one.array.strides[d] < 0 ? low : high) += reach;
      }
      high += one.element;
    }
    hulls.push_back({low, high, i, one.element == 0 || is_dense(one.array)});
  }
  std::ranges::sort(hulls, {}, [](hull const& h) { return std::tuple(h.low, !h.dense, h.high); });
  auto const clash = [&](hull const& a, hull const& b) {
    auto const& one = sent.tensors()[targets_[a.target].tensor].name;
    auto const& other = sent.tensors()[targets_[b.target].tensor].name;
    mismatches_.add(mismatch::kind::overlapping, other,
                    quoted(other) + " and " + quoted(one) +
                        " have overlapping destinations; of tied weights, load one or allow them");
  };
  hull const* reaches_furthest = nullptr; // of the contiguous ones so far
  hull const* previous = nullptr;
  for (hull const& now : hulls) {
    if (reaches_furthest && now.low < reaches_furthest->high)
      clash(*reaches_furthest, now);
    else if (!now.dense && previous && previous->low == now.low && previous->high == now.high) {
      auto const &a = targets_[previous->target], &b = targets_[now.target];
      if (a.element == b.element && a.array.part.extent == b.array.part.extent &&
          a.array.strides == b.array.strides)
        clash(*previous, now);
    }
    if (now.dense && (!reaches_furthest || now.high > reaches_furthest->high)) reaches_furthest = &now;
    previous = &now;
  }
}

void scatter::index_targets(std::size_t tensors) {
  // Among the destinations of one tensor the order does not matter: they do not overlap.
  std::ranges::sort(targets_, {}, &target::tensor);
  first_target_.assign(tensors + 1, 0);
  for (auto const& one : targets_) ++first_target_[one.tensor + 1];
  for (std::size_t t = 0; t < tensors; ++t) first_target_[t + 1] += first_target_[t];
}

} // namespace ropeway::plan
