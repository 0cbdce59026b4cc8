#include "weights.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace ropeway::testing {
namespace {

constexpr std::byte blank{0xa5}, guard{0x5a};
constexpr std::uint64_t guard_bytes = 8;

class heap final : public memory_kind {
 public:
  device where() const override { return device::host(); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    return {new std::byte[bytes], std::default_delete<std::byte[]>()};
  }
  void write(std::byte* to, std::span<std::byte const> from) override {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
  }
  void read(std::span<std::byte> to, std::byte const* from) override {
    if (!to.empty()) std::memcpy(to.data(), from, to.size());
  }
};

/// One block that is handed out from the front, and begun anew when everything was given back.
class shared_heap final : public memory_kind {
 public:
  device where() const override { return device::host(); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    if (in_use_.use_count() == 1) used_ = 0;
    if (bytes > block_.size() - used_) throw std::runtime_error("the shared memory of the test is too small");
    std::byte* const at = block_.data() + used_;
    used_ += (bytes + 63) / 64 * 64;
    return {in_use_, at};
  }
  void write(std::byte* to, std::span<std::byte const> from) override {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
  }
  void read(std::span<std::byte> to, std::byte const* from) override {
    if (!to.empty()) std::memcpy(to.data(), from, to.size());
  }
  std::vector<shared_memory> shared() const override { return {block_}; }

 private:
  shared_memory block_ = shared_memory::make(std::uint64_t(64) << 20);
  std::shared_ptr<int> in_use_ = std::make_shared<int>();
  std::uint64_t used_ = 0;
};

class backend_memory final : public memory_kind {
 public:
  explicit backend_memory(std::shared_ptr<memory::backend> backend)
      : backend_(std::move(backend)), queue_(backend_->make_queue()) {}
  device where() const override { return backend_->where(); }
  std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override {
    auto region = backend_->make_region(std::max<std::uint64_t>(bytes, 1)).memory;
    return {region, region->data()};
  }
  void write(std::byte* to, std::span<std::byte const> from) override {
    copy(from.data(), device::host(), to, where(), from.size());
  }
  void read(std::span<std::byte> to, std::byte const* from) override {
    copy(from, where(), to.data(), device::host(), to.size());
  }

 private:
  void copy(std::byte const* from, device from_where, std::byte* to, device to_where, std::uint64_t bytes) {
    if (bytes == 0) return;
    memory::copy_op op;
    op.from = from, op.to = to, op.bytes = bytes;
    op.from_where = from_where, op.to_where = to_where;
    queue_->copy({&op, 1});
    auto const ticket = queue_->mark();
    if (!queue_->drain(std::chrono::seconds(10)) || queue_->poll().completed < ticket)
      throw std::runtime_error("a copy of the test's own did not finish");
  }
  std::shared_ptr<memory::backend> backend_;
  std::unique_ptr<memory::queue> queue_;
};

/// Appends the elements of a strided tensor, row-major, from memory that starts at `base`.
void gather(tensor_view const& view, std::byte const* first, std::vector<std::byte>& out) {
  std::uint64_t const total = byte_size(view.type(), view.dims()).value();
  if (!view.is_strided()) {
    out.insert(out.end(), first, first + total);
    return;
  }
  auto const element = bits(view.type()) / 8;
  auto const strides = view.strides();
  auto const& dims = view.dims();
  std::array<std::uint64_t, max_rank> at{};
  for (std::uint64_t k = 0; k < total / element; ++k) {
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < dims.rank(); ++d) offset += static_cast<std::int64_t>(at[d]) * strides[d];
    auto const* p = first + offset * static_cast<std::int64_t>(element);
    out.insert(out.end(), p, p + element);
    for (std::size_t d = dims.rank(); d-- > 0;) {
      if (++at[d] < dims[d]) break;
      at[d] = 0;
    }
  }
}

std::string compare(image const& wanted, std::span<std::byte const> got) {
  if (std::ranges::equal(wanted.bytes, got)) return {};
  std::ostringstream text;
  text << wanted.name << " " << name(wanted.type) << to_string(wanted.dims);
  if (wanted.bytes.size() != got.size()) {
    text << " has " << got.size() << " bytes, not " << wanted.bytes.size();
    return text.str();
  }
  std::size_t differing = 0, first = got.size();
  for (std::size_t i = 0; i < got.size(); ++i)
    if (wanted.bytes[i] != got[i] && ++differing == 1) first = i;
  text << " differs in " << differing << " of " << got.size() << " bytes, first at " << first << " (got "
       << int(got[first]) << ", wanted " << int(wanted.bytes[first]) << ")";
  return text.str();
}

} // namespace

std::shared_ptr<memory_kind> shared_host_memory() { return std::make_shared<shared_heap>(); }
std::shared_ptr<memory_kind> host_memory() { return std::make_shared<heap>(); }
std::shared_ptr<memory_kind> device_memory(std::shared_ptr<memory::backend> backend) {
  return std::make_shared<backend_memory>(std::move(backend));
}

std::vector<std::byte> random_bytes(std::uint64_t count, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<std::byte> bytes(count);
  std::uint64_t word = 0;
  for (std::uint64_t i = 0; i < count; i += sizeof word) {
    word = generator();
    std::memcpy(bytes.data() + i, &word, std::min<std::uint64_t>(sizeof word, count - i));
  }
  return bytes;
}

