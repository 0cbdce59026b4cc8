// Any manifest: what is not refused covers every tensor exactly once, within its buckets, and the copies made
// from it stay within the memory that they are for. The first byte says whether the rest is a manifest or
// tensors to be cut into one.
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "../plan/support.hpp"
#include "choices.hpp"
#include "plan/copies.hpp"
#include "plan/manifest.hpp"
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
    switch (m.layout()[t % 16] % 7) {
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
    if (bytes)
      refused(t, tensor_view(tensor.name, tensor.type, tensor.dims, nullptr), errc::invalid_argument);
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
    t.type = static_cast<dtype>(from.byte() % 22);
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

} // namespace

void manifest(input in) {
  choices from(in);
  if (from.flip()) {
    auto const made = cut(from);
    if (made) check(*made, made->encode());
    return;
  }
  auto const bytes = std::as_bytes(from.rest());
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
