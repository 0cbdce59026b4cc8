// Any manifest: what is not refused covers every tensor exactly once, within its buckets, and the copies made
// from it stay within the memory that they are for. The first byte says whether the rest is a manifest,
// tensors to be cut into one, or two arrays of which one is copied into the other.
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "../plan/support.hpp"
#include "base/utf8.hpp"
#include "choices.hpp"
#include "plan/copies.hpp"
#include "plan/manifest.hpp"
#include "plan/strided.hpp"
#include "ropeway/error.hpp"

namespace ropeway::fuzz {
namespace {

using plan::piece;

constexpr std::uint64_t small = 800; ///< tensors up to this are really copied

using memory_of_tensor = std::vector<std::byte>;

void check_books(plan::manifest const& m) {
  auto const tensors = m.tensors();
  std::uint64_t total = 0, bytes_in_pieces = 0;
  std::size_t pieces = 0;
  std::set<std::string_view> names;
  for (std::uint32_t t = 0; t < tensors.size(); ++t) {
    promise(names.insert(tensors[t].name).second, "names are unique");
    promise(m.find(tensors[t].name) == t, "a tensor is found by its name");
    promise(m.same_tensor(t, tensors[t].name, tensors[t].type, tensors[t].dims), "a tensor is itself");
    auto const bytes = byte_size(tensors[t].type, tensors[t].dims);
    promise(bytes && *bytes == m.tensor_bytes(t), "a tensor has its size");
    total += *bytes;
    auto const [first, count] = m.pieces_of_tensor(t);
    promise(first == pieces, "the pieces of a tensor lie together");
    std::uint64_t covered = 0;
    for (auto const& p : m.pieces().subspan(first, count)) {
      promise(p.tensor == t && p.tensor_offset == covered && p.bytes > 0, "pieces cover a tensor in order");
      covered += p.bytes;
    }
    promise(covered == *bytes, "pieces cover a tensor exactly");
    pieces += count;
    bytes_in_pieces += covered;
  }
  promise(pieces == m.pieces().size(), "no piece belongs to no tensor");
  promise(total == m.total_bytes() && total == bytes_in_pieces, "the sum is right");
  promise(!m.same_tensor(static_cast<std::uint32_t>(tensors.size()), "x", dtype::u8, {}), "no tensor beyond");
  promise(!m.find(std::string_view("\0", 1)), "an unknown name is not found");
}

void check_buckets(plan::manifest const& m) {
  auto const sizes = m.bucket_sizes();
  promise(sizes.size() == m.buckets().size(), "each bucket has a size");
  std::size_t pieces = 0;
  for (std::uint32_t b = 0; b < sizes.size(); ++b) {
    std::uint64_t end = 0;
    auto const inside = m.pieces_of(b);
    promise(!inside.empty(), "no bucket is empty");
    for (auto const& p : inside) {
      promise(p.bucket == b && p.bucket_offset >= end, "pieces of a bucket do not overlap");
      promise(p.bucket_offset % plan::piece_alignment == 0, "pieces are aligned");
      promise(p.bytes <= m.bucket_bytes() && p.bucket_offset <= m.bucket_bytes() - p.bytes,
              "pieces lie within their bucket");
      end = p.bucket_offset + p.bytes;
    }
    promise(end == sizes[b], "a bucket ends with its last piece");
    pieces += inside.size();
  }
  promise(pieces == m.pieces().size(), "every piece is in a bucket");
  for (auto const& ask : {0, 1}) {
    try {
      if (ask == 0)
        (void)m.pieces_of(static_cast<std::uint32_t>(sizes.size()));
      else
        (void)m.pieces_of_tensor(static_cast<std::uint32_t>(m.tensors().size()));
      promise(false, "there is nothing beyond the end");
    } catch (transfer_error const&) {}
  }
}

void check_encoding(plan::manifest const& m, std::span<std::byte const> encoded) {
  auto const again = plan::manifest::decode(encoded);
  promise(std::ranges::equal(again.tensors(), m.tensors()) && std::ranges::equal(again.pieces(), m.pieces()),
          "what was encoded reads as the same");
  promise(again.layout() == m.layout() && again.bucket_sizes() == m.bucket_sizes(), "and has its layout");
}

/// Limits are exact: what has a thing more than allowed is refused, what has just as many is taken.
void check_limits(plan::manifest const& m, std::span<std::byte const> encoded) {
  auto const allowed = [&](plan::manifest_limits const& limits) {
    try {
      (void)plan::manifest::decode(encoded, limits);
      return true;
    } catch (transfer_error const& e) {
      promise(e.code() == make_error_code(errc::protocol_error), "what is too much breaks the protocol");
      return false;
    }
  };
  std::size_t longest = 0;
  for (auto const& tensor : m.tensors()) longest = std::max(longest, tensor.name.size());
  auto const tensors = static_cast<std::uint32_t>(m.tensors().size());
  auto const name_bytes = static_cast<std::uint32_t>(longest);
  promise(allowed({.tensors = tensors, .name_bytes = name_bytes, .pieces = m.pieces().size()}),
          "a manifest at its limits is taken");
  promise(tensors == 0 || !allowed({.tensors = tensors - 1}), "one tensor too many is refused");
  promise(longest == 0 || !allowed({.name_bytes = name_bytes - 1}), "a name too long is refused");
  promise(m.pieces().empty() || !allowed({.pieces = m.pieces().size() - 1}), "one piece too many is refused");
}

/// Strides that lay a box down back to front: the outermost dimension of the tensor is the innermost in
/// memory. The box has elements.
std::array<std::int64_t, max_rank> reversed(std::span<std::uint64_t const> extents) {
  std::array<std::int64_t, max_rank> strides{};
  std::int64_t step = 1;
  for (std::size_t d = 0; d < extents.size(); ++d) {
    strides[d] = step;
    step *= static_cast<std::int64_t>(extents[d]);
  }
  return strides;
}

std::int64_t place(std::span<std::int64_t const> strides, std::array<std::uint64_t, max_rank> const& index,
                   std::size_t rank) {
  std::int64_t at = 0;
  for (std::size_t d = 0; d < rank; ++d) at += static_cast<std::int64_t>(index[d]) * strides[d];
  return at;
}

/// A tensor on its way: where it lies at the sender, what must be on the wire, where it is wanted.
struct journey {
  memory_of_tensor source, image, target;
  tensor_view from;
  plan::destination into;
};

bool whole_bytes(dtype type) { return bits(type) % 8 == 0; }

void set_out(journey& j, tensor_info const& tensor, std::uint32_t number, unsigned seed) {
  auto const bytes = static_cast<std::size_t>(*byte_size(tensor.type, tensor.dims));
  std::size_t const element = bits(tensor.type) / 8;
  j.image.resize(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    j.image[i] = static_cast<std::byte>(number * 37 + i * 11 + (i >> 8) + 1);
  dtype type = tensor.type;
  bool const widened = type == dtype::f32 && seed % 4 == 1;
  j.source = j.image;
  if (widened) { // bf16 at the source: the upper halves
    type = dtype::bf16;
    j.source.resize(bytes / 2);
    for (std::size_t i = 0; i < bytes / 4; ++i) {
      j.image[4 * i] = j.image[4 * i + 1] = std::byte{0};
      std::memcpy(&j.source[2 * i], &j.image[4 * i + 2], 2);
    }
  }
  j.from = tensor_view(tensor.name, type, tensor.dims, j.source.data());
  if (seed % 3 == 1 && whole_bytes(type) && bytes != 0) {
    auto const strides = reversed(tensor.dims.extents());
    auto const row_major = plan::row_major(tensor.dims);
    std::size_t const size = bits(type) / 8;
    auto const straight = j.source;
    test::for_each_index(tensor.dims.extents(), [&](auto const& index) {
      auto const from = static_cast<std::size_t>(place(row_major, index, tensor.dims.rank())) * size;
      auto const to = static_cast<std::size_t>(place(strides, index, tensor.dims.rank())) * size;
      std::memcpy(&j.source[to], &straight[from], size);
    });
    j.from.strides(std::span<std::int64_t const>(strides.data(), tensor.dims.rank()));
  }
  if (widened) j.from.sent_as(dtype::f32);

  j.into.tensor = tensor.name;
  j.target.resize(bytes);
  if (seed % 5 < 2 || !whole_bytes(tensor.type) || bytes == 0) {
    j.into.into = mutable_tensor_view(tensor.name, tensor.type, tensor.dims, j.target.data());
    return;
  }
  plan::box part = plan::whole(tensor.dims);
  for (std::size_t d = 0; d < part.rank; ++d) {
    part.start[d] = (seed >> d) % part.extent[d];
    part.extent[d] -= part.start[d];
    if (part.extent[d] > 2 && (seed >> (8 + d)) % 2 == 0) --part.extent[d];
  }
  std::span const extents(part.extent.data(), part.rank);
  std::size_t elements = 1;
  for (auto const extent : extents) elements *= extent;
  j.target.resize(elements * element); // exactly: one byte more is seen by the sanitizer
  auto const strides = reversed(extents);
  j.into.part = part;
  j.into.into = mutable_tensor_view(tensor.name, tensor.type, shape(extents), j.target.data());
  if (seed % 2 == 0) j.into.into.strides(std::span<std::int64_t const>(strides.data(), part.rank));
}

void check_arrived(tensor_info const& tensor, journey const& j) {
  if (!j.into.part) return promise(j.target == j.image, "every byte arrives");
  std::size_t const element = bits(tensor.type) / 8;
  auto const row_major = plan::row_major(tensor.dims);
  auto const strides = j.into.into.strides();
  test::for_each_index(j.into.into.dims().extents(), [&](auto index) {
    auto const to = static_cast<std::size_t>(place(strides, index, tensor.dims.rank()));
    for (std::size_t d = 0; d < tensor.dims.rank(); ++d) index[d] += j.into.part->start[d];
    auto const from = static_cast<std::size_t>(place(row_major, index, tensor.dims.rank()));
    promise(std::memcmp(&j.target[to * element], &j.image[from * element], element) == 0,
            "every element of a box arrives at its place");
  });
}

/// Sends small tensors through slots that are exactly as large as each bucket says.
void check_copies(plan::manifest const& m) {
  auto const tensors = m.tensors();
  std::vector<journey> all(tensors.size());
  std::vector<plan::destination> into;
  for (std::uint32_t t = 0; t < tensors.size(); ++t) {
    set_out(all[t], tensors[t], t, m.layout()[t % 16] + 256u * m.layout()[(t + 5) % 16]);
    into.push_back(all[t].into);
  }
  plan::gather gather(m);
  plan::scatter scatter(m, into);
  promise(scatter.check().none(), "destinations that fit, fit");
  std::vector<memory::copy_op> ops;
  for (std::uint32_t b = 0; b < m.buckets().size(); ++b) {
    memory_of_tensor slot(static_cast<std::size_t>(m.buckets()[b].bytes));
    ops.clear();
    for (auto const& p : m.pieces_of(b))
      gather.ops_for_piece(p, all[p.tensor].from, slot.data(), device::host(), ops);
    for (auto const& op : ops) test::perform(op);
    ops.clear();
    for (auto const& p : m.pieces_of(b)) scatter.ops_for_piece(p, slot.data(), device::host(), ops);
    for (auto const& op : ops) test::perform(op);
  }
  for (std::uint32_t t = 0; t < tensors.size(); ++t) check_arrived(tensors[t], all[t]);

  // Straight from where a tensor lies, as who maps it reads it.
  for (std::uint32_t t = 0; t < tensors.size(); ++t) {
    std::ranges::fill(all[t].target, std::byte{0});
    ops.clear();
    scatter.ops_for_source(t, all[t].from, ops);
    promise(ops.size() <= 1, "one array into another is one copy");
    for (auto const& op : ops) test::perform(op);
    check_arrived(tensors[t], all[t]);
  }
}

/// A text is made readable, and one that is readable stays as it is.
void check_text(std::span<std::byte const> bytes) {
  std::string_view const text(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  auto const readable = as_utf8(text);
  promise(is_utf8(readable), "what was made readable is UTF-8");
  promise(is_utf8(text) == (readable == text), "and is the same if it was before");
}

/// Destinations and sources that do not fit are all found, and take nothing.
void check_mismatches(plan::manifest const& m) {
  using kind = plan::mismatch::kind;
  auto const tensors = m.tensors();
  std::vector<journey> all(tensors.size());
  std::vector<plan::destination> into;
  std::vector<std::pair<kind, std::string>> wanted;
  plan::gather gather(m);
  auto const refused = [&](std::uint32_t t, tensor_view const& source, errc code) {
    try {
      gather.check(t, source);
      promise(false, "a source that does not fit is refused");
    } catch (transfer_error const& e) { promise(e.code() == make_error_code(code), "with its reason"); }
  };
  std::array<std::byte, 8> some{};
  refused(static_cast<std::uint32_t>(tensors.size()), {}, errc::source_failed);
  for (std::uint32_t t = 0; t < tensors.size(); ++t) {
    auto const& tensor = tensors[t];
    set_out(all[t], tensor, t, 0);
    auto d = all[t].into;
    bool const bytes = m.tensor_bytes(t) != 0;
    switch (m.layout()[t % 16] % 9) {
    case 0: d.tensor += "?", wanted.emplace_back(kind::missing, d.tensor); break;
    case 1: wanted.emplace_back(kind::unexpected, tensor.name); continue;
    case 2:
      d.into = mutable_tensor_view(tensor.name, tensor.type == dtype::u8 ? dtype::i8 : dtype::u8, tensor.dims,
                                   some.data());
      wanted.emplace_back(kind::wrong_dtype, tensor.name);
      break;
    case 3:
      d.part = plan::whole(tensor.dims);
      if (d.part->rank == 0) d.part->rank = 1;
      d.part->start[0] = 1;
      wanted.emplace_back(kind::out_of_bounds, tensor.name);
      break;
    case 4:
      d.into = mutable_tensor_view(tensor.name, tensor.type, tensor.dims, nullptr);
      if (bytes) wanted.emplace_back(kind::no_memory, tensor.name);
      break;
    case 5:
      into.push_back(d);
      if (bytes) wanted.emplace_back(kind::overlapping, tensor.name);
      break;
    case 6: // its embedder knows it with one dimension more
      d.shape_sent = tensor.dims.rank() == 0 ? shape({1}) : shape();
      wanted.emplace_back(kind::wrong_shape, tensor.name);
      break;
    case 7: { // two that are alike, with room between their elements
      std::array<std::int64_t, max_rank> apart = plan::row_major(tensor.dims);
      // Those of a tensor without elements may be any number.
      for (auto& stride : apart) stride = static_cast<std::int64_t>(2 * static_cast<std::uint64_t>(stride));
      d.into.strides(std::span<std::int64_t const>(apart.data(), tensor.dims.rank()));
      into.push_back(d);
      if (!bytes) break;
      bool const may_be_strided = whole_bytes(tensor.type) || tensor.dims.rank() == 0;
      wanted.emplace_back(may_be_strided ? kind::overlapping : kind::unsupported, tensor.name);
      break;
    }
    default: {
      std::array<std::int64_t, max_rank> const zeros{};
      d.into.strides(std::span<std::int64_t const>(zeros.data(), tensor.dims.rank()));
      auto const extents = tensor.dims.extents();
      if (bytes && !whole_bytes(tensor.type) && tensor.dims.rank() != 0)
        wanted.emplace_back(kind::unsupported, tensor.name);
      else if (bytes && whole_bytes(tensor.type) &&
               std::any_of(extents.begin(), extents.end(), [](auto e) { return e > 1; }))
        wanted.emplace_back(kind::overlapping, tensor.name);
    }
    }
    into.push_back(d);

    auto const other = tensor.type == dtype::u8 ? dtype::i8 : dtype::u8;
    refused(t, tensor_view(tensor.name, other, tensor.dims, some.data()), errc::source_failed);
    if (plan::conversion_between(other, tensor.type) == std::nullopt)
      refused(t, tensor_view(tensor.name, other, tensor.dims, some.data()).sent_as(tensor.type),
              errc::unsupported);
    std::array<std::uint64_t, 1> const longer{tensor.dims.rank() == 1 ? tensor.dims[0] / 2 + 1'000'003 : 7};
    if (tensor.dims != shape(std::span<std::uint64_t const>(longer)))
      refused(
          t,
          tensor_view(tensor.name, tensor.type, shape(std::span<std::uint64_t const>(longer)), some.data()),
          errc::source_failed);
    if (!bytes) continue;
    refused(t, tensor_view(tensor.name, tensor.type, tensor.dims, nullptr), errc::invalid_argument);
    if (whole_bytes(tensor.type) || tensor.dims.rank() == 0) continue;
    std::array<std::int64_t, max_rank> const apart{2, 2, 2, 2, 2, 2, 2, 2};
    tensor_view strided(tensor.name, tensor.type, tensor.dims, some.data());
    refused(t, strided.strides(std::span<std::int64_t const>(apart.data(), tensor.dims.rank())),
            errc::unsupported);
  }
  plan::scatter const wrong(m, into);
  promise(wrong.check().none() == wanted.empty(), "what does not fit is seen, what fits is not");
  promise(wrong.check().count >= wanted.size(), "each difference counts");
  for (auto const& [what, name] : wanted)
    promise(std::any_of(wrong.check().first.begin(), wrong.check().first.end(),
                        [&](auto const& d) { return d.what == what && d.tensor == name; }),
            "each difference is named");
  promise(to_string(wrong.check()).find('\n') == std::string::npos, "differences are one line");
  plan::scatter const some_of_it(m, {}, true);
  promise(some_of_it.check().none() && !some_of_it.wants(0), "a subset may be nothing");
}

bool small_enough(plan::manifest const& m) {
  if (m.total_bytes() > small || m.tensors().size() > 16) return false;
  auto const sizes = m.bucket_sizes(); // pieces may lie far apart
  return std::all_of(sizes.begin(), sizes.end(), [](auto bytes) { return bytes <= 4 * small; });
}

void check(plan::manifest const& m, std::span<std::byte const> encoded) {
  check_books(m);
  check_buckets(m);
  check_encoding(m, encoded);
  if (m.layout()[14] % 4 == 0) check_limits(m, encoded);
  if (!small_enough(m)) return;
  check_copies(m);
  if (m.tensors().size() <= 7 && m.layout()[15] % 4 == 0) check_mismatches(m); // many exceptions take long
}

/// Tensors and a bucket size, out of choices.
std::optional<plan::manifest> cut(choices& from) {
  std::vector<tensor_info> tensors;
  std::uint64_t const bucket_bytes = from.number() * 64;
  while (!from.empty() && tensors.size() < 40) {
    tensor_info& t = tensors.emplace_back();
    auto const how = from.byte();
    if (how < 200)
      t.name = "t" + std::to_string(tensors.size());
    else
      t.name = from.text(how % 8);
    if (how == 199) t.name.assign(65 * 1024, 'n');
    t.type = static_cast<dtype>(from.byte() % 23); // one more than there are
    std::vector<std::uint64_t> dims(how % 5);
    for (auto& extent : dims) extent = from.number();
    t.dims = shape(std::span<std::uint64_t const>(dims));
    auto const bytes = byte_size(t.type, t.dims).value_or(0) / std::max<std::uint64_t>(bucket_bytes, 256);
    if (bytes > 60 && bytes < std::uint64_t{1} << 24) return std::nullopt; // so many pieces take too long
  }
  try {
    return plan::manifest::cut(std::move(tensors), bucket_bytes);
  } catch (transfer_error const& e) {
    promise(e.code().category() == ropeway_category(), "what can't be cut is an error of ours");
    return std::nullopt;
  }
}

// ---- arrays ----

/// An array in memory that begins and ends with it, so that the sanitizer sees a byte beyond either end.
struct array {
  memory_of_tensor memory;
  std::array<std::int64_t, max_rank> strides{};
  std::size_t first = 0; ///< the byte at which its first element lies
};

/// Its dimensions nested in any order, with gaps, forwards or backwards. Where there is but one step, the
/// stride may be anything.
array lay_down(choices& from, std::span<std::uint64_t const> extents, std::size_t element) {
  array made;
  std::array<std::size_t, max_rank> order{};
  for (std::size_t d = 0; d < extents.size(); ++d) order[d] = extents.size() - 1 - d;
  auto const swaps = from.byte();
  for (std::size_t d = 1; d < extents.size(); ++d)
    if (swaps >> d & 1) std::swap(order[d], order[(swaps >> 4) % d]);
  auto const gaps = from.byte(), backwards = from.byte();
  std::size_t step = 1, elements = 1, behind = 0;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    auto const d = order[i];
    auto const extent = static_cast<std::size_t>(extents[d]);
    if (extent == 1) {
      made.strides[d] = static_cast<std::int64_t>(from.number());
      continue;
    }
    step += gaps >> i & 1;
    made.strides[d] = static_cast<std::int64_t>(step);
    if (backwards >> i & 1) {
      made.strides[d] = -made.strides[d];
      behind += step * (extent - 1);
    }
    elements += step * (extent - 1);
    step *= extent;
  }
  made.memory.resize(elements * element);
  made.first = behind * element;
  return made;
}

std::size_t byte_of(array const& a, std::array<std::uint64_t, max_rank> const& index, std::size_t rank,
                    std::size_t element) {
  auto const at = place(a.strides, index, rank) * static_cast<std::int64_t>(element);
  return static_cast<std::size_t>(static_cast<std::int64_t>(a.first) + at);
}

/// One array into another, against the plainest copy; what lies between the elements stays as it is.
void check_ops_between(choices& from, shape const& dims, dtype type) {
  std::size_t const element = bits(type) / 8;
  auto source = lay_down(from, dims.extents(), element), target = lay_down(from, dims.extents(), element);
  for (std::size_t i = 0; i < source.memory.size(); ++i) source.memory[i] = static_cast<std::byte>(i * 7 + 1);
  auto wanted = target.memory;
  test::for_each_index(dims.extents(), [&](auto const& index) {
    std::memcpy(&wanted[byte_of(target, index, dims.rank(), element)],
                &source.memory[byte_of(source, index, dims.rank(), element)], element);
  });
  auto const view = [&](array& a) {
    mutable_tensor_view made("array", type, dims, a.memory.data() + a.first);
    made.strides(std::span<std::int64_t const>(a.strides.data(), dims.rank()));
    return made;
  };
  std::vector<memory::copy_op> ops;
  plan::ops_between(view(source), view(target), ops);
  promise(ops.size() == 1, "one array into another is one copy");
  for (auto const& op : ops) test::perform(op);
  promise(target.memory == wanted, "an array arrives, and nothing else does");
}

/// Elements smaller than a byte, as they lie.
void check_packed_between(shape const& dims, dtype type) {
  std::vector<memory::copy_op> ops;
  auto const bytes = byte_size(type, dims).value_or(0);
  memory_of_tensor source(static_cast<std::size_t>(bytes), std::byte{5}), target(source.size());
  plan::ops_between(mutable_tensor_view("array", type, dims, source.data()),
                    mutable_tensor_view("array", type, dims, target.data()), ops);
  for (auto const& op : ops) test::perform(op);
  promise(target == source && ops.size() == (bytes == 0 ? 0 : 1), "packed elements arrive in one run");
}

plan::box box_within(choices& from, shape const& dims) {
  plan::box part = plan::whole(dims);
  for (std::size_t d = 0; d < part.rank; ++d) {
    part.start[d] = from.below(static_cast<unsigned>(dims[d]));
    part.extent[d] = 1 + from.below(static_cast<unsigned>(dims[d] - part.start[d]));
  }
  return part;
}

/// A range of a tensor's elements as boxes, and each of them where a part of the tensor lies in an array:
/// element by element, with dimensions merged beforehand and without.
void check_boxes(choices& from, shape const& dims) {
  std::uint64_t const elements = *dims.elements();
  std::uint64_t const first = from.byte() % (elements + 1), count = from.byte() % (elements - first + 1);
  std::vector<plan::box> boxes;
  plan::boxes_of_range(dims, first, count, boxes);
  auto const image = plan::row_major(dims);
  std::uint64_t next = first;
  auto const part = box_within(from, dims);
  std::span const extents(part.extent.data(), part.rank);
  auto const memory = lay_down(from, extents, 1);
  std::span const strides(memory.strides.data(), part.rank);
  plan::strided_part plain{dims, part, memory.strides};
  auto const merged = plan::collapse(dims, part, strides);
  bool dense = true;
  for (std::size_t d = part.rank, step = 1; d-- > 0; step *= static_cast<std::size_t>(part.extent[d]))
    dense = dense && (part.extent[d] == 1 || strides[d] == static_cast<std::int64_t>(step));
  promise(plan::is_dense(plain) == dense && plan::is_dense(merged) == dense,
          "one run of memory is seen as one");
  std::map<std::uint64_t, std::int64_t> wanted, found;
  for (auto const& among : boxes) {
    test::for_each_index(std::span(among.extent.data(), among.rank), [&](auto index) {
      bool inside = true;
      auto within = index;
      for (std::size_t d = 0; d < dims.rank(); ++d) {
        index[d] += among.start[d];
        inside = inside && index[d] >= part.start[d] && index[d] < part.start[d] + part.extent[d];
        within[d] = index[d] - part.start[d];
      }
      auto const number = static_cast<std::uint64_t>(place(image, index, dims.rank()));
      promise(number == next++, "the boxes of a range cover it in order");
      if (inside) wanted.emplace(number, place(memory.strides, within, dims.rank()));
    });
    plan::strided_box both;
    if (!plan::locate(plain, among, both)) continue;
    std::uint64_t seen = 0;
    test::for_each_index(std::span(both.extent.data(), both.rank), [&](auto const& index) {
      found.emplace(both.image + static_cast<std::uint64_t>(place(both.image_stride, index, both.rank)),
                    both.array + place(both.array_stride, index, both.rank));
      ++seen;
    });
    promise(seen == both.elements(), "a box knows how many elements it has");
  }
  promise(next == first + count, "the boxes of a range cover all of it");
  promise(found == wanted, "what of a range is in an array is found where it lies");

  boxes.clear();
  plan::boxes_of_range(merged.dims, first, count, boxes);
  found.clear();
  for (auto const& among : boxes) {
    plan::strided_box both;
    if (!plan::locate(merged, among, both)) continue;
    test::for_each_index(std::span(both.extent.data(), both.rank), [&](auto const& index) {
      found.emplace(both.image + static_cast<std::uint64_t>(place(both.image_stride, index, both.rank)),
                    both.array + place(both.array_stride, index, both.rank));
    });
  }
  promise(found == wanted, "and in the same places with dimensions merged");

  try {
    plan::boxes_of_range(dims, first, elements - first + 1, boxes);
    promise(false, "a range beyond a tensor is refused");
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::invalid_argument), "as an argument that is wrong");
  }
  plan::box other = part, common;
  other.rank ^= 1;
  promise(!plan::intersect(part, other, common), "boxes of different rank have nothing in common");
}

void check_arrays(choices& from) {
  auto const what = from.byte();
  std::vector<std::uint64_t> extents(what % 5);
  for (auto& extent : extents) extent = 1 + from.below(3 + (extents.size() < 3) * 5u);
  auto const type = static_cast<dtype>(from.byte() % 22);
  if (what / 5 % 16 == 15 && !extents.empty()) extents.back() = 0;
  shape const dims{std::span<std::uint64_t const>(extents)};
  if (!whole_bytes(type) || dims.elements() == 0u) return check_packed_between(dims, type);
  if (what & 0x80) return check_boxes(from, dims);
  check_ops_between(from, dims, type);
}

} // namespace

void manifest(input in) {
  choices from(in);
  auto const mode = from.byte();
  if (mode % 4 == 3) return check_arrays(from);
  if (mode & 1) {
    auto const made = cut(from);
    if (made) check(*made, made->encode());
    return;
  }
  auto const bytes = std::as_bytes(from.rest());
  if (bytes.size() < 64) check_text(bytes); // nothing depends on how long it is
  std::optional<plan::manifest> m;
  try {
    m = plan::manifest::decode(bytes);
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::protocol_error), "a bad manifest breaks the protocol");
    promise(std::string_view(e.what()).find('\n') == std::string_view::npos, "a refusal is one line");
    return;
  }
  promise(std::ranges::equal(m->encode(), bytes), "there is one encoding of a manifest");
  check(*m, bytes);
}

} // namespace ropeway::fuzz
