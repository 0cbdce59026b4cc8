#include <algorithm>
#include <iterator>
#include <numeric>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/utf8.hpp"
#include "checkpoint/header.hpp"
#include "checkpoint/output_file.hpp"
#include "checkpoint/text.hpp"
#include "ropeway/checkpoint_writer.hpp"

namespace ropeway {
namespace {

// The reference writes by descending rank in this list, and ropeway's `sorted` gives the same order.
constexpr dtype by_width[] = {
    dtype::boolean, dtype::f4,      dtype::f6_e2m3, dtype::f6_e3m2,     dtype::u8,          dtype::i8,
    dtype::f8_e5m2, dtype::f8_e4m3, dtype::f8_e8m0, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz, dtype::i16,
    dtype::u16,     dtype::f16,     dtype::bf16,    dtype::i32,         dtype::u32,         dtype::f32,
    dtype::c64,     dtype::f64,     dtype::i64,     dtype::u64,
};

std::ptrdiff_t rank(dtype type) {
  return std::distance(std::begin(by_width), std::find(std::begin(by_width), std::end(by_width), type));
}

void check(std::span<tensor_info const> tensors, checkpoint_metadata const& metadata) {
  std::unordered_set<std::string_view> names;
  names.reserve(tensors.size());
  for (auto const& tensor : tensors) {
    auto const refuse = [&](errc code, std::string const& why) {
      throw transfer_error(code, "tensor " + in_quotes(tensor.name) + ' ' + why).tensor(tensor.name);
    };
    if (!is_utf8(tensor.name)) refuse(errc::invalid_argument, "has a name that is no UTF-8");
    if (tensor.name == "__metadata__")
      refuse(errc::invalid_argument, "has the name that safetensors keeps for itself");
    if (!names.insert(tensor.name).second) refuse(errc::duplicate_name, "is given twice");
    if (!byte_size(tensor.type, tensor.dims))
      refuse(errc::invalid_argument, "(" + std::string(name(tensor.type)) + ' ' + to_string(tensor.dims) +
                                         ") has a size that overflows, or is no whole number of bytes");
  }
  for (auto const& [key, value] : metadata)
    if (!is_utf8(key) || !is_utf8(value))
      throw transfer_error(errc::invalid_argument, "metadata " + in_quotes(key) + " is no UTF-8");
}

// The bytes of one tensor that have been written: disjoint ranges, almost always one.
class coverage {
 public:
  void add(std::uint64_t begin, std::uint64_t end) {
    auto first = std::lower_bound(ranges_.begin(), ranges_.end(), begin,
                                  [](auto const& range, std::uint64_t at) { return range.second < at; });
    auto last = first;
    for (; last != ranges_.end() && last->first <= end; ++last) {
      begin = std::min(begin, last->first);
      end = std::max(end, last->second);
    }
    ranges_.insert(ranges_.erase(first, last), {begin, end});
  }
  bool is_whole(std::uint64_t size) const {
    return size == 0 ||
           (ranges_.size() == 1 && ranges_.front() == std::pair<std::uint64_t, std::uint64_t>(0, size));
  }

 private:
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_;
};

struct place {
  std::string name;
  std::uint64_t offset = 0, bytes = 0;
  coverage written;
};

// The header, the places of the tensors, and the size of the file; found before the file is made.
struct plan {
  plan(std::span<tensor_info const> tensors, checkpoint_metadata const& metadata,
       checkpoint_writer::layout order) {
    check(tensors, metadata);
    std::vector<std::size_t> sequence(tensors.size());
    std::iota(sequence.begin(), sequence.end(), std::size_t{0});
    if (order == checkpoint_writer::layout::sorted)
      std::sort(sequence.begin(), sequence.end(), [&](std::size_t a, std::size_t b) {
        std::ptrdiff_t const ra = rank(tensors[a].type), rb = rank(tensors[b].type);
        return ra != rb ? ra > rb : tensors[a].name < tensors[b].name;
      });
    std::vector<tensor_info const*> ordered;
    std::uint64_t data = 0;
    places.resize(tensors.size());
    for (std::size_t i : sequence) {
      ordered.push_back(&tensors[i]);
      places[i] = {.name = tensors[i].name,
                   .offset = data,
                   .bytes = *byte_size(tensors[i].type, tensors[i].dims),
                   .written = {}};
      if (__builtin_add_overflow(data, places[i].bytes, &data) || data >> 62 != 0)
        throw transfer_error(errc::overflow, "the tensors together are larger than a file can be");
    }
    header = make_header(ordered, metadata);
    for (auto& each : places) each.offset += header.size();
    size = header.size() + data;
  }

  std::string header;
  std::vector<place> places;
  std::uint64_t size = 0;
};

} // namespace

class checkpoint_writer::state {
 public:
  state(std::filesystem::path path, plan&& made)
      : file(std::move(path), made.size), places(std::move(made.places)) {
    file.write(0, std::as_bytes(std::span(made.header)));
  }
  output_file file;
  std::vector<place> places;
  bool committed = false;
};

checkpoint_writer::checkpoint_writer(std::filesystem::path path, std::span<tensor_info const> tensors,
                                     checkpoint_metadata const& metadata, layout order)
    : state_(std::make_unique<state>(std::move(path), plan(tensors, metadata, order))) {}
checkpoint_writer::checkpoint_writer(checkpoint_writer&&) noexcept = default;
checkpoint_writer& checkpoint_writer::operator=(checkpoint_writer&&) noexcept = default;
checkpoint_writer::~checkpoint_writer() = default;

void checkpoint_writer::write(std::size_t tensor, std::uint64_t offset, std::span<std::byte const> bytes) {
  if (state_->committed) throw transfer_error(errc::not_open, "the checkpoint is committed already");
  if (tensor >= state_->places.size())
    throw transfer_error(errc::invalid_argument, "tensor number " + std::to_string(tensor) + " of " +
                                                     std::to_string(state_->places.size()));
  place& where = state_->places[tensor];
  if (offset > where.bytes || bytes.size() > where.bytes - offset)
    throw transfer_error(errc::invalid_argument, std::to_string(bytes.size()) + " bytes at byte " +
                                                     std::to_string(offset) + " of tensor " +
                                                     in_quotes(where.name) + ", which has " +
                                                     std::to_string(where.bytes))
        .tensor(where.name);
  if (bytes.empty()) return;
  state_->file.write(where.offset + offset, bytes);
  where.written.add(offset, offset + bytes.size());
}

void checkpoint_writer::commit() {
  if (state_->committed) throw transfer_error(errc::not_open, "the checkpoint is committed already");
  std::size_t missing = 0;
  place const* first = nullptr;
  for (auto const& each : state_->places)
    if (!each.written.is_whole(each.bytes) && missing++ == 0) first = &each;
  if (missing > 0)
    throw transfer_error(errc::invalid_argument, "bytes of " + std::to_string(missing) +
                                                     " tensors were not written, of " +
                                                     in_quotes(first->name) + " for example")
        .tensor(first->name);
  state_->file.publish();
  state_->committed = true;
}

} // namespace ropeway
