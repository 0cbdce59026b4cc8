#include "plan/manifest.hpp"

#include <xxhash.h>

#include <algorithm>
#include <boost/describe.hpp>
#include <limits>

#include "base/codec.hpp"
#include "base/utf8.hpp"
#include "plan/dtype_codec.hpp"
#include "ropeway/error.hpp"

namespace ropeway::plan {

BOOST_DESCRIBE_STRUCT(piece, (), (tensor, bucket, tensor_offset, bucket_offset, bytes))

namespace {

/// The encoding: these structs through the codec. There is one encoding of a manifest, so its hash names it.
struct encoded_tensor {
  std::string name;
  dtype type = dtype::u8;
  std::vector<std::uint64_t> dims;
};
struct encoded_manifest {
  std::uint64_t bucket_bytes = 0;
  std::vector<encoded_tensor> tensors;
  std::vector<piece> pieces;
};
BOOST_DESCRIBE_STRUCT(encoded_tensor, (), (name, type, dims))
BOOST_DESCRIBE_STRUCT(encoded_manifest, (), (bucket_bytes, tensors, pieces))

std::string quoted(std::string_view name) { return codec::print(std::string(name)); }

[[noreturn]] void refuse(std::string const& why) {
  throw transfer_error(errc::protocol_error, "manifest: " + why);
}

std::uint64_t align(std::uint64_t offset) { return (offset + piece_alignment - 1) & ~(piece_alignment - 1); }

/// The bytes of a tensor, or a reason why it can't be carried.
std::uint64_t checked_bytes(tensor_info const& tensor) {
  if (auto const bytes = byte_size(tensor.type, tensor.dims)) return *bytes;
  auto const elements = tensor.dims.elements();
  std::uint64_t ignored = 0;
  if (bits(tensor.type) == 0)
    throw transfer_error(errc::invalid_argument, "tensor " + quoted(tensor.name) + " has an unknown dtype")
        .tensor(tensor.name);
  if (!elements || __builtin_mul_overflow(*elements, bits(tensor.type), &ignored))
    throw transfer_error(errc::overflow, "tensor " + quoted(tensor.name) + " of shape " +
                                             to_string(tensor.dims) + " is larger than any memory")
        .tensor(tensor.name);
  throw transfer_error(errc::unsupported, "tensor " + quoted(tensor.name) + " of " +
                                              std::string(name(tensor.type)) + to_string(tensor.dims) +
                                              " fills no whole number of bytes; pad it")
      .tensor(tensor.name);
}

void check_name(tensor_info const& tensor, manifest_limits const& limits) {
  auto const wrong = [&](errc code, std::string const& why) {
    throw transfer_error(code, "tensor name " + quoted(tensor.name) + why).tensor(tensor.name);
  };
  if (tensor.name.empty()) wrong(errc::invalid_argument, " is empty; every tensor needs a name");
  if (tensor.name.size() > limits.name_bytes)
    wrong(errc::overflow, " has more than " + std::to_string(limits.name_bytes) + " bytes");
  if (tensor.name.find('\0') != std::string::npos) wrong(errc::invalid_argument, " has a NUL character");
  if (!is_utf8(tensor.name)) wrong(errc::invalid_argument, " is not UTF-8");
}

void check_bucket_bytes(std::uint64_t bytes) {
  if (bytes == 0 || bytes % piece_alignment != 0)
    refuse("a bucket of " + std::to_string(bytes) + " bytes is no multiple of " +
           std::to_string(piece_alignment));
}

/// Whether `p` may come after what the last bucket has so far.
void check_place(piece const& p, std::span<bucket_extent const> buckets, std::uint64_t bucket_bytes) {
  auto const wrong = [&](char const* why) { refuse(codec::print(p) + why); };
  if (p.bucket_offset % piece_alignment != 0) wrong(" is not aligned");
  if (p.bucket_offset > bucket_bytes || p.bytes > bucket_bytes - p.bucket_offset)
    wrong(" is not within its bucket");
  bool const first = p.bucket == buckets.size();
  if (!first && (buckets.empty() || p.bucket != buckets.size() - 1))
    wrong(" is not in the order of the buckets");
  if (!first && p.bucket_offset < buckets.back().bytes) wrong(" overlaps the piece before it");
}

} // namespace

void manifest::add_tensors(std::vector<tensor_info> tensors, manifest_limits const& limits) {
  if (tensors.size() > limits.tensors)
    throw transfer_error(errc::overflow, std::to_string(tensors.size()) + " tensors in one update; at most " +
                                             std::to_string(limits.tensors) + " are carried");
  tensors_ = std::move(tensors);
  tensor_bytes_.reserve(tensors_.size());
  index_.reserve(tensors_.size());
  for (auto const& tensor : tensors_) {
    check_name(tensor, limits);
    auto const bytes = checked_bytes(tensor);
    if (__builtin_add_overflow(total_bytes_, bytes, &total_bytes_))
      throw transfer_error(errc::overflow, "the tensors together are larger than any memory")
          .tensor(tensor.name);
    if (!index_.emplace(tensor.name, static_cast<std::uint32_t>(tensor_bytes_.size())).second)
      throw transfer_error(errc::duplicate_name, "two tensors have the name " + quoted(tensor.name) +
                                                     "; names must differ within an update")
          .tensor(tensor.name);
    tensor_bytes_.push_back(bytes);
  }
  first_piece_.reserve(tensors_.size() + 1);
}

void manifest::add_piece(piece const& p) {
  if (p.bucket == buckets_.size()) buckets_.push_back({static_cast<std::uint32_t>(pieces_.size()), 0, 0});
  buckets_.back().pieces += 1;
  buckets_.back().bytes = p.bucket_offset + p.bytes;
  pieces_.push_back(p);
}

void manifest::name_layout(std::span<std::byte const> encoding) {
  XXH128_canonical_t name;
  XXH128_canonicalFromHash(&name, XXH3_128bits(encoding.data(), encoding.size()));
  static_assert(sizeof name.digest == sizeof layout_);
  std::copy(std::begin(name.digest), std::end(name.digest), layout_.begin());
}

manifest manifest::cut(std::vector<tensor_info> tensors, std::uint64_t bucket_bytes) {
  manifest_limits const limits;
  manifest m;
  std::uint64_t const full = std::max(bucket_bytes / piece_alignment, std::uint64_t{1}) * piece_alignment;
  m.bucket_bytes_ = full;
  m.add_tensors(std::move(tensors), limits);

  std::uint64_t used = 0; // of the current bucket
  std::uint32_t bucket = 0;
  for (std::uint32_t t = 0; t < m.tensors_.size(); ++t) {
    m.first_piece_.push_back(static_cast<std::uint32_t>(m.pieces_.size()));
    std::uint64_t const bytes = m.tensor_bytes_[t];
    if (bytes == 0) continue;
    if (bytes / full + 2 > limits.pieces - m.pieces_.size())
      throw transfer_error(errc::overflow,
                           "buckets of " + std::to_string(full) + " bytes cut the tensors into more than " +
                               std::to_string(limits.pieces) + " pieces; choose larger buckets")
          .tensor(m.tensors_[t].name);
    // Aligned first, then asked whether it fits: what alignment skips is not room. Buckets end aligned, so
    // this never goes beyond one.
    std::uint64_t at = align(used);
    if (full - at < bytes && full - at < wasted_tail(full)) {
      ++bucket;
      at = 0;
    }
    for (std::uint64_t offset = 0; offset < bytes;) {
      if (at == full) {
        ++bucket;
        at = 0;
      }
      std::uint64_t const length = std::min(full - at, bytes - offset);
      m.add_piece({t, bucket, offset, at, length});
      at += length;
      offset += length;
    }
    used = at;
  }
  m.first_piece_.push_back(static_cast<std::uint32_t>(m.pieces_.size()));
  m.name_layout(m.encode());
  return m;
}

manifest manifest::decode(std::span<std::byte const> bytes, manifest_limits const& limits) {
  encoded_manifest in;
  codec::limits counts;
  counts.max_string = limits.name_bytes;
  counts.max_elements = std::max<std::size_t>({limits.tensors, limits.pieces, max_rank});
  if (auto const read = codec::decode(bytes, in, counts); !read) refuse(read.text());
  check_bucket_bytes(in.bucket_bytes);
  if (in.pieces.size() > limits.pieces || in.pieces.size() > UINT32_MAX)
    refuse(std::to_string(in.pieces.size()) + " pieces are more than allowed");

  manifest m;
  m.bucket_bytes_ = in.bucket_bytes;
  std::vector<tensor_info> tensors;
  tensors.reserve(in.tensors.size());
  for (auto& tensor : in.tensors) {
    if (tensor.dims.size() > max_rank) refuse(quoted(tensor.name) + " has too many dimensions");
    tensors.push_back(
        {std::move(tensor.name), tensor.type, shape(std::span<std::uint64_t const>(tensor.dims))});
  }
  try {
    m.add_tensors(std::move(tensors), limits);
  } catch (transfer_error const& e) { refuse(e.what()); }

  m.pieces_.reserve(in.pieces.size());
  auto next = in.pieces.cbegin();
  for (std::uint32_t t = 0; t < m.tensors_.size(); ++t) {
    m.first_piece_.push_back(static_cast<std::uint32_t>(m.pieces_.size()));
    for (std::uint64_t covered = 0; covered < m.tensor_bytes_[t]; ++next) {
      if (next == in.pieces.cend()) refuse("no piece for all of " + quoted(m.tensors_[t].name));
      if (next->tensor != t || next->tensor_offset != covered)
        refuse(codec::print(*next) + " leaves a gap or overlaps");
      if (next->bytes == 0 || next->bytes > m.tensor_bytes_[t] - covered)
        refuse(codec::print(*next) + " has a wrong size");
      if (next->tensor_offset % piece_alignment != 0)
        refuse(codec::print(*next) + " is cut at an unaligned offset");
      check_place(*next, m.buckets_, m.bucket_bytes_);
      m.add_piece(*next);
      covered += next->bytes;
    }
  }
  if (next != in.pieces.cend()) refuse(codec::print(*next) + " belongs to no tensor");
  m.first_piece_.push_back(static_cast<std::uint32_t>(m.pieces_.size()));
  m.name_layout(bytes);
  return m;
}

std::vector<std::byte> manifest::encode() const {
  encoded_manifest whole;
  whole.bucket_bytes = bucket_bytes_;
  whole.tensors.reserve(tensors_.size());
  std::size_t name_bytes = 0;
  for (auto const& tensor : tensors_) {
    auto const extents = tensor.dims.extents();
    whole.tensors.push_back({tensor.name, tensor.type, {extents.begin(), extents.end()}});
    name_bytes += tensor.name.size();
  }
  whole.pieces = pieces_;
  std::vector<std::byte> out;
  out.reserve(64 + name_bytes + tensors_.size() * 48 + pieces_.size() * 32);
  codec::encode(whole, out);
  return out;
}

bool manifest::same_tensor(std::uint32_t index, std::string_view name, dtype type,
                           shape const& dims) const noexcept {
  if (index >= tensors_.size()) return false;
  auto const& mine = tensors_[index];
  return mine.type == type && mine.dims == dims && mine.name == name;
}

std::span<piece const> manifest::pieces_of(std::uint32_t bucket) const {
  if (bucket >= buckets_.size())
    throw transfer_error(errc::invalid_argument, "there is no bucket " + std::to_string(bucket))
        .bucket(bucket);
  return std::span(pieces_).subspan(buckets_[bucket].first_piece, buckets_[bucket].pieces);
}

std::pair<std::uint32_t, std::uint32_t> manifest::pieces_of_tensor(std::uint32_t tensor) const {
  if (tensor >= tensors_.size())
    throw transfer_error(errc::invalid_argument, "there is no tensor " + std::to_string(tensor));
  return {first_piece_[tensor], first_piece_[tensor + 1] - first_piece_[tensor]};
}

std::optional<std::uint32_t> manifest::find(std::string_view name) const {
  auto const found = index_.find(name);
  if (found == index_.end()) return {};
  return found->second;
}

std::vector<std::uint64_t> manifest::bucket_sizes() const {
  std::vector<std::uint64_t> sizes;
  sizes.reserve(buckets_.size());
  for (auto const& bucket : buckets_) sizes.push_back(bucket.bytes);
  return sizes;
}

} // namespace ropeway::plan