model::model(std::shared_ptr<memory_kind> kind, std::vector<tensor_info> specs, std::uint64_t seed)
    : kind_(std::move(kind)), specs_(std::move(specs)) {
  std::uint64_t at = guard_bytes;
  for (auto const& spec : specs_) {
    std::uint64_t const align = std::max<std::uint64_t>(bits(spec.type) / 8, 1);
    at = (at + align - 1) / align * align;
    index_.emplace(spec.name, offsets_.size());
    offsets_.push_back(at);
    sizes_.push_back(byte_size(spec.type, spec.dims).value());
    at += sizes_.back() + guard_bytes;
  }
  mirror_.assign(at, guard);
  block_ = kind_->allocate(at);
  fill(seed);
}

void model::fill(std::uint64_t seed) {
  for (std::size_t i = 0; i < size(); ++i) {
    auto* const to = mirror_.data() + offsets_[i];
    if (seed == 0) {
      std::fill_n(to, sizes_[i], blank);
    } else {
      auto const bytes = random_bytes(sizes_[i], seed * 1'000'003 + i);
      std::ranges::copy(bytes, to);
    }
  }
  kind_->write(block_.get(), mirror_);
}

void model::put(std::size_t index, std::span<std::byte const> bytes) {
  if (bytes.size() != sizes_[index]) throw std::invalid_argument("put: not the tensor's size");
  std::ranges::copy(bytes, mirror_.data() + offsets_[index]);
  kind_->write(block_.get() + offsets_[index], bytes);
}

tensor_view model::view(std::size_t index) const {
  auto const& spec = specs_[index];
  return {spec.name, spec.type, spec.dims, block_.get() + offsets_[index], kind_->where()};
}
mutable_tensor_view model::target(std::size_t index) {
  auto const& spec = specs_[index];
  return {spec.name, spec.type, spec.dims, block_.get() + offsets_[index], kind_->where()};
}
std::vector<tensor_view> model::views() const {
  std::vector<tensor_view> all;
  all.reserve(size());
  for (std::size_t i = 0; i < size(); ++i) all.push_back(view(i));
  return all;
}
void model::add_to(destinations& into) {
  for (std::size_t i = 0; i < size(); ++i) into.add(target(i));
}
destinations model::into() {
  destinations all;
  add_to(all);
  return all;
}

std::vector<std::byte> model::download() const {
  std::vector<std::byte> now(mirror_.size());
  kind_->read(now, block_.get());
  return now;
}
std::vector<std::byte> model::bytes(std::size_t index) const {
  std::vector<std::byte> now(sizes_[index]);
  kind_->read(now, block_.get() + offsets_[index]);
  return now;
}
std::vector<image> model::current() const {
  auto const now = download();
  std::vector<image> all;
  all.reserve(size());
  for (std::size_t i = 0; i < size(); ++i) {
    auto const first = now.begin() + std::ptrdiff_t(offsets_[i]);
    all.push_back(
        {specs_[i].name, specs_[i].type, specs_[i].dims, {first, first + std::ptrdiff_t(sizes_[i])}});
  }
  return all;
}
bool model::untouched() const { return download() == mirror_; }
bool model::guards_intact() const {
  auto const now = download();
  std::uint64_t at = 0;
  for (std::size_t i = 0; i <= size(); ++i) {
    std::uint64_t const end = i < size() ? offsets_[i] : now.size();
    if (!std::all_of(now.begin() + std::ptrdiff_t(at), now.begin() + std::ptrdiff_t(end),
                     [](std::byte b) { return b == guard; }))
      return false;
    if (i < size()) at = offsets_[i] + sizes_[i];
  }
  return true;
}

std::vector<image> model::images(std::span<tensor_view const> views) const {
  std::vector<image> all;
  all.reserve(views.size());
  for (auto const& view : views) {
    image one{std::string(view.name()), view.type(), view.dims(), {}};
    gather(view, mirror_.data() + (view.data() - block_.get()), one.bytes);
    all.push_back(std::move(one));
  }
  return all;
}

std::size_t model::find(std::string_view name) const {
  auto const found = index_.find(std::string(name));
  if (found == index_.end()) throw std::out_of_range("no tensor " + std::string(name));
  return found->second;
}

std::string difference(std::vector<image> const& wanted, model const& into) {
  if (!into.guards_intact()) return "bytes beside the tensors were written";
  auto const held = into.current();
  for (auto const& one : wanted)
    if (auto text = compare(one, held[into.find(one.name)].bytes); !text.empty()) return text;
  return {};
}

std::string difference(std::vector<image> const& wanted, std::vector<image> const& got) {
  if (wanted.size() != got.size())
    return std::to_string(got.size()) + " tensors, not " + std::to_string(wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i].name != got[i].name) return "tensor " + std::to_string(i) + " is " + got[i].name;
    if (wanted[i].type != got[i].type || wanted[i].dims != got[i].dims)
      return wanted[i].name + " came as " + std::string(name(got[i].type)) + to_string(got[i].dims);
    if (auto text = compare(wanted[i], got[i].bytes); !text.empty()) return text;
  }
  return {};
}

} // namespace ropeway::testing
